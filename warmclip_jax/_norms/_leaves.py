"""Which leaves of a tree are gradients, and what paths and prefixes say of each."""

import collections
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._values import ArgumentValueError, shortened


def is_gradient(leaf: Any) -> bool:
    """Whether a leaf is a gradient: a floating or complex array or Python number."""
    if isinstance(leaf, (float, complex)):
        return True
    dtype = getattr(leaf, "dtype", None)
    return isinstance(dtype, np.dtype) and jnp.issubdtype(dtype, jnp.inexact)


def gradients(tree: Any) -> list[jax.Array]:
    """The gradients of a tree, in leaf order."""
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree) if is_gradient(leaf)]


def accumulation_dtype(tree: Any) -> np.dtype:
    """The dtype of the norm of a tree: float64 if one of its gradients is, else float32."""
    dtypes = [
        jnp.finfo(jnp.result_type(leaf)).dtype
        for leaf in jax.tree.leaves(tree)
        if is_gradient(leaf)
    ]
    return np.dtype(jnp.float64 if jnp.float64 in dtypes else jnp.float32)


def from_prefix(
    prefix: Any, tree: Any, rule: str, is_leaf: Callable[[Any], bool] | None = None
) -> list[Any]:
    """The leaf of `prefix` above each gradient of `tree`, in leaf order.

    Raises ValueError where `prefix` is no pytree prefix of `tree`; its message opens with `rule`.
    """
    values, structure = jax.tree.flatten(prefix, is_leaf=is_leaf)
    try:
        parts = structure.flatten_up_to(tree)
    except ValueError as error:
        raise ArgumentValueError(
            f"{rule}; got {shortened(prefix)}, which does not match the gradients: "
            f"{' '.join(str(error).split()):.200}"
        ) from error
    return [
        value
        for value, part in zip(values, parts, strict=True)
        for leaf in jax.tree.leaves(part)
        if is_gradient(leaf)
    ]


def paths(tree: Any) -> list[str]:
    """The path of each gradient, in leaf order: keys joined by `/`, as far as `stops_a_path`."""
    nodes, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=stops_a_path)
    return [
        joined(path) for path, node in nodes for leaf in jax.tree.leaves(node) if is_gradient(leaf)
    ]


def leaf_names(tree: Any) -> list[str]:
    """The path of each gradient, numbered where several share one: no two have one name."""
    found = paths(tree)
    counts, taken = collections.Counter(found), set(found)
    names = []
    for path in found:
        numbered = (f"{path}#{number}" for number in itertools.count())
        name = path if counts[path] == 1 else next(one for one in numbered if one not in taken)
        taken.add(name)
        names.append(name)
    return names


def stops_a_path(node: Any) -> bool:
    """Whether a node counts as a leaf for paths: one that stands for the array in it.

    Such are variables of flax.nnx and boxed parameters of flax.linen: optimizers may see them at
    `init`, and only the array at `update`.
    """
    return hasattr(node, "__jax_array__") or hasattr(node, "unbox")


def joined(path: Any) -> str:
    """The keys of a path, joined by `/`: one line of text that can be encoded."""
    text = jax.tree_util.keystr(path, simple=True, separator="/").replace("\n", " ")
    return text.encode(errors="backslashreplace").decode()
