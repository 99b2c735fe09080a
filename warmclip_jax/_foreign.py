"""A function that is not from here, as an argument of a value: called where the value is, and never compiled or kept."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from warmclip_jax._checks import default_float


class Foreign:
    """Holds the function, and tells it apart from others by identity: a pytree without leaves."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, count: jax.Array) -> jax.Array:
        """What the function returns for a count, or for each count of an array, in the default float dtype."""

        def at_scalar(count: jax.Array) -> jax.Array:
            result = self.function(count)
            if callable(result) and not hasattr(result, "__jax_array__"):
                raise TypeError(f"{self.function!r} returned another function, not a number. Call it with its arguments first.")
            return jnp.asarray(result).astype(default_float())

        return functools.reduce(lambda function, _: jax.vmap(function), range(jnp.ndim(count)), at_scalar)(count)

    # Its own `==` could be anything: two functions that it calls equal may close over different tracers.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Foreign) and self.function is other.function

    def __hash__(self) -> int:
        return id(self.function)


jax.tree_util.register_static(Foreign)
