"""How long a step compiles: `python -m tests.benchmarks.compiling [--workload small_leaves] [--rounds 8]`.

Contenders take turns, so that a slow moment hits all of them; seconds are those of tracing,
lowering and compiling together. One compilation varies by seconds where leaves are many: only
medians over several rounds say something.
"""

import argparse
import functools

import jax
import numpy as np

from tests.benchmarks.jax_steps import (
    OPTAX,
    OURS,
    RECORDED,
    REFERENCE,
    SKIP,
    optimizers,
    traced_lowered_compiled,
)
from tests.benchmarks.turns import in_turns
from tests.benchmarks.workloads import WORKLOADS, Workload

NAMES = (REFERENCE, OPTAX, OURS, SKIP, RECORDED)


def seconds(workload: Workload, rounds: int) -> dict[str, np.ndarray]:
    """The seconds of each round, by contender."""
    params = [jax.ShapeDtypeStruct(shape, np.float32) for shape in workload.shapes]
    grads = [jax.ShapeDtypeStruct(shape, workload.gradient_dtype) for shape in workload.shapes]

    def turn(name: str) -> float:
        optimizer, step = optimizers(workload.optimizer)[name]
        return sum(
            traced_lowered_compiled(step, params, jax.eval_shape(optimizer.init, params), grads)[
                1
            ].values()
        )

    turns = {name: functools.partial(turn, name) for name in NAMES}
    taken = in_turns(turns, rounds, lambda doing: print(doing, flush=True), patience=np.inf)
    return {name: np.array(values) for name, values in taken.items()}


def table(title: str, taken: dict[str, np.ndarray]) -> str:
    """Medians with quartiles: of the seconds, and of how many more they are than without a clip,
    and than the pipeline's.
    """

    def cell(values: np.ndarray) -> str:
        return "{1:.1f} ({0:.1f} to {2:.1f})".format(*np.quantile(values, [0.25, 0.5, 0.75]))

    lines = [
        f"{title}, seconds:\n",
        f"| | all | more than {REFERENCE} | more than {SKIP} |",
        "|---|---:|---:|---:|",
    ]
    for name, values in taken.items():
        lines.append(
            f"| {name} | {cell(values)} | {cell(values - taken[REFERENCE])} | "
            f"{cell(values - taken[SKIP])} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=list(WORKLOADS), default="small_leaves")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args(arguments)
    workload = WORKLOADS[options.workload]
    print(table(workload.title, seconds(workload, options.rounds)))


if __name__ == "__main__":
    main()
