"""Trains a small byte-level transformer through a NaN and a spike, and ends with the report and the
figure that name them.

    python colabs/train_byte_lm.py                            # on the Python standard library's own source
    python colabs/train_byte_lm.py --no-inject                # a quiet run
    python colabs/train_byte_lm.py --text FOLDER --compare    # your text; and again without warm-up and clip
    python colabs/train_byte_lm.py --checkpoint runs/mine     # stop whenever you like: the same command goes on

The part to take home is short: `make_optimizer` and `make_step`, just below. The model, the text
and the bookkeeping are in the files beside this one.
"""

import argparse
import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from byte_lm_checkpoints import open_checkpoints, prepare_checkpoints, resume, save
from byte_lm_model import ByteLM
from byte_lm_report import Run, draw, prepare_figure, summary
from byte_lm_settings import HEAD_WIDTH, RECORDED, Settings, UsageError, command_line
from byte_lm_text import Corpus, read_corpus, training_batch, windows_at
from flax import nnx

import warmclip_jax as wc

EVALUATED_BATCHES = 32
RECIPE, BARE = "warm-up and clipping", "neither"


# The recipe


def make_optimizer(settings: Settings) -> optax.GradientTransformationExtraArgs:
    """AdamW behind a clip, at a rate that warms up and then decays to zero.

    A step with a NaN or inf is skipped, and so is one whose norm is far out of line. Every step is
    recorded for `wc.report` and `wc.plot_records`.
    """
    schedule = wc.warmup_polynomial_decay(
        peak_value=settings.peak, total_steps=settings.steps, warmup_fraction=settings.warmup
    )
    return wc.pipeline(
        optax.adamw,
        schedule,
        max_norm=settings.max_norm,
        skip_above=wc.running_bound(deviations=6.0),
        record=settings.steps,
        record_leaves=True,
    )


