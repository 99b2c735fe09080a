"""Counts: int32 steps of 0 or more, made of any number, and their exact arithmetic."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._values import MAX_COUNT, as_array_like, broken_rule, is_integer, is_real


def on_host(count: Any) -> Any:
    """`count` as an array: on the host where JAX would round it, wrap it around or refuse it."""
    count = as_array_like(count)
    if isinstance(count, jax.Array):
        array = count
    elif isinstance(count, (int, np.integer)) and not isinstance(count, bool):
        return np.int32(max(0, min(int(count), MAX_COUNT)))
    else:
        array = np.asarray(count)
        if array.dtype.kind in "iuf":
            return np.clip(np.nan_to_num(array.astype(np.float64)), 0, MAX_COUNT).astype(np.int32)
    if not is_real(array.dtype):
        raise broken_rule(
            "count", "a step number or an array of them", count, "Pass integers.", TypeError
        )
    return array


# Compiled where the caller is not: a schedule that holds a function of another library.
_inlined = functools.partial(jax.jit, inline=True)


@_inlined
def as_step(count: jax.Array) -> jax.Array:
    """`count` of any dtype as int32 in [0, MAX_COUNT], without wrapping around."""
    if is_integer(count.dtype):
        return jnp.clip(count, 0, min(MAX_COUNT, jnp.iinfo(count.dtype).max)).astype(jnp.int32)
    wide = count if count.dtype.itemsize >= 4 else count.astype(jnp.float32)
    # NaN fails both comparisons and becomes step 0.
    fits = (wide > 0) & (wide < 2.0**31)
    return jnp.where(wide >= 2.0**31, MAX_COUNT, jnp.where(fits, wide, 0).astype(jnp.int32))


@_inlined
def is_before(count: jax.Array, step: Any) -> jax.Array:
    """Whether `count`, which is 0 or more, is below `step`, which may be past int32."""
    return count.astype(jnp.uint32) < as_limit(step)


def as_limit(step: jax.Array) -> jax.Array:
    """A step of any dtype as uint32, rounded up, so that one past int32 stays past every count."""
    if is_integer(step.dtype):
        most = 2**32 - 1 if step.dtype.itemsize > 4 else None
        return jnp.clip(step, 0, most).astype(jnp.uint32)
    # The largest float32 below 2**32.
    return jnp.clip(jnp.ceil(step), 0, 2.0**32 - 2.0**8).astype(jnp.uint32)


@_inlined
def reached(count: jax.Array, steps: Any) -> jax.Array:
    """The number of the last of `steps` that `count` has reached, from 1 on; 0 before all."""
    column = (-1, *(1,) * count.ndim)
    numbers = jnp.arange(1, len(steps) + 1, dtype=jnp.int32).reshape(column)
    is_reached = ~is_before(count[None], jnp.asarray(steps).reshape(column))
    return jnp.max(jnp.where(is_reached, numbers, 0), axis=0, initial=0)


def later(count: jax.Array, by: Any) -> jax.Array:
    """`count + by`, stopping at the largest count instead of wrapping around."""
    by = as_step(by) - as_step(-by)
    return jnp.minimum(count, MAX_COUNT - jnp.maximum(by, 0)) + by


def turns(count: jax.Array, length: Any) -> tuple[jax.Array, jax.Array]:
    """How many whole lengths fit into `count`, and the rest. A length below 1 acts as 1."""
    turn, rest = jnp.divmod(count.astype(jnp.uint32), jnp.maximum(as_limit(length), 1))
    return as_step(turn), as_step(rest)
