"""A function of another library as an argument of a value: called when the value is called."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from warmclip_jax._values._messages import ArgumentTypeError, shortened
from warmclip_jax._values._rules import as_array_like, as_float


class Foreign:
    """A function that is compared by identity and never compiled; a pytree without leaves.

    `name` is the argument that it was passed as.
    """

    __slots__ = ("function", "name")

    def __init__(self, function: Callable[[Any], Any], name: str) -> None:
        self.function, self.name = function, name

    def __call__(self, count: jax.Array) -> jax.Array:
        """Its value at a count, or at each count of an array, in the default float dtype."""

        def at_scalar(count: jax.Array) -> jax.Array:
            result = as_array_like(self.function(count))
            is_number = isinstance(result, (int, float)) or getattr(result, "shape", None) == ()
            if not is_number:
                # `optax.adam` takes the count for a learning rate, `optax.constant_schedule` for
                # its value.
                raise ArgumentTypeError(
                    f"{self.name} must return one number for a count; got {shortened(result)} from "
                    f"{self.function!r}. Pass a schedule; a function that makes schedules is "
                    "called with its arguments first."
                )
            return as_float(result)

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
        pass
    return True
