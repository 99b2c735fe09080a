"""`python -m tests.benchmarks`: prints what clipping adds to a training step, and writes the numbers as JSON.

Compare ratios within one run, never times of two: machines differ and are shared.
"""

import argparse
import dataclasses
import json
import pathlib

import jax
import optax
import tqdm

from tests.benchmarks import steps


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--workload", action="append", choices=list(steps.WORKLOADS), help="one of them; may be repeated")
    parser.add_argument("--rounds", type=int, default=15, help="counted steps of each contender (default: %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("runs/benchmarks.json"), help="where to write")
    options = parser.parse_args()
    results = []
    with tqdm.tqdm(options.workload or list(steps.WORKLOADS), bar_format="{desc}") as bar:
        for name in bar:
            results += steps.measured(name, options.rounds, bar.set_description_str)
    print(f"jax {jax.__version__}, optax {optax.__version__}, {jax.default_backend()}")
    print("| workload | contender | step, ratio | step, ms | trace, s | compile, s | temporary, MB |")
    print("|---|---|---|---|---|---|---|")
    for r in results:
        print(
            f"| {r.workload} | {r.contender} | {r.ratio:.2f} | {r.milliseconds:.0f} | {r.trace_seconds:.1f} "
            f"| {r.compile_seconds:.1f} | {r.temporary_megabytes:.0f} |"
        )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps([dataclasses.asdict(result) for result in results], indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.json}")


if __name__ == "__main__":
    main()
