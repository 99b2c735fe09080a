"""How the price of a clip grows: with the number of leaves at a fixed size in all, and with the
number of parameters.
"""

from typing import Any

from tests.benchmarks import steps
from tests.benchmarks.jax_steps import OPTAX, OURS, REFERENCE, SKIP
from tests.benchmarks.turns import Progress
from tests.benchmarks.workloads import Workload

NAMES = (REFERENCE, OPTAX, OURS, SKIP)
ENTRIES = 1_000_000  # of the trees that grow in leaves
LEAVES = 20  # of the trees that grow in parameters
COUNTS = {
    "leaves": (10, 100, 1000, 5000),
    "parameters": (10**5, 10**6, 10**7, 10**8, 3 * 10**8),
}
#: Rounds for each one asked for, of trees up to `ENTRIES`: their steps take milliseconds, and vary
#: more.
_MORE = 20


def measured(rounds: int, progress: Progress) -> dict[str, list[dict[str, Any]]]:
    """Rows as of `steps`, each with the number that grows."""
    return {
        axis: [
            {axis: count, **row} for count in counts for row in _step(axis, count, rounds, progress)
        ]
        for axis, counts in COUNTS.items()
    }


def _step(axis: str, count: int, rounds: int, progress: Progress) -> list[dict[str, Any]]:
    leaves, entries = (count, ENTRIES) if axis == "leaves" else (LEAVES, count)
    workload = Workload(f"{count:,} {axis}", ((entries // leaves,),) * leaves)
    rounds *= _MORE if entries <= ENTRIES else 1
    return steps.measured(
        workload, rounds, lambda doing: progress(f"{workload.title}, {doing}"), NAMES
    )
