"""Counts of any dtype, sign and size, turned into int32 steps of 0 or more."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._values import MAX_COUNT, as_array_like, broken_rule, is_real


def on_host(count: Any) -> Any:
    """`count` as an array: int32, on the host, for numbers that JAX would round, wrap around or refuse."""
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


def as_step(count: jax.Array) -> jax.Array:
    """`count` of any dtype as int32 in [0, MAX_COUNT], without wrapping around."""
    if jnp.issubdtype(count.dtype, jnp.integer):
        return jnp.clip(count, 0, min(MAX_COUNT, jnp.iinfo(count.dtype).max)).astype(jnp.int32)
    wide = count if count.dtype.itemsize >= 4 else count.astype(jnp.float32)
    # NaN fails both comparisons and becomes step 0.
    fits = (wide > 0) & (wide < 2.0**31)
    return jnp.where(wide >= 2.0**31, MAX_COUNT, jnp.where(fits, wide, 0).astype(jnp.int32))
