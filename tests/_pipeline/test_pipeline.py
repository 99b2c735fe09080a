import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests.runs import COUNTS, NAN, PARAMS, SCHEDULE, counts, gradients, run


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        (optax.adamw, SCHEDULE),
        (functools.partial(optax.sgd, momentum=0.9), optax.linear_schedule(0.1, 0.0, 9)),
        (optax.lion, 0.05),
    ],
)
def test_the_pipeline_is_the_chain_to_the_last_bit(optimizer, schedule):
    stream = [gradients(step) for step in range(8)]
    ours, _ = run(wc.pipeline(optimizer, schedule, max_norm=0.7, nonfinite="propagate"), stream)
    chained, _ = run(optax.chain(wc.clip_by_global_norm(0.7), optimizer(schedule)), stream)
    chex.assert_trees_all_equal(ours, chained)


@pytest.mark.parametrize("nonfinite", ["skip", "zero"])
def test_the_other_policies_change_well_behaved_steps_by_rounding_only(nonfinite):
    stream = [gradients(step) for step in range(8)]
    optimizer: Any = wc.pipeline(optax.adamw, SCHEDULE, max_norm=0.7, nonfinite=nonfinite)
    ours, state = run(optimizer, stream)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, optimizer.init(PARAMS))
    chained, _ = run(optax.chain(wc.clip_by_global_norm(0.7), optax.adamw(SCHEDULE)), stream)
    chex.assert_trees_all_close(ours, chained, rtol=2e-6)


def test_nothing_is_recorded_unless_it_is_asked_for():
    state: Any = wc.pipeline(optax.sgd, 0.1).init(PARAMS)
    assert (state.ring, state.skip_history, state.clip_state.leaves) == ((), (), ())


def test_propagate_makes_every_parameter_nan_and_zero_makes_a_step_of_zeros():
    bad = [{**gradients(0), "b": NAN["b"]}]
    expected_of: dict[Any, Any] = {"propagate": NAN, "zero": PARAMS}
    for nonfinite, expected in expected_of.items():
        optimizer: Any = wc.pipeline(optax.sgd, 0.1, nonfinite=nonfinite)
        params, state = run(optimizer, bad)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, optimizer.init(PARAMS))
        chex.assert_trees_all_equal(params, expected)
        assert counts(state) == dict(zip(COUNTS, (1, 0, 1, 0), strict=True))


def test_a_max_norm_schedule_is_given_the_steps_taken():
    bounds = wc.polynomial_decay(init_value=2.0, end_value=0.5, decay_steps=3)
    optimizer: Any = wc.pipeline(optax.sgd, 1.0, max_norm=bounds)
    big = jax.tree.map(lambda p: 100 * p, PARAMS)
    state = optimizer.init(PARAMS)
    for grads, bound in ((big, 2.0), (NAN, None), (big, 1.5), (big, 1.0)):
        updates, state = optimizer.update(grads, state, PARAMS)
        if bound is not None:
            np.testing.assert_allclose(wc.global_norm(updates), bound, rtol=1e-6)


def test_no_field_of_ours_shadows_one_that_optax_is_searched_for():
    _, state = run(
        wc.pipeline(optax.inject_hyperparams(optax.sgd, hyperparam_dtype=jnp.float32), 0.25),
        [gradients(0)],
    )
    assert float(optax.tree.get(state, "learning_rate")) == 0.25
    assert int(optax.tree.get(state, "count")) == 1


def injected(rate: Any) -> Any:
    return optax.inject_hyperparams(optax.sgd)(learning_rate=rate)


#: Optimizers of two parts of the parameters, the rate, one that is set, and the rate that both
#: parts then use, if it is one.
PARTS: dict[str, tuple[Any, Any, Any, float]] = {
    "equal": (lambda rate: (injected(rate), optax.sgd(rate)), 0.5, None, 0.5),
    "equal by a schedule": (
        lambda rate: (injected(rate), optax.sgd(rate)),
        optax.constant_schedule(0.5),
        None,
        0.5,
    ),
    "one is set": (lambda rate: (injected(rate), optax.sgd(rate)), 0.5, 0.25, np.nan),
    "one is another": (lambda rate: (injected(0.25), optax.sgd(rate)), 0.5, None, np.nan),
    "both are set apart": (lambda rate: (injected(rate), injected(10 * rate)), 0.5, None, np.nan),
    "a schedule beside another": (
        lambda rate: (injected(0.25), optax.adam(rate)),
        optax.constant_schedule(0.5),
        None,
        np.nan,
    ),
    "two in one part": (
        lambda rate: (
            optax.masked(optax.chain(injected(0.25)), {"w": True, "b": False}),
            optax.sgd(rate),
        ),
        0.5,
        None,
        np.nan,
    ),
    "the other is frozen": (lambda rate: (injected(rate), optax.set_to_zero()), 0.5, 0.25, 0.25),
    "both in one injection": (
        lambda rate: (
            optax.inject_hyperparams(
                lambda learning_rate: optax.masked(
                    optax.sgd(learning_rate), {"w": True, "b": False}
                )
            )(learning_rate=rate),
            optax.set_to_zero(),
        ),
        0.5,
        0.25,
        0.25,
    ),
}


@pytest.mark.parametrize("combine", ["partition", "masked"])
@pytest.mark.parametrize("parts", PARTS)
def test_the_rate_of_two_parts_is_known_where_it_is_one(parts: str, combine: str):
    build, rate, changed, expected = PARTS[parts]

    def optimizer(rate: Any) -> Any:
        first, second = build(rate)
        if combine == "partition":
            return optax.partition({"w": first, "b": second}, {"w": "w", "b": "b"})
        return optax.chain(
            optax.masked(first, {"w": True, "b": False}),
            optax.masked(second, {"w": False, "b": True}),
        )

    pipeline: Any = wc.pipeline(optimizer, rate, max_norm=None)
    state = pipeline.init(PARAMS)
    if changed is not None:
        state = optax.tree.set(state, learning_rate=jnp.float32(changed))
    _, state = pipeline.update(gradients(1), state, PARAMS)
    np.testing.assert_equal(float(wc.metrics(state)["learning_rate"]), expected)


def test_a_function_whose_signature_hides_what_it_takes_is_a_schedule():
    def configured(function: Any) -> Any:
        return functools.wraps(function)(lambda count: function(count, peak=2.0))

    @configured
    def rate(count: Any, peak: float) -> Any:
        return peak * count

    assert float(wc.shift(rate, by=1)(2)) == 6.0
    assert float(wc.shift([1.0, 2.0, 4.0].__getitem__, by=1)(1)) == 4.0


def test_stacked_schedules_are_runs_side_by_side_by_vmap():
    rates = np.array([0.01, 0.1, 1.0, 3.0], np.float32)
    schedules = [wc.constant(value=rate) for rate in rates]
    stacked = jax.tree.map(lambda *numbers: jnp.stack(numbers), *schedules)

    def last_params(schedule: wc.Schedule) -> Any:
        optimizer = wc.pipeline(optax.sgd, schedule, max_norm=None)

        def step(carry: Any, _: Any) -> Any:
            return wc.apply_gradients(optimizer, *carry, grads=carry[0]), None

        start = jnp.float32(1)
        return jax.lax.scan(step, (start, optimizer.init(start)), length=8)[0][0]

    # Of SGD on a parabola each step multiplies the parameters by 1 - rate.
    found = jax.jit(jax.vmap(last_params))(stacked)
    np.testing.assert_allclose(found, (1 - rates) ** 8, rtol=1e-5)
