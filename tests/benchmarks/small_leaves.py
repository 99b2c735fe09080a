"""What bounds a clip of many small leaves: `python -m tests.benchmarks.small_leaves [--rounds 60]`.

Such a step fits into a cache: no traffic bounds it. So the parts of a clip are timed by themselves,
in turns with the whole: the product of each leaf with a number that is known before; the norm
without a product, ours, and the least that one can be.
"""

import argparse

import numpy as np

from tests.benchmarks import jax_steps
from tests.benchmarks.jax_steps import BARE, GIVEN, MEASURED, OPTAX, OURS, REFERENCE, SKIP, TOGETHER
from tests.benchmarks.turns import in_turns
from tests.benchmarks.workloads import WORKLOADS, Workload

NAMES = (REFERENCE, GIVEN, TOGETHER, MEASURED, OURS, SKIP, BARE, OPTAX)


def ratios(workload: Workload, rounds: int) -> dict[str, np.ndarray]:
    """Of each round, the seconds of each contender's step by those of the step without a clip."""

    def say(what: str) -> None:
        print(what, flush=True)

    contenders = jax_steps.contenders(workload, say, NAMES)
    taken = in_turns(
        {name: contender.turn for name, contender in contenders.items()},
        rounds,
        say,
        patience=np.inf,
    )
    return {name: np.array(taken[name]) / np.array(taken[REFERENCE]) for name in NAMES}


def table(title: str, found: dict[str, np.ndarray]) -> str:
    """Medians with quartiles."""

    def cell(values: np.ndarray) -> str:
        return "{1:.3f} ({0:.3f} to {2:.3f})".format(*np.quantile(values, [0.25, 0.5, 0.75]))

    rows = [f"| {name} | {cell(values)} |" for name, values in found.items()]
    return "\n".join(
        [f"{title}: step by the step without a clip\n", "| | ratio |", "|---|---:|", *rows]
    )


def main(
    arguments: list[str] | None = None, workload: Workload = WORKLOADS["small_leaves"]
) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    print(table(workload.title, ratios(workload, parser.parse_args(arguments).rounds)))


if __name__ == "__main__":
    main()
