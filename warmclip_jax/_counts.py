"""The count of a schedule: from any dtype, sign and size to an int32 that is not negative."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._checks import MAX_COUNT, broken_rule


def on_host(count: Any) -> Any:
    """`count` as an array; what JAX would wrap around or refuse on the way in is clamped on the host."""
    if isinstance(count, jax.Array):
        array = count
    elif isinstance(count, (int, np.integer)) and not isinstance(count, bool):
        return np.int32(max(0, min(int(count), MAX_COUNT)))
    else:
        array = np.asarray(count)
        if array.dtype.kind in "iu":
            return np.clip(array, 0, min(MAX_COUNT, np.iinfo(array.dtype).max)).astype(np.int32)
    if not (jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)):
        raise broken_rule("count", "a step number or an array of them", count, "Pass integers.", TypeError)
    return array


def as_step(count: jax.Array) -> jax.Array:
    """`count` as int32 in [0, MAX_COUNT], from any dtype, without a wrap-around on the way."""
    if jnp.issubdtype(count.dtype, jnp.integer):
        return jnp.clip(count, 0, min(MAX_COUNT, jnp.iinfo(count.dtype).max)).astype(jnp.int32)
    wide = count.astype(jnp.promote_types(count.dtype, jnp.float32))
    limit = np.nextafter(np.asarray(2.0**31, wide.dtype), np.asarray(0, wide.dtype))
    # The comparison also sends NaN to step 0.
    return jnp.where(wide > 0, jnp.minimum(wide, limit), 0).astype(jnp.int32)
