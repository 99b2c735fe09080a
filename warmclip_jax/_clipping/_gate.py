"""Gradients that have no derivative where they are not finite."""

from typing import Any

import jax
import jax.numpy as jnp

from warmclip_jax._norms import is_gradient
from warmclip_jax._values import is_traced


def gated(tree: Any) -> Any:
    """The tree as it is; the derivative by an entry that is NaN or inf is 0.

    A result that is selected away has the cotangent 0, and 0 times NaN would be NaN.
    """
    leaves, structure = jax.tree.flatten(tree)
    traced = [i for i, leaf in enumerate(leaves) if is_gradient(leaf) and is_traced(leaf)]
    passed = _gated([leaves[index] for index in traced])
    for index, leaf in zip(traced, passed, strict=True):
        leaves[index] = leaf
    return structure.unflatten(leaves)


@jax.custom_jvp
def _gated(leaves: list[jax.Array]) -> list[jax.Array]:
    return leaves


@_gated.defjvp
def _gated_jvp(primals: Any, tangents: Any) -> Any:
    (leaves,), (rates,) = primals, tangents
    pairs = zip(leaves, rates, strict=True)
    return _gated(leaves), [jnp.where(jnp.isfinite(leaf), rate, 0) for leaf, rate in pairs]
