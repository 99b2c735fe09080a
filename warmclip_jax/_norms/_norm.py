"""The L2 norm of a gradient tree, right for every finite input, without thresholds and steps."""

from typing import Any

import jax

from warmclip_jax._norms._axes import AxisName
from warmclip_jax._norms._frame import all_together, scaled_norms
from warmclip_jax._norms._range import ScaledNorm
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
        compiler may stand too. Elsewhere leave it out: under `jit` the compiler knows, inside
        `shard_map` the type of each leaf tells. In a map with types, a leaf counts as the same all
        along an axis that is left out. So for a norm of each of several models that lie along an
        axis, leave that axis to `jax.vmap`, or map without types. A map with types inside of one
        without does not see the outer axes, and nothing can detect it: use types in both.

    Returns:
      A scalar, float32 (float64 when there is a float64 leaf): 0 for an empty tree, not finite when
      an entry is not. It is inf also where the norm itself is past the largest number. On CPU and
      TPU, XLA reads float32 and bfloat16 subnormals (below 1.18e-38) as zero, so they add nothing.

    Raises:
      ValueError: where types do not tell how a leaf is sharded and `axis_name` does not say it, or
        contradicts the type; for a leaf that is unreduced. That a leaf is sharded as `axis_name`
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
    (norm,) = scaled_norms(tree, axis_name, all_together)
    return norm
