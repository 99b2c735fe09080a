"""What a clip adds to the time until a step can run: tracing, lowering and compiling an AdamW step over many leaves."""

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tests.benchmarks import jax_steps
from tests.benchmarks.jax_steps import OPTAX, OURS, REFERENCE
from tests.benchmarks.turns import Progress, in_turns
from tests.benchmarks.workloads import Shape

STAGES = ("trace_seconds", "lower_seconds", "compile_seconds")


def measured(shapes: tuple[Shape, ...], rounds: int, progress: Progress) -> list[dict[str, Any]]:
    """A row for each clip: the seconds of each stage, and the median of what it adds to the same stage without a clip."""
    optimizers = jax_steps.optimizers("AdamW")
    turns = {name: _turn(*optimizers[name], shapes) for name in (REFERENCE, OPTAX, OURS)}
    taken = in_turns(turns, rounds, progress, uncounted=0)
    rows = []
    for name, stages in taken.items():
        row: dict[str, Any] = {"contender": name}
        for stage in STAGES:
            row[stage] = statistics.median(of[stage] for of in stages)
            added = [own[stage] - other[stage] for own, other in zip(stages, taken[REFERENCE], strict=True)]
            row[f"{stage}_added"] = statistics.median(added)
        rows.append(row)
    return rows


def _turn(optimizer: Any, step: Any, shapes: tuple[Shape, ...]) -> Callable[[], dict[str, float]]:
    def turn() -> dict[str, float]:
        jax.clear_caches()  # else what an earlier turn has traced would be found again
        params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        opt_state = jax.eval_shape(optimizer.init, params)
        return jax_steps.traced_lowered_compiled(step, params, opt_state, params)[1]

    return turn
