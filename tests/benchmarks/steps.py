"""What clipping adds to a whole optimizer step: each library's step with a clip by its own step
without.
"""

import statistics
from collections.abc import Iterable
from typing import Any

from tests.benchmarks import jax_steps, keras_steps, machine, torch_steps
from tests.benchmarks.turns import Contender, Progress, in_turns, median_ratio
from tests.benchmarks.workloads import Workload

FACTS = ("trace_seconds", "lower_seconds", "compile_seconds", "temporary_megabytes", "page_faults")
#: Beside JAX; each is left out where it is not installed.
OTHERS = (torch_steps, keras_steps)


def missing() -> list[str]:
    """The libraries that are left out."""
    return [library.MODULE for library in OTHERS if not machine.is_installed(library.MODULE)]


def measured(
    workload: Workload, rounds: int, progress: Progress, names: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """A row for each contender; with `names`, for these of JAX alone."""
    contenders = jax_steps.contenders(workload, progress, names)
    for library in OTHERS if names is None else ():
        if machine.is_installed(library.MODULE) and not (
            workload.slow_to_build and library is keras_steps
        ):
            progress(f"setting up {library.MODULE}")
            contenders |= library.contenders(workload)
    seconds = in_turns(
        {name: contender.turn for name, contender in contenders.items()}, rounds, progress
    )
    for contender in contenders.values():
        contender.free()
    return [_row(name, contender, seconds) for name, contender in contenders.items()]


def _row(name: str, contender: Contender, seconds: dict[str, list[float]]) -> dict[str, Any]:
    own = seconds[name]
    return {
        "contender": name,
        "reference": contender.reference,
        "ratio": median_ratio(own, seconds[contender.reference]),
        "ratio_to_ours": median_ratio(own, seconds[jax_steps.OURS]),
        "milliseconds": 1e3 * statistics.median(own),
        **{fact: contender.facts.get(fact) for fact in FACTS},
        "seconds": own,
    }
