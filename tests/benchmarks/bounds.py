"""What each rule does to the same streams of norms: `python -m tests.benchmarks.bounds`; `--train`: to training.

A stream is 6,000 norms, lognormal around a level of 1. In some, 0.3 % are spikes: 10 to 100 times
as large, log-uniform. The columns:

- ordinary, %: of the norms that are no spike, the share that is clipped or skipped, for three
deviations of the logarithm.
- spike x: what a spike becomes on average, in units of the level. A skipped one is 0.
- to follow: calls until half of the next 20 pass untouched, after all norms have become 5, 10 and
  1,000 times as large in the middle (deviation 0.2); "never": not within 3,000 calls; "always": 40
  % and more are acted on before it too.
- cold start, %: of the spikes at call 2, 3, 5, 10, 20, 50, 100 and 200, each the first of a stream
of its own, those acted on.
- after NaN: both of the first numbers, after a NaN at call 1,000 (deviation 0.2); "poisoned": every
later gradient is NaN.
- equal, %: of calls acted on where all norms are equal and, from the middle on, 0.1 % larger.
- zeros, %: of the norms that are not 0, those acted on where every second one is 0, the first too
(an idle expert).
- falling: both of the first numbers where the level falls from 10 to 0.1 (deviation 0.2), spikes in
units of the level.
- burst x: the mean of what 10 and 40 norms of 30 times the level in a row become.
"""

import argparse
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks import bound_training, loss_bounds
from tests.benchmarks.bound_rules import RULES, BoundRule
from tests.benchmarks.loss_bounds import agreement
from warmclip_jax._clipping._history import History, bound_from, init_history, log_of, taught
from warmclip_jax._clipping._rule import Rule
from warmclip_jax._norms._range import ScaledNorm

SEEDS, CALLS, HALF = 10, 6_000, 3_000
COLD_CALLS = (2, 3, 5, 10, 20, 50, 100, 200)
DEVIATIONS, RISES, BURSTS = (0.2, 0.5, 0.8), (5, 10, 1000), (10, 40)


