"""Sums of squares in few kernels: which leaves are read together."""

import collections
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from warmclip_jax._norms._axes import Reduction

#: On CPU, leaves of at most this many entries are put together before they are read: up to four
#: times faster; from 2^13 slower.
SMALL = 2**12
#: The same limit on GPUs, for fewer kernels, and in the second pass, which is seldom taken, for
#: shorter compile time.
MIDDLE = 2**16
#: How many leaves are put together at most: a kernel that reads a thousand takes seconds to
#: compile, equal kernels compile once.
_TOGETHER = 32

#: What entries are multiplied by before they are squared; None: nothing.
Scale = jax.Array | None


class Summand(NamedTuple):
    """What is read at once: a leaf; several, joined, that add to one norm; or several stacked."""

    reduction: Reduction
    norms: tuple[int, ...]  # the norm that it adds to; of a stack, the norm of each row
    array: jax.Array

    @property
    def entries(self) -> int | None:
        """Their number; None where it is a symbol, in a program exported for many sizes."""
        return self.array.size if isinstance(self.array.size, int) else None

    def sums(
        self, scales: tuple[Scale, ...], dtype: np.dtype, *, in_one: bool = False
    ) -> list[jax.Array]:
        """The sum of the squares of its entries, of a stack that of each row, at each scale."""
        axes = tuple(range(1, self.array.ndim)) if len(self.norms) > 1 else None
        return _of_array(self.array, scales, dtype, axes, in_one)


def gathered(summands: Sequence[Summand], size: int) -> list[Summand]:
    """The same, those of at most `size` entries put together as far as they may be."""
    return list(map(put_together, together(summands, size)))


def together(
    summands: Sequence[Summand], size: int, most: int | None = None
) -> list[list[Summand]]:
    """What is read together: what has at most `size` entries, one dtype, and one norm or one shape.

    At most `_TOGETHER` of them, with at most `most` entries: instructions take time to compile.
    Alone where something may be sharded: the compiler might have to gather what is put together.
    """
    alone: list[list[Summand]] = []
    sorts: dict[Any, list[Summand]] = {}
    of_norm = collections.Counter(summand.norms for summand in summands)
    for summand in summands:
        array, entries = summand.array, summand.entries
        is_small = entries is not None and entries <= size and not may_be_sharded(array)
        if is_small and len(summand.norms) == 1:
            # What shares a norm is joined, whatever its shape. The rest can be stacked.
            alike = (array.shape, None) if of_norm[summand.norms] == 1 else (None, summand.norms)
            sorts.setdefault((summand.reduction, array.dtype, alike), []).append(summand)
        else:
            alone.append([summand])
    for sort in sorts.values():
        largest = max(1, *(summand.array.size for summand in sort))
        number = _TOGETHER if most is None else max(1, min(_TOGETHER, most // largest))
        alone += [sort[start : start + number] for start in range(0, len(sort), number)]
    return alone


def put_together(parts: Sequence[Summand]) -> Summand:
    """Some of one norm joined, or some of one shape stacked."""
    first, *others = parts
    arrays = [part.array for part in parts]
    if not others:
        return first
    if others[0].norms == first.norms:
        return first._replace(array=jnp.concatenate([array.ravel() for array in arrays]))
    return Summand(first.reduction, sum((part.norms for part in parts), ()), jnp.stack(arrays))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _of_array(
    array: jax.Array,
    scales: tuple[Scale, ...],
    dtype: np.dtype,
    axes: tuple[int, ...] | None,
    in_one: bool,
) -> list[jax.Array]:
    # Traced once for all arrays of a shape. Not vdot or ravel: those reshape, which an explicitly
    # sharded leaf may refuse.
    if len(scales) == 1:
        # On CPU. Otherwise XLA shares the converted entries with others that convert them, a copy
        # of all gradients; and keeps an array filled with the scale in a second pass.
        array, scales = lax.optimization_barrier((array, scales))
    of_parts = []
    for part in real_parts(array, dtype):
        squares = [jnp.square(part if scale is None else part * scale) for scale in scales]
        if in_one and not may_be_sharded(array):
            # On a GPU one kernel, where separate sums would be two or three. XLA for CPUs would
            # add one entry after the other, slower and less exact.
            of_parts.append(_in_one(squares, range(array.ndim) if axes is None else axes))
        else:
            of_parts.append([jnp.sum(square, axes) for square in squares])
    return [functools.reduce(jnp.add, sums) for sums in zip(*of_parts, strict=True)]


def _in_one(squares: list[jax.Array], axes: Sequence[int]) -> list[jax.Array]:
    zeros = [jnp.zeros((), square.dtype) for square in squares]
    return lax.reduce(
        squares, zeros, lambda left, right: jax.tree.map(jnp.add, left, right), tuple(axes)
    )


def may_be_sharded(array: jax.Array) -> bool:
    """Whether the compiler may shard `array`.

    Concatenating it, or reducing it other than by a sum, could then gather it.
    """
    mesh = jax.typeof(array).sharding.mesh
    if mesh.axis_names and set(mesh.manual_axes) == set(mesh.axis_names):
        return False  # it is a shard itself
    # Not every type knows its mesh, and a program can be compiled for devices that are elsewhere.
    return mesh.size > 1 or jax.device_count() > 1


def real_parts(leaf: jax.Array, dtype: np.dtype) -> list[jax.Array]:
    parts = [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
    return [part.astype(dtype) for part in parts]
