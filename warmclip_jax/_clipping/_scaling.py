"""Gradients times their coefficient, and the derivative of that."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from warmclip_jax._clipping._coefficient import Coefficient, factors
from warmclip_jax._clipping._rounding import unless
from warmclip_jax._norms import entries, is_gradient


def scale_tree(tree: Any, coef: Coefficient) -> Any:
    """Every gradient times the coefficient of its group, rounded once; untouched where it is 1."""
    leaves, structure = jax.tree.flatten(tree)
    own = [index for index, leaf in enumerate(leaves) if is_gradient(leaf)]
    gradients = [jnp.asarray(leaves[index]) for index in own]
    if coef.bound is None:
        scaled = [_waiting(leaf, coef) for leaf in gradients]
    else:
        groups = None if coef.members is None else coef.members.norms
        numbers = (coef.quotient, coef.is_finite, coef.norm, coef.bound)
        scaled = _scaled(coef.nonfinite, groups, gradients, numbers)
    for index, leaf in zip(own, scaled, strict=True):
        leaves[index] = leaf
    return structure.unflatten(leaves)


def _waiting(leaf: jax.Array, coef: Coefficient) -> jax.Array:
    # The optimizer waits for the norm. Otherwise XLA would keep the squares, or the converted
    # entries, that both need: another copy of all gradients.
    leaf, _ = lax.optimization_barrier((leaf, coef.is_finite))
    if coef.nonfinite == "propagate":
        return leaf
    return lax.select(coef.is_finite, leaf, jnp.zeros_like(leaf))  # 0 times inf would be NaN


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _scaled(
    nonfinite: str,
    groups: tuple[int, ...] | None,
    leaves: list[jax.Array],
    numbers: tuple[Any, ...],
) -> list[jax.Array]:
    quotient, is_finite, *_ = numbers
    if groups is None:
        rows = [(quotient, *factors(quotient))] * len(leaves)
    else:
        of_groups = [(entry, *factors(entry)) for entry in entries(quotient)]
        rows = [of_groups[group] for group in groups]
    return [
        _product(nonfinite, is_finite, row, leaf) for row, leaf in zip(rows, leaves, strict=True)
    ]


# Traced once for all leaves of a shape.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _product(nonfinite: str, is_finite: jax.Array, row: Any, leaf: jax.Array) -> jax.Array:
    quotient, factor, rest = row

    def product(part: jax.Array) -> jax.Array:
        scaled = part.astype(factor.dtype) * rest * factor * rest
        if nonfinite == "zero":
            scaled = lax.select(is_finite, scaled, jnp.zeros_like(scaled))
        # A product with 1 would flush subnormals and rewrite NaNs.
        return unless(quotient == 1, part, scaled)

    return _by_parts(product, leaf)


@_scaled.defjvp  # pyright: ignore[reportFunctionMemberAccess]
def _scaled_jvp(nonfinite: str, groups: tuple[int, ...] | None, primals: Any, tangents: Any) -> Any:
    # Over the bound, k = bound / norm and with the unit vector u = x / norm
    #   d(k x) = k dx + u (d bound - k d norm).
    # Pulled back, a cotangent meets the unit vector alone. The slope of k, which is left out here,
    # would bring its product with a gradient, which leaves the range.
    (leaves, numbers), (rates, (*_, norm_slope, bound_slope)) = primals, tangents
    quotient, is_finite, norm, _ = numbers
    factor, rest = factors(quotient)
    turn = bound_slope - norm_slope.value * rest * factor * rest
    columns = (quotient, factor, rest, lax.stop_gradient(norm.scale), norm.inverse, turn)

    def slope(row: Any, part: jax.Array, rate: jax.Array) -> jax.Array:
        quotient, factor, rest, scale, inverse, turn = row
        unit = jnp.where(is_finite, part.astype(factor.dtype) * scale * inverse, 0)
        scaled = rate.astype(factor.dtype) * rest * factor * rest + unit * turn
        if nonfinite == "zero":
            scaled = jnp.where(is_finite, scaled, 0)
        return jnp.where(quotient == 1, rate, scaled.astype(rate.dtype))

    rows = (
        [columns] * len(leaves)
        if groups is None
        else [[column[group] for column in columns] for group in groups]
    )
    return _scaled(nonfinite, groups, leaves, numbers), [
        _by_parts(functools.partial(slope, row), leaf, rate)
        for row, leaf, rate in zip(rows, leaves, rates, strict=True)
    ]


def _by_parts(function: Callable[..., jax.Array], *leaves: jax.Array) -> jax.Array:
    # As a complex number a coefficient would also multiply by its imaginary zero.
    if not jnp.iscomplexobj(leaves[0]):
        return function(*leaves)
    return lax.complex(
        function(*(leaf.real for leaf in leaves)), function(*(leaf.imag for leaf in leaves))
    )
