"""The L2 norm of a gradient tree, right for every finite input, without thresholds and steps.

`sqrt(sum(x * x))` fails where `x * x` leaves the range of its dtype: float32 entries of 1e20 give
inf, of 1e-30 give 0. So a norm is kept as a mantissa and a power-of-two scale, and the entries are
scaled before they are squared whenever the plain sum shows that this is needed, which costs an
ordinary gradient nothing.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from warmclip_jax._norms._axes import AxisName, Reduction, reductions
from warmclip_jax._norms._leaves import accumulation_dtype, gradients
from warmclip_jax._norms._range import Range, ScaledNorm
from warmclip_jax._norms._sums import (
    MIDDLE,
    SMALL,
    Summands,
    one_by_one,
    packed,
    real_parts,
    summed,
    sums_of_squares,
)
from warmclip_jax._values import named


@named
def global_norm(tree: Any, *, axis_name: AxisName = None) -> jax.Array:
    """The L2 norm over all leaves, correct for every finite input.

    `sqrt(sum over leaves of sum(|x| ** 2))`, without the overflow and underflow of that expression.

    Args:
      tree: gradients: a pytree of arrays of any floating or complex dtype and any shape. `None`,
        `float0`, integer, bool and `optax.MaskedNode` leaves are no gradients and take no part.
      axis_name: only inside `shard_map(check_vma=False)` and `pmap`, where types do not tell how
        leaves are sharded: an axis name or a tuple of them for every leaf (`()`: the same on every
        device), or a pytree prefix with `PartitionSpec` leaves, in which axes that are left to the
        compiler may stand too. Elsewhere it is known: under `jit` by the compiler, inside
        `shard_map` by the type of each leaf. A map with types inside of one without does not see
        the outer axes, and nothing can detect it: use types in both.

    Returns:
      A scalar, float32 (float64 when there is a float64 leaf): 0 for an empty tree, not finite when
      an entry is not. It is inf also where the norm itself is past the largest number. On CPU and
      TPU, XLA reads float32 and bfloat16 subnormals (below 1.18e-38) as zero, so they add nothing.

    Raises:
      ValueError: where the sharding of a leaf is not known and `axis_name` does not say it, or
        contradicts its type; for a leaf that is unreduced. That a leaf is sharded as `axis_name`
        says is not checked in a map without types.

    >>> import jax.numpy as jnp
    >>> import warmclip_jax as wc
    >>> float(wc.global_norm({"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])}))
    5.0
    >>> float(wc.global_norm(jnp.array([300.0, 400.0], jnp.float16)))
    500.0

    Source: Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", section
    3.2; the scaling after Blue 1978, "A portable Fortran program to find the Euclidean norm of a
    vector".
    """
    return scaled_norm(tree, axis_name=axis_name).value


def scaled_norm(tree: Any, *, axis_name: AxisName = None) -> ScaledNorm:
    """`global_norm` with its whole range. See there for the arguments."""
    mantissa, scale = _jitted_parts(tuple(reductions(tree, axis_name)), gradients(tree))
    # The scale is piecewise constant. A numeric zero as its tangent would meet overflowing factors,
    # 0 * inf.
    return ScaledNorm(mantissa, lax.stop_gradient(scale))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _parts(per_leaf: tuple[Reduction, ...], leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    dtype = accumulation_dtype(leaves)
    if not leaves:
        return jnp.zeros((), dtype), jnp.ones((), dtype)
    pairs = list(zip(per_leaf, leaves, strict=True))
    # Accelerators turn a branch this small into a select and run both passes. GPUs fuse the
    # concatenation into the read, TPUs would write it.
    total, scale = lax.platform_dependent(
        cpu=lambda: _second_pass_if_needed(packed(pairs, SMALL), dtype),
        tpu=lambda: _all_scales(pairs, dtype),
        default=lambda: _all_scales(packed(pairs, MIDDLE), dtype),
    )
    return jnp.sqrt(total), scale


@_parts.defjvp  # pyright: ignore[reportFunctionMemberAccess]
def _parts_jvp(per_leaf: tuple[Reduction, ...], primals: Any, tangents: Any) -> Any:
    # d sqrt(sum x^2) = sum (x / norm) dx. The unit vector x / norm is 0 where the norm is, which
    # keeps the derivative at a zero gradient finite. No part of it leaves the range, and the scale
    # is piecewise constant.
    (leaves,), (rates,) = primals, tangents
    mantissa, scale = _parts(per_leaf, leaves)
    scale = lax.stop_gradient(
        scale
    )  # else a zero to be multiplied by what overflows, in derivatives of the derivative
    some = mantissa > 0
    inverse = jnp.where(some, 1 / jnp.where(some, mantissa, 1), 0)
    if not leaves:
        return (mantissa, scale), (jnp.zeros_like(mantissa), jnp.zeros_like(scale))
    products = [
        (reduction, jnp.sum(left * scale * inverse * right * scale))
        for reduction, leaf, rate in zip(per_leaf, leaves, rates, strict=True)
        for left, right in zip(
            real_parts(leaf, mantissa.dtype), real_parts(rate, mantissa.dtype), strict=True
        )
    ]
    return (mantissa, scale), (summed(products), jnp.zeros_like(scale))


# Jitted, so that an eager call is one dispatch and does not compile its branches anew.
_jitted_parts = jax.jit(_parts, static_argnums=0, inline=True)


def _second_pass_if_needed(leaves: Summands, dtype: np.dtype) -> tuple[jax.Array, jax.Array]:
    """The sum at the one of the scales 1, `up` and `down` that keeps it in range, and that scale; seldom reads twice."""
    limits = Range.of(dtype)
    (plain,) = sums_of_squares(leaves, (None,), dtype)
    fits, scale = limits.fitting(plain)
    return lax.cond(fits, lambda: plain, lambda: one_by_one(leaves, scale)), scale


def _all_scales(leaves: Summands, dtype: np.dtype) -> tuple[jax.Array, jax.Array]:
    """The same without a branch: the sums at all three scales, of entries that are read once."""
    limits = Range.of(dtype)
    return limits.chosen(*sums_of_squares(leaves, limits.scales(), dtype))
