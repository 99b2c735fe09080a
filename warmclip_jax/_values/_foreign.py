"""A function of another library as an argument of a value: called when the value is called, and never compiled."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from warmclip_jax._values._rules import default_float


class Foreign:
    """A function compared by identity; a pytree without leaves."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, count: jax.Array) -> jax.Array:
        """The function's value at a count, or at each count of an array, in the default float dtype."""

        def at_scalar(count: jax.Array) -> jax.Array:
            result = self.function(count)
            if callable(result) and not hasattr(result, "__jax_array__"):
                raise TypeError(
                    f"{self.function!r} returned another function, not a number. Call it with its "
                    "arguments first."
                )
            if isinstance(
                result, tuple
            ):  # A transformation is one: `optax.adam` takes the count for a learning rate.
                raise TypeError(
                    f"{self.function!r} returned a {type(result).__name__}, not a number. Pass a "
                    "schedule."
                )
            return jnp.asarray(result).astype(default_float())

        return jnp.vectorize(at_scalar)(count)

    # By identity: functions that are equal by their own `==` may close over different tracers.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Foreign) and self.function is other.function

    def __hash__(self) -> int:
        return id(self.function)


jax.tree_util.register_static(Foreign)


def takes_a_count(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with one argument, as far as its signature tells."""
    try:
        # A decorator may supply the arguments that the function inside lacks.
        inspect.signature(function, follow_wrapped=False).bind(0)
    except TypeError:
        return False
    except ValueError:  # Some functions that are built into Python have no signature.
        return True
    return True
