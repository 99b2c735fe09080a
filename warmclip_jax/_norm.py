"""The L2 norm of a gradient tree, right for every finite input. It knows no thresholds and no steps.

`sqrt(sum(x * x))` fails where `x * x` leaves the range of its dtype: float32 entries of 1e20 give inf, of 1e-30 give 0. So a
norm is kept as a mantissa and a power-of-two scale, and the entries are scaled before they are squared whenever the plain sum
shows that this is needed, which costs an ordinary gradient nothing.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from warmclip_jax._axes import AxisName, Reduction, reductions

#: Leaves of so many entries at most are copied together to be read: up to four times faster, while from 2^13 on it is slower.
_SMALL = 2**12
#: The same on GPUs, which start fewer kernels for it, and in a second pass, which is seldom taken: there it is for the time to
#: compile, with one part in `_PARTS` at a time.
_MIDDLE, _PARTS = 2**16, 16
#: How many of them are put together: one kernel that reads a thousand takes seconds to compile, equal ones are compiled once.
_TOGETHER = 32

#: Arrays, each with how the sum over it goes on over the devices.
_Summands = list[tuple[Reduction, jax.Array]]


class ScaledNorm(NamedTuple):
    """The norm `mantissa / scale`, also where that is not representable. Both are scalars of the accumulation dtype."""

    mantissa: jax.Array
    scale: jax.Array  # a power of two, positive

    @property
    def value(self) -> jax.Array:
        """The norm as one number: inf where it is too large for its dtype."""
        return self.mantissa / self.scale

    @property
    def is_finite(self) -> jax.Array:
        """Whether every entry is finite, even where the norm is not representable."""
        return jnp.isfinite(self.mantissa)

    @classmethod
    def of(cls, norm: jax.Array) -> "ScaledNorm":
        """A norm that is known as one number."""
        # A small one is good as it is; what is divided by a large one leaves the range.
        scale = lax.stop_gradient(jnp.where(jnp.isinf(norm * norm), _Range.of(norm.dtype).down, 1).astype(norm.dtype))
        return cls(norm * scale, scale)


class _Range(NamedTuple):
    """Where a sum of squares can be trusted, and the powers of two that bring the others there."""

    low: np.ndarray  # below it, squares that underflowed may be missing from the sum
    up: np.ndarray  # scale for what is below `low`
    down: np.ndarray  # scale for what overflowed

    @classmethod
    def of(cls, dtype: Any) -> "_Range":
        # An entry below sqrt(tiny) squares to nothing. 2^31 such entries are missing 2^-95 (float32) from a sum of at least
        # 2^-60. Scaled by `down`, 2^31 of the largest entries still add up to less than the largest number.
        low, up, down = (-60, 70, -80) if dtype == jnp.float32 else (-900, 600, -600)
        return cls(*(np.ldexp(np.asarray(1, dtype), exponent) for exponent in (low, up, down)))


def global_norm(tree: Any, *, axis_name: AxisName = None) -> jax.Array:
    """The L2 norm over all leaves, correct for every finite input.

    `sqrt(sum over leaves of sum(|x| ** 2))`, without the overflow and underflow of that expression.

    Args:
      tree: gradients: a pytree of arrays of any floating or complex dtype and any shape. `None`, `float0`, integer, bool and
        `optax.MaskedNode` leaves are no gradients and take no part.
      axis_name: only inside `shard_map(check_vma=False)` and `pmap`, where types do not tell how leaves are sharded: an axis
        name or a tuple of them for every leaf (`()`: the same on every device), or a pytree prefix with `PartitionSpec`
        leaves, in which axes that are left to the compiler may stand too. Elsewhere it is known: under `jit` by the compiler,
        inside `shard_map` by the type of each leaf. A map with types inside of one without cannot know the outer axes, and
        this cannot be seen: use types in both.

    Returns:
      A scalar, float32 (float64 when there is a float64 leaf): 0 for an empty tree, not finite when an entry is not. It is inf
      also where the norm itself is past the largest number. On CPU and TPU, XLA reads float32 and bfloat16 subnormals (below
      1.18e-38) as zero, so they add nothing.

    Raises:
      ValueError: where the sharding of a leaf is not known and `axis_name` does not say it, or contradicts its type; for a
        leaf that is unreduced. That a leaf is sharded as `axis_name` says is not checked in a map without types.

    >>> import jax.numpy as jnp
    >>> import warmclip_jax as wc
    >>> float(wc.global_norm({"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])}))
    5.0
    >>> float(wc.global_norm(jnp.array([300.0, 400.0], jnp.float16)))
    500.0

    Source: Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", section 3.2; the scaling after
    Blue 1978, "A portable Fortran program to find the Euclidean norm of a vector".
    """
    return scaled_norm(tree, axis_name=axis_name).value


def scaled_norm(tree: Any, *, axis_name: AxisName = None) -> ScaledNorm:
    """`global_norm` with its whole range. See there for the arguments."""
    gradients = jax.tree.map(lambda leaf: jnp.asarray(leaf) if is_gradient(leaf) else None, tree)
    per_leaf = tuple(reductions(gradients, axis_name))
    mantissa, scale = _jitted_parts(per_leaf, jax.tree.leaves(gradients))
    # Stopped: it has no slope, and as a number the zero would meet overflowing factors, 0 * inf, in the derivative of `value`.
    return ScaledNorm(mantissa, lax.stop_gradient(scale))


def is_gradient(leaf: Any) -> bool:
    """Whether a leaf is a gradient: floating or complex."""
    return isinstance(leaf, (float, complex)) or jnp.issubdtype(getattr(leaf, "dtype", np.bool_), jnp.inexact)


def accumulation_dtype(tree: Any) -> np.dtype:
    """The dtype of the norm of a tree: float64 if one of its gradients is, else float32."""
    dtypes = [jnp.finfo(jnp.result_type(leaf)).dtype for leaf in jax.tree.leaves(tree) if is_gradient(leaf)]
    return np.dtype(jnp.float64 if jnp.float64 in dtypes else jnp.float32)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _parts(per_leaf: tuple[Reduction, ...], leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    dtype = accumulation_dtype(leaves)
    if not leaves:
        return jnp.zeros((), dtype), jnp.ones((), dtype)
    pairs = list(zip(per_leaf, leaves, strict=True))
    # Accelerators turn so small a branch into a select and would always run both passes one after the other. GPUs put leaves
    # together while they read them, where TPUs would write what is put together.
    total, scale = lax.platform_dependent(
        cpu=lambda: _second_pass_if_needed(_packed(pairs, _SMALL), dtype),
        tpu=lambda: _all_scales(pairs, dtype),
        default=lambda: _all_scales(_packed(pairs, _MIDDLE), dtype),
    )
    return jnp.sqrt(total), scale


@_parts.defjvp  # pyright: ignore[reportFunctionMemberAccess]
def _parts_jvp(per_leaf: tuple[Reduction, ...], primals: Any, tangents: Any) -> Any:
    # d sqrt(sum x^2) = sum (x / norm) dx. The unit vector x / norm is 0 where the norm is, which keeps the derivative at a
    # zero gradient finite. No part of it leaves the range, and the scale is piecewise constant.
    (leaves,), (rates,) = primals, tangents
    mantissa, scale = _parts(per_leaf, leaves)
    scale = lax.stop_gradient(scale)  # else a zero to be multiplied by what overflows, in derivatives of the derivative
    some = mantissa > 0
    inverse = jnp.where(some, 1 / jnp.where(some, mantissa, 1), 0)
    if not leaves:
        return (mantissa, scale), (jnp.zeros_like(mantissa), jnp.zeros_like(scale))
    products = [
        (reduction, jnp.sum(left * scale * inverse * right * scale))
        for reduction, leaf, rate in zip(per_leaf, leaves, rates, strict=True)
        for left, right in zip(_real_parts(leaf, mantissa.dtype), _real_parts(rate, mantissa.dtype), strict=True)
    ]
    return (mantissa, scale), (_summed(products), jnp.zeros_like(scale))


# Jitted, so that an eager call is one dispatch and does not compile its branches anew.
_jitted_parts = jax.jit(_parts, static_argnums=0, inline=True)


def _second_pass_if_needed(leaves: _Summands, dtype: np.dtype) -> tuple[jax.Array, jax.Array]:
    """The sum at the one of the scales 1, `up` and `down` that keeps it in range, and that scale; seldom reads twice."""
    limits = _Range.of(dtype)
    (plain,) = _sums_of_squares(leaves, (None,), dtype)
    fits = (plain >= limits.low) & (plain < jnp.inf)
    scale = jnp.where(fits, 1, jnp.where(plain < limits.low, limits.up, limits.down)).astype(dtype)
    return lax.cond(fits, lambda: plain, lambda: _one_by_one(leaves, scale)), scale


def _one_by_one(leaves: _Summands, scale: jax.Array) -> jax.Array:
    """The sum of the squares of all entries, each times a scale: in few kernels, and with little memory at a time."""
    sums: _Summands = []
    for reduction, group in _groups(leaves, _MIDDLE, sum(leaf.size for _, leaf in leaves) // _PARTS):
        if len(group) > 1 and sums and sums[-1][0] == reduction:
            # A zero that has to wait for the group before. Otherwise all groups would be put together before one is read.
            group = [jnp.minimum(sums[-1][1], 0).astype(group[0].dtype), *group]
        sums.append((reduction, *_of_leaf(_joined(group), (scale,), scale.dtype)))
    return _summed(sums)


def _all_scales(leaves: _Summands, dtype: np.dtype) -> tuple[jax.Array, jax.Array]:
    """The same without a branch: the sums at all three scales, of entries that are read once."""
    limits = _Range.of(dtype)
    # Hidden from the compiler, which turns (x * up) * (x * up) of a single number into x * x * up^2, and up^2 is inf.
    up, down = lax.optimization_barrier((jnp.asarray(limits.up), jnp.asarray(limits.down)))
    plain, raised, lowered = _sums_of_squares(leaves, (None, up, down), dtype)
    small, fits = plain < limits.low, plain < jnp.inf
    scale = jnp.where(small, limits.up, jnp.where(fits, 1, limits.down)).astype(dtype)
    return jnp.where(small, raised, jnp.where(fits, plain, lowered)), scale


def _sums_of_squares(leaves: _Summands, scales: tuple[jax.Array | None, ...], dtype: np.dtype) -> list[jax.Array]:
    """The sums of the squares of all entries, each times a scale (None: as they are): one sum for each scale."""
    # Not vdot or ravel: those reshape, which an explicitly sharded leaf may refuse.
    alike: dict[tuple[Reduction, tuple[int, ...]], list[list[jax.Array]]] = {}
    for reduction, leaf in leaves:
        # Leaves of one shape are mostly sharded in one way. Added first, they are one number to communicate; and sorted, those
        # of two shapes more often are.
        shape = leaf.shape if _may_be_sharded(leaf) else ()
        alike.setdefault((reduction, shape), []).append(_of_leaf(leaf, scales, dtype))
    by_shape = sorted(alike.items(), key=lambda item: item[0][1])
    return [
        _summed([(reduction, _added([sums[index] for sums in of_leaves])) for (reduction, _), of_leaves in by_shape])
        for index in range(len(scales))
    ]


@functools.partial(jax.jit, static_argnums=2)
def _of_leaf(leaf: jax.Array, scales: tuple[jax.Array | None, ...], dtype: np.dtype) -> list[jax.Array]:
    """The sums of one leaf, one for each scale. Traced once for all leaves of a shape."""
    if len(scales) == 1:
        # On CPU. Otherwise XLA would keep converted entries for whoever else converts them, a copy of all gradients; and in a
        # second pass an array filled with the scale, for all leaves of one shape.
        leaf, scales = lax.optimization_barrier((leaf, scales))
    of_parts = [
        _sums([jnp.square(part if scale is None else part * scale) for scale in scales]) for part in _real_parts(leaf, dtype)
    ]
    return [_added(list(sums)) for sums in zip(*of_parts, strict=True)]


def _sums(squares: list[jax.Array]) -> list[jax.Array]:
    """The sum of each of some arrays of one shape: on a GPU one kernel, where separate sums would be two or three."""
    if len(squares) == 1 or _may_be_sharded(squares[0]):
        return [jnp.sum(square) for square in squares]
    zeros = [jnp.zeros((), square.dtype) for square in squares]
    return lax.reduce(squares, zeros, lambda left, right: jax.tree.map(jnp.add, left, right), range(squares[0].ndim))


def _may_be_sharded(array: jax.Array) -> bool:
    """Whether the compiler may have to gather what is concatenated, or reduced in another way than by a sum."""
    mesh = jax.typeof(array).sharding.mesh
    if mesh.axis_names and set(mesh.manual_axes) == set(mesh.axis_names):
        return False  # it is a shard itself
    # Not every type knows its mesh, and a program can be compiled for devices that are elsewhere.
    return mesh.size > 1 or jax.device_count() > 1


def _groups(leaves: _Summands, size: int, most: int) -> list[tuple[Reduction, list[jax.Array]]]:
    """The leaves, those of `size` entries at most in groups of one sort with `most` at most: instructions take time to compile.

    Alone where something may be sharded: the compiler might have to gather what is put together.
    """
    alone: list[tuple[Reduction, list[jax.Array]]] = []
    sorts: dict[tuple[Reduction, Any], list[jax.Array]] = {}
    for reduction, leaf in leaves:
        if leaf.size <= size and not _may_be_sharded(leaf):
            sorts.setdefault((reduction, leaf.dtype), []).append(leaf)
        else:
            alone.append((reduction, [leaf]))
    return alone + [
        (reduction, sort[start : start + together])
        for (reduction, _), sort in sorts.items()
        for together in [max(1, min(_TOGETHER, most // max(1, *(leaf.size for leaf in sort))))]
        for start in range(0, len(sort), together)
    ]


def _packed(leaves: _Summands, size: int) -> _Summands:
    return [(reduction, _joined(group)) for reduction, group in _groups(leaves, size, _TOGETHER * size)]


def _joined(group: list[jax.Array]) -> jax.Array:
    return group[0] if len(group) == 1 else jnp.concatenate([leaf.ravel() for leaf in group])


def _real_parts(leaf: jax.Array, dtype: np.dtype) -> list[jax.Array]:
    parts = [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
    return [part.astype(dtype) for part in parts]


def _summed(sums: _Summands) -> jax.Array:
    """The sum over all leaves and all their shards: one `psum` for each distinct set of axes."""
    groups: dict[tuple[str, ...], list[jax.Array]] = {}
    for reduction, value in sums:
        groups.setdefault(reduction.axes, []).append(value / _size(reduction.copies) if reduction.copies else value)
    return _added([lax.psum(_added(values), axes) if axes else _added(values) for axes, values in groups.items()])


def _size(axes: tuple[str, ...]) -> int:
    return int(np.prod([lax.axis_size(axis) for axis in axes]))


def _added(values: list[jax.Array]) -> jax.Array:
    """The sum of scalars. Not added in turn: the rounding grows with the logarithm of their number."""
    if len(values) > 1 and not _may_be_sharded(values[0]):
        return jnp.sum(jnp.stack(values))
    # In pairs, so that XLA can add the sums of shards before it communicates them.
    while len(values) > 1:
        values = [*map(jnp.add, values[::2], values[1::2]), *values[len(values) // 2 * 2 :]]
    return values[0]
