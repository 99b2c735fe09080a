"""Schedules combined count by count: their product, minimum and maximum."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from warmclip_jax._schedules._arguments import Operand
from warmclip_jax._schedules._schedule import Schedule, curve
from warmclip_jax._values import default_float, makes


@makes(Schedule)
def product(*operands: Operand) -> Schedule:
    """The product of schedules and numbers, at each count.

    `a(t) * b(t) * ...` at step t, multiplied from left to right. `2 * schedule`, `schedule * other`
    and `schedule / 2` build it too.

    Args:
      *operands: each a `Schedule`, any optax schedule, a pure function from a count to a value, or
        a finite number. A product that overflows is clipped to the largest or lowest finite number.

    >>> import warmclip_jax as wc
    >>> decay = wc.cosine_decay(init_value=1.0, decay_steps=100)
    >>> weight_decay = 0.5 * decay * decay
    >>> [round(float(weight_decay(count)), 3) for count in (0, 50, 100)]
    [0.5, 0.125, 0.0]
    """
    # Clipped after each multiplication: inf times 0 would be NaN.
    limit = float(jnp.finfo(default_float()).max)
    return _reduced(lambda left, right: jnp.clip(left * right, -limit, limit), operands)


@makes(Schedule)
def minimum(*operands: Operand) -> Schedule:
    """The smallest of schedules and numbers, at each count.

    `min(a(t), b(t), ...)` at step t. A number is a ceiling.

    Args:
      *operands: each a `Schedule`, any optax schedule, a pure function from a count to a value, or
        a finite number.

    >>> import warmclip_jax as wc
    >>> rate = wc.minimum(wc.linear_warmup(peak_value=1.0, warmup_steps=100), 0.25)
    >>> [float(rate(count)) for count in (0, 25, 100)]
    [0.0, 0.25, 0.25]
    """
    return _reduced(jnp.minimum, operands)


@makes(Schedule)
def maximum(*operands: Operand) -> Schedule:
    """The largest of schedules and numbers, at each count.

    `max(a(t), b(t), ...)` at step t. A number is a floor.

    Args:
      *operands: each a `Schedule`, any optax schedule, a pure function from a count to a value, or
        a finite number.

    >>> import warmclip_jax as wc
    >>> rate = wc.maximum(wc.inverse_sqrt_decay(init_value=1.0, timescale=100), 0.1)
    >>> [float(rate(count)) for count in (0, 300, 10**6)]
    [1.0, 0.5, 0.10000000149011612]
    """
    return _reduced(jnp.maximum, operands)


def _reduced(combine: Any, operands: tuple[Any, ...]) -> Schedule:
    def value(count: jax.Array) -> jax.Array:
        return functools.reduce(
            combine, [operand(count) if callable(operand) else operand for operand in operands]
        )

    return curve(value)
