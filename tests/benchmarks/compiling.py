"""How long a step compiles: `python -m tests.benchmarks.compiling [--leaves 100 300 1000] [--rounds 3]`.

Seconds of processor, of tracing, lowering and compiling together. Contenders take turns, so that a
slow moment hits all of them. One compilation varies by seconds where leaves are many: only medians
over several rounds say something. Half of the leaves are vectors, as in a transformer, of 64 to 256
entries; the others matrices.
"""

import argparse
import functools
import statistics
import time

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
from tests.benchmarks.turns import in_turns, median_ratio
from tests.benchmarks.workloads import Shape

NAMES = (REFERENCE, OPTAX, OURS, SKIP, GROUPS, EACH, RECORDED, EVERYTHING)
#: Two layers of a small transformer have these shapes, and any number of leaves repeats them.
MIXED: tuple[Shape, ...] = ((64,), (64, 192), (192,), (64, 64), (64,), (64, 256), (256,), (256, 64))


def turn(name: str, leaves: int) -> float:
    """The seconds of one compilation."""
    params = [
        jax.ShapeDtypeStruct(MIXED[place % len(MIXED)], np.float32) for place in range(leaves)
    ]
    optimizer, step = optimizers("AdamW")[name]
    opt_state = jax.eval_shape(optimizer.init, params)
    start = time.process_time()
    traced_lowered_compiled(step, params, opt_state, params)
    return time.process_time() - start


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    options = parser.parse_args(arguments)
    names = dict.fromkeys([*options.only, SKIP])
    # What the first compilation imports and traces, all others find.
    for name in names:
        turn(name, len(MIXED))
    taken = {}
    for leaves in options.leaves:
        turns = {name: functools.partial(turn, name, leaves) for name in names}
        say = functools.partial(print, f"{leaves} leaves,", flush=True)
        taken[leaves] = in_turns(turns, options.rounds, say, uncounted=0)
    print(f"| leaves | {' | '.join(f'{leaves:,}' for leaves in taken)} |")
    print(f"|---{'|---:' * len(taken)}|")
    # Medians, each with how many times the plain pipeline's it is.
    for name in names:
        pairs = [(seconds[name], seconds[SKIP]) for seconds in taken.values()]
        cells = [
            f"{statistics.median(own):.1f} s ({median_ratio(own, of):.2f})" for own, of in pairs
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
