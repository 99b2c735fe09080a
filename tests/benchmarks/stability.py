"""Which learning rates train: `python -m tests.benchmarks.stability [--json FILE] [--plot FILE]`.

Two models, each at two depths, are trained with every recipe made of warm-up, clip and decay, at
learning rates over three decades, with several seeds. All recipes of a model see the same start and
the same batches, and all of a model's runs are one compiled program: schedules and bounds are data
to it. Only the running bound, which keeps a history, is a program of its own.

- A recipe is measured by the loss on held-out data after the last step, by the peak of its learning
rate.
- Its width is how many decades of peaks come within 5 % of its own best loss, and of the best of
  all recipes, seed by seed: the mean, and the standard error of the mean. The first alone says how
  carefully a rate has to be chosen (the learning-rate sensitivity of Wortsman et al. 2023, arXiv
  2309.14322, section 2), the second also how good the result is.
- The norms are those of the gradients of the first and of the last layer in the first tenth of the
  steps, at the middle peak: Gilmer et al. 2021 (arXiv 2110.04369) say of warm-up that it keeps
  early steps small where the curvature is large; Zhang et al. 2020 (arXiv 1905.11881) of clipping
  that it allows larger rates where the curvature grows with the gradient.
"""

import argparse
import functools
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import warmclip_jax as wc
from tests.benchmarks import machine, stability_figure
from tests.benchmarks.stability_models import TASKS, Task

WARMUP, MAX_NORM, WITHIN = 0.1, 1.0, 1.05
SIZE = {"steps": 500, "seeds": 3}


class Recipe(NamedTuple):
    """What is done beside the optimizer, as numbers: one program trains with all of them."""

    warmup: Any = 0.0  # as a share of the steps
    end: Any = 1.0  # of the peak, where a cosine over all steps arrives; 1 is a constant rate
    max_norm: Any = np.inf


RECIPES = {
    "none": Recipe(),
    "warm-up": Recipe(warmup=WARMUP),
    "clip": Recipe(max_norm=MAX_NORM),
    "decay": Recipe(end=0.0),
    "warm-up, clip": Recipe(warmup=WARMUP, max_norm=MAX_NORM),
    "warm-up, decay": Recipe(warmup=WARMUP, end=0.0),
    "clip, decay": Recipe(end=0.0, max_norm=MAX_NORM),
    "all": Recipe(WARMUP, 0.0, MAX_NORM),
    "all, running bound": Recipe(WARMUP, 0.0, MAX_NORM),
}


class Result(NamedTuple):
    loss: Any  # on held-out data
    norms: Any  # [early steps, 2]: of the gradients of the first and of the last layer


def schedule(peak: Any, recipe: Recipe, steps: int) -> wc.Schedule:
    """The learning rate of a recipe: the same kind for all, so that recipes are data."""
    # From 1/W to the peak. A warm-up of one step is none.
    rise = wc.shift(
        wc.linear_warmup(peak_value=1.0, warmup_steps=jnp.maximum(recipe.warmup * steps, 1.0)), by=1
    )
    return peak * rise * wc.cosine_decay(init_value=1.0, decay_steps=steps, end_value=recipe.end)


def trained(
    task: Task, depth: int, data: Any, peak: Any, recipe: Recipe, steps: int, *, running: bool
) -> Result:
    bound = wc.running_bound(ceiling=recipe.max_norm) if running else recipe.max_norm
    rate = schedule(peak, recipe, steps)
    optimizer = optax.chain(wc.clip_by_global_norm(bound), task.optimizer(rate))

    def step(carry: Any, batch: Any) -> Any:
        params, state = carry
        grads = jax.grad(task.loss)(params, batch, depth)
        updates, state = optimizer.update(grads, state, params)
        blocks = grads["blocks"]
        norms = [wc.global_norm(blocks[place]) for place in (min(blocks), max(blocks))]
        return (optax.apply_updates(params, updates), state), jnp.stack(norms)

    (params, _), norms = lax.scan(step, (data.start, optimizer.init(data.start)), data.batches)
    return Result(task.loss(params, data.held_out, depth), norms[: steps // 10])


def sweep(task: Task, depth: int, *, steps: int, seeds: int) -> Result:
    """Arrays `[recipes, peaks, seeds, ...]` of one model; the last recipe has the running bound."""
    peaks = jnp.asarray(task.peaks, jnp.float32)
    *fixed, last = RECIPES.values()

    @functools.partial(jax.jit, static_argnames="running")
    def runs(data: Any, *recipes: Recipe, running: bool = False) -> Result:
        stacked = jax.tree.map(lambda *numbers: jnp.asarray(numbers, jnp.float32), *recipes)

        def run(recipe: Recipe, peak: Any) -> Result:
            return trained(task, depth, data, peak, recipe, steps, running=running)

        # One after the other: these matrices are faster alone than in a batch of runs.
        return lax.map(lambda recipe: lax.map(lambda peak: run(recipe, peak), peaks), stacked)

    of_seeds = []
    for seed in range(seeds):
        data = jax.tree.map(jnp.asarray, task.data(depth, seed, steps))
        parts = runs(data, *fixed), runs(data, last, running=True)
        of_seeds.append(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=2), *of_seeds)


def widths(losses: np.ndarray, peaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many decades of peaks are near the best of their recipe, and of all recipes: `[recipes, seeds]` each.

    From the losses `[recipes, peaks, seeds]`.
    """
    losses = np.nan_to_num(losses, nan=np.inf)
    own = losses.min(axis=1, keepdims=True)
    near = ((losses <= WITHIN * best).sum(axis=1) for best in (own, own.min(axis=0)))
    own, of_all = (number * np.log10(peaks[1] / peaks[0]) for number in near)
    return own, of_all


def table(name: str, result: Result, peaks: np.ndarray) -> str:
    heads = ["recipe", "best loss", "at", "decades within 5 % of its best", "of the best of all"]
    middle = len(peaks) // 2
    heads += [f"norms of the {which} layer at {peaks[middle]:.2g}" for which in ("first", "last")]
    lines = [f"\n{name}:\n", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    decades = widths(result.loss, peaks)
    mean = np.nan_to_num(result.loss, nan=np.inf).mean(axis=-1)

    def cell(width: np.ndarray) -> str:
        return f"{width.mean():.2f} ± {width.std(ddof=1) / len(width) ** 0.5:.2f}"

    for index, recipe in enumerate(RECIPES):
        best, cells = mean[index].argmin(), [cell(width[index]) for width in decades]
        for norms in result.norms[index, middle].reshape(-1, 2).T:
            cells.append(f"{np.median(norms):.2g}, {norms.max():.2g}")
        lines.append(
            f"| {recipe} | {mean[index, best]:.3g} | {peaks[best]:.2g} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("runs/stability.json"))
    parser.add_argument("--plot", type=pathlib.Path, default=pathlib.Path("runs/stability.png"))
    options = parser.parse_args(arguments)
    began, models = time.monotonic(), {}
    for task in TASKS:
        for depth in task.depths:
            name = f"{task.name}, {depth} layers"
            result = sweep(task, depth, **SIZE)
            print(table(name, result, task.peaks), flush=True)
            models[name] = {
                "peaks": task.peaks.tolist(),
                "recipes": [*RECIPES],
                "losses": result.loss.tolist(),
            }
    print(f"\n{time.monotonic() - began:.0f} seconds")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps({"size": SIZE, "machine": machine.facts(), "models": models})
    )
    stability_figure.draw(models, options.plot)


if __name__ == "__main__":
    main()
