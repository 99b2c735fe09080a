"""Sums over leaves and over shards: what is added, and communicated, together."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from warmclip_jax._norms._axes import Reduction
from warmclip_jax._norms._sums import Scale, Summand, may_be_sharded


def sums_at(
    scales: tuple[Scale, ...],
    summands: Sequence[Summand],
    number: int,
    dtype: np.dtype,
    *,
    in_one: bool = False,
) -> list[jax.Array]:
    """For each scale the sums of squares `[number]` of all norms, each entry times the scale."""
    of_each = [summand.sums(scales, dtype, in_one=in_one) for summand in summands]
    return added(summands, list(zip(*of_each, strict=True)), number)


def added(
    summands: Sequence[Summand], sums: Sequence[Sequence[jax.Array]], number: int
) -> list[jax.Array]:
    """For each scale the sums of some summands, added for each of `number` norms.

    Over all shards: one `psum` for each set of axes.
    """
    sets: dict[tuple[str, ...], list[int]] = {}
    for index, summand in enumerate(summands):
        sets.setdefault(summand.reduction.axes, []).append(index)
    vectors = []
    for axes, indices in sets.items():
        own = [summands[index] for index in indices]
        of_scales = [
            _of_norms(own, [values[index] for index in indices], number) for values in sums
        ]
        vectors.append(lax.psum(jnp.stack(of_scales), axes) if axes else of_scales)
    return [_added(list(values)) for values in zip(*vectors, strict=True)]


def _of_norms(summands: Sequence[Summand], values: Sequence[jax.Array], number: int) -> jax.Array:
    # Leaves of one shape are usually sharded alike: adding their sums first leaves one number to
    # communicate. Sorted, shapes that are sharded alike stand together more often.
    alike: dict[Any, list[jax.Array]] = {}
    for summand, value in zip(summands, values, strict=True):
        shape = summand.array.shape if may_be_sharded(summand.array) else ()
        alike.setdefault((shape, summand.norms), []).append(_once(summand.reduction, value))
    of_norms: dict[tuple[int, ...], list[jax.Array]] = {}
    for shape, norms in sorted(alike, key=lambda key: _sizes(key[0])):
        of_norms.setdefault(norms, []).append(_added(alike[shape, norms]))
    there = [norm for norms in of_norms for norm in norms]
    return in_order(there, list(map(_added, of_norms.values())), number)


def in_order(
    norms: list[int], parts: Sequence[jax.Array], number: int, missing: float = 0
) -> jax.Array:
    """A vector `[number]` with the entries of `parts` at `norms`, and `missing` elsewhere."""
    vector = jnp.concatenate([jnp.atleast_1d(part) for part in parts])
    if norms == list(range(number)):
        return vector
    order = np.full(number, len(norms))
    order[norms] = np.arange(len(norms))
    return jnp.pad(vector, (0, 1), constant_values=missing)[order]


def _sizes(shape: tuple[Any, ...]) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in shape]


def _once(reduction: Reduction, value: jax.Array) -> jax.Array:
    """A sum that several devices hold alike, divided by their number: it then counts once."""
    if not reduction.copies:
        return value
    return value / int(np.prod([lax.axis_size(axis) for axis in reduction.copies]))


def _added(values: list[jax.Array]) -> jax.Array:
    """The sum of n values."""
    if len(values) == 1:
        return values[0]
    if not may_be_sharded(values[0]):
        return jnp.sum(jnp.stack(values), axis=0)
    # In pairs, so that XLA can add the sums of shards before it communicates them.
    pairs = 2 ** ((len(values) - 1).bit_length() - 1)
    return _added(values[:pairs]) + _added(values[pairs:])
