"""The count of a schedule: any dtype, sign and size, and nothing that is no number."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from warmclip_jax._schedules import _counts

pytestmark = pytest.mark.usefixtures("strict_dtypes")

DTYPES = ["int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "bfloat16", "float32"]


@pytest.mark.parametrize("dtype", [*DTYPES, "int64", "uint64", "float64"])
def test_the_dtype_of_the_count_does_not_matter(dtype: str):
    schedule = wc.warmup_polynomial_decay(peak_value=1.0, total_steps=100, warmup_steps=10)
    counts = jnp.arange(100) if dtype in DTYPES else np.arange(100)
    values = schedule(counts.astype(dtype))
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, schedule(jnp.arange(100)))


def test_a_count_past_int32_is_past_the_end_and_one_before_the_first_is_the_first():
    schedule = wc.linear_warmup(peak_value=1.0, warmup_steps=10, init_value=0.25)
    past: Any = [2**31, 2**32 + 5, 2**63 - 1, 10**30]
    past += [np.uint32(2**32 - 1), np.int64(2**40), np.uint64(2**63), jnp.uint32(2**31)]
    before = [0, -1, -(10**30), np.int8(-3), np.int64(-(2**40))]
    assert [float(schedule(count)) for count in past] == [1.0] * len(past)
    assert [float(schedule(count)) for count in before] == [0.25] * len(before)


def test_a_float_on_the_device_is_clamped_like_one_on_the_host():
    counts = np.array([np.nan, np.inf, -np.inf, 3e9, 2.0**31, -5.0, -0.5, 0.5, 2.5], np.float32)
    for schedule in (
        wc.exponential_warmup(peak_value=1.0, timescale=10.0),
        wc.polynomial_decay(init_value=1.0, decay_steps=10, cycle=True),
        wc.exponential_decay(init_value=1.0, decay_steps=10, decay_rate=0.5),
    ):
        expected = schedule(np.array([0, 2**31 - 1, 0, 2**31 - 1, 2**31 - 1, 0, 0, 0, 2]))
        np.testing.assert_array_equal(schedule(jnp.asarray(counts)), expected)
        np.testing.assert_array_equal(schedule(counts), expected)


@pytest.mark.parametrize("count", ["3", None, True, [True], 1j, object()])
def test_a_count_that_is_no_number_is_refused(count: Any):
    with pytest.raises(TypeError, match=r"count must be a step number"):
        wc.constant(value=1.0)(count)


def test_a_count_may_be_what_holds_an_array_in_a_trace_too():
    nnx = pytest.importorskip("flax.nnx")
    schedule = wc.linear_warmup(peak_value=1.0, warmup_steps=10)
    counter = nnx.Variable(jnp.int32(3))
    inner = optax.linear_schedule(0.0, 1.0, 10)
    for called in (schedule, wc.shift(inner, by=0), 2 * schedule / 2):
        assert float(called(counter)) == pytest.approx(0.3)
        assert float(nnx.jit(lambda count, called=called: called(count))(counter)) == pytest.approx(
            0.3
        )


# The arithmetic of counts, in whole numbers.

COUNTS = np.array([0, 1, 5, 2**24 + 1, 2**31 - 2, 2**31 - 1])
#: A step as each dtype that may hold one: traced numbers have any.
STEPS = [np.int8(-3), 0, 1, np.int8(5), np.uint16(6), 2**24 + 1, 2**31 - 1, np.uint32(2**32 - 1)]
STEPS += [np.float32(step) for step in (-1.5, 0, 0.5, 4.5, 2**24, 2.0**31, 5e9, np.inf)]


@pytest.mark.parametrize("step", STEPS, ids=repr)
@pytest.mark.parametrize("x64", [False, True])
def test_counts_are_compared_divided_and_moved_exactly_whatever_the_step(step: Any, x64: bool):
    exact = max(float(np.ceil(step)), 0.0)
    with jax.enable_x64(x64):
        counts, step = jnp.asarray(COUNTS, jnp.int32), jnp.asarray(step)
        np.testing.assert_array_equal(_counts.is_before(counts, step), exact > COUNTS)
        turns, rest = _counts.turns(counts, step)
        length = max(exact, 1.0)
        np.testing.assert_array_equal(turns, COUNTS // length)
        np.testing.assert_array_equal(rest, COUNTS % length)
        assert turns.dtype == rest.dtype == jnp.int32


def test_a_step_in_int64_past_uint32_is_past_every_count(x64):
    counts = jnp.asarray(COUNTS, jnp.int32)
    for step in (2**32 - 1, 2**32, 2**32 + 1, 2**33 + 1, 2**40):
        assert _counts.is_before(counts, jnp.int64(step)).all()


@pytest.mark.parametrize("by", [0, 1, 2**31 - 1, -1, 1 - 2**31, np.float32(7), np.float32(-7.0)])
def test_a_sum_of_counts_stops_at_the_largest_and_not_before(by: Any):
    moved = _counts.later(jnp.asarray(COUNTS, jnp.int32), jnp.asarray(by))
    np.testing.assert_array_equal(moved, np.minimum(COUNTS + int(by), 2**31 - 1))


def test_the_last_step_that_was_reached_counts_also_where_steps_do_not_increase():
    counts = jnp.arange(12).reshape(3, 4)
    for steps in ([3, 5, 5, 9], [5, 3, 9], [], [0, 2**32 - 1]):
        numbers = [
            max((n for n, step in enumerate(steps, 1) if count >= step), default=0)
            for count in range(12)
        ]
        reached = _counts.reached(counts, np.array(steps, np.uint32))
        np.testing.assert_array_equal(reached, np.reshape(numbers, (3, 4)))
