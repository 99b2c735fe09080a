"""`python -m tests.benchmarks`: measures what clipping costs on this machine, prints tables and writes the numbers as JSON.

Compare ratios within one run, never times of two: machines differ and are shared. README.md beside
this file says what each number means and what bounds it.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import tqdm

from tests.benchmarks import clip_alone, figure, growth, machine, reading, report, schedules, steps
from tests.benchmarks.turns import Progress
from tests.benchmarks.workloads import WORKLOADS, Shape, Workload, gpt2_small


class Sizes(NamedTuple):
    """How large each piece is."""

    workloads: Mapping[str, Workload] = WORKLOADS
    tree: tuple[Shape, ...] = gpt2_small()  # of the norm and the clip alone
    schedule_calls: int = 200
    counts: int = 1_000_000
    growing_leaves: tuple[int, ...] = (10, 100, 1000, 5000)
    growing_parameters: tuple[int, ...] = (10**5, 10**6, 10**7, 10**8, 3 * 10**8)


PIECES = ("norm", "clip", "schedules")


def measured(
    sizes: Sizes, rounds: int, chosen: Iterable[str], growing: bool, progress: tqdm.tqdm
) -> dict[str, Any]:
    """The results of the chosen workloads and pieces: all that is written. Each frees its arrays
    before the next.
    """
    doing: dict[str, Callable[[Progress], Any]] = {
        "norm": functools.partial(reading.measured, sizes.tree, rounds),
        "clip": functools.partial(clip_alone.measured, sizes.tree, rounds),
        "schedules": functools.partial(
            schedules.measured, sizes.schedule_calls, sizes.counts, rounds
        ),
        "growth": functools.partial(
            growth.measured, sizes.growing_leaves, sizes.growing_parameters, rounds
        ),
    }
    names = [name for name in (*sizes.workloads, *PIECES) if name in chosen] + ["growth"] * growing
    progress.reset(len(names))
    results: dict[str, Any] = {"machine": machine.facts(), "rounds": rounds, "steps": {}}
    for name in names:
        say = functools.partial(_say, progress, name)
        if name in sizes.workloads:
            workload = sizes.workloads[name]
            results["steps"][name] = {
                "limit": workload.limit,
                "rows": steps.measured(workload, rounds, say),
            }
        else:
            results[name] = doing[name](say)
        progress.update()
    return results


def _say(progress: tqdm.tqdm, name: str, what: str) -> None:
    progress.set_description_str(f"{name}: {what}")


def main(arguments: list[str] | None = None, sizes: Sizes | None = None) -> None:
    sizes = sizes or Sizes()
    names = [*sizes.workloads, *PIECES]
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
    with tqdm.tqdm(bar_format="{n_fmt}/{total_fmt} in {elapsed}, {desc}") as progress:
        results = measured(sizes, options.rounds, options.only or names, options.growth, progress)
    print(report.markdown(results))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {options.json}")
    if options.plot:
        figure.draw(results, options.plot)
        print(f"drawn: {options.plot}")


if __name__ == "__main__":
    main()
