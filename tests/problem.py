"""A small regression that every integration trains: its gradients are above a bound of 1 at first
and below it later.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FEATURES = jnp.asarray(np.random.default_rng(0).standard_normal((32, 6)), jnp.float32)
TARGETS = FEATURES @ jnp.linspace(-1.0, 1.0, 24).reshape(6, 4) + jnp.array([[0.5, -0.5, 0.25, 0.0]])
PARAMS = {"w": jnp.full((6, 4), 0.1, jnp.float32), "b": jnp.zeros(4)}


def predict(params: Any, features: jax.Array) -> jax.Array:
    return (
        features @ params["w"].astype(features.dtype) + params["b"].astype(features.dtype)[None, :]
    )


def loss_of(params: Any, features: jax.Array = FEATURES, targets: jax.Array = TARGETS) -> jax.Array:
    return jnp.mean((predict(params, features) - targets) ** 2)


def float64_norm(tree: Any) -> float:
    return float(
        np.sqrt(
            sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree))
        )
    )
