"""What a picture is drawn from: how far it looks, the values, and the steps that stand out among
them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from warmclip_jax._pictures._sampling import extent, sample, sampled

RUN = wc.warmup_polynomial_decay(peak_value=0.5, total_steps=100, warmup_steps=10, end_value=0.1)
WARMUP = wc.linear_warmup(peak_value=1.0, warmup_steps=50)
BILLION = 10**9


@pytest.mark.parametrize(
    ("schedule", "marks"),
    [
        (RUN, (10, 10, 100)),
        (
            wc.warmup_polynomial_decay(
                peak_value=1.0, total_steps=100, warmup_steps=10, power=2.0, decay_from="zero"
            ),
            (10, 9, 100),
        ),
        (wc.warmup_cosine_decay(peak_value=1.0, total_steps=100, warmup_steps=0), (None, 0, 100)),
        (wc.constant(value=1.0), (None, 0, None)),
        (wc.exponential_warmup(peak_value=1.0, timescale=50), (None, 165, None)),
        (wc.linear_warmup(peak_value=0.1, warmup_steps=20, init_value=0.2), (20, 0, 20)),
        (wc.shift(RUN, by=4), (6, 6, 96)),
        (wc.shift(RUN, by=-4), (14, 14, 104)),
        (wc.with_warmup(RUN, warmup_steps=5), (15, 15, 105)),
        (wc.with_warmup(RUN, warmup_steps=0), (10, 10, 100)),
        (wc.repeat(RUN, period=40), (10, 10, None)),
        (wc.repeat(RUN, period=8), (8, 7, None)),
        (wc.join([WARMUP, wc.constant(value=1.0)], boundaries=[10]), (10, 10, 10)),
        (wc.join([WARMUP, wc.constant(value=0.05)], boundaries=[10]), (10, 9, 10)),
        (
            wc.join([WARMUP, wc.cosine_decay(init_value=1.0, decay_steps=50)], boundaries=[50]),
            (50, 50, 100),
        ),
        (wc.join([wc.constant(value=0.0), RUN], boundaries=[10]), (20, 20, 110)),
        (wc.join([wc.shift(RUN, by=5), wc.repeat(RUN, period=30)], boundaries=[60]), (5, 5, None)),
        (optax.warmup_cosine_decay_schedule(0.0, 1.0, 20, 90), (20, 20, 90)),
        (lambda count: float(np.interp(int(count), [0, 10, 50], [0.0, 1.0, 0.5])), (10, 10, 50)),
        (lambda count: [0.0, 1.0, 0.5][min(count, 2)], (1, 1, 2)),
        (2 * RUN, (10, 10, 100)),
        (wc.stretch(RUN, factor=4), (40, 40, 400)),
        (wc.product(WARMUP, wc.cosine_decay(init_value=1.0, decay_steps=200), 0.5), (50, 50, 200)),
        (
            wc.product(
                WARMUP, wc.exponential_decay(init_value=1.0, decay_steps=10, decay_rate=0.5)
            ),
            (50, 14, None),
        ),
        (wc.minimum(WARMUP, 0.5), (25, 25, 25)),
        (wc.minimum(WARMUP, wc.polynomial_decay(init_value=1.0, decay_steps=75)), (30, 30, 75)),
        (wc.maximum(RUN, 0.3), (10, 10, 55)),
        (wc.maximum(wc.constant(value=0.1), wc.shift(RUN, by=-20)), (30, 30, 120)),
        (wc.piecewise_constant(values=[0.1, 0.5, 0.05], boundaries=[10, 50]), (10, 10, 50)),
        (
            wc.exponential_decay(init_value=1e-4, decay_steps=100, decay_rate=10.0, end_value=1.0),
            (400, 400, 400),
        ),
        (wc.shift(optax.cosine_onecycle_schedule(100, 0.1), by=0), (30, 30, 100)),
        (
            wc.product(
                2.0, lambda count: float(np.interp(int(count), [0, 10, 50], [0.0, 1.0, 0.5]))
            ),
            (10, 10, 50),
        ),
        # Nothing is the same for ever that has another stair or restart to come.
        (
            wc.exponential_decay(init_value=1.0, decay_steps=50, decay_rate=0.5, staircase=True),
            (None, 0, None),
        ),
        (
            wc.repeat(wc.linear_warmup(peak_value=1.0, warmup_steps=10), period=10**6),
            (10, 10, None),
        ),
        (wc.stretch(wc.cosine_decay(init_value=1.0, decay_steps=100), factor=300), (None, 0, None)),
    ],
)
def test_the_end_of_the_warm_up_the_peak_and_the_end_are_those_of_the_formula(
    schedule: Any, marks: tuple[int | None, ...]
):
    line = sample(schedule, min(extent(schedule), 500))
    assert (line.warmup, line.peak, line.end) == marks


@pytest.mark.parametrize(
    ("schedule", "marks"),
    [
        (
            wc.warmup_stable_decay(
                peak_value=1.0, total_steps=2 * BILLION, warmup_steps=12_345, decay_steps=777
            ),
            (12_345, 12_345, 2 * BILLION),
        ),
        (wc.linear_warmup(peak_value=1.0, warmup_steps=BILLION), (BILLION, BILLION, BILLION)),
        (wc.join([WARMUP, wc.constant(value=1.0)], boundaries=[10]), (10, 10, 10)),
        (optax.warmup_cosine_decay_schedule(0.0, 1.0, 123_457, BILLION), (123_457, 123_457, None)),
    ],
)
def test_a_long_run_is_thinned_out_but_its_marks_are_exact(
    schedule: Any, marks: tuple[int | None, ...]
):
    line = sample(schedule, 2**31 - 1 if marks[2] else BILLION - 1)
    assert line.steps.size < 6000
    assert np.all(np.diff(line.steps) > 0)
    assert (line.warmup, line.peak, line.end) == marks


def test_a_warm_up_longer_than_the_picture_is_not_marked():
    assert sample(RUN, 9).warmup is None
    assert sample(optax.linear_schedule(0.0, 1.0, 100), 50).warmup is None


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (RUN, 110),
        (wc.constant(value=1.0), 110),
        (wc.linear_warmup(peak_value=1.0, warmup_steps=10), 11),
        (wc.polynomial_decay(init_value=1.0, decay_steps=10, cycle=True), 33),
        (wc.inverse_sqrt_decay(init_value=1.0, timescale=100), 330),
        (wc.shift(RUN, by=50), 55),
        (wc.repeat(RUN, period=20), 66),
        (wc.join([RUN, RUN], boundaries=[100]), 220),
        (optax.constant_schedule(1.0), 110),
    ],
)
def test_it_looks_a_tenth_further_than_the_schedule_is_long(schedule: Any, steps: int):
    assert extent(schedule) == steps


DECAY = wc.cosine_decay(init_value=1.0, decay_steps=3 * BILLION)


@pytest.mark.parametrize(
    "schedule",
    [
        DECAY,
        wc.repeat(DECAY, period=BILLION),
        wc.join([DECAY, DECAY], boundaries=[3 * BILLION]),
        wc.join(
            [wc.repeat(DECAY, period=2 * BILLION), DECAY, DECAY], boundaries=[2 * BILLION, 10**12]
        ),
        wc.with_warmup(wc.shift(wc.repeat(DECAY, period=10**12), by=-BILLION), warmup_steps=10**20),
        wc.warmup_cosine_decay(peak_value=1.0, total_steps=10**12, warmup_steps=10**11),
        wc.inverse_sqrt_decay(init_value=1.0, timescale=1e30),
        wc.polynomial_decay(init_value=1.0, decay_steps=BILLION, cycle=True),
        wc.stretch(wc.cosine_decay(init_value=1.0, decay_steps=100), factor=BILLION),
        wc.maximum(
            wc.product(DECAY, wc.repeat(DECAY, period=BILLION)), wc.stretch(DECAY, factor=2), 0.1
        ),
        wc.piecewise_constant(values=[0.1, 0.5, 0.05], boundaries=[BILLION, 4 * BILLION]),
    ],
)
def test_a_length_past_the_largest_count_is_drawn_up_to_that(schedule: wc.Schedule):
    (line,) = sampled(schedule, None)
    assert line.steps[0] == 0
    assert line.steps[-1] == 2**31 - 1
    assert np.all(np.diff(line.steps) > 0)


def test_a_function_that_is_not_elementwise_gives_the_value_of_each_step():
    cycle = optax.cosine_onecycle_schedule(100, 0.1)
    line = sample(cycle, 110)
    # Mapped or not, operations are fused in another way: a few roundings of the peak, 0.1.
    np.testing.assert_allclose(
        line.values, np.array([cycle(step) for step in range(111)]), rtol=0, atol=0.1 * 2.0**-22
    )


def test_a_stacked_schedule_is_one_curve_an_entry_named_by_what_varies():
    peaks, lengths = jnp.array([0.5, 0.25]), jnp.array([20, 40])

    def build(peak: Any, length: Any) -> wc.Schedule:
        return wc.shift(
            wc.warmup_cosine_decay(peak_value=peak, total_steps=length, warmup_steps=10), by=5
        )

    lines = sampled(jax.vmap(build)(peaks, lengths), 50)
    assert [line.name for line in lines] == [
        "shift schedule.peak_value=0.5, schedule.total_steps=20",
        "shift schedule.peak_value=0.25, schedule.total_steps=40",
    ]
    assert [(line.warmup, line.peak, line.at(line.peak), line.end) for line in lines] == [
        (5, 5, 0.5, 15),
        (5, 5, 0.25, 35),
    ]
    square = jax.vmap(jax.vmap(build, (None, 0)), (0, None))(peaks, lengths)
    assert [line.end for line in sampled({"a": square}, 50)] == [15, 35, 15, 35]


def test_schedules_are_named_by_key_or_by_kind_with_numbers_where_a_kind_comes_twice():
    theirs = optax.constant_schedule(1.0)
    assert [line.name for line in sampled([RUN, WARMUP, RUN, theirs], 9)] == [
        "warmup_polynomial_decay 1",
        "linear_warmup",
        "warmup_polynomial_decay 2",
        theirs.__name__,
    ]
    assert [line.name for line in sampled({1: RUN, "1": WARMUP}, 9)] == ["1", "1"]
    assert [line.name for line in sampled((RUN,), 9)] == ["warmup_polynomial_decay"]


@pytest.mark.parametrize(
    ("schedules", "error", "words"),
    [
        ({}, ValueError, "at least one"),
        ({"a": RUN, "b": "text"}, TypeError, r"schedules\['b'\] must be a schedule; got 'text'"),
        (optax.sgd(0.1), TypeError, "schedules must be a schedule"),
        (wc.running_bound(), TypeError, "schedules must be a schedule"),
        (lambda count: jnp.stack([count, count]), TypeError, "one number"),
        (lambda count: jnp.nan * count, ValueError, "nothing to draw"),
    ],
)
def test_what_is_no_schedule_is_refused_by_name(schedules: Any, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        sampled(schedules, 10)


@pytest.mark.parametrize("steps", [0, -1, 2.5, 2**31, 10**30, True, "10"])
def test_a_length_that_is_no_number_of_steps_is_refused(steps: Any):
    with pytest.raises((TypeError, ValueError), match="steps must be a whole number"):
        sampled(RUN, steps)


def test_marks_do_not_depend_on_the_precision():
    with jax.enable_x64(True):
        assert sample(RUN, 120)[3:] == (10, 10, 100)


@pytest.mark.parametrize(
    ("schedule", "jump"),
    [
        (wc.piecewise_constant(values=[1.0, 0.1], boundaries=[BILLION]), (BILLION - 1, BILLION)),
        # This one has its end value at the seam itself, and restarts in the step after it.
        (
            wc.polynomial_decay(init_value=1.0, decay_steps=BILLION, cycle=True),
            (BILLION, BILLION + 1),
        ),
    ],
)
def test_a_jump_is_drawn_upright_however_few_steps_are_sampled(
    schedule: Any, jump: tuple[int, int]
):
    line = sample(schedule, int(1.5 * BILLION))
    place = int(np.argmax(np.abs(np.diff(line.values))))
    assert (line.steps[place], line.steps[place + 1]) == jump


def test_of_equal_peaks_the_first_is_marked_in_a_long_run_too():
    sawtooth = wc.repeat(wc.linear_warmup(peak_value=1.0, warmup_steps=10**6), period=10**6)
    assert sample(sawtooth, 5 * 10**7).peak == 10**6 - 1
