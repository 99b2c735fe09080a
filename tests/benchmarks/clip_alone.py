"""A clip without an optimizer: the tree is donated, comes back in its place, and is scaled back
after the clock has stopped.
"""

import functools
import math
import statistics
from typing import Any

import jax
import optax

import warmclip_jax as wc
from tests.benchmarks.jax_steps import BARE, OPTAX, OURS, scaled_by_one_coefficient
from tests.benchmarks.turns import Progress, in_turns, median_ratio, seconds_of
from tests.benchmarks.workloads import MAX_NORM, SCALE, gpt2_small, jax_filled

SHAPES = gpt2_small()
CLIPS = {
    BARE: scaled_by_one_coefficient(MAX_NORM),
    OPTAX: optax.clip_by_global_norm(MAX_NORM),
    OURS: wc.clip_by_global_norm(MAX_NORM),
}


def measured(rounds: int, progress: Progress) -> list[dict[str, Any]]:
    """A row for each clip; their reference is the least that one can be."""
    tree = jax_filled(SHAPES, SCALE)
    factor = float(wc.global_norm(tree)) / MAX_NORM

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def clipped(clip: Any, tree: Any) -> Any:
        return clip.update(tree, clip.init(tree))[0]

    @functools.partial(jax.jit, donate_argnums=0)
    def back(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf * factor, tree)

    def turn(clip: Any) -> float:
        nonlocal tree
        seconds, tree = seconds_of(clipped, clip, tree)
        tree = jax.block_until_ready(back(tree))
        return seconds

    turns = {name: functools.partial(turn, clip) for name, clip in CLIPS.items()}
    seconds = in_turns(turns, rounds, progress)
    traffic = 3 * 4 * sum(map(math.prod, SHAPES))  # read twice, written once
    return [
        {
            "contender": name,
            "ratio": median_ratio(own, seconds[BARE]),
            "gigabytes_per_second": traffic / statistics.median(own) / 1e9,
            "milliseconds": 1e3 * statistics.median(own),
            "seconds": own,
        }
        for name, own in seconds.items()
    ]
