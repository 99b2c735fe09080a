"""The norm of each leaf, and of each group of leaves, from one read; each with the whole range of the global norm."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from warmclip_jax._norms._axes import AxisName, Reduction, reductions
from warmclip_jax._norms._entries import entries
from warmclip_jax._norms._leaves import accumulation_dtype, gradients, paths
from warmclip_jax._norms._range import Range, ScaledNorm
from warmclip_jax._norms._sums import (
    MIDDLE,
    SMALL,
    Rows,
    Summands,
    may_be_sharded,
    of_leaf,
    real_parts,
    rows,
    summed_rows,
    sums_of_rows,
)
from warmclip_jax._values import named

#: At least this many second passes before leaves share them: each is a branch to compile.
_BRANCHES = 32


@named
def leaf_norms(tree: Any, *, axis_name: AxisName = None) -> dict[str, jax.Array]:
    """The L2 norm of each leaf by its path, correct for every finite input.

    `sqrt(sum(|x| ** 2))` for each leaf x. All leaves are read once.

    Args:
      tree: gradients, as in `global_norm`. Leaves that are no gradients have no entry.
      axis_name: how leaves are sharded, where their types do not tell: see `global_norm`.

    Returns:
      Scalars, float32 (float64 when there is a float64 leaf), in leaf order. A path is the keys
      joined by `/`, `"a/b"`; it stops at a variable of flax.nnx. Leaves of one path are numbered:
      `"a/b#0"`, `"a/b#1"`.

    Raises:
      ValueError: as `global_norm`.

    >>> import jax.numpy as jnp
    >>> import warmclip_jax as wc
    >>> {path: float(norm) for path, norm in wc.leaf_norms({"a": {"w": jnp.array([3.0, 4.0])}, "b": jnp.ones(4)}).items()}
    {'a/w': 5.0, 'b': 2.0}
    """
    value = scaled_leaf_norms(tree, axis_name=axis_name).value
    return dict(zip(paths(tree), entries(value), strict=True))


def scaled_leaf_norms(
    tree: Any, *, axis_name: AxisName = None, members: np.ndarray | None = None
) -> ScaledNorm:
    """The norm of each gradient of a tree, in leaf order: a mantissa and a scale that are vectors.

    `members` has the group of each: no leaf is read a second time because one of another group has
    to be.
    """
    per_leaf = tuple(reductions(tree, axis_name))
    mantissas, scales = _jitted_parts(
        per_leaf, None if members is None else tuple(members.tolist()), gradients(tree)
    )
    return ScaledNorm(mantissas, lax.stop_gradient(scales))


def combined(norms: ScaledNorm, members: np.ndarray | None = None, number: int = 1) -> ScaledNorm:
    """The norm of each group of some norms: `members` has the group of each. Without it a scalar, of all of them."""
    mantissas, scales = norms
    leaves = mantissas.shape[0]
    of_groups = (
        [np.arange(leaves)]
        if members is None
        else [np.flatnonzero(members == group) for group in range(number)]
    )
    # The places of the leaves of each group, filled up with that of a zero.
    places = np.full((len(of_groups), max(map(len, of_groups))), leaves)
    for group, of_group in enumerate(of_groups):
        places[group, : len(of_group)] = of_group
    limits = Range.of(mantissas.dtype)
    mantissas, scales = (
        jnp.pad(mantissas, (0, 1))[places],
        jnp.pad(scales, (0, 1), constant_values=limits.up)[places],
    )
    # The scale of the largest norm of a group: what is small beside it may vanish. A NaN counts as
    # large.
    scale = jnp.min(jnp.where(mantissas != 0, scales, limits.up), axis=1)
    aligned = mantissas * jnp.minimum(scale[:, None] / scales, 1)
    squares, lowered = (
        jnp.sum(jnp.square(each), axis=1) for each in (aligned, aligned * limits.down)
    )
    if members is None:
        scale, squares, lowered = (each.squeeze(0) for each in (scale, squares, lowered))
    # Each fits as it is, and all of them together do not.
    overflows = jnp.isinf(squares) & (scale > limits.down)
    # The root comes last: XLA would work out again in the loop of every leaf what is cheaper.
    mantissa = _root(jnp.where(overflows, lowered, squares))
    return ScaledNorm(mantissa, lax.stop_gradient(jnp.where(overflows, limits.down, scale)))


@jax.custom_jvp
def _root(square: jax.Array) -> jax.Array:
    return jnp.sqrt(square)


@_root.defjvp
def _root_jvp(primals: Any, tangents: Any) -> Any:
    # The root of zero has no slope here.
    root = _root(*primals)
    some = root > 0
    return root, jnp.where(some, tangents[0] / jnp.where(some, 2 * root, 1), 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _parts(
    per_leaf: tuple[Reduction, ...], members: tuple[int, ...] | None, leaves: list[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    dtype = accumulation_dtype(leaves)
    if not leaves:
        return jnp.zeros(0, dtype), jnp.ones(0, dtype)
    pairs = list(zip(per_leaf, leaves, strict=True))
    # All devices must choose the same scale, so the sums of shards are chosen from after they are
    # communicated: once, and not again in the branch of each leaf.
    is_local = not any(reduction.axes or may_be_sharded(leaf) for reduction, leaf in pairs)
    totals, scales = lax.platform_dependent(
        cpu=lambda: (
            _with_second_passes(pairs, members, dtype)
            if is_local
            else _all_scales(rows(pairs, SMALL), len(pairs), dtype)
        ),
        tpu=lambda: _all_scales(rows(pairs, 0), len(pairs), dtype),
        default=lambda: _all_scales(rows(pairs, MIDDLE), len(pairs), dtype),
    )
    return jnp.sqrt(totals), scales


@_parts.defjvp  # pyright: ignore[reportFunctionMemberAccess]
def _parts_jvp(
    per_leaf: tuple[Reduction, ...], members: tuple[int, ...] | None, primals: Any, tangents: Any
) -> Any:
    # As for the global norm, leaf by leaf.
    (leaves,), (rates,) = primals, tangents
    mantissas, scales = _parts(per_leaf, members, leaves)
    scales = lax.stop_gradient(scales)
    if not leaves:
        return (mantissas, scales), (jnp.zeros_like(mantissas), jnp.zeros_like(scales))
    some = mantissas > 0
    inverses = jnp.where(some, 1 / jnp.where(some, mantissas, 1), 0)
    products: list[tuple[Reduction, tuple[int, ...], jax.Array]] = []
    for place, (reduction, leaf, rate) in enumerate(zip(per_leaf, leaves, rates, strict=True)):
        scale, inverse = scales[place], inverses[place]
        parts = zip(
            real_parts(leaf, mantissas.dtype), real_parts(rate, mantissas.dtype), strict=True
        )
        product = functools.reduce(
            jnp.add, [jnp.sum(left * scale * inverse * right * scale) for left, right in parts]
        )
        products.append((reduction, (place,), product.reshape(1)))
    return (mantissas, scales), (summed_rows(products, len(leaves)), jnp.zeros_like(scales))


# Jitted, so that an eager call is one dispatch and does not compile its branches anew.
_jitted_parts = jax.jit(_parts, static_argnums=(0, 1), inline=True)


def _all_scales(bundles: list[Rows], number: int, dtype: np.dtype) -> tuple[jax.Array, jax.Array]:
    """The sums of each leaf at the scale that keeps them in range, from the sums at all three."""
    limits = Range.of(dtype)
    scales = limits.scales()
    sums = [(row.reduction, row.places, sums_of_rows(row, scales, dtype)) for row in bundles]
    return limits.chosen(*summed_rows(sums, number))


def _with_second_passes(
    pairs: Summands, members: tuple[int, ...] | None, dtype: np.dtype
) -> tuple[jax.Array, jax.Array]:
    """The same on CPUs: small leaves at all three scales, larger ones read again if one of their bundle has to be."""
    limits = Range.of(dtype)
    scales = limits.scales()
    small = [row for row in rows(pairs, SMALL) if len(row.places) > 1]
    sums = [
        (row.reduction, row.places, jnp.stack(limits.chosen(*sums_of_rows(row, scales, dtype))))
        for row in small
    ]
    for places in _bundles(pairs, {place for row in small for place in row.places}, members):
        bundle = [pairs[place][1] for place in places]
        sums.append((pairs[places[0]][0], places, _read_again_if_needed(bundle, limits, dtype)))
    totals, scales = summed_rows(sums, len(pairs))
    return totals, scales


def _bundles(
    pairs: Summands, done: set[int], members: tuple[int, ...] | None
) -> list[tuple[int, ...]]:
    """The places of the other leaves, in bundles of one shape and group, so that there are few branches to compile."""
    sorts: dict[Any, list[int]] = {}
    for place, (reduction, leaf) in enumerate(pairs):
        if place not in done:
            sorts.setdefault(
                (reduction, leaf.dtype, leaf.shape, members and members[place]), []
            ).append(place)
    number = max(1, (len(pairs) - len(done)) // _BRANCHES)
    return [
        tuple(sort[start : start + number])
        for sort in sorts.values()
        for start in range(0, len(sort), number)
    ]


def _read_again_if_needed(leaves: list[jax.Array], limits: Range, dtype: np.dtype) -> jax.Array:
    plain = jnp.stack([of_leaf(leaf, (None,), dtype)[0] for leaf in leaves])
    fits, scales = limits.fitting(plain)
    total = lax.cond(
        jnp.all(fits),
        lambda: plain,
        lambda: jnp.stack(
            [of_leaf(leaf, (scales[place],), dtype)[0] for place, leaf in enumerate(leaves)]
        ),
    )
    return jnp.stack([total, scales])
