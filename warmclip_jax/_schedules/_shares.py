"""The arithmetic that the curves share: what has passed of a length, what is left of it, and a point between two values.

Two things keep the curves exact where floats are: steps are subtracted as integers before they are divided, and what is left
of a length is computed next to what has passed, never as one minus it. A rule has turned every argument into an array by
now, which the annotations of the public functions cannot say; hence `Any`.
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._checks import MAX_COUNT, default_float, is_traced


class Shares(NamedTuple):
    """The share of a length that has passed and the share that is left, both in [0, 1]."""

    passed: jax.Array
    left: jax.Array


def shares(count: jax.Array, length: Any) -> Shares:
    """What has passed of `length` at `count`. No length has passed from the start."""
    count, length = _alike(count, length)
    done = jnp.clip(count, 0, jnp.maximum(length, 0))
    return _divided(done, length - done, length)


def cycle_shares(count: jax.Array, length: Any) -> Shares:
    """`shares` of the smallest multiple of `length` that is not below `count`, and at least one."""
    count, length = _alike(count, length)
    length = jnp.maximum(length, 1)
    cycles = jnp.maximum(-(-count // length), 1)
    # The multiple itself can be past int32; what is left of it never is.
    left = jnp.where(count > 0, -count % length, length)
    return _divided(count, left, length.astype(default_float()) * cycles.astype(default_float()))


def periods(count: jax.Array, length: Any, *, whole: bool = False) -> jax.Array:
    """How many times `length` has passed at `count`; as a whole number, rounded down, if asked for."""
    count, length = _alike(count, length)
    # A traced length of 0 is next to none, so that the quotient stays finite.
    length = jnp.maximum(length, 1 if jnp.issubdtype(length.dtype, jnp.integer) else 1e-9)
    dtype = default_float()
    return (count // length).astype(dtype) if whole else count.astype(dtype) / length.astype(dtype)


def between(origin: Any, target: Any, weight: jax.Array) -> jax.Array:
    """`origin + (target - origin) * weight`, never outside the two and exactly `target` from weight 1 on."""
    # Below 1 a rounded product falls short of the rounded difference by more than that was rounded up: no sum passes `target`.
    return jnp.where(weight >= 1, target, origin + (target - origin) * weight)


def raised(share: jax.Array, complement: jax.Array, exponent: Any) -> jax.Array:
    """`share ** exponent` to a few ulp of 1, its derivative finite at 0. `complement` is 1 - share."""
    some = share > 0
    base = jnp.where(some, share, 1)
    # share ** 1000 turns the rounding of a share near one into a thousand roundings; its logarithm does not.
    log = jnp.where(complement < 0.5, jnp.log1p(-jnp.minimum(complement, 0.5)), jnp.log(base))
    value = jnp.where(exponent <= 4, base**exponent, jnp.exp(exponent * log))
    # A straight line is exact, and still has its derivative with respect to the exponent.
    straight = jax.lax.stop_gradient(share) + (value - jax.lax.stop_gradient(value))
    return jnp.where(some, jnp.where(exponent == 1, straight, value), 0)


def half_cosine(share: jax.Array, complement: jax.Array) -> jax.Array:
    """`(1 - cos(pi * share)) / 2` as squared sines, which keep every digit near 0 and lose none near 1."""
    rising, falling = (jnp.square(jnp.sin(jnp.minimum(part, 0.5) * (math.pi / 2))) for part in (share, complement))
    return jnp.where(share < 0.5, rising, 1 - falling)


def expm1_below_one(exponent: jax.Array) -> jax.Array:
    """`exp(exponent) - 1` for an exponent in [0, log(2)], monotone to the last digit, which the library's `expm1` is not.

    Horner's rule on terms that are all positive: every rounding keeps the order. 18 of them are enough for float64.
    """
    series = jnp.ones_like(exponent)
    for term in range(18, 1, -1):
        series = 1 + exponent / term * series
    return exponent * series


def saturation(periods: jax.Array) -> jax.Array:
    """`1 - exp(-periods)`, which keeps its digits near 0 and is monotone to the last of them."""
    some, half = periods > 0, math.log(2)
    grown = expm1_below_one(jnp.where(some, jnp.minimum(periods, half), half))
    # Either side of a half in the form that is exact there, and neither past it.
    near, far = jnp.minimum(1 / (1 + 1 / grown), 0.5), jnp.maximum(1 - jnp.exp(-periods), 0.5)
    return jnp.where(some, jnp.where(periods < half, near, far), 0)


def difference(left: Any, right: Any) -> jax.Array:
    """`left - right`, exact when both are integers."""
    left, right = _alike(left, right)
    return left - right


def total(left: jax.Array, right: Any) -> jax.Array:
    """`left + right` for a `left` that is not negative, stopping at the largest count instead of wrapping around."""
    left, right = _alike(left, right)
    return jnp.minimum(left, MAX_COUNT - jnp.maximum(right, 0)) + right


def remainder(count: jax.Array, length: Any) -> jax.Array:
    """What is left of `count` after as many whole lengths as fit."""
    count, length = _alike(count, length)
    return count % jnp.maximum(length, 1)


def quotient(count: jax.Array, length: Any) -> jax.Array:
    """How many whole lengths fit into `count`."""
    count, length = _alike(count, length)
    return count // jnp.maximum(length, 1)


def is_before(count: jax.Array, step: Any) -> jax.Array:
    """Whether `count` is below `step`."""
    count, step = _alike(count, step)
    return count < step


def share_of(fraction: Any, total: Any) -> Any:
    """`fraction` of `total` in whole steps, halves up; exactly by their decimals, or traced where either is."""
    if not (is_traced(fraction) or is_traced(total)):
        return math.floor(Fraction(str(fraction)) * Fraction(str(total)) + Fraction(1, 2))
    dtype = default_float()
    rounded = jnp.floor(jnp.asarray(fraction).astype(dtype) * jnp.asarray(total).astype(dtype) + 0.5)
    if jnp.issubdtype(jnp.result_type(total), jnp.integer):
        limit = np.nextafter(np.asarray(MAX_COUNT + 1, dtype), np.asarray(0, dtype))
        # As an integer, so that it is subtracted from counts exactly.
        rounded = jnp.clip(rounded, 0, limit).astype(jnp.int32)
    return rounded


def _divided(passed: jax.Array, left: jax.Array, length: jax.Array) -> Shares:
    dtype = default_float()
    some = length > 0
    whole = jnp.where(some, length, 1).astype(dtype)
    return Shares(jnp.where(some, passed.astype(dtype) / whole, 1), jnp.where(some, left.astype(dtype) / whole, 0))


def _alike(left: Any, right: Any) -> tuple[jax.Array, jax.Array]:
    """Both as they are when both are integers, so that their difference is exact; otherwise both as floats."""
    if jnp.issubdtype(left.dtype, jnp.integer) and jnp.issubdtype(right.dtype, jnp.integer):
        return left, right
    return _as_float(left), _as_float(right)


def _as_float(number: jax.Array) -> jax.Array:
    dtype = default_float()
    if not jnp.issubdtype(number.dtype, jnp.integer):
        return number.astype(dtype)
    # The largest counts would round up to 2**31, and so reach a length that they are short of.
    return jnp.minimum(number.astype(dtype), np.nextafter(np.asarray(2.0**31, dtype), np.asarray(0, dtype)))
