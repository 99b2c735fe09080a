"""The exponential that grows: exact at its ends, precise near its ceiling, over any range."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import warmclip_jax as wc
from tests import reference

pytestmark = pytest.mark.usefixtures("strict_dtypes")


GROWTH: Any = [
    {"init_value": init, "end_value": end, "decay_steps": steps, "decay_rate": rate}
    for init, end, steps, rate in (
        (1e-7, 10.0, 100, 2.0),
        (1e-30, 1e30, 100, 2.0),
        (1.0, 1.5, 100, 2.0),
        (1e-8, 1.0, 1000, 1e8),
        (1e-4, 1.0, 1, 1.001),
        (1e-7, 10.0, 2_000_000_000, 1e9),
        (1e-7, 10.0, 2_000_000_000, 3.0),
        (1e-7, 10.0, 5e9, 1e9),
        *((10.0**-n, 3.7 * 10.0**-n, 10, 1.3) for n in range(8)),
    )
]


@pytest.mark.parametrize("staircase", [False, True])
def test_growth_is_the_formula_to_4_ulp_of_its_end_eager_and_jitted(staircase: bool):
    schedules = [wc.exponential_decay(**growth, staircase=staircase) for growth in GROWTH]
    counts = list(map(counts_of, GROWTH))
    jitted = jax.jit(lambda counts: [one(at) for one, at in zip(schedules, counts, strict=True)])
    for growth, schedule, at, compiled in zip(
        GROWTH, schedules, counts, jitted(counts), strict=True
    ):
        init, end = growth["init_value"], growth["end_value"]
        exact, ulp = reference.of(schedule, at), np.spacing(np.float32(end))
        for evaluated in (schedule(at), compiled):
            values = np.asarray(evaluated, np.float64)
            apart = np.abs(values - exact)
            assert np.all(apart <= 4 * ulp), growth
            assert np.all(np.diff(values) >= 0), growth
            assert values[0] == np.float32(init), growth
            assert values.max() <= np.float32(end), growth
            if exact[-1] == end:
                assert values[-1] == np.float32(end), growth
            # The exponent's rounding counts the more, the further below the end.
            assert np.all(apart <= (2 + 3 * np.log(end / exact)) * 2.0**-23 * exact), growth


def counts_of(growth: Any) -> np.ndarray:
    """Until two periods past the end of its growth, each around that end, and the last of all."""
    steps, rate = growth["decay_steps"], growth["decay_rate"]
    top = steps * np.log(growth["end_value"] / growth["init_value"]) / np.log(rate)
    counts = [np.linspace(0, top + 2 * steps, 3000), top + np.arange(-50, 50), [2.0**31 - 1]]
    return np.unique(np.clip(np.concatenate(counts), 0, 2**31 - 1).astype(int))


@pytest.mark.parametrize(("init", "end"), [(1.0, 0.0), (1.0, 1.0), (0.0, 0.0), (-1.0, -2.0)])
def test_with_a_rate_of_1_it_stays_where_it_is(init: float, end: float):
    schedule = wc.exponential_decay(init_value=init, decay_steps=10, decay_rate=1.0, end_value=end)
    assert schedule(np.array([0, 7, 2**31 - 1])).tolist() == [init] * 3


def test_its_derivative_is_finite_before_and_past_the_ceiling():
    schedule = wc.exponential_decay(init_value=1e-3, decay_steps=10, decay_rate=2.0, end_value=1.0)
    floats = jax.tree.map(float, schedule)
    slope = jax.jit(jax.grad(lambda schedule, count: schedule(count)))
    for count in (0, 5, 99, 100, 10**6, 2**31 - 1):
        slopes = slope(floats, count)
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
        (0.5, 2.0, [1, 2, 2, 2]),  # Where the end is on the wrong side.
        (2.0, 0.5, [1, 0.5, 0.5, 0.5]),
    ):
        np.testing.assert_allclose(jax.jit(value)(rate, end), values, rtol=1e-6)
