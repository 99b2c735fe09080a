"""How the price of a clip grows: with the number of leaves at a fixed size in all, and with the number of parameters."""

from typing import Any

from tests.benchmarks import steps
from tests.benchmarks.jax_steps import OPTAX, OURS, REFERENCE, SKIP
from tests.benchmarks.turns import Progress
from tests.benchmarks.workloads import Workload

NAMES = (REFERENCE, OPTAX, OURS, SKIP)
ENTRIES = 1_000_000  # of the trees that grow in leaves
LEAVES = 20  # of the trees that grow in parameters


def measured(
    leaves: tuple[int, ...], parameters: tuple[int, ...], rounds: int, progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    """Rows as of `steps`, each with the number that grows."""
    return {
        "leaves": [
            {"leaves": count, **row}
            for count in leaves
            for row in _step(f"{count:,} leaves", ((ENTRIES // count,),) * count, rounds, progress)
        ],
        "parameters": [
            {"parameters": count, **row}
            for count in parameters
            for row in _step(f"{count:,} parameters", ((count // LEAVES,),) * LEAVES, rounds, progress)
        ],
    }


def _step(title: str, shapes: Any, rounds: int, progress: Progress) -> list[dict[str, Any]]:
    return steps.measured(Workload(title, shapes), rounds, lambda doing: progress(f"{title}, {doing}"), NAMES)
