"""An equinox loop: `eqx.filter_jit` around a step that takes the whole module, with functions among its leaves.

There: the state is made from `eqx.filter(model, eqx.is_inexact_array)`, and each update filters the
model again. `optax.apply_if_finite` leaves bad steps out, until there are more in a row than it was
told: then it lets one through.

Here: the whole module is handed over as the parameters, and comes back. A run of bad steps of any
length is left out; `consecutive_skips` says when to stop.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests.integrations.ported.agreement import Told, assert_alike, stacked

PEAK, WARMUP, TOTAL, BOUND = 2e-2, 4, 14, 1.0
CALLS, BAD = 20, (2, 7, 8)
ALLOWED = 3

SCHEDULE = wc.warmup_polynomial_decay(
    peak_value=PEAK, total_steps=TOTAL, warmup_steps=WARMUP, end_value=PEAK / 10
)
THEIR_SCHEDULE = optax.join_schedules(
    [
        optax.linear_schedule(0.0, PEAK, WARMUP),
        optax.linear_schedule(PEAK, PEAK / 10, TOTAL - WARMUP),
    ],
    [WARMUP],
)
adamw = functools.partial(optax.adamw, weight_decay=1e-2)
OURS: Any = wc.pipeline(adamw, SCHEDULE, max_norm=BOUND)
THEIRS: Any = optax.apply_if_finite(
    optax.chain(
        optax.clip_by_global_norm(BOUND),
        optax.inject_hyperparams(adamw)(learning_rate=THEIR_SCHEDULE),
    ),
    max_consecutive_errors=ALLOWED,
)


@pytest.fixture(autouse=True)
def _their_layers_promote_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


def make_model() -> Any:
    return eqx.nn.MLP(3, 2, width_size=8, depth=2, activation=jax.nn.gelu, key=jax.random.key(0))


def batches(calls: int, bad: Any) -> list[Any]:
    rng = np.random.default_rng(2)
    found = [rng.standard_normal((16, 3)).astype(np.float32) for _ in range(calls)]
    for call in bad:
        found[call][3, 1] = np.inf if call % 2 else np.nan
    return found


@eqx.filter_value_and_grad
def loss_and_grads(model: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((jax.vmap(model)(x) - 4 * jnp.sin(x[:, :2])) ** 2)


@eqx.filter_jit
def their_step(model: Any, state: Any, x: jax.Array) -> Any:
    loss, grads = loss_and_grads(model, x)
    updates, state = THEIRS.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    rate = state.inner_state[1].hyperparams["learning_rate"]
    told = Told(loss, optax.tree.norm(grads), rate, state.notfinite_count > 0)
    return eqx.apply_updates(model, updates), state, told


@eqx.filter_jit
def our_step(model: Any, state: Any, x: jax.Array) -> Any:
    loss, grads = loss_and_grads(model, x)
    model, state = wc.apply_gradients(OURS, model, state, grads=grads)
    known = wc.metrics(state)
    return (
        model,
        state,
        Told(loss, known["grad_norm"], known["learning_rate"], known["consecutive_skips"] > 0),
    )


def train(step: Any, optimizer: Any, stream: list[Any]) -> tuple[Any, Told]:
    model, told = make_model(), []
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    for x in stream:
        model, state, each = step(model, state, jnp.asarray(x))
        told.append(each)
    return model, stacked(told)


def arrays(model: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))]


def test_losses_norms_and_rates_are_those_of_optax_and_the_module_comes_back_whole():
    stream = batches(CALLS, BAD)
    their_model, theirs = train(their_step, THEIRS, stream)
    our_model, ours = train(our_step, OURS, stream)
    good = ~ours.skipped.astype(bool)
    np.testing.assert_array_equal(np.flatnonzero(~good), BAD)
    # An inf among the entries makes optax's norm inf or NaN by what stands beside it.
    assert_alike(
        *(
            Told(side.loss[good], side.norm[good], side.rate, side.skipped)
            for side in (ours, theirs)
        )
    )
    assert not np.isfinite(ours.norm[~good]).any()
    for mine, other in zip(arrays(our_model), arrays(their_model), strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-5, atol=2e-6)
    assert np.min(ours.norm[good]) < BOUND < np.max(ours.norm[good])
    assert our_model.activation is make_model().activation


def test_after_a_long_run_of_bad_steps_optax_has_let_one_through_and_ours_has_not():
    stream = batches(ALLOWED + 3, range(1, ALLOWED + 2))
    their_model, _ = train(their_step, THEIRS, stream)
    our_model, ours = train(our_step, OURS, stream)
    assert all(np.isnan(leaf).any() for leaf in arrays(their_model))
    without, _ = train(our_step, OURS, [stream[0], stream[-1]])
    assert eqx.tree_equal(our_model, without)
    assert ours.skipped.tolist() == [0, *[1] * (ALLOWED + 1), 0]
