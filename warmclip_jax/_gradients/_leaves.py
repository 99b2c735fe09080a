"""Which leaves of a tree are gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_gradient(leaf: Any) -> bool:
    """Whether a leaf is a gradient: a floating or complex array, or a Python number of that kind."""
    if isinstance(leaf, (float, complex)):
        return True
    dtype = getattr(leaf, "dtype", None)
    return isinstance(dtype, np.dtype) and jnp.issubdtype(dtype, jnp.inexact)


def gradients(tree: Any) -> list[jax.Array]:
    """The gradients of a tree, in leaf order."""
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree) if is_gradient(leaf)]


def accumulation_dtype(tree: Any) -> np.dtype:
    """The dtype of the norm of a tree: float64 if one of its gradients is, else float32."""
    dtypes = [jnp.finfo(jnp.result_type(leaf)).dtype for leaf in jax.tree.leaves(tree) if is_gradient(leaf)]
    return np.dtype(jnp.float64 if jnp.float64 in dtypes else jnp.float32)
