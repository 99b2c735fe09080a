"""The exponential curve: a value multiplied by one factor again and again, decaying or growing."""

import math
from typing import Annotated, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._schedules._arguments import Finite, PositiveSteps
from warmclip_jax._schedules._counts import as_step, on_host, turns
from warmclip_jax._schedules._schedule import Schedule, as_schedule
from warmclip_jax._schedules._shares import periods
from warmclip_jax._values import (
    MAX_COUNT,
    ArgumentValueError,
    Number,
    Scalar,
    as_float,
    as_number,
    broken_rule,
    is_traced,
    makes,
)


class _Rate(NamedTuple):
    """A rate as the curve receives it, with the step at which the curve is largest."""

    logarithm: Any
    top: Any  # The first step; of growth the last step, or stair, before the ceiling.
    value: Any  # At the top.


class _RateRule(Number):
    """The rule for a factor: in the computation a `_Rate`, which `_lowered` makes of it."""

    def as_array(self, number: Any) -> Any:
        as_array = super().as_array
        return _Rate(as_array(number.logarithm), jnp.asarray(number.top), as_array(number.value))


_RATE = _RateRule(
    "a number above 0",
    "It is the factor for decay_steps; 0.5 halves the value.",
    lambda rate: rate > 0,
)


def _bounded(arguments: dict[str, Any]) -> dict[str, Any]:
    init, end, rate = (arguments[name] for name in ("init_value", "end_value", "decay_rate"))
    if any(map(is_traced, (init, end, rate))):
        return arguments
    if rate > 1 and not 0 < init < end:
        given = f"; got {end!r}" if end else ""
        raise ArgumentValueError(
            f"end_value must be the ceiling of growth, where decay_rate is above 1: above "
            f"init_value={init!r}, which must be above 0{given}. Give the value to stop at."
        )
    if rate <= 1 and end > init:
        rule = f"at most init_value={init!r}"
        raise broken_rule("end_value", rule, end, "It is the floor of the decay.")
    return arguments


def _lowered(arguments: dict[str, Any]) -> dict[str, Any]:
    # In float64 where nothing is traced: log(0.9999) of a float32 has a relative error of 3e-4.
    names = ("init_value", "end_value", "decay_rate", "decay_steps")
    init, end, rate, length = numbers = [_plain(arguments[name]) for name in names]
    is_host = not any(map(is_traced, numbers))
    xp: Any = np if is_host else jnp
    logarithm = jnp.log(rate) if is_traced(rate) else math.log(rate)
    grows = logarithm > 0
    start = xp.log(xp.where(grows, init, 1))
    slope = logarithm / (1 if arguments["staircase"] else length)
    reach = (xp.log(xp.where(grows, end, 1)) - start) / xp.where(grows, slope, 1)
    top = xp.clip(xp.floor(reach), 0, MAX_COUNT)
    value = xp.where(grows, xp.exp(start + slope * top), init)
    top = on_host(top) if is_host else as_step(top)
    return arguments | {"decay_rate": _Rate(logarithm, top, value)}


def _plain(number: Any) -> Any:
    return as_float(number) if is_traced(number) else as_number(number)


@makes(Schedule, prepare=_bounded, lower=_lowered)
def exponential_decay(
    *,
    init_value: Finite,
    decay_steps: PositiveSteps,
    decay_rate: Annotated[Scalar, _RATE],
    end_value: Finite = 0.0,
    staircase: bool = False,
) -> Schedule:
    """A value multiplied by `decay_rate` every `decay_steps`, until it reaches `end_value`.

    `max(init * decay_rate ** (t / D), end)` at step t, with D = `decay_steps`; t / D rounded down
    with `staircase`. With a rate above 1 the value grows, as in a learning-rate range test, and
    `max` is `min`.

    Args:
      init_value: the value at step 0, finite; above 0 if it grows.
      decay_steps: D, in steps, 1 or more: the value is multiplied once in D steps.
      decay_rate: the factor, above 0. The logarithm of a Python number is taken in float64, that of
        a traced one in its own dtype; float32 is too coarse for rates like 0.9999.
      end_value: the floor of a decay, finite and not above `init_value`; or the ceiling of growth,
        above `init_value`.
      staircase: whether to move in steps, at each multiple of D, instead of smoothly.

    Traced arguments are not checked: an integer D below 1 acts as 1. A floating D of 0 or less
    gives `end_value` from step 1 on, and so does a floor above `init_value` or a ceiling below it.
    A rate below 0 gives NaN. `staircase` cannot be traced.

    >>> import warmclip_jax as wc
    >>> round(float(wc.exponential_decay(init_value=1.0, decay_steps=10, decay_rate=0.5)(20)), 6)
    0.25
    >>> growing = {"init_value": 1e-6, "decay_steps": 100, "decay_rate": 10.0, "end_value": 1.0}
    >>> range_test = wc.exponential_decay(**growing)
    >>> [f"{float(range_test(count)):.0e}" for count in (0, 100, 1000)]
    ['1e-06', '1e-05', '1e+00']

    Source: TensorFlow's `tf.keras.optimizers.schedules.ExponentialDecay`; Smith 2017, "Cyclical
    learning rates", section 3.3.
    """
    logarithm, top, largest = cast(_Rate, decay_rate)  # As `_lowered` makes it.
    grows, length = logarithm > 0, jnp.int32(1) if staircase else decay_steps

    def value(count: jax.Array) -> jax.Array:
        step = turns(count, decay_steps)[0] if staircase else count
        # Counted from the largest value, so that no exponent is large where the value is.
        steps = jnp.where(grows, jnp.minimum(step - top, 0), step - top)
        root = jnp.exp(logarithm * periods(steps, length) / 2)
        value = largest * root * root  # The factor from 1e38 to 1e-38 would be 0 in float32.
        value = jnp.maximum(value, jnp.where(grows, init_value, end_value))
        is_over = grows & ((step > top) | (value > end_value))
        return jnp.where(step == 0, init_value, jnp.where(is_over, end_value, value))

    return as_schedule(value)
