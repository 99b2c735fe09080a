"""Bounds in training: a student network learns a teacher, and one batch in a hundred is junk.

Regression without noise, so that gradient norms fall by 100 and more while the loss does; a junk
batch has random targets. Every bound sees the same data at every seed. Adam with two b2 and SGD; a
grid of learning rates, each with a cosine to 0; for each bound the rate that is best on average
over seeds. Reported is the base-10 logarithm of the final loss on clean data, and its difference to
`max_norm=1.0`, paired by seed, with the standard error of the mean: negative is better.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import warmclip_jax as wc
from warmclip_jax._clipping._history import bound_from, init_history, log_of, taught
from warmclip_jax._clipping._rule import Rule
from warmclip_jax._norms._norm import scaled_norm

STEPS, BATCH, SEEDS = 3_000, 32, 8
INPUTS, TEACHER, STUDENT = 8, 8, 32
JUNK, RATE = 0.01, 1 - 0.99


class Setting(NamedTuple):
    """A bound as numbers, so that one compiled program trains with all of them. inf is never."""

    max_norm: float = np.inf
    clip_deviations: float = np.inf
    skip_deviations: float = np.inf
    junk: float = JUNK


SETTINGS = {
    "no bound, no junk": Setting(junk=0.0),
    "no bound": Setting(),
    **{f"max_norm={bound:g}": Setting(bound) for bound in (10, 3, 1, 0.3, 0.1, 0.03, 0.01)},
    "max_norm=running_bound()": Setting(clip_deviations=3),
    "max_norm=running_bound(ceiling=1)": Setting(1, clip_deviations=3),
    "skip_above=running_bound(deviations=6)": Setting(skip_deviations=6),
    "both, ceiling=1": Setting(1, clip_deviations=3, skip_deviations=6),
}
OPTIMIZERS: dict[str, tuple[Callable[[Any], optax.GradientTransformation], np.ndarray]] = {
    "Adam, b2=0.999": (lambda rate: optax.adam(rate), np.geomspace(1e-3, 0.1, 7)),
    "Adam, b2=0.95": (lambda rate: optax.adam(rate, b2=0.95), np.geomspace(1e-3, 0.1, 7)),
    "SGD": (optax.sgd, np.geomspace(0.03, 100, 11)),
}


HEADS = (
    *("bound", "best rate", "log10 loss", "against max_norm=1", "norms, first and last"),
    *("ordinary acted on, %", "junk acted on, %"),
)


class Result(NamedTuple):
    """What one training run ends with."""

    loss: jax.Array  # on clean data
    norms: jax.Array  # of ordinary batches: the means of the first 30 and the last 300 calls
    acted: jax.Array  # shares of ordinary and of junk batches that were clipped or skipped


def drawn(seed: int) -> tuple[Any, Any, Any]:
    """Where a student begins; its batches `[steps, batch, ...]`; and clean data to test it on.

    A batch has inputs, the teacher's targets, junk targets and a lot: it is junk where that is
    below the share of junk.
    """
    rng = np.random.default_rng(seed)
    teacher, start = (new_network(rng, width) for width in (TEACHER, STUDENT))
    inputs, test_inputs = (
        rng.standard_normal((*shape, INPUTS), np.float32) for shape in ((STEPS, BATCH), (1_000,))
    )
    targets, test_targets = (
        np.asarray(network([2 * part for part in teacher], batch))
        for batch in (inputs, test_inputs)
    )
    junk_targets = 10 * rng.standard_normal((STEPS, BATCH), np.float32)
    lots = rng.random(STEPS, np.float32)
    return start, (inputs, targets, junk_targets, lots), (test_inputs, test_targets)


def new_network(rng: np.random.Generator, width: int) -> list[np.ndarray]:
    hidden = rng.standard_normal((INPUTS, width)) / INPUTS**0.5
    out = rng.standard_normal(width) / width**0.5
    return [part.astype(np.float32) for part in (hidden, np.zeros(width), out)]


def network(params: Any, inputs: Any) -> jax.Array:
    hidden, bias, out = params
    before = inputs @ hidden
    return jnp.tanh(before + jnp.broadcast_to(bias, before.shape)) @ out


def train(
    make: Callable[[Any], optax.GradientTransformation], data: Any, rate: Any, setting: Setting
) -> Result:
    """One run, compiled once for every seed, learning rate and setting."""
    begin, batches, clean = data
    optimizer = make(wc.cosine_decay(init_value=rate, decay_steps=STEPS))
    clip = Rule(setting.clip_deviations, RATE, lambda count: setting.max_norm)
    skip = Rule(setting.skip_deviations, RATE, None)

    def loss(params: Any, inputs: Any, targets: Any) -> jax.Array:
        return jnp.mean((network(params, inputs) - targets) ** 2)

    def step(carry: Any, batch: Any) -> Any:
        (params, state, history), (call, (inputs, targets, junk_targets, lot)) = carry, batch
        is_junk = lot < setting.junk
        gradients = jax.grad(loss)(params, inputs, jnp.where(is_junk, junk_targets, targets))
        norm = scaled_norm(gradients)
        bound = bound_from(history, clip, call)
        skipped = ~(norm.value <= bound_from(history, skip, call)) | ~norm.is_finite
        clipped, _ = wc.clip_tree(gradients, bound, norm=norm.value)
        updates, new_state = optimizer.update(clipped, state, params)
        new = (optax.apply_updates(params, updates), new_state)
        params, state = jax.tree.map(
            lambda old, new: jnp.where(skipped, old, new), (params, state), new
        )
        acted = skipped | (norm.value > bound)
        return (params, state, taught(history, *log_of(norm), skip)), (norm.value, acted, is_junk)

    start = (begin, optimizer.init(begin), init_history())
    (params, _, _), (norms, acted, is_junk) = lax.scan(step, start, (jnp.arange(STEPS), batches))

    def mean(values: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(where, values, 0)) / jnp.maximum(jnp.sum(where), 1)

    ends = jnp.stack([mean(norms[:30], ~is_junk[:30]), mean(norms[-300:], ~is_junk[-300:])])
    shares = jnp.stack([mean(acted, ~is_junk), mean(acted, is_junk)])
    return Result(loss(params, *clean), ends, shares)


def sweep(name: str) -> Result:
    """Every run of one optimizer, as arrays of shape (settings, rates, seeds, ...)."""
    make, rates = OPTIMIZERS[name]

    runs = functools.partial(train, make)
    for axes in ((0, None, None), (None, 0, None), (None, None, 0)):
        runs = jax.vmap(runs, axes)
    data = jax.tree.map(lambda *arrays: jnp.stack(arrays), *map(drawn, range(SEEDS)))
    settings = jax.tree.map(lambda *numbers: jnp.asarray(numbers, jnp.float32), *SETTINGS.values())
    return jax.device_get(jax.jit(runs)(data, jnp.asarray(rates, jnp.float32), settings))


def table(name: str, result: Result) -> str:
    """The best rate of each setting, as Markdown."""
    rates = OPTIMIZERS[name][1]
    logs = np.log10(np.nan_to_num(result.loss, nan=1e3, posinf=1e3).clip(1e-12, 1e3))
    best = logs.mean(axis=-1).argmin(axis=-1)
    at_best = logs[np.arange(len(best)), best]
    reference = at_best[list(SETTINGS).index("max_norm=1")]
    lines = [f"\n{name}:\n", f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    for index, setting in enumerate(SETTINGS):
        rate, difference = best[index], at_best[index] - reference
        edge = " (edge)" if rate in (0, len(rates) - 1) else ""
        error = difference.std(ddof=1) / len(difference) ** 0.5
        first, last = result.norms[index, rate].mean(axis=0)
        ordinary, junk = 100 * result.acted[index, rate].mean(axis=0)
        lines.append(
            f"| {setting} | {rates[rate]:.2g}{edge} | {at_best[index].mean():.2f} | "
            f"{difference.mean():+.2f} ± {error:.2f} | {first:.2g}, {last:.2g} | {ordinary:.2f} | "
            f"{junk:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    for name in OPTIMIZERS:
        print(table(name, sweep(name)), flush=True)
