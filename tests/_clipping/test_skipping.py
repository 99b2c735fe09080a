import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests.compiled import temporaries
from tests.runs import run

GOOD = {"w": jnp.arange(-3.0, 3.0), "b": jnp.array([0.5, -2.0], jnp.bfloat16)}
BAD = [{**GOOD, "w": GOOD["w"].at[2].set(value)} for value in (np.nan, np.inf, -np.inf)]
PARAMS = jax.tree.map(jnp.ones_like, GOOD)


def by_update(optimizer: Any, params: Any, state: Any, *, grads: Any) -> Any:
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def trained(step: Any, optimizer: Any, stream: Any) -> Any:
    params, state = PARAMS, optimizer.init(PARAMS)
    for grads in stream:
        params, state = step(params, state, grads=grads)
    return params, state


@pytest.mark.parametrize("by", [by_update, wc.apply_gradients])
@pytest.mark.parametrize(
    "optimizer",
    [wc.skip_nonfinite(optax.adam(0.1)), wc.pipeline(optax.adam, 0.1, max_norm=0.5)],
    ids=["guard", "pipeline"],
)
def test_bad_steps_leave_no_trace_in_the_parameters(by, optimizer):
    eager = functools.partial(by, optimizer)
    for step in (jax.jit(eager), eager):
        with_bad, after = trained(step, optimizer, [GOOD, BAD[0], GOOD, BAD[1], BAD[2], GOOD])
        without, before = trained(step, optimizer, [GOOD] * 3)
        chex.assert_trees_all_equal(with_bad, without)
        chex.assert_trees_all_equal(after.inner_state, before.inner_state)
        assert not np.array_equal(without["w"], PARAMS["w"])
        assert (int(before.skipped_count), int(after.skipped_count)) == (0, 3)


def test_a_finite_gradient_whose_norm_is_not_representable_is_no_bad_step():
    optimizer: Any = wc.skip_nonfinite(optax.sgd(1e-37))
    huge = jnp.full(64, 3e38)
    updates, state = optimizer.update(huge, optimizer.init(huge), huge)
    assert int(state.skipped_count) == 0
    np.testing.assert_allclose(updates, np.full(64, -30.0), rtol=1e-6)


def test_bad_steps_are_counted_up_to_the_largest_int32_and_no_further():
    optimizer: Any = wc.skip_nonfinite(optax.sgd(0.1))
    state = optimizer.init(PARAMS)._replace(skipped_count=jnp.int32(2**31 - 2))
    for _ in range(3):
        _, state = optimizer.update(BAD[0], state, PARAMS)
    assert int(state.skipped_count) == 2**31 - 1


def test_the_guard_counts_what_is_not_finite_apart_from_what_is_too_large_and_keeps_the_leaves_of_each():
    guard: Any = wc.skip_nonfinite(optax.sgd(0.1), above=10.0, record=1, record_leaves=True)
    assert int(guard.init(PARAMS).last_skipped_call) == -1
    _, state = run(guard, [GOOD, BAD[0], GOOD, jax.tree.map(lambda g: 7 * g, GOOD), GOOD], PARAMS)
    assert [
        int(count) for count in (state.skip_calls, state.nonfinite_count, state.skipped_count)
    ] == [5, 1, 2]
    assert [
        int(call)
        for call in (state.last_skipped_call, state.leaves.bad_call, state.leaves.spike_call)
    ] == [3, 1, 3]
    assert wc.records(state)["call"].tolist() == [4]
    in_a_row = []
    after = state
    for grads in (BAD[1], BAD[2], GOOD):
        _, after = guard.update(grads, after, PARAMS)
        in_a_row.append(int(after.consecutive_skips))
    assert in_a_row == [1, 2, 0]
    np.testing.assert_allclose(
        state.leaves.spike_leaf_norms, 7 * state.leaves.leaf_norms, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("optimizer", "start"),
    [
        (optax.adam(0.1), PARAMS),
        (optax.MultiSteps(optax.sgd(0.1), 2), PARAMS),
        (optax.chain(optax.sgd(0.1)), PARAMS),
        (optax.lookahead(optax.sgd(0.1), 5, 0.5), optax.LookaheadParams.init_synced(PARAMS)),
    ],
)
def test_apply_gradients_takes_any_optax_optimizer(optimizer, start):
    params, state = wc.apply_gradients(optimizer, start, optimizer.init(start), grads=GOOD)
    updates, expected_state = optimizer.update(GOOD, optimizer.init(start), start)
    chex.assert_trees_all_equal(params, optax.apply_updates(start, updates))
    chex.assert_trees_all_equal(state, expected_state)


