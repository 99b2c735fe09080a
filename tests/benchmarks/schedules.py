"""What it costs to ask a schedule outside of `jit`: at one step, as a loop that logs does, and at a
million in one call.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import warmclip_jax as wc
from tests.benchmarks.turns import Progress, in_turns, seconds_of


def measured(calls: int, counts: int, rounds: int, progress: Progress) -> list[dict[str, Any]]:
    """A row for each schedule: `calls` single calls a round, and one call with `counts` steps."""
    ours = wc.warmup_cosine_decay(peak_value=1e-3, total_steps=counts, warmup_steps=counts // 10)
    by_optax = optax.warmup_cosine_decay_schedule(0.0, 1e-3, counts // 10, counts)
    schedules = {
        "wc.warmup_cosine_decay": ours,
        "optax.warmup_cosine_decay_schedule": by_optax,
        "the same in jax.jit": jax.jit(by_optax),
    }
    steps = jnp.arange(counts)
    singly = in_turns(
        {name: _calls(schedule, calls) for name, schedule in schedules.items()}, rounds, progress
    )
    at_once = in_turns(
        {name: _call(schedule, steps) for name, schedule in schedules.items()}, rounds, progress
    )
    return [
        {
            "contender": name,
            "microseconds_a_call": 1e6 * statistics.median(singly[name]),
            "milliseconds_at_once": 1e3 * statistics.median(at_once[name]),
            "counts": counts,
        }
        for name in schedules
    ]


def _calls(schedule: Callable[[Any], Any], calls: int) -> Callable[[], float]:
    def turn() -> float:
        start = time.perf_counter()
        for count in range(calls):
            float(schedule(count))
        return (time.perf_counter() - start) / calls

    return turn


def _call(schedule: Callable[[Any], Any], steps: jax.Array) -> Callable[[], float]:
    return lambda: seconds_of(schedule, steps)[0]
