"""What is found in the values of a schedule: its length, and the steps that stand out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import warmclip_jax as wc
from warmclip_jax._pictures._exploring import Explored
from warmclip_jax._values import Foreign

BILLION = 10**9
RUN = wc.warmup_polynomial_decay(peak_value=0.5, total_steps=100, warmup_steps=10, end_value=0.1)
WARMUP = wc.linear_warmup(peak_value=1.0, warmup_steps=50)
BLINK = wc.repeat(wc.linear_warmup(peak_value=1.0, warmup_steps=10), period=10**6)
SAW = wc.repeat(wc.linear_warmup(peak_value=1.0, warmup_steps=10**6), period=10**6)
THEIRS = optax.cosine_decay_schedule(1e-3, 100_000)


def table(*values: float, every: int) -> wc.Schedule:
    boundaries = range(every, every * len(values), every)
    return wc.piecewise_constant(values=values, boundaries=list(boundaries))


def explored(schedule: Any) -> Explored:
    return Explored(schedule if isinstance(schedule, wc.Schedule) else Foreign(schedule, "it"))


def tent(peak: int) -> Any:
    """Up to a peak and down again, one a step: the highest of some steps is before or after it."""
    return lambda count: jnp.maximum(peak - jnp.abs(count - peak), 0)


def interpolated(count: Any) -> float:
    """A schedule that cannot be traced."""
    return float(np.interp(int(count), [0, 10, 50], [0.0, 1.0, 0.5]))


#: The length of each schedule, and where its warm-up ends, its peak stands, its last change is made.
TRUE: list[tuple[Any, int, tuple[int | None, ...]]] = [
    (RUN, 100, (10, 10, 100)),
    (wc.warmup_cosine_decay(peak_value=1.0, total_steps=100, warmup_steps=0), 100, (None, 0, 100)),
    (wc.constant(value=1.0), 0, (None, None, None)),
    (wc.linear_warmup(peak_value=0.999, warmup_steps=20, init_value=0.9), 20, (20, 20, 20)),
    (wc.linear_warmup(peak_value=0.1, warmup_steps=20, init_value=0.2), 20, (None, 0, 20)),
    # Inside of others.
    (wc.shift(RUN, by=4), 96, (6, 6, 96)),
    (wc.with_warmup(RUN, warmup_steps=5), 105, (15, 15, 105)),
    (wc.join([WARMUP, wc.constant(value=0.05)], boundaries=[30]), 30, (29, 29, 30)),
    (wc.product(WARMUP, wc.cosine_decay(init_value=1.0, decay_steps=200)), 200, (50, 50, 200)),
    (wc.minimum(WARMUP, 0.5), 25, (25, 25, 25)),
    (wc.maximum(RUN, 0.3), 55, (10, 10, 55)),
    # A rise at once is no warm-up.
    (table(0.1, 0.5, 0.05, every=10), 20, (None, 10, 20)),
    (table(0.1, 0.2, 0.3, 0.4, 0.5, every=10**6), 4 * 10**6, (None, 4 * 10**6, 4 * 10**6)),
    (wc.linear_warmup(peak_value=1.0, warmup_steps=1), 1, (None, 1, 1)),
    # Functions of others, also of those that cannot be traced, that end, that begin with inf.
    (optax.warmup_cosine_decay_schedule(0.0, 1.0, 20, 90), 90, (20, 20, 90)),
    (interpolated, 50, (10, 10, 50)),
    (lambda count: [0.0, 0.1, 0.2, 0.3, 0.2][count], 5, (3, 3, None)),
    (lambda count: jnp.where(count < 50, 1 / count, 0), 50, (None, 1, 50)),
    *((tent(peak), 2 * peak, (peak, peak, 2 * peak)) for peak in (12_345, 23_456, 54_321)),
    # A rise with roundings.
    (lambda count: jnp.where(count < 9, count % 2 / 1e5, jnp.minimum(count, 50)), 50, (50,) * 3),
    # What has another stair, restart or decay to come is not at its end.
    # In float32 the cosine is 1 within 7 steps of its end.
    (wc.with_warmup(THEIRS, warmup_steps=1000), 100_993, (1000, 1000, 100_993)),
    (wc.repeat(RUN, period=8), 24, (7, 7, None)),
    (BLINK, 3 * 10**6, (10, 10, None)),
    (SAW, 3 * 10**6, (999_999, 999_999, None)),
    # As long as a count may be, where rounding reaches some values too early.
    (wc.linear_warmup(peak_value=1.0, warmup_steps=BILLION), BILLION, (BILLION,) * 3),
    (
        wc.shift(
            wc.warmup_cosine_decay(
                peak_value=1.0, total_steps=1_234_567, warmup_steps=12_345, end_value=0.1
            ),
            by=1000,
        ),
        1_233_567,
        (11_345, 11_345, 1_233_567),
    ),
    (
        wc.warmup_stable_decay(
            peak_value=1.0, total_steps=3 * BILLION, warmup_steps=12_345, decay_steps=2 * BILLION
        ),
        2**31 - 1,
        (12_345, 12_345, None),
    ),
    (wc.inverse_sqrt_decay(init_value=1.0, timescale=BILLION), 2**31 - 1, (None, 0, None)),
    (wc.piecewise_constant(values=[1.0, 0.1], boundaries=[BILLION]), BILLION, (None, 0, BILLION)),
]


def test_length_and_marks_are_those_of_the_formula():
    wrong = []
    for schedule, length, marks in TRUE:
        found = explored(schedule)
        if (found.length(), found.marks()) != (length, marks):
            wrong.append(f"{schedule}: {found.length()} {found.marks()}, not {length} {marks}")
    assert wrong == []


def test_what_falls_for_ever_is_as_long_as_it_takes_to_fall_to_a_tenth():
    for schedule, tenth in [
        (wc.exponential_decay(init_value=1.0, decay_steps=1, decay_rate=0.999), 2301),
        (optax.exponential_decay(1.0, 1000, 0.96), 56_406),
        (wc.inverse_sqrt_decay(init_value=1.0, timescale=100), 9900),
        (wc.exponential_warmup(peak_value=1.0, timescale=50), 115),
    ]:
        assert 0.98 * tenth < explored(schedule).length() < 1.05 * tenth


def test_marks_do_not_depend_on_the_precision():
    with jax.enable_x64(True):
        assert explored(RUN).marks() == (10, 10, 100)
