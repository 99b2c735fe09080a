"""The frame of every norm: how leaves are read on each platform, and the derivative.

`sqrt(sum(x * x))` fails where `x * x` leaves the range of its dtype: float32 entries of 1e20 give
inf, of 1e-30 give 0. So a norm is kept as a mantissa and a power-of-two scale, and the entries are
scaled before they are squared whenever the plain sum shows that this is needed, which costs an
ordinary gradient nothing.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from warmclip_jax._norms._adding import added, sums_at
from warmclip_jax._norms._axes import AxisName, Reduction, reductions
from warmclip_jax._norms._leaves import accumulation_dtype, gradients
from warmclip_jax._norms._range import Range, ScaledNorm
from warmclip_jax._norms._second_pass import with_second_passes
from warmclip_jax._norms._sums import MIDDLE, SMALL, Summand, gathered, may_be_sharded, real_parts


class Grouping(NamedTuple):
    """Which norm each gradient is in. Of the norms of one call, this is all that differs."""

    norms: tuple[int, ...]  # the index of its norm, in leaf order
    number: int | None  # of norms, an array of them; None: one norm, a scalar

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the norms."""
        return () if self.number is None else (self.number,)


def all_together(leaves: int) -> Grouping:
    """One norm of all leaves."""
    return Grouping((0,) * leaves, None)


def each_alone(leaves: int) -> Grouping:
    """The norm of each leaf."""
    return Grouping(tuple(range(leaves)), leaves)


def scaled_norms(
    tree: Any, axis_name: AxisName, *groupings: Callable[[int], Grouping]
) -> list[ScaledNorm]:
    """The norms by each grouping, a function of the number of leaves. All from one read."""
    per_leaf = tuple(reductions(tree, axis_name))
    made = tuple(grouping(len(per_leaf)) for grouping in groupings)
    # The scale is piecewise constant. A numeric zero as its tangent would meet overflowing factors,
    # 0 * inf.
    return [
        norm._replace(scale=lax.stop_gradient(norm.scale))
        for norm in _jitted(made, per_leaf, gradients(tree))
    ]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _norms(
    groupings: tuple[Grouping, ...], per_leaf: tuple[Reduction, ...], leaves: list[jax.Array]
) -> list[ScaledNorm]:
    dtype = accumulation_dtype(leaves)
    if not leaves:
        return [ScaledNorm.of(jnp.zeros(grouping.shape, dtype)) for grouping in groupings]
    limits = Range.of(dtype)
    # The same three scales for all norms: otherwise XLA would read the leaves again for each.
    scales = limits.scales()

    def gathered_by(grouping: Grouping, size: int, start: int = 0) -> list[Summand]:
        pairs = zip(per_leaf, grouping.norms, leaves, strict=True)
        return gathered([Summand(each, (start + norm,), leaf) for each, norm, leaf in pairs], size)

    def at_all_scales(some: Sequence[Grouping], size: int, *, in_one: bool = False) -> list[Any]:
        # As one vector, so that all is communicated at once.
        starts = [0, *itertools.accumulate(math.prod(grouping.shape) for grouping in some)]
        summands = [
            gathered_by(each, size, start) for each, start in zip(some, starts, strict=False)
        ]
        sums = sums_at(scales, list(itertools.chain(*summands)), starts[-1], dtype, in_one=in_one)
        totals, chosen = limits.chosen(*sums)
        return [(totals[a:b], chosen[a:b]) for a, b in itertools.pairwise(starts)]

    def on_cpu() -> list[Any]:
        # All devices must choose the same scale, so sums of shards are chosen from after they are
        # communicated: in one branch, and not again in each of many.
        is_local = not any(each.axes for each in per_leaf) and not any(map(may_be_sharded, leaves))
        branched = [each for each in groupings if is_local or not each.shape]
        others = [each for each in groupings if each not in branched]
        found = {
            each: with_second_passes(gathered_by(each, SMALL), math.prod(each.shape), dtype)
            for each in branched
        }
        if others:
            found |= zip(others, at_all_scales(others, SMALL), strict=True)
        # Each waits for all: a leaf that is scaled in place, by one norm, would be copied for the
        # second pass of another. No sum of squares is below 0.
        is_wrong = jnp.any(jnp.concatenate([totals for totals, _ in found.values()]) < 0)
        return [
            (jnp.where(is_wrong, jnp.nan, totals) if len(found) > 1 else totals, scales)
            for totals, scales in map(found.__getitem__, groupings)
        ]

    # Accelerators turn a branch this small into a select and run both passes. GPUs fuse what puts
    # leaves together into the read, TPUs would write it.
    found = lax.platform_dependent(
        cpu=on_cpu,
        tpu=lambda: at_all_scales(groupings, 0),
        default=lambda: at_all_scales(groupings, MIDDLE, in_one=True),
    )
    norms = []
    for grouping, (totals, chosen) in zip(groupings, found, strict=True):
        mantissa, scale = jnp.sqrt(totals).reshape(grouping.shape), chosen.reshape(grouping.shape)
        norms.append(ScaledNorm(mantissa, scale, mantissa / scale))
    return norms


@_norms.defjvp  # pyright: ignore[reportFunctionMemberAccess]
def _norms_jvp(
    groupings: tuple[Grouping, ...], per_leaf: tuple[Reduction, ...], primals: Any, tangents: Any
) -> Any:
    (leaves,), (rates,) = primals, tangents
    norms = _norms(groupings, per_leaf, leaves)
    return norms, [
        _slope(grouping, per_leaf, leaves, rates, norm)
        for grouping, norm in zip(groupings, norms, strict=True)
    ]


def _slope(
    grouping: Grouping,
    per_leaf: tuple[Reduction, ...],
    leaves: list[jax.Array],
    rates: list[jax.Array],
    norm: ScaledNorm,
) -> ScaledNorm:
    if not leaves:
        return jax.tree.map(jnp.zeros_like, norm)
    # d sqrt(sum x^2) = sum (x / norm) dx. The unit vector x / norm is 0 where the norm is, which
    # keeps the derivative at a zero gradient finite. No part of it leaves the range. The scale is
    # piecewise constant; a zero for its slope would meet what overflows in second derivatives.
    scale, dtype = lax.stop_gradient(norm.scale), norm.scale.dtype
    scales, inverses = scale.ravel(), norm.inverse.ravel()
    summands, products = [], []
    for each, index, leaf, rate in zip(per_leaf, grouping.norms, leaves, rates, strict=True):
        unit = [part * scales[index] * inverses[index] for part in real_parts(leaf, dtype)]
        along = zip(unit, real_parts(rate, dtype), strict=True)
        products.append(functools.reduce(jnp.add, [jnp.sum(left * right) for left, right in along]))
        summands.append(Summand(each, (index,), leaf))
    (slope,) = added(summands, [products], scales.size)
    slope = slope.reshape(scale.shape)
    return ScaledNorm(slope * scale, jnp.zeros_like(scale), slope)


# Jitted, so that an eager call is one dispatch and does not compile its branches anew.
_jitted = jax.jit(_norms, static_argnums=(0, 1), inline=True)
