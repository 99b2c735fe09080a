"""What bounds a clip of many small leaves: `python -m tests.benchmarks.small_leaves [--rounds 60]`.

Such a step fits into a cache: no traffic bounds it. So the parts of a clip are timed by themselves,
in turns with the whole: the product of each leaf with a number that is known before; the norm
without a product, ours, and the least that one can be.
"""

import argparse

import numpy as np

from tests.benchmarks import steps
from tests.benchmarks.jax_steps import BARE, GIVEN, MEASURED, OPTAX, OURS, REFERENCE, SKIP, TOGETHER
from tests.benchmarks.workloads import WORKLOADS, Workload

NAMES = (REFERENCE, GIVEN, TOGETHER, MEASURED, OURS, SKIP, BARE, OPTAX)


def main(
    arguments: list[str] | None = None, workload: Workload = WORKLOADS["small_leaves"]
) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rows = steps.measured(workload, parser.parse_args(arguments).rounds, print, NAMES)
    seconds = {row["contender"]: np.array(row["seconds"]) for row in rows}
    print(f"{workload.title}: step by the step without a clip, medians with quartiles\n")
    print("| | ratio |\n|---|---:|")
    for name in NAMES:
        low, middle, high = np.quantile(seconds[name] / seconds[REFERENCE], [0.25, 0.5, 0.75])
        print(f"| {name} | {middle:.3f} ({low:.3f} to {high:.3f}) |")


if __name__ == "__main__":
    main()
