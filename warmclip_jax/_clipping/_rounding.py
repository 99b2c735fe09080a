"""Round a scaled leaf to its own dtype at the speed of memory.

XLA's CPU backend rounds float32 to bfloat16 one number at a time, which costs more than a whole
optimizer step, and a choice between bfloat16 numbers may flush subnormals there. So both are done
on the bits of float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def unless(unchanged: jax.Array, leaf: jax.Array, scaled: jax.Array) -> jax.Array:
    """`leaf`, bit for bit, where `unchanged`; elsewhere `scaled`, rounded once to its dtype."""
    is_bfloat16 = leaf.dtype == jnp.bfloat16
    return (
        _in_bfloat16(unchanged, leaf, scaled)
        if is_bfloat16
        else _converted(unchanged, leaf, scaled)
    )


def _converted(unchanged: jax.Array, leaf: jax.Array, scaled: jax.Array) -> jax.Array:
    return lax.select(unchanged, leaf, lax.convert_element_type(scaled, leaf.dtype))


def _on_bits(unchanged: jax.Array, leaf: jax.Array, scaled: jax.Array) -> jax.Array:
    # Half to even: the lower 16 bits carry into the upper ones from just over a half, or from a
    # half if those are odd. XLA too goes from float64 to bfloat16 by way of float32.
    bits = lax.bitcast_convert_type(
        jnp.where(unchanged, leaf.astype(jnp.float32), scaled.astype(jnp.float32)), jnp.uint32
    )
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return lax.bitcast_convert_type(upper.astype(jnp.uint16), leaf.dtype)


# Jitted, so that an eager call compiles once for all leaves of a shape.
@functools.partial(jax.jit, inline=True)
def _in_bfloat16(unchanged: jax.Array, leaf: jax.Array, scaled: jax.Array) -> jax.Array:
    return lax.platform_dependent(unchanged, leaf, scaled, cpu=_on_bits, default=_converted)
