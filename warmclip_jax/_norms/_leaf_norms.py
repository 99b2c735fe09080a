"""The norm of each leaf, by its path."""

from typing import Any

import jax

from warmclip_jax._norms._axes import AxisName
from warmclip_jax._norms._entries import entries
from warmclip_jax._norms._frame import each_alone, scaled_norms
from warmclip_jax._norms._leaves import leaf_names
from warmclip_jax._values import named


@named
def leaf_norms(tree: Any, *, axis_name: AxisName = None) -> dict[str, jax.Array]:
    """The L2 norm of each leaf by its path, correct for every finite input.

    `sqrt(sum(|x| ** 2))` for each leaf x. All leaves are read once.

    Args:
      tree: gradients, as in `global_norm`. Leaves that are no gradients have no entry.
      axis_name: how leaves are sharded, where their types do not tell: see `global_norm`.

    Returns:
      Scalars, float32 (float64 when there is a float64 leaf), in leaf order. A path is the keys
      joined by `/`, `"a/b"`; it stops at a variable of flax.nnx and at a boxed parameter of
      flax.linen. Leaves of one path are numbered: `"a/b#0"`, `"a/b#1"`.

    Raises:
      ValueError: as `global_norm`.

    >>> import jax.numpy as jnp
    >>> import warmclip_jax as wc
    >>> grads = {"a": {"w": jnp.array([3.0, 4.0])}, "b": jnp.ones(4)}
    >>> {path: float(norm) for path, norm in wc.leaf_norms(grads).items()}
    {'a/w': 5.0, 'b': 2.0}
    """
    (norms,) = scaled_norms(tree, axis_name, each_alone)
    return dict(zip(leaf_names(tree), entries(norms.value), strict=True))
