"""The arithmetic under the curves where a curve cannot show it: as separate operations, as on
machines that fuse none.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from warmclip_jax._schedules import _shares

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


def power_of_what_is_left(lengths: jax.Array, power: float) -> jax.Array:
    # Lengths as a count of them would give: `periods` divides by 1.
    passed, left = _shares.endless_shares(lengths, jnp.int32(1))
    assert np.all(np.diff(np.asarray(passed)) >= 0)
    return -_shares.raised(left, passed, jnp.float32(power))


#: What rises with its argument, and the same in float64.
RISING: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "saturation": (_shares.saturation, lambda x: -np.expm1(-x)),
    "half_cosine": (
        lambda x: _shares.half_cosine(jnp.minimum(x, 1), jnp.maximum(1 - x, 0)),
        lambda x: np.sin(np.pi / 2 * np.minimum(x, 1)) ** 2,
    ),
    **{
        f"-1 / (1 + x) ** {power}": (
            lambda x, power=power: power_of_what_is_left(x, power),
            lambda x, power=power: -((1 + x) ** -float(np.float32(power))),
        )
        for power in (0.3, 0.5, 1.0, 1.9, 2.0, 2.1, 50.0)
    },
}


@pytest.mark.parametrize("name", RISING)
def test_a_share_never_turns_back_from_one_float_to_the_next(name: str):
    rising, exact = RISING[name]
    rtol, atol = (0.0, 2 * 2**-23) if "/" in name else (4 * 2**-23, 0.0)
    for start in (1e-6, 0.01, 0.1, 0.3, 0.6, 0.6931, 0.99, 3.0, 5.0, 1e4, 1e8):
        first = int(np.float32(start).view(np.int32))
        floats = np.arange(first, first + 200_000, dtype=np.int32).view(np.float32)
        values = np.asarray(rising(jnp.asarray(floats)))
        assert np.all(np.diff(values) >= 0), start
        right = exact(floats.astype(np.float64))
        np.testing.assert_allclose(values, right, rtol=rtol, atol=atol, err_msg=str(start))


def test_a_length_below_a_step_has_passed_at_the_first_and_counts_as_1_in_cycles_and_periods():
    counts = jnp.arange(6)
    for length in map(jnp.float32, (0.0, 0.25, 0.5, -1.0)):
        passed, left = _shares.shares(counts[1:], length)
        assert (passed.tolist(), left.tolist()) == ([1.0] * 5, [0.0] * 5)
    passed, left = _shares.shares(counts, jnp.int32(1))
    assert (passed.tolist(), left.tolist()) == ([0, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0])
    cycle = _shares.cycle_shares(counts, jnp.int32(1))
    for length in map(jnp.int32, (0, -3)):
        np.testing.assert_array_equal(_shares.cycle_shares(counts, length), cycle)
        np.testing.assert_array_equal(_shares.periods(counts, length), counts)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_the_power_1_is_the_share_itself_and_the_power_0_is_1(share: float):
    powers = [
        _shares.raised(jnp.float32(share), jnp.float32(1 - share), jnp.float32(power))
        for power in (1, 0)
    ]
    assert list(map(float, powers)) == [share, 1.0]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.125, 0.375, 0.999])
@pytest.mark.parametrize("total", [4, 100, 1001])
def test_a_traced_share_of_a_length_is_rounded_as_a_concrete_one(fraction: float, total: int):
    steps = math.floor(fraction * total + 0.5)
    assert _shares.share_of(fraction, total) == steps
    for traced in (
        jax.jit(lambda fraction: _shares.share_of(fraction, jnp.int32(total)))(fraction),
        jax.jit(lambda total: _shares.share_of(fraction, total))(total),
        jax.jit(_shares.share_of)(fraction, total),
    ):
        assert (int(traced), traced.dtype) == (steps, jnp.int32)


def test_a_traced_share_of_two_billion_steps_is_an_int32():
    share = jax.jit(_shares.share_of)(0.25, 2_000_000_000)
    assert (int(share), share.dtype) == (500_000_000, jnp.int32)


@pytest.mark.parametrize(("x64", "largest"), [(False, 2**31 - 128), (True, 2**31 - 1)])
def test_the_largest_count_is_the_largest_float_that_is_not_more(x64: bool, largest: int):
    with jax.enable_x64(x64):
        assert float(_shares.periods(jnp.int32(2**31 - 1), jnp.asarray(1.0))) == largest