def make_step(
    optimizer: optax.GradientTransformation,
    loss_of: Callable[..., jax.Array],
    inject_at: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    # The parameters and the state come out in the place of those that went in, so they can have
    # their memory.
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(
        params: Any, opt_state: Any, windows: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        loss, grads = jax.value_and_grad(loss_of)(params, windows)
        if inject_at:
            grads = injected(grads, wc.metrics(opt_state)["calls"], inject_at)
        params, opt_state = wc.apply_gradients(
            optimizer, params, opt_state, grads=grads, value=loss
        )
        return params, opt_state, {"bits_per_byte": loss / math.log(2), **wc.metrics(opt_state)}

    return step


def injected(grads: Any, call: jax.Array, at: dict[str, Any]) -> Any:
    """The gradients with some leaves multiplied at some calls: `at` has the call and the factor by
    path.
    """

    def changed(path: Any, grad: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for start, (when, factor) in at.items():
            if name.startswith(start):
                return jnp.where(call == when, grad * factor, grad)
        return grad

    return jax.tree.map_with_path(changed, grads)


# Training


class StoppedError(Exception):
    """A signal came: its number, and the steps that were done."""


def train(
    name: str, settings: Settings, corpus: Corpus, folder: pathlib.Path | None, save_every: int
) -> Run:
    try:
        optimizer = make_optimizer(settings)
    except (
        TypeError,
        ValueError,
    ) as error:  # The library's own words: which argument, its rule, what came.
        raise UsageError(str(error)) from error
    graph, params = nnx.split(ByteLM(settings.width, settings.layers, nnx.Rngs(settings.seed)))

    def loss_of(params: Any, windows: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params)(windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    at = {  # the worst day
        "unembed/kernel": (settings.steps // 3, math.nan),
        "blocks/0/mix/kernel": (settings.steps * 2 // 3, 300.0),
    }
    step = make_step(optimizer, loss_of, at if settings.inject else None)
    opt_state = optimizer.init(params)
    history = {key: np.full(settings.steps, np.nan, np.float32) for key in RECORDED}
    began, before = 0.0, 0
    with open_checkpoints(folder, save_every) as checkpoints, postponed_signals() as signals:
        start, (params, opt_state, history) = resume(
            checkpoints, settings, (params, opt_state, history)
        )
        with tqdm.tqdm(
            desc=name, initial=start, total=settings.steps, unit="step", dynamic_ncols=True
        ) as bar:
            for count in range(start, settings.steps):
                params, opt_state, metrics = step(
                    params, opt_state, training_batch(corpus, settings, count)
                )
                for key in RECORDED:
                    history[key][count] = metrics[key]
                if count == start:  # From here on, without compilation.
                    began, before = time.perf_counter(), start + 1
                last = signals or count + 1 == settings.steps
                if checkpoints:
                    save(
                        checkpoints,
                        count + 1,
                        settings,
                        (params, opt_state, history),
                        force=bool(last),
                    )
                show(bar, count, history)
                if signals:
                    raise StoppedError(signals[0], count + 1)
        seconds = time.perf_counter() - began
    evaluate = jax.jit(loss_of)

    def bits_per_byte(text: np.ndarray) -> float:
        starts = np.linspace(
            0, len(text) - settings.length - 1, EVALUATED_BATCHES * settings.batch
        ).astype(int)
        batches = windows_at(text, starts.reshape(EVALUATED_BATCHES, -1), settings.length)
        return float(np.mean([evaluate(params, batch) for batch in batches])) / math.log(2)

    speed = (settings.steps - before) / seconds if 0 < before < settings.steps else None
    return Run(
        opt_state, history, bits_per_byte(corpus.train), bits_per_byte(corpus.held_out), speed
    )


def show(bar: tqdm.tqdm, count: int, history: dict[str, np.ndarray]) -> None:
    now = {key: values[count] for key, values in history.items()}
    bar.set_postfix(
        {
            "bits/byte": f"{now['bits_per_byte']:.2f}",
            "rate": f"{now['learning_rate']:.1e}",
            "norm": f"{now['grad_norm']:.2f}",
            "clipped": f"{now['clipped_count'] / (count + 1):.0%}",
        },
        refresh=False,
    )
    bar.update()


@contextlib.contextmanager
def postponed_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM wait for the step to end: in its middle there is nothing to save. A second
    one does not wait.
    """
    came: list[int] = []

    def note(number: int, _: object) -> None:
        came.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# The command line


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line((__doc__ or "").split("\n", 1)[0])
    options = parser.parse_args(argv)
    try:
        return run(options)
    except UsageError as error:
        parser.error(str(error))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = f"--batch {options.batch}, --length {options.length} and --width {options.width}"
        parser.error(f"a step with {sizes} does not fit into memory")
    except (
        BrokenPipeError
    ):  # `| head` has read enough. Without this Python complains on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except StoppedError as error:
        number, step = error.args
        print(f"stopped after step {step}; the parameters are {kept(options)}", file=sys.stderr)
        return 128 + number


def run(options: argparse.Namespace) -> int:
    settings = Settings(
        **{name: getattr(options, name) for name in Settings.__dataclass_fields__ if name != "text"}
    )
    if settings.width % HEAD_WIDTH:
        raise UsageError(f"--width must be a multiple of {HEAD_WIDTH}; got {settings.width}")
    memory = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if hasattr(os, "sysconf")
        else math.inf
    )
    if settings.bytes > memory:
        sizes = f"--width {settings.width}, --layers {settings.layers} and --steps {settings.steps}"
        raise UsageError(
            f"{sizes} need {settings.bytes / 1e9:.3g} GB of memory; this machine has "
            f"{memory / 1e9:.3g}"
        )
    try:
        prepare_figure(options.figure)
    except ValueError as error:
        raise UsageError(str(error)) from error
    corpus = read_corpus(options.text, settings)
    settings = dataclasses.replace(settings, text=corpus.fingerprint)
    chosen = {RECIPE: settings}
    if options.compare:
        chosen[BARE] = dataclasses.replace(settings, warmup=0.0, max_norm=math.inf)
    folders = {
        name: options.checkpoint and options.checkpoint / name.replace(" ", "-") for name in chosen
    }
    for name, each in chosen.items():
        prepare_checkpoints(folders[name], options.save_every, each)
    runs = {
        name: train(name, each, corpus, folders[name], options.save_every)
        for name, each in chosen.items()
    }
    entropy = corpus.unigram_entropy()
    try:
        draw(runs, entropy, options.figure)
    except OSError as error:
        print(summary(runs, entropy))
        reason = error.strerror or error
        raise UsageError(
            f"cannot draw in {options.figure}: {reason}; the parameters are {kept(options)}"
        ) from error
    print(f"{summary(runs, entropy)}\nfigure: {options.figure}", flush=True)
    return 0


def kept(options: argparse.Namespace) -> str:
    return (
        f"in {options.checkpoint}: the same command goes on"
        if options.checkpoint
        else "not kept: no --checkpoint was given"
    )


if __name__ == "__main__":
    sys.exit(main())
