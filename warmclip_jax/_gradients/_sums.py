"""Sums of squares of leaves in few kernels: what is read together, and what is communicated together."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from warmclip_jax._gradients._axes import Reduction

#: On CPU, leaves of at most this many entries are concatenated before they are read: up to four times faster; from 2^13 slower.
SMALL = 2**12
#: The same limit on GPUs, for fewer kernels, and in the second pass, which is seldom taken, for shorter compile time: there at
#: most one part in `_PARTS` of all entries at a time.
MIDDLE, _PARTS = 2**16, 16
#: How many leaves one concatenation takes: a kernel that reads a thousand takes seconds to compile, equal kernels compile once.
_TOGETHER = 32

#: Arrays, each with its `Reduction` over devices.
Summands = list[tuple[Reduction, jax.Array]]


def sums_of_squares(leaves: Summands, scales: tuple[jax.Array | None, ...], dtype: np.dtype) -> list[jax.Array]:
    """The sums of the squares of all entries, each times a scale (None: as they are): one sum for each scale."""
    # Not vdot or ravel: those reshape, which an explicitly sharded leaf may refuse.
    alike: dict[tuple[Reduction, tuple[int, ...]], list[list[jax.Array]]] = {}
    for reduction, leaf in leaves:
        # Leaves of one shape are usually sharded alike: adding their sums first leaves one number to communicate. Sorted,
        # shapes that are sharded alike stand together more often.
        shape = leaf.shape if may_be_sharded(leaf) else ()
        alike.setdefault((reduction, shape), []).append(of_leaf(leaf, scales, dtype))
    by_shape = sorted(alike.items(), key=lambda item: [size if isinstance(size, int) else -1 for size in item[0][1]])
    return [
        summed([(reduction, _added([sums[index] for sums in of_leaves])) for (reduction, _), of_leaves in by_shape])
        for index in range(len(scales))
    ]


def one_by_one(leaves: Summands, scale: jax.Array) -> jax.Array:
    """The sum of the squares of all entries, each times a scale: in few kernels, and with little memory at a time."""
    sums: Summands = []
    for reduction, group in _groups(leaves, MIDDLE, sum(_entries(leaf) or 0 for _, leaf in leaves) // _PARTS):
        if len(group) > 1 and sums and sums[-1][0] == reduction:
            # A zero that depends on the previous sum: otherwise XLA concatenates every group before it reads the first.
            group = [jnp.minimum(sums[-1][1], 0).astype(group[0].dtype), *group]
        sums.append((reduction, *of_leaf(_joined(group), (scale,), scale.dtype)))
    return summed(sums)


class Rows(NamedTuple):
    """Leaves that are read together and keep their own sums: one leaf, or several of one shape stacked."""

    reduction: Reduction
    places: tuple[int, ...]  # of the leaves, in leaf order
    leaf: jax.Array  # the leaf alone, or stacked leaves


def rows(leaves: Summands, size: int) -> list[Rows]:
    """The leaves, those of at most `size` entries and of one shape and dtype stacked."""
    alone: list[Rows] = []
    sorts: dict[tuple[Reduction, Any, tuple[int, ...]], list[int]] = {}
    for place, (reduction, leaf) in enumerate(leaves):
        if _is_small(leaf, size):
            sorts.setdefault((reduction, leaf.dtype, leaf.shape), []).append(place)
        else:
            alone.append(Rows(reduction, (place,), leaf))
    return alone + [
        Rows(reduction, tuple(part), jnp.stack([leaves[place][1] for place in part]) if len(part) > 1 else leaves[part[0]][1])
        for (reduction, _, _), sort in sorts.items()
        for part in (sort[start : start + _TOGETHER] for start in range(0, len(sort), _TOGETHER))
    ]


def sums_of_rows(row: Rows, scales: tuple[jax.Array | None, ...], dtype: np.dtype) -> jax.Array:
    """The sums of squares of each leaf of `row`, `[len(scales), len(row.places)]`."""
    axes = tuple(range(1, row.leaf.ndim)) if len(row.places) > 1 else None
    return jnp.stack(of_leaf(row.leaf, scales, dtype, axes)).reshape(len(scales), len(row.places))


def summed_rows(sums: list[tuple[Reduction, tuple[int, ...], jax.Array]], number: int) -> jax.Array:
    """The sums `[..., places]` of rows in leaf order, `[..., number]`, over all shards: one `psum` for each set of axes."""
    groups: dict[tuple[str, ...], list[tuple[tuple[int, ...], jax.Array]]] = {}
    for reduction, places, values in sums:
        values = values / _size(reduction.copies) if reduction.copies else values
        groups.setdefault(reduction.axes, []).append((places, values))
    vectors: list[jax.Array] = []
    for axes, members in groups.items():
        joined = jnp.concatenate([values for _, values in members], axis=-1)
        # Leaves reduced over other axes take the zero padded at the end.
        there = [place for places, _ in members for place in places]
        order = np.full(number, len(there))
        order[there] = np.arange(len(there))
        if there != list(range(number)):
            joined = jnp.pad(joined, [(0, 0)] * (joined.ndim - 1) + [(0, 1)])[..., order]
        vectors.append(lax.psum(joined, axes) if axes else joined)
    return functools.reduce(jnp.add, vectors)


@functools.partial(jax.jit, static_argnums=(2, 3))
def of_leaf(
    leaf: jax.Array, scales: tuple[jax.Array | None, ...], dtype: np.dtype, axes: tuple[int, ...] | None = None
) -> list[jax.Array]:
    """The sums of one leaf, or of each of some stacked ones, one for each scale. Traced once for all leaves of a shape."""
    if len(scales) == 1:
        # On CPU. Otherwise XLA shares the converted entries with others that convert them, a copy of all gradients; and keeps
        # an array filled with the scale in a second pass.
        leaf, scales = lax.optimization_barrier((leaf, scales))
    of_parts = [
        _sums([jnp.square(part if scale is None else part * scale) for scale in scales], axes)
        for part in real_parts(leaf, dtype)
    ]
    return [functools.reduce(jnp.add, sums) for sums in zip(*of_parts, strict=True)]


def _sums(squares: list[jax.Array], axes: tuple[int, ...] | None) -> list[jax.Array]:
    """The sum of each of some arrays of one shape: on a GPU one kernel, where separate sums would be two or three."""
    if len(squares) == 1 or may_be_sharded(squares[0]):
        return [jnp.sum(square, axes) for square in squares]
    zeros = [jnp.zeros((), square.dtype) for square in squares]
    dimensions = range(squares[0].ndim) if axes is None else axes
    return lax.reduce(squares, zeros, lambda left, right: jax.tree.map(jnp.add, left, right), dimensions)


def may_be_sharded(array: jax.Array) -> bool:
    """Whether the compiler may shard `array`: concatenating it, or reducing it other than by a sum, could gather it."""
    mesh = jax.typeof(array).sharding.mesh
    if mesh.axis_names and set(mesh.manual_axes) == set(mesh.axis_names):
        return False  # it is a shard itself
    # Not every type knows its mesh, and a program can be compiled for devices that are elsewhere.
    return mesh.size > 1 or jax.device_count() > 1


def _groups(leaves: Summands, size: int, most: int) -> list[tuple[Reduction, list[jax.Array]]]:
    """The leaves, those of `size` entries at most in groups of one sort with `most` at most: instructions take time to compile.

    Alone where something may be sharded: the compiler might have to gather what is put together.
    """
    alone: list[tuple[Reduction, list[jax.Array]]] = []
    sorts: dict[tuple[Reduction, Any], list[jax.Array]] = {}
    for reduction, leaf in leaves:
        if _is_small(leaf, size):
            sorts.setdefault((reduction, leaf.dtype), []).append(leaf)
        else:
            alone.append((reduction, [leaf]))
    return alone + [
        (reduction, sort[start : start + together])
        for (reduction, _), sort in sorts.items()
        for together in [max(1, min(_TOGETHER, most // max(1, *(leaf.size for leaf in sort))))]
        for start in range(0, len(sort), together)
    ]


def _entries(leaf: jax.Array) -> int | None:
    """The size of a leaf; None where it is a symbol, in a program exported for many sizes."""
    return leaf.size if isinstance(leaf.size, int) else None


def _is_small(leaf: jax.Array, size: int) -> bool:
    """Whether a leaf has at most `size` entries, and may be read together with others."""
    entries = _entries(leaf)
    return entries is not None and entries <= size and not may_be_sharded(leaf)


def packed(leaves: Summands, size: int) -> Summands:
    return [(reduction, _joined(group)) for reduction, group in _groups(leaves, size, _TOGETHER * size)]


def _joined(group: list[jax.Array]) -> jax.Array:
    return group[0] if len(group) == 1 else jnp.concatenate([leaf.ravel() for leaf in group])


def real_parts(leaf: jax.Array, dtype: np.dtype) -> list[jax.Array]:
    parts = [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
    return [part.astype(dtype) for part in parts]


def summed(sums: Summands) -> jax.Array:
    """The sum over all leaves and all their shards: one `psum` for each distinct set of axes."""
    groups: dict[tuple[str, ...], list[jax.Array]] = {}
    for reduction, value in sums:
        groups.setdefault(reduction.axes, []).append(value / _size(reduction.copies) if reduction.copies else value)
    return _added([lax.psum(_added(values), axes) if axes else _added(values) for axes, values in groups.items()])


def _size(axes: tuple[str, ...]) -> int:
    return int(np.prod([lax.axis_size(axis) for axis in axes]))


def _added(values: list[jax.Array]) -> jax.Array:
    """The sum of n scalars. Added pairwise: rounding then grows with log(n), not n."""
    if len(values) > 1 and not may_be_sharded(values[0]):
        return jnp.sum(jnp.stack(values))
    # In pairs, so that XLA can add the sums of shards before it communicates them.
    while len(values) > 1:
        values = [*map(jnp.add, values[::2], values[1::2]), *values[len(values) // 2 * 2 :]]
    return values[0]
