"""What a picture is drawn from: names, values, and the marks that are in the picture."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from warmclip_jax._pictures._sampling import sampled

RUN = wc.warmup_polynomial_decay(peak_value=0.5, total_steps=100, warmup_steps=10, end_value=0.1)
WARMUP = wc.linear_warmup(peak_value=1.0, warmup_steps=50)
BILLION = 10**9


def last(schedules: Any) -> int:
    return int(sampled(schedules, None)[0].steps[-1])


def test_it_goes_a_tenth_further_than_the_longest_schedule_and_never_past_the_largest_count():
    assert last(RUN) == 110
    assert last(wc.constant(value=1.0)) == 110
    assert last([wc.constant(value=1.0), WARMUP]) == 55
    assert last([WARMUP, RUN]) == 110
    assert last(wc.linear_warmup(peak_value=1.0, warmup_steps=2)) == 3
    assert last(wc.linear_warmup(peak_value=1.0, warmup_steps=2 * BILLION)) == 2**31 - 1


def test_only_marks_that_are_in_the_picture_are_kept():
    for steps, marks in [
        (9, (None, None, None)),
        (10, (10, 10, None)),
        (99, (10, 10, None)),
        (100, (10, 10, 100)),
    ]:
        assert sampled(RUN, steps)[0].marks == marks


def test_a_long_run_is_thinned_out_a_short_one_is_not():
    run = wc.warmup_cosine_decay(peak_value=1.0, total_steps=BILLION, warmup_steps=12_345)
    (line,) = sampled(run, BILLION)
    assert line.steps.size < 6500
    assert np.all(np.diff(line.steps) > 0)
    np.testing.assert_array_equal(np.float32(line.values), run(line.steps))
    assert line.at(12_345) == 1
    assert sampled(run, 3000)[0].steps.tolist() == list(range(3001))


def test_a_function_that_is_not_elementwise_gives_the_value_of_each_step():
    thresholds = jnp.array([10, 20, 30])
    (line,) = sampled(lambda count: jnp.sum(count >= thresholds), 40)
    assert line.values.tolist() == [0] * 10 + [1] * 10 + [2] * 10 + [3] * 11


def test_past_the_end_of_a_table_in_python_there_is_nothing():
    (line,) = sampled(lambda count: [1.0, 3.0, 2.0][count], 4)
    np.testing.assert_array_equal(line.values, [1, 3, 2, np.nan, np.nan])


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
    assert [(line.at(5), line.marks) for line in lines] == [(0.5, (5, 5, 15)), (0.25, (5, 5, 35))]
    square = jax.vmap(jax.vmap(build, (None, 0)), (0, None))(peaks, lengths)
    assert [line.marks.end for line in sampled({"a": square}, 50)] == [15, 35, 15, 35]


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
        ({"a": RUN, "b": "text"}, TypeError, r"schedules\['b'\] must be a schedule; got 'text'"),
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
