"""Text is read back as the value that printed it, and nothing in it is run."""

import pickle
import subprocess
import sys

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np

import warmclip_jax as wc
from tests._schedules.catalogue import catalogue
from tests._schedules.nestings import nested


@hypothesis.settings(max_examples=300, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(nested(4))
def test_what_a_schedule_prints_is_parsed_as_an_equal_one_also_after_its_numbers_were_arrays(
    schedule: wc.Schedule,
):
    text = repr(schedule)
    again = wc.parse(text)
    assert (again, hash(again), repr(again)) == (schedule, hash(schedule), text)
    arrays = jax.tree.map(jnp.asarray, schedule)
    assert (repr(arrays), arrays, hash(arrays)) == (text, schedule, hash(schedule))
    assert wc.parse(repr(arrays)).arguments == schedule.arguments


def test_a_trip_through_jit_changes_neither_text_nor_equality_nor_values():
    schedules = [
        entry.schedule
        for entry in catalogue(210).values()
        if all(
            isinstance(number, int) or float(str(np.float32(number))) == number
            for number in jax.tree.leaves(entry.schedule)
        )
    ]
    assert {schedule.kind for schedule in schedules} == {
        entry.schedule.kind for entry in catalogue(210).values()
    }
    counts = jnp.arange(0, 120, 7)
    for there, back in zip(schedules, jax.jit(lambda schedules: schedules)(schedules), strict=True):
        assert (back, repr(back), hash(back)) == (there, repr(there), hash(there))
        assert back(counts).tolist() == there(counts).tolist()


def test_pickles_and_hashes_hold_in_a_process_with_other_hash_seeds():
    schedules = [entry.schedule for entry in catalogue(100).values()]
    code = (
        "import pickle, sys; import warmclip_jax as wc; schedules = pickle.load(sys.stdin.buffer); "
        "again = [wc.parse(repr(schedule)) for schedule in schedules]; "
        "assert schedules == again and list(map(hash, schedules)) == list(map(hash, again)); "
        "sys.stdout.buffer.write(pickle.dumps(again))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        input=pickle.dumps(schedules),
        capture_output=True,
    )
    assert run.returncode == 0, run.stderr.decode()
    back = pickle.loads(run.stdout)
    assert back == schedules
    assert list(map(hash, back)) == list(map(hash, schedules))


def test_lists_tuples_and_nested_calls_are_read():
    text = (
        "wc.join([wc.constant(value=1), wc.shift(constant(value=-2e-3), by=-3)], boundaries=(5,))"
    )
    assert wc.parse(text) == wc.join(
        (wc.constant(value=1.0), wc.shift(wc.constant(value=-0.002), by=-3)), boundaries=[5]
    )


def test_the_package_may_stand_before_the_name_and_numbers_are_written_as_in_python():
    for prefix in ("", "wc.", "warmclip_jax."):
        text = f"{prefix}with_warmup({prefix}constant(value=+1), warmup_steps=1_0, init_value=-.5)"
        run = wc.with_warmup(wc.constant(value=1), warmup_steps=10, init_value=-0.5)
        assert wc.parse(text) == run
