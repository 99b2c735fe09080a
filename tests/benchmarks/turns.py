"""Contenders that take turns, so that a slow moment of the machine hits all of them and drops out
of their ratios.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Progress = Callable[[str], None]

#: Seconds before each turn: threads of another library stop spinning for work within them.
_PAUSE = 0.005
#: Seconds a round that a contender may take in all, and counted rounds that it takes part in all
#: the same.
_PATIENCE, _LEAST = 0.3, 3


class Contender(NamedTuple):
    """Something that is timed against a reference, in one process with it."""

    reference: str  # the name of the contender that does the same without clipping
    turn: Callable[
        [], float
    ]  # takes one step and returns its seconds; what else it does is not counted
    facts: Mapping[str, float] = {}  # what is known of it beside its times
    free: Callable[[], None] = lambda: None  # gives its memory back, where dropping it would not


def in_turns(
    turns: Mapping[str, Callable[[], float]], rounds: int, progress: Progress, uncounted: int = 1
) -> dict[str, list[float]]:
    """What each turn returned in each round, the first `uncounted` left out. Every round has an order of its own.

    A contender that is slow takes part in the first rounds alone.
    """
    rng = random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in turns}
    spent = dict.fromkeys(turns, 0.0)
    for index in range(rounds + uncounted):
        progress(f"round {index + 1} of {rounds + uncounted}")
        # Shuffled, not rotated: a rotation would leave each contender behind the same other one.
        for name in rng.sample(list(turns), len(turns)):
            if index >= uncounted + _LEAST and spent[name] > rounds * _PATIENCE:
                continue
            time.sleep(_PAUSE)
            start = time.perf_counter()
            taken[name].append(turns[name]())
            spent[name] += time.perf_counter() - start
    return {name: values[uncounted:] for name, values in taken.items()}


def median_ratio(own: list[float], other: list[float]) -> float:
    """The median, over the rounds in which both took part, of the ratio of two contenders' times in
    the same round.
    """
    return statistics.median(
        a / b for a, b in zip(own, other, strict=False)
    )  # both began with the first


def seconds_of(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """How long a JAX function takes until its results are there; and these."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, result
