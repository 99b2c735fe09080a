"""One coefficient from one norm, and the leaves it multiplies."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from warmclip_jax._clipping._measuring import Measured
from warmclip_jax._clipping._rounding import unless
from warmclip_jax._norms import Grouping, ScaledNorm, entries, is_gradient


class Coefficient(NamedTuple):
    """The number that clips a tree, `rest * factor * rest`; or an array of them over groups.

    One number alone could not reach from a norm of 1e38 to 1e-38.
    """

    factor: jax.Array  # 0 or more, or NaN
    rest: jax.Array  # 1, or a power of two below it where `factor` alone would underflow
    is_finite: jax.Array  # scalar: whether every entry of the tree is
    bound: Any  # the bound in force; None for one that is never reached
    nonfinite: str  # what a tree with a NaN or inf entry becomes: "propagate" or "zero"
    members: Grouping | None  # the group of each gradient; None without groups

    @property
    def value(self) -> jax.Array:
        """The coefficient as one number, in [0, 1]."""
        return self.factor * self.rest * self.rest

    @property
    def shown_bound(self) -> jax.Array:
        """The bound as users read it: inf for one that is never reached, 0 for a negative one."""
        return jnp.maximum(np.inf if self.bound is None else self.bound, 0)


def coefficient(norms: Measured, bound: Any, nonfinite: str) -> Coefficient:
    """`bound / norm` where the norm is over the bound, 1 elsewhere; NaN or 0 where not finite."""
    norm, is_finite = norms.groups, norms.total.is_finite
    ones = jnp.ones_like(norm.mantissa)
    numerator, denominator, rest = (ones, ones, ones) if bound is None else _fraction(norm, bound)
    if nonfinite == "zero":
        numerator = jnp.where(is_finite, numerator, 0)
    elif norms.members is not None and bound is not None:
        # A group's own norm does not show what another group holds.
        numerator = jnp.where(is_finite, numerator, jnp.nan)
    # The division comes last: XLA repeats what is cheaper than a division in the loop of every
    # leaf.
    return Coefficient(
        _quotient(numerator, denominator), rest, is_finite, bound, nonfinite, norms.members
    )


def is_over(norm: ScaledNorm, bound: Any) -> jax.Array:
    """Whether a norm is above a bound, or either is NaN. No norm is above inf, not even inf."""
    bound = jnp.asarray(bound).astype(norm.mantissa.dtype)
    return ~(norm.mantissa <= bound * norm.scale) & (bound != jnp.inf)


def _fraction(norm: ScaledNorm, max_norm: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`max_norm / norm`, 1 at most, as `rest * (numerator / denominator) * rest`.

    Nothing in it leaves the range.
    """
    dtype = norm.mantissa.dtype
    bound = jnp.maximum(jnp.asarray(max_norm).astype(dtype), 0)
    over = is_over(norm, bound)
    rise, fall = jnp.maximum(norm.scale, 1), jnp.minimum(norm.scale, 1)
    half, power = (40, 70) if dtype == jnp.float32 else (300, 540)
    # Half of a scale below one goes to the mantissa: all of it could make the bound underflow.
    lift = jnp.where(fall < 1, np.ldexp(1.0, half), 1).astype(dtype)
    # Keep NaN out of the branch not taken: its derivative would be NaN too.
    denominator = jnp.where(over & norm.is_finite, norm.mantissa * lift, 1)
    far = jnp.where(over, bound * (fall * lift) * rise, 1) / denominator < jnp.finfo(dtype).tiny
    boost, rest = (
        jnp.where(far, np.ldexp(1.0, exponent), 1).astype(dtype) for exponent in (power, -power)
    )
    numerator = jnp.where(norm.is_finite, bound * (fall * lift * boost) * boost * rise, jnp.nan)
    return jnp.where(over, numerator, 1), denominator, rest


@jax.custom_jvp
def _quotient(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return numerator / denominator


@_quotient.defjvp
def _quotient_jvp(primals: Any, tangents: Any) -> Any:
    # JAX's own derivative divides by the square of the denominator, which leaves the range long
    # before the quotient does.
    (_, denominator), quotient = primals, _quotient(*primals)
    return quotient, (tangents[0] - quotient * tangents[1]) / denominator


def scale_tree(tree: Any, coef: Coefficient) -> Any:
    """Every gradient times the coefficient of its group, rounded once; untouched where it is 1."""
    if coef.members is None:
        numbers = itertools.repeat((coef.factor, coef.rest, coef.value == 1))
    else:
        rows = entries(jnp.stack([coef.factor, coef.rest, coef.value], axis=1))
        numbers = (
            (row[0], row[1], row[2] == 1) for row in (rows[group] for group in coef.members.norms)
        )
    return jax.tree.map(
        lambda leaf: (
            _scaled(jnp.asarray(leaf), coef, *next(numbers)) if is_gradient(leaf) else leaf
        ),
        tree,
    )


def _scaled(
    leaf: jax.Array, coef: Coefficient, factor: jax.Array, rest: jax.Array, unchanged: jax.Array
) -> jax.Array:
    if coef.bound is None:
        # The optimizer waits for the norm. Otherwise XLA would keep the squares, or the converted
        # entries, that both need: another copy of all gradients.
        leaf, _ = lax.optimization_barrier((leaf, coef.is_finite))
        if coef.nonfinite == "propagate":
            return leaf

    def scale_real(part: jax.Array) -> jax.Array:
        if coef.bound is None:
            return lax.select(coef.is_finite, part, jnp.zeros_like(part))  # 0 * inf is NaN
        scaled = part.astype(factor.dtype) * rest * factor * rest
        if coef.nonfinite == "zero":
            scaled = lax.select(coef.is_finite, scaled, jnp.zeros_like(scaled))
        # A product with 1 would flush subnormals and rewrite NaNs.
        return unless(unchanged, part, scaled)

    # Part by part: as a complex number the coefficient would also multiply by its imaginary zero.
    return (
        lax.complex(scale_real(leaf.real), scale_real(leaf.imag))
        if jnp.iscomplexobj(leaf)
        else scale_real(leaf)
    )
