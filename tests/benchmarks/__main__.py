"""`python -m tests.benchmarks`: measures what clipping costs on this machine, prints tables and writes the numbers as JSON.

Compare ratios within one run, never times of two: machines differ and are shared. README.md beside
this file says what each number means and what bounds it.
"""

import argparse
import json
import pathlib
from typing import Any

import tqdm

from tests.benchmarks import clip_alone, figure, growth, machine, reading, report, schedules, steps
from tests.benchmarks.workloads import WORKLOADS

#: What is measured beside the workloads, the last only where it is asked for.
PIECES = {
    "norm": reading.measured,
    "clip": clip_alone.measured,
    "schedules": schedules.measured,
    "growth": growth.measured,
}


def measured(names: list[str], rounds: int) -> dict[str, Any]:
    """The results of the chosen workloads and pieces: all that is written. Each frees its arrays
    before the next.
    """
    results: dict[str, Any] = {"machine": machine.facts(), "rounds": rounds, "steps": {}}
    progress = tqdm.tqdm(names, bar_format="{n_fmt}/{total_fmt} in {elapsed}, {desc}")
    for name in progress:

        def say(what: str, name: str = name) -> None:
            progress.set_description_str(f"{name}: {what}")

        if name in WORKLOADS:
            workload = WORKLOADS[name]
            rows = steps.measured(workload, rounds, say)
            results["steps"][name] = {"limit": workload.limit, "rows": rows}
        else:
            results[name] = PIECES[name](rounds, say)
    return results


def main(arguments: list[str] | None = None) -> None:
    names = [*WORKLOADS, "norm", "clip", "schedules"]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=names, help="one workload or piece; may be repeated"
    )
    parser.add_argument(
        "--growth",
        action="store_true",
        help="also how the price grows with leaves and parameters (slow)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=7,
        help="counted turns of each contender (default: %(default)s)",
    )
    parser.add_argument(
        "--json",
        type=pathlib.Path,
        default=pathlib.Path("runs/benchmarks.json"),
        help="where to write",
    )
    parser.add_argument("--plot", type=pathlib.Path, help="draw the ratios into this file")
    options = parser.parse_args(arguments)
    for module, why in steps.left_out().items():
        print(f"{module} is left out: {why}")
    results = measured([*(options.only or names), *["growth"] * options.growth], options.rounds)
    print(report.markdown(results))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {options.json}")
    if options.plot:
        figure.draw(results, options.plot)
        print(f"drawn: {options.plot}")


if __name__ == "__main__":
    main()
