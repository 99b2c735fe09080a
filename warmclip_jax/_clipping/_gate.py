"""Gradients whose derivative is 0 where their step is skipped, whatever numbers they hold."""

from typing import Any

import jax
import jax.numpy as jnp

from warmclip_jax._norms import is_gradient
from warmclip_jax._values import is_traced


def gated(tree: Any, taken: Any = True) -> Any:
    """The tree as it is. Its derivative is 0 where not `taken`, and of entries that are not finite.

    A result that is selected away has the cotangent 0, and 0 times NaN would be NaN.
    """
    leaves, structure = jax.tree.flatten(tree)
    traced = [i for i, leaf in enumerate(leaves) if is_gradient(leaf) and is_traced(leaf)]
    passed = _gated(jnp.asarray(taken), [leaves[index] for index in traced])
    for index, leaf in zip(traced, passed, strict=True):
        leaves[index] = leaf
    return structure.unflatten(leaves)


@jax.custom_jvp
def _gated(taken: jax.Array, leaves: list[jax.Array]) -> list[jax.Array]:
    return leaves


@_gated.defjvp
def _gated_jvp(primals: Any, tangents: Any) -> Any:
    (taken, leaves), (_, rates) = primals, tangents
    pairs = zip(leaves, rates, strict=True)
    kept = [jnp.where(taken & jnp.isfinite(leaf), rate, 0) for leaf, rate in pairs]
    return _gated(taken, leaves), kept
