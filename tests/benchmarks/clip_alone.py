"""A clip without an optimizer: the tree is donated, comes back in its place, and is scaled back
after the clock has stopped.
"""

import math
import statistics
from collections.abc import Callable
from typing import Any

import jax
import optax

import warmclip_jax as wc
from tests.benchmarks.jax_steps import BARE, OPTAX, OURS, scaled_by_one_coefficient
from tests.benchmarks.turns import Progress, in_turns, median_ratio, seconds_of
from tests.benchmarks.workloads import MAX_NORM, SCALE, Shape, jax_filled


def measured(shapes: tuple[Shape, ...], rounds: int, progress: Progress) -> list[dict[str, Any]]:
    """A row for each clip; their reference is the least that one can be."""
    clips = {
        BARE: scaled_by_one_coefficient(MAX_NORM),
        OPTAX: optax.clip_by_global_norm(MAX_NORM),
        OURS: wc.clip_by_global_norm(MAX_NORM),
    }
    tree = jax_filled(shapes, SCALE)
    entries = sum(map(math.prod, shapes))
    back = jax.jit(
        lambda tree, factor: jax.tree.map(lambda leaf: leaf * factor, tree), donate_argnums=0
    )
    factor = float(wc.global_norm(tree)) / MAX_NORM

    def turn_of(clip: Any) -> Callable[[], float]:
        compiled = (
            jax.jit(lambda tree: clip.update(tree, clip.init(tree))[0], donate_argnums=0)
            .lower(tree)
            .compile()
        )

        def turn() -> float:
            nonlocal tree
            seconds, tree = seconds_of(compiled, tree)
            tree = jax.block_until_ready(back(tree, factor))
            return seconds

        return turn

    seconds = in_turns({name: turn_of(clip) for name, clip in clips.items()}, rounds, progress)
    return [
        {
            "contender": name,
            "ratio": median_ratio(own, seconds[BARE]),
            "gigabytes_per_second": 3
            * 4
            * entries
            / statistics.median(own)
            / 1e9,  # read twice, written once
            "milliseconds": 1e3 * statistics.median(own),
            "seconds": own,
        }
        for name, own in seconds.items()
    ]
