"""The exponential curve: a value multiplied by the same factor again and again, decaying or growing."""

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from warmclip_jax._schedules._arguments import Finite, PositiveSteps
from warmclip_jax._schedules._schedule import Schedule, curve
from warmclip_jax._schedules._shares import periods
from warmclip_jax._values import Number, Scalar, broken_rule, default_float, is_traced, makes


def _logarithm(rate: Any) -> Any:
    # A Python number in float64: log(0.9999), rounded to float32 first, has a relative error of
    # 3e-4.
    return (
        math.log(rate)
        if isinstance(rate, float)
        else jnp.log(jnp.asarray(rate).astype(default_float()))
    )


_RATE = Number(
    "a number above 0",
    "It is the factor for decay_steps; 0.5 halves the value.",
    lambda rate: rate > 0,
    lowering=_logarithm,
)
#: The curve receives the logarithm of the rate.
LogOfRate = Annotated[Scalar, _RATE]


def _bounded(arguments: dict[str, Any]) -> dict[str, Any]:
    init, end, rate = (arguments[name] for name in ("init_value", "end_value", "decay_rate"))
    if any(map(is_traced, (init, end, rate))):
        return arguments
    if rate > 1 and init <= 0:
        raise broken_rule(
            "init_value", "above 0 with a decay_rate above 1", init, "It grows from there."
        )
    if rate > 1 and end <= init:
        raise broken_rule(
            "end_value",
            f"above init_value={init!r} with a decay_rate above 1",
            end,
            "It is where growth stops.",
        )
    if rate <= 1 and end > init:
        raise broken_rule(
            "end_value", f"at most init_value={init!r}", end, "It is the floor of the decay."
        )
    return arguments


@makes(Schedule, prepare=_bounded)
def exponential_decay(
    *,
    init_value: Finite,
    decay_steps: PositiveSteps,
    decay_rate: LogOfRate,
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

    Traced arguments are not checked: an integer D below 1 acts as 1, a floating D of 0 or less
    gives `end_value` from step 1 on, a floor above `init_value` or a ceiling below it holds
    everywhere, and a rate below 0 gives NaN. `staircase` cannot be traced.

    >>> import warmclip_jax as wc
    >>> round(float(wc.exponential_decay(init_value=1.0, decay_steps=10, decay_rate=0.5)(20)), 6)
    0.25
    >>> range_test = wc.exponential_decay(init_value=1e-6, decay_steps=100, decay_rate=10.0, end_value=1.0)
    >>> [f"{float(range_test(count)):.0e}" for count in (0, 100, 1000)]
    ['1e-06', '1e-05', '1e+00']

    Source: TensorFlow's `tf.keras.optimizers.schedules.ExponentialDecay`; Smith 2017, "Cyclical
    learning rates", section 3.3.
    """
    log_rate = jnp.asarray(decay_rate)  # `LogOfRate` has lowered it.
    grows = log_rate > 0
    # Growth stops where the ceiling is: an exponential past it would overflow, and so would its
    # derivative.
    ceiling, start = (jnp.log(jnp.where(grows, value, 1)) for value in (end_value, init_value))

    def value(count: jax.Array) -> jax.Array:
        exponent = jnp.minimum(
            log_rate * periods(count, decay_steps, whole=staircase), ceiling - start
        )
        root = jnp.exp(
            exponent / 2
        )  # Twice the root: the factor from 1e-38 to 1e38 overflows float32.
        value = init_value * root * root
        is_out = jnp.where(
            grows, (exponent >= ceiling - start) | (value > end_value), value < end_value
        )
        return jnp.where(is_out, end_value, value)

    return curve(value)
