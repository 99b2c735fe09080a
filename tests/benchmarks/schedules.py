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

CALLS, COUNTS = 200, 1_000_000


def measured(rounds: int, progress: Progress) -> list[dict[str, Any]]:
    """A row for each schedule: `CALLS` single calls a round, and one call with `COUNTS` steps."""
    warmup = COUNTS // 10
    ours = wc.warmup_cosine_decay(peak_value=1e-3, total_steps=COUNTS, warmup_steps=warmup)
    by_optax = optax.warmup_cosine_decay_schedule(0.0, 1e-3, warmup, COUNTS)
    schedules = {
        "wc.warmup_cosine_decay": ours,
        "optax.warmup_cosine_decay_schedule": by_optax,
        "the same in jax.jit": jax.jit(by_optax),
    }
    steps = jnp.arange(COUNTS)
    singly = in_turns(
        {name: _calls(schedule) for name, schedule in schedules.items()}, rounds, progress
    )
    at_once = in_turns(
        {
            name: lambda schedule=schedule: seconds_of(schedule, steps)[0]
            for name, schedule in schedules.items()
        },
        rounds,
        progress,
    )
    return [
        {
            "contender": name,
            "microseconds_a_call": 1e6 * statistics.median(singly[name]),
            "milliseconds_at_once": 1e3 * statistics.median(at_once[name]),
            "counts": COUNTS,
        }
        for name in schedules
    ]


def _calls(schedule: Callable[[Any], Any]) -> Callable[[], float]:
    def turn() -> float:
        start = time.perf_counter()
        for count in range(CALLS):
            float(schedule(count))
        return (time.perf_counter() - start) / CALLS

    return turn
