"""The arithmetic of curves: shares of a length that have passed and are left, values in between.

Two rules keep the curves exact: steps are subtracted as integers before they are divided, and the
share left is computed from the steps left, never as one minus the share passed. Arguments are
arrays by now; they are typed `Any`, because the annotations of the public functions name what users
pass.
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._values import MAX_COUNT, as_float, default_float, is_integer, is_traced


class Shares(NamedTuple):
    """The share of a length that has passed and the share that is left, both in [0, 1]."""

    passed: jax.Array
    left: jax.Array


def shares(count: jax.Array, length: Any) -> Shares:
    """The shares of `length` at `count`. A length of 0 has passed from the start."""
    count, length = _integers_or_floats(count, length)
    done = jnp.clip(count, 0, jnp.maximum(length, 0))
    return _divided(done, length - done, length)


def cycle_shares(count: jax.Array, length: Any) -> Shares:
    """`shares` of the smallest positive multiple of `length` that is at least `count`."""
    count, length = _integers_or_floats(count, length)
    length = jnp.maximum(length, 1)
    cycles = jnp.maximum(-(-count // length), 1)
    # The multiple itself may be past int32; the steps left of it never are.
    left = jnp.where(count > 0, -count % length, length)
    return _divided(count, left, as_float(length) * as_float(cycles))


def endless_shares(count: jax.Array, timescale: Any) -> Shares:
    """The shares of a length of which `timescale / (timescale + count)` is left."""
    length = periods(count, timescale)
    some = length > 0
    # A quotient of two that both grow would not be monotone to the last digit.
    passed = jnp.where(some, 1 / (1 + 1 / jnp.where(some, length, 1)), 0)
    return Shares(passed, 1 / (1 + length))


def periods(count: jax.Array, length: Any) -> jax.Array:
    """How many times `length` has passed at `count`."""
    count, length = _integers_or_floats(count, length)
    # A traced length may be 0; the quotient must stay finite.
    length = jnp.maximum(length, 1 if is_integer(length.dtype) else 1e-9)
    return as_float(count) / as_float(length)


def between(origin: Any, target: Any, weight: jax.Array) -> jax.Array:
    """`origin + (target - origin) * weight`, never outside; exactly `target` from weight 1 on."""
    # For a weight below 1, the rounded product is below the rounded difference by more than the
    # difference was rounded up by, so no sum passes `target`.
    return jnp.where(weight >= 1, target, origin + (target - origin) * weight)


def raised(share: jax.Array, complement: jax.Array, exponent: Any) -> jax.Array:
    """`share ** exponent` to 2 ulp of 1, its derivative finite at 0. `complement` is 1 - share."""
    some = share > 0
    base = jnp.where(some, share, 1)
    # Near 1, share ** 1000 multiplies the share's rounding error by 1000; log1p of the complement
    # has no such error.
    log = jnp.where(complement < 0.5, jnp.log1p(-jnp.minimum(complement, 0.5)), jnp.log(base))
    value = jnp.where(exponent <= 2, base**exponent, jnp.exp(exponent * log))
    # For exponent 1, the share itself, exactly, with the derivative of the power.
    straight = jax.lax.stop_gradient(share) + (value - jax.lax.stop_gradient(value))
    return jnp.where(some, jnp.where(exponent == 1, straight, value), 0)


def half_cosine(share: jax.Array, complement: jax.Array) -> jax.Array:
    """`(1 - cos(pi * share)) / 2`, as squared sines, which keep their digits near 0 and 1."""
    rising, falling = (
        jnp.square(jnp.sin(jnp.minimum(part, 0.5) * (math.pi / 2))) for part in (share, complement)
    )
    return jnp.where(share < 0.5, rising, 1 - falling)


def expm1_below_one(exponent: jax.Array) -> jax.Array:
    """`exp(exponent) - 1` for an exponent in [0, log(2)], monotone to the last digit.

    `jnp.expm1` is not. By Horner's rule on positive terms each rounding keeps the order; 18 terms
    are enough for float64.
    """
    series = jnp.ones_like(exponent)
    for term in range(18, 1, -1):
        series = 1 + exponent / term * series
    return exponent * series


def saturation(passed: jax.Array) -> jax.Array:
    """`1 - exp(-passed)`, with its digits near 0 kept, and monotone to the last digit."""
    some = passed > 0
    half_way = math.log(2)
    grown = expm1_below_one(jnp.where(some, jnp.minimum(passed, half_way), half_way))
    # Below and above 1/2, the form that is accurate there, each stopped at 1/2.
    near = jnp.minimum(1 / (1 + 1 / grown), 0.5)
    far = jnp.maximum(1 - jnp.exp(-passed), 0.5)
    return jnp.where(some, jnp.where(passed < half_way, near, far), 0)


def difference(left: Any, right: Any) -> jax.Array:
    """`left - right`, exact when both are integers."""
    left, right = _integers_or_floats(left, right)
    return left - right


def share_of(fraction: Any, total: Any) -> Any:
    """`fraction` of `total` in whole steps, halves up; in floats where either is traced."""
    if not (is_traced(fraction) or is_traced(total)):
        return math.floor(Fraction(str(fraction)) * Fraction(str(total)) + Fraction(1, 2))
    rounded = jnp.floor(as_float(fraction) * as_float(total) + 0.5)
    if is_integer(jnp.result_type(total)):
        # An integer is subtracted from counts exactly.
        rounded = jnp.clip(rounded, 0, _below_int32_range()).astype(jnp.int32)
    return rounded


def _divided(passed: jax.Array, left: jax.Array, length: jax.Array) -> Shares:
    some = length > 0
    whole = as_float(jnp.where(some, length, 1))
    return Shares(
        jnp.where(some, as_float(passed) / whole, 1),
        jnp.where(some, as_float(left) / whole, 0),
    )


def _integers_or_floats(left: Any, right: Any) -> tuple[jax.Array, jax.Array]:
    """Two integers as they are, so that their difference is exact; others as floats."""
    if is_integer(left.dtype) and is_integer(right.dtype):
        return left, right
    return _not_rounded_up(left), _not_rounded_up(right)


def _not_rounded_up(number: jax.Array) -> jax.Array:
    # The largest counts would round up to 2**31 and so reach a length that they are short of.
    floating = as_float(number)
    return jnp.minimum(floating, _below_int32_range()) if is_integer(number.dtype) else floating


def _below_int32_range() -> np.floating[Any]:
    """The largest float below 2**31."""
    return np.nextafter(default_float().type(MAX_COUNT + 1), default_float().type(0))
