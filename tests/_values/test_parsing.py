"""Text is read back as the value that printed it, and nothing in it is run."""

import pickle
import subprocess
import sys

import hypothesis
import jax
import jax.numpy as jnp

import warmclip_jax as wc
from tests._schedules.catalogue import catalogue
from tests._schedules.nestings import nested


@hypothesis.settings(max_examples=100, suppress_health_check=[hypothesis.HealthCheck.too_slow])
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


def test_nested_calls_are_read_as_python_writes_them_with_or_without_the_package():
    warmed = wc.with_warmup(wc.constant(value=1), warmup_steps=10, init_value=-0.002)
    run = wc.join([warmed, wc.shift(warmed, by=-3)], boundaries=[5])
    for prefix in ("", "wc.", "warmclip_jax."):
        text = (
            f"{prefix}with_warmup({prefix}constant(value=+1), warmup_steps=1_0, init_value=-2e-3)"
        )
        for opened, closed in ("[]", "()"):
            parts = f"{opened}{text}, {prefix}shift({text}, by=-3){closed}"
            assert wc.parse(f"{prefix}join({parts}, boundaries={opened}5,{closed})") == run


def test_a_running_bound_is_read_too():
    bound = wc.running_bound(ceiling=wc.linear_warmup(peak_value=1.0, warmup_steps=10))
    assert wc.parse(repr(bound)) == bound
