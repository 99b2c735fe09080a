"""Models of flax, equinox and haiku trained by our optimizers, as each library's own documentation
does it.
"""

from typing import Any

import chex
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import warmclip_jax as wc
from tests.problem import FEATURES, TARGETS, float64_norm

SCHEDULE = wc.warmup_cosine_decay(peak_value=0.05, total_steps=40, warmup_steps=2, init_value=0.02)
OPTIMIZER: Any = wc.pipeline(optax.adamw, SCHEDULE, max_norm=1.0)
NAN = jnp.full_like(FEATURES, jnp.nan)


@pytest.fixture(autouse=True)
def _their_layers_promote_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


def squared_error(predictions: jax.Array) -> jax.Array:
    return jnp.mean((predictions - TARGETS) ** 2)


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_a_linen_train_state_trains_and_a_bad_step_moves_no_parameter():
    model = nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(4)])
    params = model.init(jax.random.key(0), FEATURES)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=OPTIMIZER)
    state = state.replace(
        step=jnp.int32(state.step)
    )  # a Python number would become an array, and a second trace

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state: Any, features: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(lambda p: squared_error(state.apply_fn(p, features)))(
            state.params
        )
        return state.apply_gradients(grads=grads), loss

    losses = []
    for _ in range(30):
        state, loss = step(state, FEATURES)
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 2
    after, _ = step(state, NAN)
    for old, new in zip(leaves(state.params), leaves(after.params), strict=True):
        np.testing.assert_array_equal(new, old)
    known = wc.metrics(after.opt_state)
    # Its own counter is of calls; ours of updates made.
    assert (int(after.step), int(known["step"]), int(known["skipped_count"])) == (31, 30, 1)


def test_an_nnx_optimizer_trains_with_the_numbers_of_plain_optax():
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.inner = nnx.Linear(6, 16, rngs=rngs)
            self.outer = nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, features: jax.Array) -> jax.Array:
            return self.outer(nnx.tanh(self.inner(features)))

    @nnx.jit
    def step(model: Any, optimizer: Any, features: jax.Array) -> jax.Array:
        loss, grads = nnx.value_and_grad(lambda model: squared_error(model(features)))(model)
        optimizer.update(model, grads)
        return loss

    def train(transformation: Any, batches: Any) -> tuple[Any, Any, list[float]]:
        model = Model(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
        return model, optimizer, [float(step(model, optimizer, features)) for features in batches]

    model, optimizer, losses = train(OPTIMIZER, [FEATURES] * 30)
    plain, _, _ = train(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(SCHEDULE)), [FEATURES] * 30
    )
    assert losses[-1] < losses[0] / 2
    for ours, theirs in zip(leaves(nnx.state(model)), leaves(nnx.state(plain)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    known = wc.metrics(optimizer.opt_state)
    np.testing.assert_allclose(known["learning_rate"][...], SCHEDULE(29), rtol=1e-6)
    before = leaves(nnx.state(model))
    step(model, optimizer, NAN)
    for old, new in zip(before, leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(new, old)
    assert int(wc.metrics(optimizer.opt_state)["skipped_count"][...]) == 1


def test_an_equinox_model_whose_gradients_have_none_leaves_trains():
    model = eqx.nn.MLP(6, 4, 16, 1, activation=jnp.tanh, key=jax.random.key(0))
    opt_state = OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model: Any, opt_state: Any, features: jax.Array) -> Any:
        loss, grads = eqx.filter_value_and_grad(
            lambda model: squared_error(jax.vmap(model)(features))
        )(model)
        params, static = eqx.partition(model, eqx.is_inexact_array)
        params, opt_state = wc.apply_gradients(OPTIMIZER, params, opt_state, grads=grads)
        return eqx.combine(params, static), opt_state, loss, grads

    losses, grads = [], None
    for _ in range(30):
        model, opt_state, loss, grads = step(model, opt_state, FEATURES)
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 2
    assert None in jax.tree.leaves(grads, is_leaf=lambda leaf: leaf is None)
    np.testing.assert_allclose(wc.metrics(opt_state)["grad_norm"], float64_norm(grads), rtol=1e-6)
    after, opt_state, _, _ = step(model, opt_state, NAN)
    assert eqx.tree_equal(model, after)
    assert int(wc.metrics(opt_state)["skipped_count"]) == 1


def test_equinox_apply_updates_takes_our_updates_with_none_where_there_is_no_parameter():
    model = eqx.nn.MLP(6, 4, 16, 0, key=jax.random.key(0))
    grads = eqx.filter(
        jax.tree.map(lambda leaf: 100 * leaf if eqx.is_inexact_array(leaf) else leaf, model),
        eqx.is_array,
    )
    optimizer: Any = optax.chain(wc.clip_by_global_norm(1.0), optax.sgd(1.0))
    updates, _ = optimizer.update(grads, optimizer.init(eqx.filter(model, eqx.is_array)))
    moved = eqx.apply_updates(model, updates)
    norm = float64_norm(eqx.filter(model, eqx.is_array))
    np.testing.assert_allclose(
        moved.layers[0].weight, model.layers[0].weight * (1 - 1 / norm), rtol=1e-5
    )
    assert moved.activation is model.activation


def test_a_haiku_model_trains_and_each_of_its_modules_can_have_its_own_clip():
    network = hk.without_apply_rng(
        hk.transform(lambda features: hk.nets.MLP([16, 4], activation=jnp.tanh)(features))
    )
    params = network.init(jax.random.key(0), FEATURES)
    groups = hk.data_structures.map(lambda module, name, value: module.rpartition("/")[2], params)
    optimizer: Any = wc.skip_nonfinite(
        optax.partition(
            {
                group: wc.pipeline(optax.adamw, SCHEDULE, max_norm=0.5)
                for group in ("linear_0", "linear_1")
            },
            groups,
        )
    )

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params: Any, opt_state: Any, features: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(lambda p: squared_error(network.apply(p, features)))(
            params
        )
        return *wc.apply_gradients(optimizer, params, opt_state, grads=grads), loss, grads

    opt_state, losses, grads = optimizer.init(params), [], {}
    for _ in range(30):
        params, opt_state, loss, grads = step(params, opt_state, FEATURES)
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 2
    for group in ("linear_0", "linear_1"):
        np.testing.assert_allclose(
            wc.metrics(opt_state)[f"{group}/grad_norm"],
            float64_norm(grads[f"mlp/~/{group}"]),
            rtol=1e-6,
        )
    after, opt_state, _, _ = step(params, opt_state, NAN)
    for old, new in zip(leaves(params), leaves(after), strict=True):
        np.testing.assert_array_equal(new, old)
    assert int(wc.metrics(opt_state)["skipped_count"]) == 1
