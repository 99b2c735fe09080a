"""How the price of a clip grows: with the number of leaves at a fixed size in all, and with the
number of parameters.
"""

from collections.abc import Iterable
from typing import Any

from tests.benchmarks import steps
from tests.benchmarks.jax_steps import OPTAX, OURS, REFERENCE, SKIP
from tests.benchmarks.turns import Progress
from tests.benchmarks.workloads import Workload

NAMES = (REFERENCE, OPTAX, OURS, SKIP)
ENTRIES = 1_000_000  # of the trees that grow in leaves
LEAVES = 20  # of the trees that grow in parameters
#: Rounds for each one asked for, of trees up to `ENTRIES`: their steps take milliseconds, and vary
#: more.
_MORE = 20
#: Seconds of compiling, at most. They grow at least with the square of the number of leaves.
PATIENCE = 600


def measured(
    leaves: tuple[int, ...], parameters: tuple[int, ...], rounds: int, progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    """Rows as of `steps`, each with the number that grows. What would compile for too long is left
    out of the larger trees.
    """
    by_leaves: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for count in leaves:
        slow = {
            row["contender"]
            for row in rows
            if row["compile_seconds"] * (count / row["leaves"]) ** 2 > PATIENCE
        }
        names = [
            name for name in NAMES if name not in slow or name in (REFERENCE, OURS)
        ]  # the others are compared with them
        title, shapes = f"{count:,} leaves", ((ENTRIES // count,),) * count
        rows = [{"leaves": count, **row} for row in _step(title, shapes, rounds, progress, names)]
        by_leaves += rows
    return {
        "leaves": by_leaves,
        "parameters": [
            {"parameters": count, **row}
            for count in parameters
            for row in _step(
                f"{count:,} parameters", ((count // LEAVES,),) * LEAVES, rounds, progress, NAMES
            )
        ],
    }


def _step(
    title: str, shapes: Any, rounds: int, progress: Progress, names: Iterable[str]
) -> list[dict[str, Any]]:
    workload = Workload(title, shapes)
    rounds *= _MORE if workload.entries <= ENTRIES else 1
    return steps.measured(workload, rounds, lambda doing: progress(f"{title}, {doing}"), names)
