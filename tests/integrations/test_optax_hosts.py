"""The pipeline with optax's optimizers, and inside of what optax offers to put around a
transformation.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests.problem import FEATURES, PARAMS, TARGETS, loss_of

SCHEDULE = wc.warmup_cosine_decay(peak_value=0.1, total_steps=40, warmup_steps=2, init_value=0.05)
NAN = jnp.full_like(FEATURES, jnp.nan)


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.5, nesterov=True),
    "adamw": functools.partial(optax.adamw, weight_decay=1e-4),
    "lion": functools.partial(optax.lion, weight_decay=0.0),
    "adafactor": functools.partial(
        optax.adafactor, min_dim_size_to_factor=4, multiply_by_parameter_scale=False
    ),
    "muon": optax.contrib.muon,
    "schedule_free_adamw": optax.contrib.schedule_free_adamw,
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@functools.cache
def step_of(optimizer: Any, loss: Any) -> Any:
    @jax.jit
    def step(params: Any, state: Any, features: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, features)
        return *wc.apply_gradients(optimizer, params, state, grads=grads), value

    return step


def train(
    optimizer: Any, batches: Any, params: Any = PARAMS, loss: Any = loss_of
) -> tuple[Any, Any, list[float]]:
    """One step for each of some batches of features, all through one trace and with one shape of
    state.
    """
    step, state, losses = step_of(optimizer, loss), optimizer.init(params), []
    before = state
    for features in batches:
        params, state, value = step(params, state, features)
        losses.append(float(value))
    assert step._cache_size() == 1
    chex.assert_trees_all_equal_structs(before, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(before, state)
    return params, state, losses


@functools.cache
def pipeline(name: str, max_norm: float = 0.8) -> Any:
    return wc.pipeline(OPTIMIZERS[name], SCHEDULE, max_norm=max_norm)


@every_optimizer
def test_it_trains_as_with_optax_alone_clips_at_first_and_a_nan_step_never_came(name: str):
    # Muon's iteration magnifies roundings, from step to step.
    steps, atol = (2, 2e-5) if name == "muon" else (6, 1e-7)
    plain = optax.chain(optax.clip_by_global_norm(0.8), OPTIMIZERS[name](SCHEDULE))
    ours, _, _ = train(pipeline(name), [FEATURES] * steps)
    chex.assert_trees_all_close(ours, train(plain, [FEATURES] * steps)[0], rtol=2e-5, atol=atol)

    _, state, losses = train(pipeline(name), [FEATURES] * 40)
    assert losses[-1] < losses[0] / 4
    known = wc.metrics(state)
    assert 0 < int(known["clipped_count"]) < int(known["step"]) == 40
    assert float(known["clip_coef"]) == 1.0
    np.testing.assert_allclose(known["learning_rate"], SCHEDULE(39), rtol=1e-6)

    with_bad, state, _ = train(pipeline(name), [FEATURES, NAN, FEATURES, FEATURES])
    without, expected, _ = train(pipeline(name), [FEATURES] * 3)
    chex.assert_trees_all_equal(with_bad, without)
    chex.assert_trees_all_equal(state.inner_state, expected.inner_state)
    assert int(wc.metrics(state)["skipped_count"]) == 1
    # Optax finds and sets our fields by name.
    assert float(optax.tree.get(state, "grad_norm")) == float(wc.metrics(state)["grad_norm"]) > 0
    changed = optax.tree.set(state, grad_norm=jnp.float32(7.0))
    assert float(wc.metrics(changed)["grad_norm"]) == 7.0


def test_multi_steps_of_half_batches_are_steps_of_whole_ones():
    halves = [(FEATURES[:16], TARGETS[:16]), (FEATURES[16:], TARGETS[16:])] * 3
    optimizer: Any = wc.skip_nonfinite(optax.MultiSteps(pipeline("adamw"), 2))
    params, state, _ = train(optimizer, halves, loss=lambda params, half: loss_of(params, *half))
    expected, _, _ = train(pipeline("adamw"), [FEATURES] * 3)
    chex.assert_trees_all_close(params, expected, rtol=2e-5, atol=1e-6)
    assert int(wc.metrics(state)["step"]) == 3


def _always(step: Any, **extra: Any) -> Any:
    del extra
    return step >= 0


#: Others are rows of test_clients.py.
HOSTS: dict[str, Callable[[Any], Any]] = {
    "named_chain": lambda ours: optax.named_chain(("first", optax.identity()), ("ours", ours)),
    "conditionally_transform": lambda ours: optax.conditionally_transform(ours, _always),
    "flatten": optax.flatten,
}


@pytest.mark.parametrize("host", HOSTS)
def test_inside_of_a_host_the_numbers_counts_and_skipped_steps_are_the_same(host: str):
    batches = [FEATURES, FEATURES, NAN, FEATURES, FEATURES]
    bare, expected, _ = train(pipeline("adamw"), batches)
    params, state, _ = train(HOSTS[host](pipeline("adamw")), batches)
    chex.assert_trees_all_close(params, bare, rtol=2e-5, atol=1e-7)
    known = {key: float(value) for key, value in wc.metrics(state).items()}
    assert known["step"] == 4
    assert (known["nonfinite_count"], known["clipped_count"]) == (
        1,
        int(wc.metrics(expected)["clipped_count"]),
    )
    assert known["skipped_count"] == 1


@functools.cache
def jitted_update(optimizer: Any) -> Any:
    return jax.jit(
        lambda params, state, grads: wc.apply_gradients(optimizer, params, state, grads=grads)
    )


@pytest.mark.parametrize(
    "inside", [True, False], ids=["the pipeline in lookahead", "lookahead in the pipeline"]
)
def test_lookahead_trains_and_moves_its_slow_parameters_at_each_sync(inside: bool):
    def fast(rate: Any) -> Any:
        optimizer = wc.pipeline(optax.adam, rate, max_norm=0.8) if inside else optax.adam(rate)
        return optax.lookahead(optimizer, sync_period=5, slow_step_size=0.5)

    optimizer: Any = fast(SCHEDULE) if inside else wc.pipeline(fast, SCHEDULE, max_norm=0.8)
    start = optax.LookaheadParams.init_synced(PARAMS)
    plain: Any = optax.lookahead(
        optax.chain(optax.clip_by_global_norm(0.8), optax.adam(SCHEDULE)), 5, 0.5
    )

    def run(optimizer: Any, steps: int) -> Any:
        params, state = start, optimizer.init(start)
        grad, update = jax.jit(jax.grad(loss_of)), jitted_update(optimizer)
        for _ in range(steps):
            params, state = update(params, state, grad(params.fast))
        return params, state

    early, _ = run(optimizer, 4)
    chex.assert_trees_all_equal(early.slow, PARAMS)
    params, state = run(optimizer, 10)
    chex.assert_trees_all_close(params, run(plain, 10)[0], rtol=2e-5, atol=1e-7)
    assert float(loss_of(params.slow)) < float(loss_of(PARAMS)) / 2
    assert int(wc.metrics(state)["step"]) == 10


TWICE = optax.MultiSteps(wc.pipeline(optax.sgd, SCHEDULE, max_norm=0.8), 2)
NESTED: dict[str, Any] = {
    "outside": wc.skip_nonfinite(optax.MultiSteps(TWICE.gradient_transformation(), 3)),
    "between": optax.MultiSteps(wc.skip_nonfinite(TWICE), 3),
    "none": optax.MultiSteps(TWICE.gradient_transformation(), 3),
}


@pytest.mark.parametrize(("guard", "calls"), [("outside", 14), ("between", 4), ("none", 2)])
def test_multi_steps_in_multi_steps_count_each_what_they_are_given(guard: str, calls: int):
    """Of 14 calls, 12 are 4 calls of the inner one, and these are 2 updates."""
    optimizer, grads = NESTED[guard], jax.tree.map(jnp.ones_like, PARAMS)
    state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
    for _ in range(14):
        _, state = update(grads, state, PARAMS)
    known = wc.metrics(state)
    assert (int(known["calls"]), int(known["step"])) == (calls, 2)
    np.testing.assert_allclose(known["learning_rate"], SCHEDULE(1), rtol=1e-6)
    for step in {2, 4, calls}:
        chex.assert_trees_all_equal(wc.adopt_state(optimizer, PARAMS, state, step=step), state)
    with pytest.raises(ValueError, match=r"^adopt_state: step must be .*; got 7, and the nearest"):
        wc.adopt_state(optimizer, PARAMS, state, step=7)


def test_two_guards_around_two_multi_steps_are_refused_by_metrics_in_one_sentence():
    state = wc.skip_nonfinite(NESTED["between"]).init(PARAMS)
    with pytest.raises(ValueError, match=r"^metrics: metrics must have names of their own; "):
        wc.metrics(state)
