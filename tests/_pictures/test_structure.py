"""The length, seams and warm-up that a schedule tells by its arguments, however schedules are
nested.
"""

from typing import Any

import optax
import pytest

import warmclip_jax as wc
from warmclip_jax._pictures._structure import structure

RUN = wc.warmup_stable_decay(peak_value=1.0, total_steps=100, warmup_steps=10, decay_steps=20)


@pytest.mark.parametrize(
    ("schedule", "length", "seams", "warmup"),
    [
        (RUN, 100, (0, 10, 80, 100), 10),
        (wc.constant(value=1.0), 0, (0,), None),
        (wc.linear_warmup(peak_value=1.0, warmup_steps=0), 0, (0,), None),
        (wc.cosine_decay(init_value=1.0, decay_steps=50), 50, (0, 50), None),
        (wc.inverse_sqrt_decay(init_value=1.0, timescale=100), 300, (0,), None),
        (
            wc.exponential_decay(init_value=1.0, decay_steps=10, decay_rate=0.5, end_value=0.125),
            30,
            (0, 30),
            None,
        ),
        (wc.with_warmup(RUN, warmup_steps=5), 105, (0, 5, 15, 85, 105), 15),
        (wc.with_warmup(RUN, warmup_steps=0), 100, (0, 10, 80, 100), 10),
        (wc.shift(RUN, by=4), 96, (6, 76, 96), 6),
        (wc.shift(RUN, by=-4), 104, (4, 14, 84, 104), 14),
        (wc.shift(RUN, by=500), 0, (), None),
        (wc.join([RUN, RUN], boundaries=[90]), 190, (0, 10, 80, 90, 100, 170, 190), 10),
        (wc.join([RUN, RUN], boundaries=[10]), 110, (0, 10, 20, 90, 110), None),
        (wc.shift(wc.with_warmup(RUN, warmup_steps=5), by=3), 102, (2, 12, 82, 102), 12),
        (wc.stretch(RUN, factor=3), 300, (0, 30, 240, 300), 30),
        (
            wc.product(wc.shift(RUN, by=5), wc.linear_warmup(peak_value=1.0, warmup_steps=7), 2.0),
            95,
            (0, 5, 7, 75, 95),
            7,
        ),
        (wc.minimum(RUN, 0.5), 100, (0, 10, 80, 100), None),
        (wc.maximum(0.5, RUN, wc.constant(value=1.0)), 100, (0, 10, 80, 100), None),
        (wc.piecewise_constant(values=[1.0, 0.5, 0.1], boundaries=[30, 60]), 60, (0, 30, 60), None),
        (
            wc.exponential_decay(init_value=1e-4, decay_steps=10, decay_rate=10.0, end_value=1.0),
            40,
            (0, 40),
            None,
        ),
        (optax.constant_schedule(1.0), 100, (0,), None),
        (0.5, 0, (0,), None),
    ],
)
def test_a_schedule_has_the_length_the_seams_and_the_warm_up_of_its_formula(
    schedule, length, seams, warmup
):
    assert structure(schedule)[:3] == (length, seams, warmup)


def test_a_repeated_schedule_has_the_seams_of_each_period():
    repeated = structure(wc.repeat(RUN, period=50))
    assert repeated.seams[:6] == (0, 10, 50, 60, 100, 110)
    assert (repeated.length, repeated.warmup) == (150, 10)
    assert structure(wc.repeat(RUN, period=10)).warmup is None


@pytest.mark.parametrize(
    ("schedule", "known"), [(RUN, True), (wc.shift(optax.constant_schedule(1.0), by=1), False)]
)
def test_a_function_of_another_library_is_seen_however_deep(schedule: Any, known: bool):
    assert (
        structure(wc.join([wc.repeat(schedule, period=3), RUN], boundaries=[9])).is_known is known
    )


def test_seams_past_the_largest_count_are_left_out_and_nestings_have_no_end_of_them():
    nested = RUN
    for period in (10**3, 10**6, 10**9):
        nested = wc.join([wc.repeat(nested, period=period), nested], boundaries=[2**31 - 2])
    seams = structure(nested).seams
    assert len(seams) <= 1000
    assert max(seams) < 2**31
    assert structure(wc.cosine_decay(init_value=1.0, decay_steps=10**12)).seams == (0,)
