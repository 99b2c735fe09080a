"""A classifier in the manner of flax's example imagenet changes over in the middle of its run.

As there: `pmap` over devices, batch statistics of each device in the train state and their mean
before a checkpoint, Nesterov's momentum behind a warm-up and a cosine, decay of kernels in the
loss, the first replica saved by `flax.training.checkpoints`. The gradients are clipped, which the
example does not.
"""

import functools
import pathlib
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import jax_utils
from flax.training import checkpoints, train_state

import warmclip_jax as wc

DEVICES, IMAGES, SIDE, CLASSES = 2, 4, 6, 3
STEPS, CHANGE, WARMUP, PEAK, BOUND = 8, 4, 2, 0.2, 0.5
momentum = functools.partial(optax.sgd, momentum=0.9, nesterov=True)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=False, momentum=0.9)(x)
        return nn.Dense(CLASSES)(jnp.mean(nn.relu(x), axis=(1, 2)))


class TrainState(train_state.TrainState):
    batch_stats: Any


MODEL = Net()
#: As optax has it, and as it is here.
THEIRS = optax.chain(
    optax.clip_by_global_norm(BOUND),
    momentum(optax.warmup_cosine_decay_schedule(0.0, PEAK, WARMUP, STEPS)),
)
#: Every device has the mean gradient: there is nothing to add up.
OURS: Any = wc.pipeline(
    momentum,
    wc.warmup_cosine_decay(peak_value=PEAK, total_steps=STEPS, warmup_steps=WARMUP),
    max_norm=BOUND,
    axis_name=(),
    record=STEPS,
    record_leaves=True,
)


def batch_of(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of noise around the colour of their class."""
    draw = np.random.default_rng(step)
    labels = draw.integers(0, CLASSES, (DEVICES, IMAGES))
    noise = draw.standard_normal((*labels.shape, SIDE, SIDE, CLASSES), np.float32)
    return noise + 4 * np.eye(CLASSES, dtype=np.float32)[labels][:, :, None, None], labels


@jax.jit
def variables_at_start() -> Any:
    return MODEL.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, CLASSES)))


def create(optimizer: Any) -> TrainState:
    variables = variables_at_start()
    return TrainState.create(
        apply_fn=MODEL.apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        tx=optimizer,
    )


@functools.partial(jax.pmap, axis_name="batch", devices=jax.devices()[:DEVICES])
def train_step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
    def loss_of(params: Any) -> Any:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, changed = MODEL.apply(variables, images, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        decayed = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
        return loss + 0.5 * 1e-4 * decayed, changed["batch_stats"]

    (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    loss, grads = jax.lax.pmean((loss, grads), "batch")
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), loss


cross_replica_mean = jax.pmap(
    lambda tree: jax.lax.pmean(tree, "x"), "x", devices=jax.devices()[:DEVICES]
)


def run(state: TrainState, steps: range) -> tuple[TrainState, list[float]]:
    """The state on one device after some steps on all, with the mean of their statistics."""
    losses = []
    state = jax_utils.replicate(state, jax.devices()[:DEVICES])
    for step in steps:
        state, loss = train_step(state, *batch_of(step))
        losses.append(float(loss[0]))
    state = state.replace(batch_stats=cross_replica_mean(state.batch_stats))
    return jax_utils.unreplicate(state), losses


def test_imagenet_changes_over_at_its_checkpoint_and_ends_as_the_run_that_stayed(
    tmp_path: pathlib.Path,
):
    halfway, before = run(create(THEIRS), range(CHANGE))
    checkpoints.save_checkpoint_multiprocess(tmp_path, halfway, CHANGE, keep=3)
    stayed, losses = run(halfway, range(CHANGE, STEPS))
    assert losses[-1] < before[0]  # It learns.

    old = checkpoints.restore_checkpoint(tmp_path, create(THEIRS))
    adopted = wc.adopt_state(OURS, old.params, old.opt_state, step=old.step)
    moved, ours = run(old.replace(tx=OURS, opt_state=adopted), range(CHANGE, STEPS))
    # Measured: a loss is off by 1.8e-7 of itself, a parameter or statistic by 1.2e-7.
    np.testing.assert_allclose(ours, losses, rtol=1e-6)
    for tree in ("params", "batch_stats"):
        chex.assert_trees_all_close(getattr(moved, tree), getattr(stayed, tree), atol=1e-6)
    known = wc.metrics(moved.opt_state)
    assert 0 < int(known["clipped_count"]) < STEPS - CHANGE
    assert (int(known["calls"]), int(known["step"])) == (STEPS, STEPS)
    np.testing.assert_array_equal(wc.records(moved.opt_state)["call"], range(CHANGE, STEPS))
    assert f"Not known: what happened before the change-over at call {CHANGE}." in wc.report(
        moved.opt_state
    )
