"""What clipping adds to a whole optimizer step: each library's step with a clip by its own step
without.
"""

import statistics
from collections.abc import Iterable
from typing import Any

from tests.benchmarks import jax_steps, keras_steps, machine, torch_steps
from tests.benchmarks.turns import Contender, Progress, in_turns, median_ratio
from tests.benchmarks.workloads import Workload

TEMPORARY = "temporary_megabytes"
FACTS = ("trace_seconds", "lower_seconds", "compile_seconds", TEMPORARY, "page_faults")
#: Beside JAX; each is left out where it is not installed.
OTHERS = (torch_steps, keras_steps)


def left_out() -> dict[str, str]:
    """The libraries that are left out, and why."""
    if device := machine.accelerator():
        why = f"it would compute on the CPU, and JAX on {device.device_kind}"
        return {library.MODULE: why for library in OTHERS}
    missing = [library.MODULE for library in OTHERS if not machine.is_installed(library.MODULE)]
    return {
        module: f"not installed (pip install {module}, or the extra named bench)"
        for module in missing
    }


def measured(
    workload: Workload, rounds: int, progress: Progress, names: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """A row for each contender; with `names`, for these of JAX alone."""
    contenders = jax_steps.contenders(workload, progress, names)
    for library in OTHERS if names is None else ():
        if library.MODULE not in left_out() and not (
            workload.slow_to_build and library is keras_steps
        ):
            progress(f"setting up {library.MODULE}")
            contenders |= library.contenders(workload)
    peaks = _peaks(contenders)
    seconds = in_turns(
        {name: contender.turn for name, contender in contenders.items()}, rounds, progress
    )
    for contender in contenders.values():
        contender.free()
    return [
        _row(name, contender, seconds) | {"peak_megabytes": peaks.get(name)}
        for name, contender in contenders.items()
    ]


def _peaks(contenders: dict[str, Contender]) -> dict[str, float | None]:
    """The peak of memory on an accelerator after a turn of each. It never falls: so they take turns
    in the order of what they need.
    """
    peaks: dict[str, float | None] = {}
    if machine.accelerator():
        for name in sorted(contenders, key=lambda name: contenders[name].facts[TEMPORARY]):
            contenders[name].turn()
            peaks[name] = machine.peak_megabytes()
    return peaks


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