class Streams:
    """Every stream of the table: arrays of shape `(calls, seeds)` by the name of their column."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self.norms: dict[str, np.ndarray] = {}
        self.is_spike: dict[str, np.ndarray] = {}
        self.level: dict[str, np.ndarray] = {}
        calls = np.arange(CALLS)[:, None]
        for deviation in DEVIATIONS:
            self._add(f"sd {deviation}", deviation=deviation, spikes=0.003)
        for rise in RISES:
            self._add(f"x {rise}", level=np.where(calls < HALF, 1, rise))
        for call in COLD_CALLS:
            self._add(f"cold {call}")
            self._spike(f"cold {call}", (calls == call - 1) & np.ones((1, SEEDS), bool))
        self._add("NaN", spikes=0.003)
        self.norms["NaN"][999] = np.nan
        self._add("equal", deviation=0, level=np.where(calls < HALF, 1, 1.001))
        self._add("zeros")
        self.norms["zeros"][::2] = 0
        self._add("falling", level=np.geomspace(10, 0.1, CALLS)[:, None], spikes=0.003)
        for length in BURSTS:
            self._add(f"burst {length}")
            self.norms[f"burst {length}"][HALF : HALF + length] = 30

    def _add(
        self, name: str, *, deviation: float = 0.2, level: Any = 1.0, spikes: float = 0.0
    ) -> None:
        shape = (CALLS, SEEDS)
        self.level[name] = np.broadcast_to(level, shape)
        self.norms[name] = level * np.exp(deviation * self._rng.standard_normal(shape))
        self.is_spike[name] = np.zeros(shape, bool)
        self._spike(name, self._rng.random(shape) < spikes)

    def _spike(self, name: str, where: np.ndarray) -> None:
        heights = np.exp(self._rng.uniform(np.log(10), np.log(100), where.shape))
        self.norms[name] = np.where(where, heights * self.level[name], self.norms[name])
        self.is_spike[name] = where

    def through(self, rule: BoundRule) -> dict[str, np.ndarray]:
        """What a rule lets through of every stream."""
        widths = np.cumsum([norms.shape[1] for norms in self.norms.values()])[:-1]
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            passed = rule(np.concatenate(list(self.norms.values()), axis=1))
        return dict(zip(self.norms, np.split(passed, widths, axis=1), strict=True))


def row(streams: Streams, passed: dict[str, np.ndarray]) -> list[str]:
    """The numbers of one rule, as they stand in the table."""

    def acted(name: str) -> np.ndarray:
        return passed[name] < streams.norms[name]

    def ordinary(name: str, start: int = 0) -> str:
        return _percent(acted(name)[start:][~streams.is_spike[name][start:]])

    def spike(name: str, start: int = 0) -> str:
        where = streams.is_spike[name][start:]
        return _number((passed[name] / streams.level[name])[start:][where].mean())

    names = [f"sd {deviation}" for deviation in DEVIATIONS]
    is_poisoned = np.isnan(passed["NaN"][1_000:]).any()
    cold = np.concatenate([acted(f"cold {call}")[call - 1] for call in COLD_CALLS])
    return [
        " / ".join(map(ordinary, names)),
        " / ".join(map(spike, names)),
        " / ".join(_to_follow(acted(f"x {rise}")) for rise in RISES),
        _percent(cold),
        "poisoned" if is_poisoned else f"{ordinary('NaN', 1_000)}, {spike('NaN', 1_000)}",
        _percent(acted("equal")),
        _percent(acted("zeros")[1::2]),
        f"{ordinary('falling')}, {spike('falling')}",
        " / ".join(
            _number(passed[f"burst {length}"][HALF : HALF + length].mean()) for length in BURSTS
        ),
    ]


def _to_follow(acted: np.ndarray) -> str:
    """The mean over seeds of the calls until fewer than half of the next 20 are acted on."""
    if acted[HALF - 1_000 : HALF].mean() > 0.4:
        return "always"
    ahead = np.lib.stride_tricks.sliding_window_view(acted[HALF:], 20, axis=0).mean(axis=-1) < 0.5
    return _number(ahead.argmax(axis=0).mean(), 0) if ahead.any(axis=0).all() else "never"


def _percent(acted: np.ndarray) -> str:
    return _number(100 * acted.mean())


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if value < 10 else f"{value:.0f}"


def disagreements(streams: Streams, passed: dict[str, np.ndarray], rule: Rule) -> np.ndarray:
    """Calls at which the library in JAX decides otherwise than the float64 formula, and all calls."""

    def at_call(history: History, norm: jax.Array) -> tuple[History, jax.Array]:
        bound = bound_from(history, rule, jnp.int32(0))
        return taught(history, *log_of(ScaledNorm.of(norm)), rule), bound

    scan = jax.jit(lambda norms: jax.lax.scan(at_call, init_history(norms.shape[1:]), norms)[1])
    found = np.zeros(2, int)
    for name, norms in streams.norms.items():
        is_over = ~(norms <= np.asarray(scan(norms.astype(np.float32))))
        found += [np.sum(is_over != ~(passed[name] >= norms)), norms.size]
    return found


HEADS = (
    "rule",
    "ordinary, %, sd .2 / .5 / .8",
    "spike x",
    "to follow x 5 / 10 / 1000",
    "cold start, %",
    "after NaN: ordinary, %, spike x",
    "equal, %",
    "zeros, %",
    "falling: ordinary, %, spike x",
    "burst x, 10 / 40",
    "bytes",
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--train", action="store_true", help="the teacher-student experiment instead"
    )
    if parser.parse_args(arguments).train:
        bound_training.main()
        return
    streams, found = Streams(), np.zeros(2, int)
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    for name, (rule, size) in RULES.items():
        passed = streams.through(rule)
        print(f"| {name} | {' | '.join(row(streams, passed))} | {size} |", flush=True)
        if name.startswith("running bound"):
            deviations = 3.0 if "clip" in name else 6.0
            found += disagreements(streams, passed, Rule(deviations, 1 - 0.99, None))
    print(agreement(*found))
    loss_bounds.main(SEEDS)


if __name__ == "__main__":
    main()
