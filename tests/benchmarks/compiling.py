"""How long a step compiles: `python -m tests.benchmarks.compiling [--leaves 100 300 1000] [--rounds 3]`.

Seconds of processor, of tracing, lowering and compiling together. Contenders take turns, so that a
slow moment hits all of them. One compilation varies by seconds where leaves are many: only medians
over several rounds say something. Half of the leaves are vectors, as in a transformer, of 64 to 256
entries; the others matrices.
"""

import argparse
import functools
import time
from collections.abc import Sequence

import jax
import numpy as np

from tests.benchmarks.jax_steps import (
    EACH,
    EVERYTHING,
    GROUPS,
    OPTAX,
    OURS,
    RECORDED,
    REFERENCE,
    SKIP,
    optimizers,
    traced_lowered_compiled,
)
from tests.benchmarks.turns import in_turns
from tests.benchmarks.workloads import Shape

NAMES = (REFERENCE, OPTAX, OURS, SKIP, GROUPS, EACH, RECORDED, EVERYTHING)
#: Two layers of a small transformer have these shapes, and any number of leaves repeats them.
MIXED: tuple[Shape, ...] = ((64,), (64, 192), (192,), (64, 64), (64,), (64, 256), (256,), (256, 64))


def shapes(leaves: int) -> list[Shape]:
    return [MIXED[index % len(MIXED)] for index in range(leaves)]


def seconds(leaves: int, rounds: int, names: Sequence[str] = NAMES) -> dict[str, np.ndarray]:
    """The seconds of each round, by contender."""

    def turn(name: str, leaves: int = leaves) -> float:
        params = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes(leaves)]
        optimizer, step = optimizers("AdamW")[name]
        opt_state = jax.eval_shape(optimizer.init, params)
        start = time.process_time()
        traced_lowered_compiled(step, params, opt_state, params)
        return time.process_time() - start

    turns = {name: functools.partial(turn, name) for name in names}
    say = functools.partial(print, f"{leaves} leaves,", flush=True)
    # What the first compilation imports and traces, all others find.
    for name in names:
        turn(name, len(MIXED))
    taken = in_turns(turns, rounds, say, uncounted=0, patience=np.inf)
    return {name: np.array(values) for name, values in taken.items()}


def table(taken: dict[int, dict[str, np.ndarray]]) -> str:
    """Medians by number of leaves, each with how many times the plain pipeline's it is."""
    lines = [
        f"| leaves | {' | '.join(f'{leaves:,}' for leaves in taken)} |",
        f"|---{'|---:' * len(taken)}|",
    ]
    for name in next(iter(taken.values())):
        cells = [_cell(of_leaves[name], of_leaves[SKIP]) for of_leaves in taken.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: np.ndarray, plain: np.ndarray) -> str:
    return f"{np.median(values):.1f} s ({np.median(values / plain):.2f})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--leaves", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    options = parser.parse_args(arguments)
    print(
        table(
            {
                leaves: seconds(leaves, options.rounds, [*dict.fromkeys([*options.only, SKIP])])
                for leaves in options.leaves
            }
        )
    )


if __name__ == "__main__":
    main()
