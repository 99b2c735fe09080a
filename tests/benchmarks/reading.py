"""The norm alone, as a share of how fast this machine reads memory.

That speed is what the fastest of several plain sums over one array of the same size reaches, in the
same rounds: XLA's, PyTorch's, NumPy's in a thread for each CPU, and the dot product of NumPy's
BLAS; on an accelerator XLA's alone. Each reads every entry once and writes nothing.
"""

import concurrent.futures
import importlib
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import warmclip_jax as wc
from tests.benchmarks import machine
from tests.benchmarks.turns import Progress, in_turns, median_ratio, seconds_of
from tests.benchmarks.workloads import SCALE, Shape, jax_filled


def measured(shapes: tuple[Shape, ...], rounds: int, progress: Progress) -> list[dict[str, Any]]:
    """A row for each sum and norm."""
    entries = sum(map(math.prod, shapes))
    array = jax_filled([(entries,)], SCALE)[0]
    leaves = jax_filled(shapes, SCALE)
    sums = _sums(array)
    turns = sums | {
        "wc.global_norm": _jax(wc.global_norm, leaves),
        "optax.tree.norm": _jax(optax.tree.norm, leaves),
        "sqrt of the sum of squares": _jax(
            lambda leaves: jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)), leaves
        ),
    }
    seconds = in_turns(turns, rounds, progress)
    fastest = min(sums, key=lambda name: statistics.median(seconds[name]))
    return [
        {
            "contender": name,
            "share": median_ratio(seconds[fastest], seconds[name]),
            "gigabytes_per_second": 4 * entries / statistics.median(seconds[name]) / 1e9,
            "milliseconds": 1e3 * statistics.median(seconds[name]),
            "seconds": seconds[name],
        }
        for name in turns
    ]


def _jax(function: Callable[[Any], Any], argument: Any) -> Callable[[], float]:
    jitted = jax.jit(function)
    return lambda: seconds_of(jitted, argument)[0]


def _sums(array: jax.Array) -> dict[str, Callable[[], float]]:
    if machine.accelerator():
        return {"jnp.sum, one array": _jax(jnp.sum, array)}
    same = np.asarray(array)  # the same memory
    pool = concurrent.futures.ThreadPoolExecutor(machine.cpus())
    parts = np.array_split(same, machine.cpus())
    sums: dict[str, Callable[[], Any]] = {
        "np.sum, one array": lambda: sum(pool.map(np.sum, parts)),
        "np.dot, one array": lambda: np.dot(same, same),
    }
    if machine.is_installed("torch"):
        torch: Any = importlib.import_module("torch")
        torch.set_num_threads(machine.cpus())
        tensor = torch.from_dlpack(array)
        sums["torch.sum, one array"] = lambda: torch.sum(tensor).item()
    return {
        "jnp.sum, one array": _jax(jnp.sum, array),
        **{name: _timed(function) for name, function in sums.items()},
    }


def _timed(function: Callable[[], Any]) -> Callable[[], float]:
    def turn() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return turn
