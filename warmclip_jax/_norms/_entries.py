"""The entries of a small array, one by one, at little time to compile."""

import functools

import jax
import numpy as np
from jax import lax


@functools.partial(jax.jit, inline=True)
def entries(array: jax.Array) -> list[jax.Array]:
    """`array[0]`, `array[1]` and so on, along the first axis.

    XLA puts a slice into the loops that read it. On CPU each loop then is a program of its own, for
    the index is part of it; loops that differ in an operand alone are compiled once. So the indices
    come out of a branch, where XLA does not see that they are constants.
    """
    if not array.shape[0] or jax.typeof(array).sharding.mesh.explicit_axes:
        # An explicit mesh takes no index out of a branch for what `vmap` maps.
        return list(array)

    def hidden() -> list[jax.Array]:
        def indices() -> list[np.uint32]:
            return [np.uint32(index) for index in range(array.shape[0])]

        unseen = lax.cond(array[(0,) * array.ndim] >= 0, indices, indices)
        return [lax.dynamic_index_in_dim(array, index, keepdims=False) for index in unseen]

    return lax.platform_dependent(cpu=hidden, default=lambda: list(array))
