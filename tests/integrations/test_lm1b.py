"""A language model in the manner of flax's example lm1b changes over in the middle of its run.

As there: parameters with logical axes laid over a mesh, weights of padding zero, AdamW behind a
warm-up and a reverse square root, nothing clipped, `flax.training.checkpoints`. Attention,
dropout, the data set and evaluation are left out.
"""

import functools
import pathlib
from typing import Any

import chex
import flax.linen as nn
import flax.linen.spmd
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import checkpoints, train_state
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import warmclip_jax as wc

VOCAB, WIDTH, HIDDEN, LENGTH, BATCH = 16, 8, 16, 6, 8
STEPS, CHANGE, WARMUP, PEAK = 8, 4, 3, 0.02
#: A logical axis, and the axis of the mesh that it lies over.
RULES = [("batch", "data"), ("vocab", "model"), ("mlp", "model"), ("embed", None)]
adamw = functools.partial(optax.adamw, b1=0.9, b2=0.98, eps=1e-9, weight_decay=0.1)


def partitioned(init: Any, *names: str) -> Any:
    return nn.with_logical_partitioning(init, names)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = nn.initializers.xavier_uniform()
        dense = functools.partial(nn.Dense, use_bias=False)
        one = partitioned(nn.initializers.ones, "embed")
        h = nn.LayerNorm(use_bias=False, scale_init=one)(x)
        h = nn.relu(dense(HIDDEN, kernel_init=partitioned(kernel, "embed", "mlp"), name="wi")(h))
        return x + dense(WIDTH, kernel_init=partitioned(kernel, "mlp", "embed"), name="wo")(h)


class LanguageModel(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        init = partitioned(nn.initializers.normal(1.0), "vocab", "embed")
        table = nn.Embed(VOCAB, WIDTH, embedding_init=init)
        shifted = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
        return table.attend(Block()(table(shifted))) / np.float32(np.sqrt(WIDTH))


MODEL = LanguageModel()


def batch_of(step: int) -> np.ndarray:
    """Sequences that count upwards, and end in padding."""
    draw = np.random.default_rng(step)
    starts, lengths = draw.integers(1, VOCAB, (BATCH, 1)), draw.integers(2, LENGTH + 1, (BATCH, 1))
    tokens = 1 + (starts + np.arange(LENGTH)) % (VOCAB - 1)
    return np.where(np.arange(LENGTH) < lengths, tokens, 0)


def loss_of(params: Any, tokens: jax.Array) -> jax.Array:
    logits: Any = MODEL.apply({"params": params}, tokens)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    weights = (tokens > 0).astype(jnp.float32)
    return jnp.sum(losses * weights) / jnp.sum(weights)


@jax.jit
def train_step(state: Any, tokens: jax.Array) -> Any:
    loss, grads = jax.value_and_grad(loss_of)(state.params, tokens)
    return state.apply_gradients(grads=grads), loss


def their_rate(count: Any) -> Any:
    return PEAK * jnp.minimum(count / WARMUP, jnp.sqrt(WARMUP / jnp.maximum(count, WARMUP)))


OUR_RATE = wc.with_warmup(
    wc.inverse_sqrt_decay(init_value=PEAK, timescale=WARMUP), warmup_steps=WARMUP
)
THEIRS = adamw(their_rate)
OURS: Any = wc.pipeline(
    adamw,
    OUR_RATE,
    max_norm={"experts": None, "rest": 100.0},
    groups=wc.label_by_path({"experts": r".*/w[io]/kernel"}),
    skip_above=wc.running_bound(deviations=6.0),
    record=STEPS,
)


class Example:
    """The example on a mesh, its parameters in their boxes."""

    def __init__(self) -> None:
        self.mesh = jax.make_mesh(
            (2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4]
        )
        self.whole = NamedSharding(self.mesh, P())

    def create(self, optimizer: Any) -> Any:
        def init() -> Any:
            variables = MODEL.init(jax.random.key(0), jnp.zeros((BATCH, LENGTH), jnp.int32))
            return train_state.TrainState.create(
                apply_fn=MODEL.apply, params=variables["params"], tx=optimizer
            )

        axes = nn.get_partition_spec(jax.eval_shape(init))
        shardings = flax.linen.spmd.logical_to_mesh_sharding(axes, self.mesh, RULES)
        return jax.jit(init, out_shardings=shardings)()

    def everywhere(self, state: Any) -> Any:
        """Puts on every device what is on none yet: a step's results are, and it is compiled once."""
        return jax.tree.map(
            lambda leaf: leaf if leaf.committed else jax.device_put(leaf, self.whole), state
        )

    def run(self, state: Any, steps: range) -> Any:
        rows = NamedSharding(self.mesh, P("data"))
        losses = []
        for step in steps:
            state, loss = train_step(state, jax.device_put(batch_of(step), rows))
            losses.append(float(loss))
        return state, losses


def test_lm1b_changes_over_at_its_checkpoint_and_ends_as_the_run_that_stayed(
    tmp_path: pathlib.Path,
):
    example = Example()
    start = example.create(THEIRS)
    halfway, before = example.run(start, range(CHANGE))
    checkpoints.save_checkpoint_multiprocess(tmp_path, halfway, CHANGE)
    stayed, losses = example.run(halfway, range(CHANGE, STEPS))
    assert losses[-1] < 0.8 * before[0]  # It learns.

    old = checkpoints.restore_checkpoint(tmp_path, start)
    adopted = wc.adopt_state(OURS, old.params, old.opt_state, step=old.step)
    moved = old.replace(tx=OURS, opt_state=example.everywhere(adopted))
    moved, ours = example.run(moved, range(CHANGE, STEPS))
    # Measured: the losses are equal, a parameter is off by 6e-8.
    np.testing.assert_allclose(ours, losses, rtol=1e-6)
    chex.assert_trees_all_close(
        *map(jax.tree.leaves, (moved.params, stayed.params)), rtol=0, atol=5e-7
    )
    known = wc.metrics(moved.opt_state)
    assert (int(known["calls"]), int(known["step"])) == (STEPS, STEPS)
    assert float(known["experts/grad_norm"]) > 0  # Paths end before the boxes.
    last = np.float32(their_rate(STEPS - 1))
    np.testing.assert_allclose(known["learning_rate"], last, rtol=1e-6)
    for name, spec in (("wi", P(None, "model")), ("wo", P("model"))):
        kernel = nn.unbox(moved.params)["Block_0"][name]["kernel"]
        assert kernel.sharding.is_equivalent_to(NamedSharding(example.mesh, spec), 2)
