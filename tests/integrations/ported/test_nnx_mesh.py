"""An nnx model with sharded parameters on a 2 by 2 mesh of explicit axes, trained through `nnx.Optimizer`.

There: `optax.apply_if_finite` around the chain, and `optax.inject_hyperparams` so that the rate can
be logged. A second sum of squares is read for the norm in the log. After a few bad steps in a row
`apply_if_finite` lets one through.

Here: one pipeline. Norm, rate and skips come from its state; nothing is said of the mesh. A bad
step is never let through.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import warmclip_jax as wc
from tests.integrations.ported.agreement import Told, assert_alike, stacked

#: Some steps are clipped and some are not: Adam would not see a constant factor.
PEAK, WARMUP, TOTAL, BOUND = 3e-2, 3, 9, 2.5
CALLS, BAD = 14, (4, 9)  # to beyond the end of the schedule
IN, HIDDEN, OUT = 8, 16, 4


@pytest.fixture
def mesh() -> Any:
    return jax.make_mesh(
        (2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:4]
    )


class Mlp(nnx.Module):
    """Columns of the first kernel and rows of the second lie along "model", rows of the first along
    "data" too.
    """

    def __init__(self, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        self.up = nnx.Param(init(rngs.params(), (IN, HIDDEN)), out_sharding=P("data", "model"))
        self.bias = nnx.Param(jnp.zeros(HIDDEN), out_sharding=P("model"))
        self.down = nnx.Param(init(rngs.params(), (HIDDEN, OUT)), out_sharding=P("model", None))

    def __call__(self, x: jax.Array) -> jax.Array:
        up = jax.reshard(self.up[...], P(None, "model"))
        hidden = jnp.einsum("bi,ih->bh", x, up, out_sharding=P("data", "model"))
        hidden = jnp.tanh(hidden + self.bias[...][None, :])
        return jnp.einsum("bh,ho->bo", hidden, self.down[...], out_sharding=P("data", None))


def batches() -> list[Any]:
    rng = np.random.default_rng(1)
    found = [rng.standard_normal((8, IN)).astype(np.float32) for _ in range(CALLS)]
    for call in BAD:
        found[call][-1, 0] = np.nan
    return found


def loss_and_grads(model: Any, x: jax.Array) -> Any:
    def loss_of(model: Any) -> jax.Array:
        return jnp.mean((model(x) - 3 * jnp.sin(x[:, :OUT])) ** 2)

    return nnx.value_and_grad(loss_of)(model)


def their_optimizer() -> Any:
    schedule = optax.warmup_cosine_decay_schedule(0.0, PEAK, WARMUP, TOTAL, PEAK / 10)
    adamw = optax.inject_hyperparams(functools.partial(optax.adamw, weight_decay=1e-2))(
        learning_rate=schedule
    )
    return optax.apply_if_finite(
        optax.chain(optax.clip_by_global_norm(BOUND), adamw), max_consecutive_errors=5
    )


@nnx.jit
def their_step(model: Any, trainer: Any, x: jax.Array) -> Told:
    loss, grads = loss_and_grads(model, x)
    trainer.update(model, grads)
    state = trainer.opt_state
    rate = state.inner_state[1].hyperparams["learning_rate"][...]
    return Told(loss, optax.tree.norm(jax.tree.leaves(grads)), rate, state.notfinite_count[...] > 0)


def our_optimizer() -> Any:
    schedule = wc.warmup_cosine_decay(
        peak_value=PEAK, total_steps=TOTAL, warmup_steps=WARMUP, end_value=PEAK / 10
    )
    return wc.pipeline(functools.partial(optax.adamw, weight_decay=1e-2), schedule, max_norm=BOUND)


@nnx.jit
def our_step(model: Any, trainer: Any, x: jax.Array) -> Told:
    loss, grads = loss_and_grads(model, x)
    trainer.update(model, grads)
    known = wc.metrics(trainer)
    return Told(loss, known["grad_norm"], known["learning_rate"], known["consecutive_skips"] > 0)


def train(mesh: Any, step: Any, optimizer: Any) -> tuple[Any, Told]:
    with jax.set_mesh(mesh):
        model = Mlp(nnx.Rngs(0))
        trainer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
        told = [step(model, trainer, jax.device_put(x, P("data"))) for x in batches()]
    return model, stacked(told)


def test_losses_norms_and_rates_are_those_of_optax_and_the_shards_stay(mesh: Any):
    their_model, theirs = train(mesh, their_step, their_optimizer())
    our_model, ours = train(mesh, our_step, our_optimizer())
    assert_alike(ours, theirs)
    np.testing.assert_array_equal(np.flatnonzero(ours.skipped), BAD)
    assert np.nanmin(ours.norm) < BOUND < np.nanmax(ours.norm)
    for name in ("up", "bias", "down"):
        mine, other = getattr(our_model, name)[...], getattr(their_model, name)[...]
        assert jax.typeof(mine) == jax.typeof(other)
        assert mine.addressable_shards[0].data.size < mine.size
        np.testing.assert_allclose(mine, other, rtol=2e-5, atol=2e-6)
