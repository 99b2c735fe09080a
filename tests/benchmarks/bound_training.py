"""Bounds in training: a student network learns a teacher, and one batch in a hundred is junk.

Regression without noise, so that gradient norms fall by 100 and more while the loss does; a junk
batch has random targets. Every bound sees the same data at every seed. Adam with two b2 and SGD; a
grid of learning rates, each with a cosine to 0; for each bound the rate that is best on average
over seeds. Reported is the base-10 logarithm of the final loss on clean data, and its difference to
`max_norm=1.0`, paired by seed, with the standard error of the mean: negative is better.
"""

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


class Result(NamedTuple):
    """What one training run ends with."""

    loss: jax.Array  # on clean data
    norms: jax.Array  # of ordinary batches: the means of the first 30 and the last 300 calls
    acted: jax.Array  # shares of ordinary and of junk batches that were clipped or skipped


class Data(NamedTuple):
    """All that depends on the seed: where a student begins, its batches, and clean data to test it
    on.
    """

    start: Any
    inputs: np.ndarray  # (steps, batch, inputs)
    targets: np.ndarray  # (steps, batch): of the teacher
    junk_targets: np.ndarray
    lots: (
        np.ndarray
    )  # (steps,), in [0, 1): a batch is junk where its lot is below the share of junk
    test_inputs: np.ndarray
    test_targets: np.ndarray

    @classmethod
    def of(cls, seed: int) -> "Data":
        rng = np.random.default_rng(seed)
        teacher, start = (
            [part.astype(np.float32) for part in new_network(rng, width)]
            for width in (TEACHER, STUDENT)
        )
        inputs, test_inputs = (
            rng.standard_normal((*shape, INPUTS), np.float32)
            for shape in ((STEPS, BATCH), (1_000,))
        )
        targets, test_targets = (
            np.asarray(network([2 * part for part in teacher], batch))
            for batch in (inputs, test_inputs)
        )
        junk_targets, lots = (
            10 * rng.standard_normal((STEPS, BATCH), np.float32),
            rng.random(STEPS, np.float32),
        )
        return cls(start, inputs, targets, junk_targets, lots, test_inputs, test_targets)


def new_network(rng: np.random.Generator, width: int) -> list[np.ndarray]:
    hidden, out = (
        rng.standard_normal((INPUTS, width)) / INPUTS**0.5,
        rng.standard_normal(width) / width**0.5,
    )
    return [hidden, np.zeros(width), out]


def network(params: Any, inputs: Any) -> jax.Array:
    hidden, bias, out = params
    before = inputs @ hidden
    return jnp.tanh(before + jnp.broadcast_to(bias, before.shape)) @ out


def train(
    make: Callable[[Any], optax.GradientTransformation], data: Data, rate: Any, setting: Setting
) -> Result:
    """One run, compiled once for every seed, learning rate and setting."""
    optimizer = make(wc.cosine_decay(init_value=rate, decay_steps=STEPS))
    clip = Rule(setting.clip_deviations, RATE, lambda count: setting.max_norm)
    skip = Rule(setting.skip_deviations, RATE, None)

    def loss(params: Any, inputs: Any, targets: Any) -> jax.Array:
        return jnp.mean((network(params, inputs) - targets) ** 2)

    def step(carry: Any, batch: Any) -> Any:
        (params, state, history), (call, inputs, targets, junk_targets, lot) = carry, batch
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

    start = (data.start, optimizer.init(data.start), init_history())
    batches = (jnp.arange(STEPS), data.inputs, data.targets, data.junk_targets, data.lots)
    (params, _, _), (norms, acted, is_junk) = lax.scan(step, start, batches)

    def mean(values: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(where, values, 0)) / jnp.maximum(jnp.sum(where), 1)

    ends = jnp.stack([mean(norms[:30], ~is_junk[:30]), mean(norms[-300:], ~is_junk[-300:])])
    shares = jnp.stack([mean(acted, ~is_junk), mean(acted, is_junk)])
    return Result(loss(params, data.test_inputs, data.test_targets), ends, shares)


def sweep(name: str) -> Result:
    """Every run of one optimizer, as arrays of shape (settings, rates, seeds, ...)."""
    make, rates = OPTIMIZERS[name]

    def one(data: Data, rate: Any, setting: Setting) -> Result:
        return train(make, data, rate, setting)

    over_settings = jax.vmap(
        jax.vmap(jax.vmap(one, (0, None, None)), (None, 0, None)), (None, None, 0)
    )
    data = jax.tree.map(lambda *arrays: jnp.stack(arrays), *map(Data.of, range(SEEDS)))
    settings = jax.tree.map(lambda *numbers: jnp.asarray(numbers, jnp.float32), *SETTINGS.values())
    return jax.device_get(jax.jit(over_settings)(data, jnp.asarray(rates, jnp.float32), settings))


def table(name: str, result: Result) -> str:
    """The best rate of each setting, as Markdown."""
    rates = OPTIMIZERS[name][1]
    logs = np.log10(np.nan_to_num(result.loss, nan=1e3, posinf=1e3).clip(1e-12, 1e3))
    best = logs.mean(axis=-1).argmin(axis=-1)
    at_best = logs[np.arange(len(best)), best]
    reference = at_best[list(SETTINGS).index("max_norm=1")]
    heads = ["bound", "best rate", "log10 loss", "against max_norm=1", "norms, first and last"]
    lines = [
        f"\n{name}:\n",
        _cells([*heads, "ordinary acted on, %", "junk acted on, %"]),
        "|---" * 7 + "|",
    ]
    for index, setting in enumerate(SETTINGS):
        rate, difference = best[index], at_best[index] - reference
        edge = " (edge)" if rate in (0, len(rates) - 1) else ""
        against = (
            f"{difference.mean():+.2f} ± {difference.std(ddof=1) / len(difference) ** 0.5:.2f}"
        )
        norms, acted = (
            values[index, rate].mean(axis=0) for values in (result.norms, 100 * result.acted)
        )
        numbers = [f"{rates[rate]:.2g}{edge}", f"{at_best[index].mean():.2f}", against]
        lines.append(
            _cells(
                [
                    setting,
                    *numbers,
                    f"{norms[0]:.2g}, {norms[1]:.2g}",
                    f"{acted[0]:.2f}",
                    f"{acted[1]:.0f}",
                ]
            )
        )
    return "\n".join(lines)


def _cells(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    for name in OPTIMIZERS:
        print(table(name, sweep(name)), flush=True)
