"""One coefficient from one norm and its bound."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._clipping._measuring import Measured
from warmclip_jax._norms import Grouping, ScaledNorm


class Coefficient(NamedTuple):
    """The number that clips a tree, or an array of them over groups: see `factors`."""

    quotient: jax.Array
    norm: ScaledNorm  # what is bounded
    is_finite: jax.Array  # scalar: whether every entry of the tree is
    bound: jax.Array | None  # in force, 0 or more; None for one that is never reached
    nonfinite: str  # what a tree with a NaN or inf entry becomes: "propagate" or "zero"
    members: Grouping | None  # the group of each gradient; None without groups

    @property
    def value(self) -> jax.Array:
        """The coefficient as one number, in [0, 1]."""
        factor, rest = factors(self.quotient)
        return factor * rest * rest

    @property
    def shown_bound(self) -> jax.Array:
        """The bound as users read it: inf for one that is never reached, 0 for a negative one."""
        return jnp.asarray(np.inf if self.bound is None else self.bound)


def coefficient(norms: Measured, bound: Any, nonfinite: str) -> Coefficient:
    """`bound / norm` where the norm is over the bound, 1 elsewhere; NaN or 0 where not finite."""
    norm, is_finite = norms.groups, norms.total.is_finite
    ones = jnp.ones_like(norm.mantissa)
    if bound is not None:
        bound = jnp.maximum(jnp.asarray(bound).astype(ones.dtype), 0)
    numerator, denominator = (ones, ones) if bound is None else _fraction(norm, bound)
    if nonfinite == "zero":
        numerator = jnp.where(is_finite, numerator, 0)
    elif norms.members is not None and bound is not None:
        # A group's own norm does not show what another group holds.
        numerator = jnp.where(is_finite, numerator, jnp.nan)
    # The division comes last: XLA repeats what is cheaper than a division in the loop of every
    # leaf.
    quotient = _quotient(numerator, denominator)
    return Coefficient(quotient, norm, is_finite, bound, nonfinite, norms.members)


@functools.partial(jax.jit, inline=True)
def factors(quotient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`factor` and `rest` of the coefficient `rest * factor * rest`.

    One number alone could not reach from a norm of 1e38 to 1e-38. It still is kept as one, the
    factor, which many loops read: below 0 where `rest` is less than 1.
    """
    far = quotient < 0
    rest = jnp.where(far, np.ldexp(1.0, -_power(quotient.dtype)), 1).astype(quotient.dtype)
    return jnp.where(far, -quotient, quotient), rest


def is_over(norm: ScaledNorm, bound: Any) -> jax.Array:
    """Whether a norm is above a bound, or either is NaN. No norm is above inf, not even inf."""
    bound = jnp.asarray(bound).astype(norm.mantissa.dtype)
    return ~(norm.mantissa <= bound * norm.scale) & (bound != jnp.inf)


def _power(dtype: Any) -> int:
    return 70 if dtype == jnp.float32 else 540


def _fraction(norm: ScaledNorm, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`bound / norm`, 1 at most, as the numerator and denominator of a quotient for `factors`.

    Nothing in it leaves the range.
    """
    dtype = norm.mantissa.dtype
    over = is_over(norm, bound)
    rise, fall = jnp.maximum(norm.scale, 1), jnp.minimum(norm.scale, 1)
    # Half of a scale below one goes to the mantissa: all of it could make the bound underflow.
    half = 40 if dtype == jnp.float32 else 300
    lift = jnp.where(fall < 1, np.ldexp(1.0, half), 1).astype(dtype)
    # Keep NaN out of the branch not taken: its derivative would be NaN too.
    denominator = jnp.where(over & norm.is_finite, norm.mantissa * lift, 1)
    near = jnp.where(over, bound * (fall * lift) * rise, 1) / denominator
    far = (near < jnp.finfo(dtype).tiny) & (bound > 0)
    boost = jnp.where(far, np.ldexp(1.0, _power(dtype)), 1).astype(dtype)
    numerator = bound * (fall * lift * boost) * boost * rise
    numerator = jnp.where(norm.is_finite, jnp.where(far, -numerator, numerator), jnp.nan)
    return jnp.where(over, numerator, 1), denominator


@jax.custom_jvp
def _quotient(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return numerator / denominator


@_quotient.defjvp
def _quotient_jvp(primals: Any, tangents: Any) -> Any:
    # JAX's own derivative divides by the square of the denominator, which leaves the range long
    # before the quotient does.
    (_, denominator), quotient = primals, _quotient(*primals)
    return quotient, (tangents[0] - quotient * tangents[1]) / denominator
