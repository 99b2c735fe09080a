"""The arithmetic under the curves where a curve cannot show it: as separate operations, as on
machines that fuse none.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from warmclip_jax._schedules import _shares
from warmclip_jax._values._rules import MAX_COUNT

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.mark.parametrize("is_fused", [False, True])
def test_between_stays_between_and_ends_exactly_however_it_is_rounded(is_fused: bool):
    rng = np.random.default_rng(0)
    origin, target = jnp.asarray(10 ** rng.uniform(-3, 0, (2, 500_000)), jnp.float32)
    # A series can round to a little more than 1.
    weight = 1 - jnp.asarray(rng.integers(-2, 4, 500_000), jnp.float32) * jnp.float32(2**-24)
    naive = origin + (target - origin) * weight
    low, high = jnp.minimum(origin, target), jnp.maximum(origin, target)
    assert jnp.any((naive < low) | (naive > high))  # What there is to guard against.
    value = (jax.jit(_shares.between) if is_fused else _shares.between)(origin, target, weight)
    assert jnp.all((value >= low) & (value <= high))
    assert jnp.all((value == target) | (weight < 1))


@pytest.mark.parametrize("start", [1e-6, 1e-3, 0.01, 0.1, 0.3, 0.6931, 1.0, 5.0])
def test_saturation_never_falls_from_one_float_to_the_next(start: float):
    first = int(np.float32(start).view(np.int32))
    periods = jnp.asarray(np.arange(first, first + 500_000, dtype=np.int32).view(np.float32))
    assert np.all(np.diff(np.asarray(_shares.saturation(periods))) >= 0)
    np.testing.assert_allclose(
        _shares.saturation(periods), -np.expm1(-np.asarray(periods, np.float64)), rtol=4 * 2**-23
    )


@pytest.mark.parametrize("start", [1e-6, 1e-3, 0.01, 0.1, 0.3, 0.6])
def test_a_sine_squared_never_falls_from_one_float_to_the_next(start: float):
    first = int(np.float32(start).view(np.int32))
    share = jnp.asarray(np.arange(first, first + 500_000, dtype=np.int32).view(np.float32))
    values = np.asarray(_shares.half_cosine(share, 1 - share))
    assert np.all(np.diff(values) >= 0)
    exact = np.sin(np.pi / 2 * np.asarray(share, np.float64)) ** 2
    np.testing.assert_allclose(values, exact, rtol=4 * 2**-23)


COUNTS = jnp.arange(6)


def test_an_integer_length_below_1_counts_as_1_in_cycles_and_periods():
    for length in (0, -3):
        np.testing.assert_array_equal(
            _shares.cycle_shares(COUNTS, jnp.int32(length)),
            _shares.cycle_shares(COUNTS, jnp.int32(1)),
        )
        for whole in (False, True):
            np.testing.assert_array_equal(
                _shares.periods(COUNTS, jnp.int32(length), whole=whole), COUNTS
            )
        np.testing.assert_array_equal(
            _shares.turns(COUNTS, jnp.int32(length)), [COUNTS, 0 * COUNTS]
        )


@pytest.mark.parametrize("length", [0.0, 0.25, 0.5, -1.0])
def test_a_length_short_of_a_step_has_passed_at_the_first(length: float):
    passed, left = _shares.shares(COUNTS[1:], jnp.float32(length))
    assert (passed.tolist(), left.tolist()) == ([1.0] * 5, [0.0] * 5)


def test_a_length_of_one_step_passes_in_it():
    passed, left = _shares.shares(COUNTS, jnp.int32(1))
    assert (passed.tolist(), left.tolist()) == ([0, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0])


def test_a_sum_of_counts_stops_at_the_largest_and_not_before():
    counts = jnp.int32([0, 5, MAX_COUNT - 1, MAX_COUNT])
    for right in (0, 1, MAX_COUNT, -1, -MAX_COUNT):
        expected = [min(count + right, MAX_COUNT) for count in counts.tolist()]
        assert _shares.total(counts, jnp.int32(right)).tolist() == expected, right


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_the_power_1_is_the_share_itself_and_the_power_0_is_1(share: float):
    powers = [
        _shares.raised(jnp.float32(share), jnp.float32(1 - share), jnp.float32(power))
        for power in (1, 0)
    ]
    assert list(map(float, powers)) == [share, 1.0]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.125, 0.375, 0.999])
@pytest.mark.parametrize("total", [4, 100, 1001])
def test_a_traced_share_of_a_length_is_rounded_as_a_known_one(fraction: float, total: int):
    known = math.floor(fraction * total + 0.5)
    assert _shares.share_of(fraction, total) == known
    for traced in (
        jax.jit(lambda fraction: _shares.share_of(fraction, jnp.int32(total)))(fraction),
        jax.jit(lambda total: _shares.share_of(fraction, total))(total),
        jax.jit(_shares.share_of)(fraction, total),
    ):
        assert (int(traced), traced.dtype) == (known, jnp.int32)
