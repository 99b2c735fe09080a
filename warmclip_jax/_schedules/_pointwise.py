"""Schedules combined count by count: their product, sum, minimum and maximum."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from warmclip_jax._schedules._arguments import Operand
from warmclip_jax._schedules._schedule import Schedule, as_schedule
from warmclip_jax._values import makes


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
    return _combined(_multiplied, operands)


def _flattened(arguments: dict[str, Any]) -> dict[str, Any]:
    """The operands of each sum among the operands in its place: sums of hundreds stay flat."""
    operands = []
    for operand in arguments["operands"]:
        is_total = isinstance(operand, Schedule) and operand.kind == "total"
        operands += operand._arguments["operands"] if is_total else [operand]
    return {"operands": tuple(operands)}


@makes(Schedule, prepare=_flattened)
def total(*operands: Operand) -> Schedule:
    """The sum of schedules and numbers, at each count.

    `a(t) + b(t) + ...` at step t, rounded once: what cancels leaves no error. `schedule + other`,
    `schedule - other`, `1 - schedule` and `sum(schedules)` build it too; a sum among the operands
    is the same as its own operands. Equal operands cancel where the compiler computes both alike,
    as the one for CPUs does by default.

    Args:
      *operands: each a `Schedule`, any optax schedule, a pure function from a count to a value, or
        a finite number. A sum that overflows is clipped to the largest or lowest finite number.

    >>> import warmclip_jax as wc
    >>> decay = wc.cosine_decay(init_value=0.5, decay_steps=100)
    >>> momentum = 1 - decay
    >>> momentum == wc.total(1.0, wc.product(-1.0, decay))
    True
    >>> [float(momentum(count)) for count in (0, 50, 100)]
    [0.5, 0.75, 1.0]
    """
    return _combined(_added, operands)


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
    return _combined(_smallest, operands)


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
    return _combined(_largest, operands)


def _combined(combine: Callable[[jax.Array], jax.Array], groups: tuple[Any, ...]) -> Schedule:
    """`combine` of the values of all operands, which it gets with an axis in front."""
    return as_schedule(lambda count: _compiled(combine, [group.values(count) for group in groups]))


# For schedules that are not compiled because they hold a function of another library.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _compiled(combine: Callable[[jax.Array], jax.Array], values: list[jax.Array]) -> jax.Array:
    return combine(jnp.concatenate(values))


_smallest = functools.partial(jnp.min, axis=0)
_largest = functools.partial(jnp.max, axis=0)


def _multiplied(values: jax.Array) -> jax.Array:
    return functools.reduce(lambda left, right: _clipped(left * right), values)


def _added(values: jax.Array) -> jax.Array:
    """The sum of halves, of their halves, and so on, and of what each addition rounds off."""
    depth = (len(values) - 1).bit_length()
    zeros = [(0, 2**depth - len(values)), *[(0, 0)] * (values.ndim - 1)]
    sums = jnp.pad(values, zeros)
    lost = jnp.zeros_like(sums)
    for _ in range(depth):
        left, right = jnp.split(sums, 2)
        sums = _clipped(left + right)
        came = sums - left
        lost = _clipped(sum(jnp.split(lost, 2)) + (left - (sums - came)) + (right - came))
    return _clipped(sums[0] + lost[0])


def _clipped(values: jax.Array) -> jax.Array:
    """Without inf, of which a difference or a product with 0 would be NaN."""
    limit = float(jnp.finfo(values.dtype).max)
    return jnp.clip(values, -limit, limit)
