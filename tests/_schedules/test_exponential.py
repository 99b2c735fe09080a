"""The exponential that grows: its ceiling, its range, and its precision over many factors of e."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import warmclip_jax as wc
from tests import reference

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.mark.parametrize(("init", "end"), [(1e-7, 10.0), (1e-30, 1e30), (1.0, 1.5)])
@pytest.mark.parametrize("staircase", [False, True])
def test_growth_is_the_formula_and_stops_at_its_ceiling(init: float, end: float, staircase: bool):
    schedule = wc.exponential_decay(
        init_value=init, decay_steps=100, decay_rate=2.0, end_value=end, staircase=staircase
    )
    numbers = schedule.arguments
    reached = int(100 * np.log2(end / init)) + 1
    counts = np.unique(
        np.concatenate([np.arange(0, reached + 200, 7), [reached - 1, reached, 2**31 - 1]])
    )
    values, exact = (
        np.asarray(schedule(counts), np.float64),
        reference.exponential_decay(counts, **numbers),
    )
    # An ulp more for each factor of e: the exponent itself is rounded to float32.
    ulps = 4 + 2 * np.abs(np.log(exact / init))
    assert np.all(np.abs(values - exact) <= ulps * 2.0**-24 * exact)
    assert values.min() == np.float32(init) == values[0]
    assert values.max() == np.float32(end) == values[-1]
    assert np.all(np.diff(values) >= 0)


@pytest.mark.parametrize(("init", "end"), [(1.0, 0.0), (1.0, 1.0), (0.0, 0.0), (-1.0, -2.0)])
def test_with_a_rate_of_1_it_stays_where_it_is(init: float, end: float):
    schedule = wc.exponential_decay(init_value=init, decay_steps=10, decay_rate=1.0, end_value=end)
    assert schedule(np.array([0, 7, 2**31 - 1])).tolist() == [init] * 3


@pytest.mark.parametrize(
    ("rate", "init", "end", "named"),
    [
        (
            2.0,
            1.0,
            1.0,
            "end_value must be above init_value=1.0 with a decay_rate above 1; got 1.0",
        ),
        (2.0, 0.0, 1.0, "init_value must be above 0 with a decay_rate above 1; got 0.0"),
        (1.0, 1.0, 1.5, "end_value must be at most init_value=1.0; got 1.5"),
    ],
)
def test_an_end_that_is_not_on_its_way_is_refused(rate: float, init: float, end: float, named: str):
    with pytest.raises(ValueError, match=named):
        wc.exponential_decay(init_value=init, decay_steps=10, decay_rate=rate, end_value=end)


def test_its_derivative_is_finite_before_and_past_the_ceiling():
    schedule = wc.exponential_decay(init_value=1e-3, decay_steps=10, decay_rate=2.0, end_value=1.0)
    floats = jax.tree.map(float, schedule)
    for count in (0, 5, 99, 100, 10**6, 2**31 - 1):
        slopes = jax.grad(lambda schedule, count=count: schedule(count))(floats)
        assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(slopes)), count
    assert float(slopes.arguments["end_value"]) == 1.0


def test_a_traced_rate_decides_by_its_value_which_way_it_goes():
    def value(rate: jax.Array, end: jax.Array) -> jax.Array:
        return wc.exponential_decay(init_value=1.0, decay_steps=1, decay_rate=rate, end_value=end)(
            jnp.array([0, 1, 2, 50])
        )

    for rate, end, values in (
        (2.0, 3.0, [1, 2, 3, 3]),
        (0.5, 0.3, [1, 0.5, 0.3, 0.3]),
        (1.0, 1.0, [1, 1, 1, 1]),
    ):
        np.testing.assert_allclose(jax.jit(value)(rate, end), values, rtol=1e-6)


def test_it_ends_exactly_at_its_ceiling_and_never_passes_it():
    rng = np.random.default_rng(0)
    for init, factor in zip(
        10.0 ** rng.uniform(-8, 0, 200), 10.0 ** rng.uniform(0.1, 8, 200), strict=True
    ):
        schedule = wc.exponential_decay(
            init_value=init, decay_steps=10, decay_rate=1.3, end_value=init * factor
        )
        values = np.asarray(schedule(np.array([0, 10**4, 10**9])))
        assert values.tolist() == [
            np.float32(init),
            np.float32(init * factor),
            np.float32(init * factor),
        ]
