"""Schedules made from other schedules, of this package or any other, by moving their count."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from warmclip_jax._schedules._arguments import (
    EachInner,
    EachSteps,
    Finite,
    Inner,
    PositiveSteps,
    SignedSteps,
    Steps,
    with_boundaries,
)
from warmclip_jax._schedules._counts import as_step, is_before, later, reached, turns
from warmclip_jax._schedules._schedule import Schedule, as_schedule
from warmclip_jax._schedules._shares import between, shares
from warmclip_jax._values import default_float, makes


@makes(Schedule)
def with_warmup(schedule: Inner, *, warmup_steps: Steps, init_value: Finite = 0.0) -> Schedule:
    """Any schedule, preceded by a straight line from `init_value` to where it starts.

    `init + (schedule(0) - init) * t / W` while t < W = `warmup_steps`, and then `schedule(t - W)`.

    Args:
      schedule: a `Schedule`, any optax schedule, or a pure function from a count to a value.
      warmup_steps: W, in steps, 0 or more; `schedule` starts W steps later.
      init_value: the value at step 0, finite.

    Traced arguments are not checked: a negative W acts as 0.

    >>> import warmclip_jax as wc
    >>> decay = wc.inverse_sqrt_decay(init_value=1.0, timescale=100)
    >>> noam = wc.with_warmup(decay, warmup_steps=100)
    >>> [float(noam(count)) for count in (0, 50, 100, 400)]
    [0.0, 0.5, 1.0, 0.5]

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2.
    """

    def value(count: jax.Array) -> jax.Array:
        share = shares(count, warmup_steps).passed
        rising = between(init_value, schedule(jnp.zeros((), jnp.int32)), share)
        after = schedule(count - as_step(warmup_steps))
        return jnp.where(is_before(count, warmup_steps), rising, after)

    return as_schedule(value)


@makes(Schedule, prepare=functools.partial(with_boundaries, "schedules"))
def join(schedules: EachInner, *, boundaries: EachSteps) -> Schedule:
    """One schedule after another, each counting from where it takes over.

    With boundaries b1 < b2 < ...: `schedules[0](t)` while t < b1, then `schedules[1](t - b1)` while
    t < b2, and so on.

    Args:
      schedules: a list of schedules, each a `Schedule`, any optax schedule, or a pure function from
        a count to a value.
      boundaries: a list of steps, one fewer than schedules, strictly increasing, counted from the
        start of the run.

    Traced arguments are not checked: where boundaries do not increase, the last one that has passed
    is the one that counts.

    >>> import warmclip_jax as wc
    >>> steps = wc.join([wc.constant(value=1.0), wc.constant(value=0.1)], boundaries=[100])
    >>> [round(float(steps(count)), 2) for count in (0, 99, 100, 200)]
    [1.0, 1.0, 0.1, 0.1]

    Source: `optax.join_schedules`, with its arguments checked.
    """

    def value(count: jax.Array) -> jax.Array:
        index = reached(count, boundaries)
        begins = as_step(jnp.pad(jnp.asarray(boundaries), (1, 0)))
        value = jnp.zeros(count.shape, default_float())
        groups: Any = schedules
        for group in groups:
            value = group.chosen(index, lambda index: count - begins[index], value)
        return value

    return as_schedule(value)


@makes(Schedule)
def repeat(schedule: Inner, *, period: PositiveSteps) -> Schedule:
    """The first `period` steps of a schedule, again and again.

    `schedule(t mod period)`: step `period` is step 0 again, so what the schedule does at `period`
    itself is never reached.

    Args:
      schedule: a `Schedule`, any optax schedule, or a pure function from a count to a value.
      period: in steps, 1 or more.

    Traced arguments are not checked: a period below 1 acts as 1.

    >>> import warmclip_jax as wc
    >>> restarts = wc.repeat(wc.cosine_decay(init_value=1.0, decay_steps=100), period=100)
    >>> [round(float(restarts(count)), 2) for count in (0, 50, 100, 150)]
    [1.0, 0.5, 1.0, 0.5]

    Source: Loshchilov & Hutter 2017, "SGDR", section 3, with restarts of equal length.
    """
    return as_schedule(lambda count: schedule(turns(count, period)[1]))


@makes(Schedule)
def shift(schedule: Inner, *, by: SignedSteps) -> Schedule:
    """A schedule that starts at its own step `by`.

    `schedule(t + by)`. A resumed run starts where it stopped; `by=1` leaves out a first step at
    rate 0; a negative `by` holds the value of step 0 for -by steps.

    Args:
      schedule: a `Schedule`, any optax schedule, or a pure function from a count to a value.
      by: in steps, of either sign.

    >>> import warmclip_jax as wc
    >>> warmup = wc.linear_warmup(peak_value=1.0, warmup_steps=4)
    >>> [float(wc.shift(warmup, by=1)(count)) for count in range(4)]
    [0.25, 0.5, 0.75, 1.0]
    """
    return as_schedule(lambda count: schedule(later(count, by)))


@makes(Schedule)
def stretch(schedule: Inner, *, factor: PositiveSteps) -> Schedule:
    """A schedule slowed down: each of its values holds for `factor` steps.

    `schedule(t // factor)`: one value for all the updates made on one batch, as in PPO.

    Args:
      schedule: a `Schedule`, any optax schedule, or a pure function from a count to a value.
      factor: in steps, 1 or more.

    Traced arguments are not checked: a factor below 1 acts as 1.

    >>> import warmclip_jax as wc
    >>> decay = wc.polynomial_decay(init_value=1.0, decay_steps=4)
    >>> [float(wc.stretch(decay, factor=3)(count)) for count in range(7)]
    [1.0, 1.0, 1.0, 0.75, 0.75, 0.75, 0.5]
    """
    return as_schedule(lambda count: schedule(turns(count, factor)[0]))
