"""A run over gradients that are below a bound of 1, and above it, in turn."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import warmclip_jax as wc

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": jnp.array([0.5, -2.0])}
SCHEDULE = wc.warmup_polynomial_decay(peak_value=0.1, total_steps=20, warmup_steps=4)
NAN = jax.tree.map(lambda p: p * jnp.nan, PARAMS)
COUNTS = ("step", "clipped_count", "nonfinite_count", "skipped_count")


def gradients(step):
    """Small ones, below a bound of 1, and large ones in turn."""
    return jax.tree.map(lambda p: jnp.sin(p * (step + 1)) * (0.1 if step % 2 else 5.0), PARAMS)


def run(optimizer, stream, params: Any = PARAMS) -> tuple[Any, Any]:
    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for grads in stream:
        params, state = step(params, state, grads)
    return params, state


def counts(state):
    known = wc.metrics(state)
    return {name: int(known[name]) for name in COUNTS if name in known}
