"""Sums of squares of leaves in few kernels: what is read together, and what is communicated together."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from warmclip_jax._norms._axes import Reduction

#: On CPU, leaves of at most this many entries are concatenated before they are read: up to four
#: times faster; from 2^13 slower.
SMALL = 2**12
#: The same limit on GPUs, for fewer kernels, and in the second pass, which is seldom taken, for
#: shorter compile time: there at most one part in `_PARTS` of all entries at a time.
MIDDLE, _PARTS = 2**16, 16
#: How many leaves one concatenation takes: a kernel that reads a thousand takes seconds to compile,
#: equal kernels compile once.
_TOGETHER = 32

#: Arrays, each with its `Reduction` over devices.
Summands = list[tuple[Reduction, jax.Array]]


def sums_of_squares(
    leaves: Summands, scales: tuple[jax.Array | None, ...], dtype: np.dtype
) -> list[jax.Array]:
    """The sums of the squares of all entries, each times a scale (None: as they are): one sum for each scale."""
    # Not vdot or ravel: those reshape, which an explicitly sharded leaf may refuse.
    alike: dict[tuple[Reduction, tuple[int, ...]], list[list[jax.Array]]] = {}
    for reduction, leaf in leaves:
        # Leaves of one shape are usually sharded alike: adding their sums first leaves one number
        # to communicate. Sorted, shapes that are sharded alike stand together more often.
        shape = leaf.shape if may_be_sharded(leaf) else ()
        alike.setdefault((reduction, shape), []).append(of_leaf(leaf, scales, dtype))
    by_shape = sorted(
        alike.items(),
        key=lambda item: [size if isinstance(size, int) else -1 for size in item[0][1]],
    )
    return [
        summed(
            [
                (reduction, _added([sums[index] for sums in of_leaves]))
                for (reduction, _), of_leaves in by_shape
            ]
        )
        for index in range(len(scales))
    ]


def one_by_one(leaves: Summands, scale: jax.Array) -> jax.Array:
    """The sum of the squares of all entries, each times a scale: in few kernels, and with little memory at a time."""
    sums: Summands = []
    for places in _together(
        leaves, MIDDLE, most=sum(_entries(leaf) or 0 for _, leaf in leaves) // _PARTS
    ):
        reduction, part = leaves[places[0]][0], [leaves[place][1] for place in places]
        if len(part) > 1 and sums and sums[-1][0] == reduction:
            # A zero that depends on the previous sum: otherwise XLA concatenates every part before
            # it reads the first.
            part = [jnp.minimum(sums[-1][1], 0).astype(part[0].dtype), *part]
        sums.append((reduction, *of_leaf(_joined(part), (scale,), scale.dtype)))
    return summed(sums)


class Rows(NamedTuple):
    """Leaves that are read together and keep their own sums: one leaf, or several of one shape stacked."""

    reduction: Reduction
    places: tuple[int, ...]  # of the leaves, in leaf order
    leaf: jax.Array  # the leaf alone, or stacked leaves


def rows(leaves: Summands, size: int) -> list[Rows]:
    """The leaves, those of at most `size` entries and of one shape and dtype stacked."""
    return [
        Rows(leaves[places[0]][0], places, jnp.stack(part) if len(part) > 1 else part[0])
        for places in _together(leaves, size, alike=True)
        for part in [[leaves[place][1] for place in places]]
    ]


def sums_of_rows(row: Rows, scales: tuple[jax.Array | None, ...], dtype: np.dtype) -> jax.Array:
    """The sums of squares of each leaf of `row`, `[len(scales), len(row.places)]`."""
    axes = tuple(range(1, row.leaf.ndim)) if len(row.places) > 1 else None
    return jnp.stack(of_leaf(row.leaf, scales, dtype, axes)).reshape(len(scales), len(row.places))


def summed_rows(sums: list[tuple[Reduction, tuple[int, ...], jax.Array]], number: int) -> jax.Array:
    """The sums `[..., places]` of rows in leaf order, `[..., number]`, over all shards: one `psum` for each set of axes."""
    groups: dict[tuple[str, ...], list[tuple[tuple[int, ...], jax.Array]]] = {}
    for reduction, places, values in sums:
        groups.setdefault(reduction.axes, []).append((places, _once(reduction, values)))
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
    leaf: jax.Array,
    scales: tuple[jax.Array | None, ...],
    dtype: np.dtype,
    axes: tuple[int, ...] | None = None,
) -> list[jax.Array]:
    """The sums of one leaf, or of each of some stacked ones, one for each scale. Traced once for all leaves of a shape."""
    if len(scales) == 1:
        # On CPU. Otherwise XLA shares the converted entries with others that convert them, a copy
        # of all gradients; and keeps an array filled with the scale in a second pass.
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
    return lax.reduce(
        squares, zeros, lambda left, right: jax.tree.map(jnp.add, left, right), dimensions
    )


def may_be_sharded(array: jax.Array) -> bool:
    """Whether the compiler may shard `array`: concatenating it, or reducing it other than by a sum, could gather it."""
    mesh = jax.typeof(array).sharding.mesh
    if mesh.axis_names and set(mesh.manual_axes) == set(mesh.axis_names):
        return False  # it is a shard itself
    # Not every type knows its mesh, and a program can be compiled for devices that are elsewhere.
    return mesh.size > 1 or jax.device_count() > 1


def _together(
    leaves: Summands, size: int, *, alike: bool = False, most: int | None = None
) -> list[tuple[int, ...]]:
    """The places of the leaves that are read together: those of at most `size` entries and one dtype (and shape, if `alike`).

    At most `_TOGETHER` of them, with at most `most` entries: instructions take time to compile.
    Alone where something may be
    sharded: the compiler might have to gather what is put together.
    """
    alone: list[tuple[int, ...]] = []
    sorts: dict[tuple[Reduction, Any, Any], list[int]] = {}
    for place, (reduction, leaf) in enumerate(leaves):
        if _is_small(leaf, size):
            sorts.setdefault((reduction, leaf.dtype, leaf.shape if alike else None), []).append(
                place
            )
        else:
            alone.append((place,))
    for sort in sorts.values():
        largest = max(1, *(leaves[place][1].size for place in sort))
        number = _TOGETHER if most is None else max(1, min(_TOGETHER, most // largest))
        alone += [tuple(sort[start : start + number]) for start in range(0, len(sort), number)]
    return alone


def _entries(leaf: jax.Array) -> int | None:
    """The size of a leaf; None where it is a symbol, in a program exported for many sizes."""
    return leaf.size if isinstance(leaf.size, int) else None


def _is_small(leaf: jax.Array, size: int) -> bool:
    """Whether a leaf has at most `size` entries, and may be read together with others."""
    entries = _entries(leaf)
    return entries is not None and entries <= size and not may_be_sharded(leaf)


def packed(leaves: Summands, size: int) -> Summands:
    """The leaves, those of at most `size` entries and of one dtype concatenated."""
    parts = _together(leaves, size)
    return [
        (leaves[places[0]][0], _joined([leaves[place][1] for place in places])) for places in parts
    ]


def _joined(group: list[jax.Array]) -> jax.Array:
    return group[0] if len(group) == 1 else jnp.concatenate([leaf.ravel() for leaf in group])


def real_parts(leaf: jax.Array, dtype: np.dtype) -> list[jax.Array]:
    parts = [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
    return [part.astype(dtype) for part in parts]


def summed(sums: Summands) -> jax.Array:
    """The sum over all leaves and all their shards: one `psum` for each distinct set of axes."""
    groups: dict[tuple[str, ...], list[jax.Array]] = {}
    for reduction, value in sums:
        groups.setdefault(reduction.axes, []).append(_once(reduction, value))
    return _added(
        [
            lax.psum(_added(values), axes) if axes else _added(values)
            for axes, values in groups.items()
        ]
    )


def _once(reduction: Reduction, value: jax.Array) -> jax.Array:
    """A sum that several devices hold alike, divided by their number: added over them it counts once."""
    return (
        value / int(np.prod([lax.axis_size(axis) for axis in reduction.copies]))
        if reduction.copies
        else value
    )


def _added(values: list[jax.Array]) -> jax.Array:
    """The sum of n scalars. Added pairwise: rounding then grows with log(n), not n."""
    if len(values) == 1:
        return values[0]
    if not may_be_sharded(values[0]):
        return jnp.sum(jnp.stack(values))
    # In pairs, so that XLA can add the sums of shards before it communicates them.
    pairs = 2 ** ((len(values) - 1).bit_length() - 1)
    return _added(values[:pairs]) + _added(values[pairs:])
