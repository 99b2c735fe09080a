"""The norm alone, as a share of how fast this machine reads memory.

That speed is what the faster of two plain sums over one array of the same size reaches, in the same
rounds: XLA's, and NumPy's in a thread for each CPU; on an accelerator XLA's alone. Each reads every
entry once and writes nothing.
"""

import concurrent.futures
import math
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import warmclip_jax as wc
from tests.benchmarks import machine
from tests.benchmarks.turns import Progress, in_turns, median_ratio, seconds_of
from tests.benchmarks.workloads import SCALE, gpt2_small, jax_filled

SHAPES = gpt2_small()


def measured(rounds: int, progress: Progress) -> list[dict[str, Any]]:
    """A row for each sum and norm."""
    entries = sum(map(math.prod, SHAPES))
    array = jax_filled([(entries,)], SCALE)[0]
    leaves = jax_filled(SHAPES, SCALE)
    sums: dict[str, Any] = {"jnp.sum, one array": (jax.jit(jnp.sum), array)}
    if not machine.accelerator():
        pool = concurrent.futures.ThreadPoolExecutor(machine.cpus())
        parts = np.array_split(np.asarray(array), machine.cpus())  # of the same memory
        sums["np.sum, one array"] = (lambda parts: sum(pool.map(np.sum, parts)), parts)
    norms = {
        "wc.global_norm": wc.global_norm,
        "optax.tree.norm": optax.tree.norm,
        "sqrt of the sum of squares": lambda leaves: jnp.sqrt(
            sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)
        ),
    }
    asked = sums | {name: (jax.jit(norm), leaves) for name, norm in norms.items()}
    turns = {
        name: lambda function=function, argument=argument: seconds_of(function, argument)[0]
        for name, (function, argument) in asked.items()
    }
    seconds = in_turns(turns, rounds, progress)
    fastest = min(sums, key=lambda name: statistics.median(seconds[name]))
    return [
        {
            "contender": name,
            "share": median_ratio(seconds[fastest], own),
            "gigabytes_per_second": 4 * entries / statistics.median(own) / 1e9,
            "milliseconds": 1e3 * statistics.median(own),
            "seconds": own,
        }
        for name, own in seconds.items()
    ]
