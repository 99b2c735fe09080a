"""The loss of a call, as `update(..., value=loss)` gives it."""

from typing import Any

import jax

from warmclip_jax._norms import varying_axes
from warmclip_jax._values import ArgumentTypeError, broken_rule, real_scalar

_RULE = "the loss, a real scalar that is the same on all devices"


def loss_of(extra: dict[str, Any]) -> tuple[jax.Array | None, dict[str, Any]]:
    """The loss among the extra arguments of `update`, and the arguments to hand on.

    Raises TypeError where it is no real scalar, ValueError where it varies over mapped axes.
    """
    if "loss" in extra:
        raise ArgumentTypeError("there is no argument 'loss'; here it is 'value'.")
    if extra.get("value") is None:
        return None, {key: argument for key, argument in extra.items() if key != "value"}
    loss = real_scalar("value", _RULE, extra["value"], "Average it first: jnp.mean(losses).")
    if axes := varying_axes(loss):
        remedy = f"It varies over {axes!r}; pass jax.lax.pmean(value, {axes!r})."
        raise broken_rule("value", _RULE, jax.typeof(loss), remedy)
    return loss, extra
