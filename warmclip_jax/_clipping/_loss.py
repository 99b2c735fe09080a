"""The loss of a call, as `update(..., value=loss)` gives it."""

from typing import Any

import jax
import jax.numpy as jnp

from warmclip_jax._norms import varying_axes
from warmclip_jax._values import (
    ArgumentTypeError,
    as_array_like,
    broken_rule,
    default_float,
    is_real,
)

_RULE = "the loss, a real scalar that is the same on all devices"
_REMEDY = "Average it first: jnp.mean(losses)."


def loss_of(extra: dict[str, Any]) -> tuple[jax.Array | None, dict[str, Any]]:
    """The loss among the extra arguments of `update`, and the arguments to hand on.

    Raises TypeError, ValueError where it is no real scalar, or varies over mapped axes.
    """
    if "loss" in extra:
        raise ArgumentTypeError("there is no argument 'loss'; here it is 'value'.")
    if extra.get("value") is None:
        return None, {key: argument for key, argument in extra.items() if key != "value"}
    value = as_array_like(extra["value"])
    if isinstance(value, bool) or not is_real(getattr(value, "dtype", type(value))):
        raise broken_rule("value", _RULE, value, _REMEDY, TypeError)
    loss = jnp.asarray(value)
    is_wide = jnp.issubdtype(loss.dtype, jnp.floating) and loss.dtype.itemsize >= 4
    loss = loss if is_wide else loss.astype(default_float())
    if loss.shape != ():
        raise broken_rule("value", _RULE, value, f"Its shape is {loss.shape}. {_REMEDY}")
    if axes := varying_axes(loss):
        remedy = f"It varies over {axes!r}; pass jax.lax.pmean(value, {axes!r})."
        raise broken_rule("value", _RULE, jax.typeof(loss), remedy)
    return loss, extra