def test_apply_gradients_keeps_dtypes_and_leaves_a_parameter_without_an_update_as_it_is():
    params = {"w": jnp.ones(2, jnp.bfloat16), "activation": jax.nn.relu}
    grads: Any = {"w": jnp.ones(2), "activation": None}
    new, _ = wc.apply_gradients(optax.sgd(0.5), params, (optax.EmptyState(),) * 2, grads=grads)
    assert new["activation"] is jax.nn.relu
    assert new["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(new["w"], [0.5, 0.5])


@pytest.mark.parametrize(
    "optimizer",
    [
        wc.skip_nonfinite(optax.adam(0.1)),
        optax.chain(wc.skip_nonfinite(optax.adam(0.1)), optax.scale(0.5)),
    ],
    ids=["guard", "in_a_chain"],
)
def test_a_step_that_may_be_left_out_keeps_no_copy_of_parameters_state_or_updates(optimizer):
    params = {"w": jnp.ones((512, 512)), "v": jnp.ones((512, 512))}
    state = optimizer.init(params)
    donated = jax.jit(functools.partial(wc.apply_gradients, optimizer), donate_argnums=(0, 1))
    compiled = donated.lower(params, state, grads=params).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert temporaries(compiled, params.values()) < params["w"].nbytes / 10
    assert memory.alias_size_in_bytes >= sum(
        leaf.nbytes for leaf in jax.tree.leaves((params, state)) if leaf.ndim
    )


def with_rate(rate: Any) -> tuple[Any, ...]:
    return (
        wc.skip_nonfinite(optax.sgd(rate)),
        wc.skip_nonfinite(optax.adam(rate)),
        wc.pipeline(optax.sgd, lambda step: rate / (1 + step)),
        wc.pipeline(optax.sgd, 0.1, max_norm=lambda step: 3 * rate),
    )


@pytest.mark.parametrize(
    ("derivative", "which"), [*((jax.jacrev, which) for which in range(1, 4)), (jax.jacfwd, 1)]
)
def test_a_derivative_goes_past_a_step_left_out(derivative, which):
    def after(rate, stream):
        optimizer = with_rate(rate)[which]
        step = functools.partial(wc.apply_gradients, optimizer)
        return trained(step, optimizer, stream)[0]["w"]

    at = functools.partial(jax.jit(derivative(after)), jnp.float32(0.3))
    expected = at([GOOD, GOOD])
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(at([GOOD, BAD[0], GOOD]), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("derivative", "build"),
    [(jax.jacrev, wc.skip_nonfinite), (jax.jacrev, None), (jax.jacfwd, None)],
)
def test_a_derivative_by_what_a_bad_gradient_was_made_of_is_that_of_the_good_steps(
    build, derivative
):
    optimizer = build(optax.sgd(0.1)) if build else wc.pipeline(optax.sgd, 0.1, max_norm=3.0)

    def after(scale, offsets, count):
        params = {**PARAMS, "count": count}
        state = optimizer.init(params)
        for offset in offsets:
            grads = jax.tree.map(lambda g, o: (g * scale + o).astype(g.dtype), GOOD, offset)
            params, state = wc.apply_gradients(
                optimizer, params, state, grads={**grads, "count": count}
            )
        return params["w"]

    zeros = jax.tree.map(jnp.zeros_like, GOOD)
    bad = jax.tree.map(lambda zero: zero.at[-1].set(jnp.nan), zeros)
    at = functools.partial(jax.jit(derivative(after)), jnp.float32(0.3))
    expected = at([zeros, zeros], jnp.int32(0))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(at([zeros, bad, zeros], jnp.int32(0)), expected, rtol=1e-6)


def test_the_optimizer_in_a_guard_is_handed_a_bad_gradient_as_it_is():
    seen: list[Any] = []

    def update(updates, state, params=None):
        jax.debug.callback(seen.append, updates["w"])
        return updates, state

    guard = wc.skip_nonfinite(optax.GradientTransformation(lambda params: (), update))
    jax.jit(guard.update)(BAD[0], guard.init(PARAMS))
    jax.effects_barrier()
    np.testing.assert_array_equal(seen, [BAD[0]["w"]])


def test_the_accumulator_of_multi_steps_is_protected_only_from_outside():
    stream = [GOOD, BAD[0], GOOD, GOOD]
    outside, _ = run(
        wc.skip_nonfinite(optax.MultiSteps(wc.pipeline(optax.sgd, 0.1), 2)), stream, PARAMS
    )
    inside, _ = run(optax.MultiSteps(wc.pipeline(optax.sgd, 0.1), 2), stream, PARAMS)
    assert np.isfinite(outside["w"]).all()
    assert not np.array_equal(outside["w"], PARAMS["w"])
    # The NaN was accumulated before the pipeline saw anything, so its step is skipped with the good
    # gradient in it.
    np.testing.assert_array_equal(inside["w"], PARAMS["w"])


@pytest.mark.parametrize("jit", [jax.jit, lambda function: function], ids=["jit", "eager"])
def test_a_state_that_changes_its_structure_is_refused(jit):
    growing = optax.GradientTransformation(
        lambda params: (), lambda updates, state, params=None: (updates, (*state, 1.0))
    )
    guard: Any = wc.skip_nonfinite(growing)
    state = guard.init(BAD[0])
    with pytest.raises(TypeError, match="a state of the structure it was given"):
        jit(guard.update)(BAD[0], state)


@pytest.mark.parametrize(
    "optimizer", [wc.skip_nonfinite(optax.adam(0.1)), wc.pipeline(optax.adam, 0.1)]
)
def test_steps_outside_of_jit_compile_nothing_anew(optimizer):
    def steps():
        params, state = PARAMS, optimizer.init(PARAMS)
        for grads in (GOOD, BAD[0], GOOD):
            params, state = wc.apply_gradients(optimizer, params, state, grads=grads)

    steps()
    compiled = []

    def listener(event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        steps()
        assert compiled == []
        jax.jit(lambda x: x + len(compiled))(1)
        assert compiled != []  # so that a renamed event does not pass for none
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
