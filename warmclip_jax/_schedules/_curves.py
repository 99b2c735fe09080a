"""The elementary curves: constants, warm-ups and decays.

A factory checks and stores its arguments; the body runs when the value is called. It receives the
arguments as arrays (of a sequence one array, or groups of schedules) and returns a function of the
count, which `as_schedule` shows as the `Schedule` that callers of the factory get.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from warmclip_jax._schedules._arguments import (
    EachFinite,
    EachSteps,
    Finite,
    PositiveSteps,
    Power,
    Steps,
    Timescale,
    with_boundaries,
)
from warmclip_jax._schedules._counts import reached
from warmclip_jax._schedules._schedule import Schedule, as_schedule
from warmclip_jax._schedules._shares import (
    Shares,
    between,
    cycle_shares,
    endless_shares,
    half_cosine,
    periods,
    raised,
    saturation,
    shares,
)
from warmclip_jax._values import makes


@makes(Schedule)
def constant(*, value: Finite) -> Schedule:
    """The same value at every step.

    Args:
      value: the value, finite.

    >>> import warmclip_jax as wc
    >>> float(wc.constant(value=0.5)(1000))
    0.5
    """
    return as_schedule(lambda _: jnp.asarray(value))


@makes(Schedule, prepare=functools.partial(with_boundaries, "values"))
def piecewise_constant(*, values: EachFinite, boundaries: EachSteps) -> Schedule:
    """One value after another, each from its boundary on.

    With boundaries b1 < b2 < ...: `values[0]` while t < b1, then `values[1]` while t < b2, and so
    on.

    Args:
      values: a list, tuple or array of finite values.
      boundaries: the steps at which the next value takes over: one fewer than values, strictly
        increasing.

    Traced arguments are not checked: where boundaries do not increase, the last one that has passed
    is the one that counts.

    >>> import warmclip_jax as wc
    >>> rate = wc.piecewise_constant(values=[1.0, 0.5, 0.25], boundaries=[100, 200])
    >>> rate([0, 99, 100, 200]).tolist()
    [1.0, 1.0, 0.5, 0.25]

    As `every_k_schedule` of `optax.MultiSteps`, which counts in int32: `lambda step:
    schedule(step).astype(jnp.int32)`.

    Source: TensorFlow's `tf.keras.optimizers.schedules.PiecewiseConstantDecay`, whose boundaries
    are one later.
    """
    return as_schedule(lambda count: values[reached(count, boundaries)])


@makes(Schedule)
def linear_warmup(*, peak_value: Finite, warmup_steps: Steps, init_value: Finite = 0.0) -> Schedule:
    """A straight line from `init_value` to `peak_value`, which then stays.

    `init + (peak - init) * min(t / W, 1)` at step t, with W = `warmup_steps`.

    Args:
      peak_value: the value from step W on, finite.
      warmup_steps: W, in steps, 0 or more; 0 is the peak from step 0.
      init_value: the value at step 0, finite. With 0 the first step moves nothing;
        `init_value=peak/W` avoids that.

    Traced arguments are not checked: a negative W acts as 0.

    >>> import warmclip_jax as wc
    >>> float(wc.linear_warmup(peak_value=1.0, warmup_steps=4)(1))
    0.25

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2.
    """
    return as_schedule(
        lambda count: between(init_value, peak_value, shares(count, warmup_steps).passed)
    )


@makes(Schedule)
def polynomial_warmup(
    *, peak_value: Finite, warmup_steps: Steps, init_value: Finite = 0.0, power: Power = 1.0
) -> Schedule:
    """A power of the line from `init_value` to `peak_value`, which then stays.

    `init + (peak - init) * min(t / W, 1) ** power` at step t, with W = `warmup_steps`.

    Args:
      peak_value: the value from step W on, finite.
      warmup_steps: W, in steps, 0 or more; 0 is the peak from step 0.
      init_value: the value at step 0, finite.
      power: above 0. More than 1 starts slowly, less than 1 starts fast.

    Traced arguments are not checked: a negative W acts as 0.

    >>> import warmclip_jax as wc
    >>> float(wc.polynomial_warmup(peak_value=1.0, warmup_steps=4, power=2.0)(2))
    0.25

    Source: the `power` of tf-models' `WarmUp`.
    """
    return as_schedule(
        lambda count: between(init_value, peak_value, raised(*shares(count, warmup_steps), power))
    )


@makes(Schedule)
def exponential_warmup(*, peak_value: Finite, timescale: Timescale) -> Schedule:
    """A rise towards `peak_value` that slows down as it comes near.

    `peak * (1 - exp(-t / timescale))` at step t.

    Args:
      peak_value: the value approached, finite.
      timescale: in steps, above 0; after that many the value is 63 % of the peak. For Adam's second
        moment, take `1 / (1 - b2)`.

    Traced arguments are not checked: a timescale of 0 or less is the peak from step 1 on.

    >>> import warmclip_jax as wc
    >>> round(float(wc.exponential_warmup(peak_value=1.0, timescale=1000)(1000)), 4)
    0.6321

    Source: Ma & Yarats 2019, "On the adequacy of untuned warmup for adaptive optimization", section
    4.
    """
    return as_schedule(
        lambda count: between(0.0, peak_value, saturation(periods(count, timescale)))
    )


@makes(Schedule)
def polynomial_decay(
    *,
    init_value: Finite,
    decay_steps: PositiveSteps,
    end_value: Finite = 0.0,
    power: Power = 1.0,
    cycle: bool = False,
) -> Schedule:
    """A power of the line from `init_value` to `end_value`, which then stays.

    `(init - end) * (1 - min(t, D) / D) ** power + end` at step t, with D = `decay_steps`. With
    `cycle`, D is stretched to its next multiple, `D * ceil(t / D)`: each multiple of D gives
    `end_value`, and the step after it restarts, lower each time.

    Args:
      init_value: the value at step 0, finite.
      decay_steps: D, in steps, 1 or more: the decay alone.
      end_value: the value at step D, finite.
      power: above 0. 1 is a straight line; more falls fast at first, less falls late.
      cycle: whether to restart at each multiple of D, instead of staying at `end_value`.

    Traced arguments are not checked: D below 1 gives `end_value`, from step 1 on at the latest.
    `cycle` cannot be traced.

    >>> import warmclip_jax as wc
    >>> decay = wc.polynomial_decay(init_value=1.0, decay_steps=4, cycle=True)
    >>> [float(decay(count)) for count in range(7)]
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.375, 0.25]

    Source: TensorFlow's `tf.keras.optimizers.schedules.PolynomialDecay`.
    """

    def value(count: jax.Array) -> jax.Array:
        passed, left = (cycle_shares if cycle else shares)(count, decay_steps)
        return between(end_value, init_value, raised(left, passed, power))

    return as_schedule(value)


@makes(Schedule)
def cosine_decay(
    *, init_value: Finite, decay_steps: PositiveSteps, end_value: Finite = 0.0
) -> Schedule:
    """Half a cosine from `init_value` to `end_value`, which then stays.

    `end + (init - end) * (1 + cos(pi * min(t, D) / D)) / 2` at step t, with D = `decay_steps`.

    Args:
      init_value: the value at step 0, finite.
      decay_steps: D, in steps, 1 or more: the decay alone.
      end_value: the value at step D, finite.

    Traced arguments are not checked: D below 1 gives `end_value`.

    >>> import warmclip_jax as wc
    >>> float(wc.cosine_decay(init_value=1.0, decay_steps=100)(50))
    0.5

    Source: Loshchilov & Hutter 2017, "SGDR", equation 5, one period.
    """

    def value(count: jax.Array) -> jax.Array:
        passed, left = shares(count, decay_steps)
        return between(end_value, init_value, half_cosine(left, passed))

    return as_schedule(value)


@makes(Schedule)
def inverse_sqrt_decay(
    *, init_value: Finite, timescale: Timescale, end_value: Finite = 0.0
) -> Schedule:
    """A decay with the inverse square root of the step, which needs no total length.

    `end + (init - end) * sqrt(timescale / (timescale + t))` at step t.

    Args:
      init_value: the value at step 0, finite.
      timescale: in steps, above 0; after three times as many the value is half way to the end.
        After a warm-up of W steps (see `with_warmup`), `timescale=W` makes it
        `init * sqrt(W / t)`, with t counted from the start of the warm-up.
      end_value: the value that is approached, finite.

    Traced arguments are not checked: a timescale of 0 or less is nearly `end_value` from step 1 on.

    >>> import warmclip_jax as wc
    >>> float(wc.inverse_sqrt_decay(init_value=1.0, timescale=1000)(3000))
    0.5

    Source: Vaswani et al. 2017, "Attention is all you need", section 5.3; Zhai et al. 2022,
    "Scaling vision transformers", appendix B, for the timescale.
    """
    return _endless_decay(init_value, end_value, timescale, lambda decay: jnp.sqrt(decay.left))


@makes(Schedule)
def inverse_power_decay(
    *, init_value: Finite, timescale: Timescale, power: Power, end_value: Finite = 0.0
) -> Schedule:
    """A decay with a power of the inverse of the step, which needs no total length.

    `end + (init - end) * (timescale / (timescale + t)) ** power` at step t. Inverse time decay has
    power 1, `inverse_sqrt_decay` 0.5.

    Args:
      init_value: the value at step 0, finite.
      timescale: in steps, above 0; after that many the value has gone `1 - 0.5 ** power` of its
        way.
      power: above 0.
      end_value: the value that is approached, finite.

    Traced arguments are not checked: a timescale of 0 or less is nearly `end_value` from step 1 on.

    >>> import warmclip_jax as wc
    >>> float(wc.inverse_power_decay(init_value=1.0, timescale=100, power=2.0)(100))
    0.25

    Source: TensorFlow's `tf.keras.optimizers.schedules.InverseTimeDecay`; Shen et al. 2024, "Power
    scheduler", section 3.
    """
    return _endless_decay(
        init_value, end_value, timescale, lambda decay: raised(decay.left, decay.passed, power)
    )


def _endless_decay(
    init: Any, end: Any, timescale: Any, shape: Callable[[Shares], jax.Array]
) -> Schedule:
    return as_schedule(lambda count: between(end, init, shape(endless_shares(count, timescale))))
