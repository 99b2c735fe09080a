"""What the running bound does to streams of losses: the second table of `tests.benchmarks.bounds`.

A stream is 4,000 losses, with 20 spikes of 15 standard deviations of its noise. The columns: of the
spikes, the share that is skipped; of the other losses, the share that is; whether one of the first
100 is. The jumps: a loss that stays at one number (with a noise of 2 % where it is not 0) and then
at another, and for how many calls it is skipped.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests import reference
from warmclip_jax._clipping._loss_history import init_loss_history, loss_bound_from, loss_taught
from warmclip_jax._clipping._rule import Rule

CALLS, JUMP_AT, DEVIATIONS = 4_000, 500, 6.0
LARGEST = float(np.finfo(np.float32).max)
JUMPS = (
    *((1.0, times) for times in (1.1, 2.0, 10.0, 1e3, 1e6, 1e30, 3e38)),
    (-1000.0, 0.0),
    (2.0, 2.5),
    (0.0, 1.0),
    (1000.0, 1.0),
    (-3e38, 3e38),
)


def streams(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Losses, and which of them are spikes, by the name of the stream."""
    rng = np.random.default_rng(seed)
    at = np.arange(CALLS)
    curve = 2.5 + 8 * np.exp(-at / 600)
    steep = 2.5 + 8 * np.exp(-at / 430)

    def spiky(mean: Any, deviation: Any, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        is_spike = np.zeros(CALLS, bool)
        is_spike[rng.choice(np.arange(200, CALLS), 20, replace=False)] = True
        return mean + deviation * (noise + 15 * is_spike), is_spike

    normal = rng.standard_normal(CALLS)
    return {
        "language model, noise 2 %": spiky(curve, 0.02 * curve, normal),
        "language model, noise 10 %": spiky(curve, 0.1 * curve, normal),
        "small batches, heavy tails": spiky(2.0, 0.2, rng.standard_t(4, CALLS)),
        "around zero": spiky(0.0, 1.0, normal),
        "ELBO near -1,000": spiky(-1000.0, 5.0, normal),
        "falls by e every 430 calls": spiky(steep, 0.02 * steep, normal),
    }


def skipped_by_formula(losses: np.ndarray) -> np.ndarray:
    """What the formula in float64 skips."""
    rule, skipped = reference.RunningLossBound(deviations=DEVIATIONS, largest=LARGEST), []
    for loss in losses.tolist():
        skipped.append(loss > rule.bound)
        rule.teach(loss)
    return np.array(skipped)


def skipped_in_jax(losses: np.ndarray) -> np.ndarray:
    """What the library skips, in float32."""
    rule = Rule(DEVIATIONS, 1 - 0.99, None)

    def at_call(history: Any, loss: jax.Array) -> Any:
        bound = loss_bound_from(history, rule, jnp.int32(0))
        return loss_taught(history, loss, jnp.isfinite(loss), rule), loss > bound

    return np.asarray(jax.lax.scan(at_call, init_loss_history(), jnp.float32(losses))[1])


def compared(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the formula skips; and the calls at which the library decides otherwise, and all calls."""
    losses = losses.astype(np.float32)
    skipped = skipped_by_formula(losses)
    return skipped, np.array([np.sum(skipped_in_jax(losses) != skipped), len(losses)])


def agreement(differ: int, calls: int) -> str:
    return (
        f"\nThe library in float32 decides otherwise than the formula in float64 at {differ} of "
        f"{calls:,} calls."
    )


def main(seeds: int) -> None:
    found = np.zeros(2, int)
    rows: dict[str, list[tuple[float, ...]]] = {}
    for seed in range(seeds):
        for name, (losses, is_spike) in streams(seed).items():
            skipped, counts = compared(losses)
            found += counts
            shares = (skipped[is_spike].mean(), skipped[~is_spike].mean(), skipped[:100].any())
            rows.setdefault(name, []).append(tuple(map(float, shares)))
    print("\n| losses | spikes skipped | others skipped, % | streams with an alarm in 100 calls |")
    print("|---|---|---|---|")
    for name, shares in rows.items():
        caught, alarms, early = np.mean(shares, axis=0)
        print(f"| {name} | {caught:.2f} | {100 * alarms:.2f} | {early:.2f} |")
    print("\n| lasting jump | calls skipped |\n|---|---|")
    noise = 1 + 0.02 * np.random.default_rng(0).standard_normal(CALLS)
    for before, after in JUMPS:
        skipped, counts = compared(np.where(np.arange(CALLS) < JUMP_AT, before, after) * noise)
        found += counts
        print(f"| {before:g} to {after:g} | {skipped[JUMP_AT:].sum()} |")
    print(agreement(*found))
