"""What a training run leaves behind: a table, a report and a figure."""

import io
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

import warmclip_jax as wc


class Run(NamedTuple):
    """A finished training run. `history` has an entry per step for each of `RECORDED` in
    `train_byte_lm`.
    """

    opt_state: Any
    history: dict[str, np.ndarray]
    train_loss: float
    held_out_loss: float
    steps_per_second: float | None  # None: no step was left to do

    @property
    def steps(self) -> int:
        return len(self.history["bits_per_byte"])


def table(runs: dict[str, Run], entropy: float) -> str:
    def row(label: str, cell: Callable[[Run], str]) -> str:
        return f"{label:<32}" + "".join(
            f"{cell(run):>{max(len(name), 10) + 3}}" for name, run in runs.items()
        )

    names = iter(runs)
    return "\n".join(
        [
            row("", lambda run: next(names)),
            row("train loss, bits per byte", lambda run: f"{run.train_loss:.3f}"),
            row("held-out loss, bits per byte", lambda run: f"{run.held_out_loss:.3f}"),
            row("unigram entropy, bits per byte", lambda run: f"{entropy:.3f}"),
            row("steps", lambda run: f"{run.steps}"),
            row("steps clipped", lambda run: f"{run.history['clipped_count'][-1]:.0f}"),
            row("steps skipped", lambda run: f"{run.history['skipped_count'][-1]:.0f}"),
            row(
                "steps per second",
                lambda run: f"{run.steps_per_second:.2f}" if run.steps_per_second else "-",
            ),
        ]
    )


def summary(runs: dict[str, Run], entropy: float) -> str:
    reports = (f"\n{name}: the report\n{wc.report(run.opt_state)}\n" for name, run in runs.items())
    return "\n".join([table(runs, entropy), *reports])


def prepare_figure(path: pathlib.Path) -> None:
    """Finds out before the training, not after it, that nothing can be drawn there."""
    figure, kind = Figure(), path.suffix[1:].lower()
    kinds = figure.canvas.get_supported_filetypes()
    if kind not in kinds:
        raise ValueError(f"--figure {path} must end in one of {', '.join(kinds)}")
    figure.text(0, 0, "text")
    try:
        figure.savefig(io.BytesIO(), format=kind)
    except Exception as error:  # Each backend fails in its own way: .pgf needs LaTeX.
        raise ValueError(f"cannot draw in {path}: {error}") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fits = not path.is_dir() and os.access(path if path.exists() else path.parent, os.W_OK)
    except OSError:
        fits = False
    if not fits:
        raise ValueError(f"cannot draw in {path}: take another --figure")


def draw(runs: dict[str, Run], entropy: float, path: pathlib.Path) -> None:
    figure = Figure(figsize=(9, 7 + 3 * len(runs)), layout="constrained")
    loss, rate, *norms = figure.subplots(
        2 + len(runs), sharex=True, height_ratios=(3, 2, *(3 for _ in runs))
    )
    for colour, (name, run) in zip(("C0", "C1"), runs.items(), strict=False):
        steps = np.arange(run.steps)  # numbered as `wc.records` numbers calls, from 0
        batch_loss, window = run.history["bits_per_byte"], max(run.steps // 25, 1)
        mean = np.convolve(batch_loss, np.full(window, 1 / window), "valid")
        loss.plot(
            steps,
            batch_loss,
            color=colour,
            linewidth=0.6,
            alpha=0.3,
            label=f"{name}: training batch",
        )
        loss.plot(
            steps[window - 1 :], mean, color=colour, label=f"{name}: mean of the last {window}"
        )
        held_out = {
            "color": colour,
            "markeredgecolor": "black",
            "label": f"{name}: held out, at the end",
        }
        loss.plot(steps[-1], run.held_out_loss, "D", **held_out)
        rate.plot(steps, run.history["learning_rate"], color=colour, label=name)
    loss.axhline(entropy, color="grey", linestyle="--", linewidth=1, label="unigram entropy")
    loss.set(ylabel="loss (bits per byte)")
    rate.set(ylabel="learning rate")
    above = {
        "loc": "lower right",
        "bbox_to_anchor": (1, 1),
        "ncols": 3,
        "frameon": False,
        "fontsize": "small",
    }
    for axes in (loss, rate):
        axes.grid(alpha=0.3)
        axes.legend(**above, borderaxespad=0.2)
    for axes, (name, run) in zip(norms, runs.items(), strict=True):
        wc.plot_records(run.opt_state, ax=axes)
        axes.set(ylabel=f"gradient norm\n{name}", xlabel="")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    norms[-1].set_xlabel("call")
    figure.savefig(path, dpi=120, format=path.suffix[1:].lower())
