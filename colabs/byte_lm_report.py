"""What a training run leaves behind: a table and a figure."""

import io
import math
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter


class Run(NamedTuple):
    """A finished training run. `history` has an entry per step for each of `RECORDED` in `train_byte_lm`."""

    max_norm: float
    history: dict[str, np.ndarray]
    train_loss: float
    held_out_loss: float
    steps_per_second: float | None  # None: no step was left to do

    @property
    def steps(self) -> int:
        return len(self.history["grad_norm"])

    def steps_where_grew(self, count: str) -> np.ndarray:
        return np.flatnonzero(np.diff(self.history[count], prepend=0)) + 1


def table(runs: dict[str, Run], entropy: float) -> str:
    def row(label: str, cell: Callable[[Run], str]) -> str:
        return f"{label:<32}" + "".join(f"{cell(run):>{max(len(name), 10) + 3}}" for name, run in runs.items())

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
            row("steps per second", lambda run: f"{run.steps_per_second:.2f}" if run.steps_per_second else "-"),
        ]
    )


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
    figure = Figure(figsize=(9, 10), layout="constrained")
    loss, rate, norm = figure.subplots(3, sharex=True, height_ratios=(3, 2, 3))
    for colour, (name, run) in zip(("C0", "C1"), runs.items(), strict=False):
        steps = np.arange(1, run.steps + 1)
        batch_loss, window = run.history["bits_per_byte"], max(run.steps // 25, 1)
        mean = np.convolve(batch_loss, np.full(window, 1 / window), "valid")
        loss.plot(steps, batch_loss, color=colour, linewidth=0.6, alpha=0.3, label=f"{name}: training batch")
        loss.plot(steps[window - 1 :], mean, color=colour, label=f"{name}: mean of the last {window}")
        held_out = {"color": colour, "markeredgecolor": "black", "label": f"{name}: held out, at the end"}
        loss.plot(steps[-1], run.held_out_loss, "D", **held_out)
        rate.plot(steps, run.history["learning_rate"], color=colour, label=name)
        norm.plot(steps, run.history["grad_norm"], color=colour, linewidth=0.8, alpha=0.8, label=name)
        clipped, skipped = run.steps_where_grew("clipped_count"), run.steps_where_grew("skipped_count")
        if math.isfinite(run.max_norm):
            norm.axhline(run.max_norm, color="black", linestyle="--", linewidth=1, label="threshold")
            marks = {"color": "C3", "s": 9, "zorder": 3, "label": f"{name}: {len(clipped)} clipped steps"}
            norm.scatter(clipped, run.history["grad_norm"][clipped - 1], **marks)
        for step in skipped:
            norm.axvline(step, color=colour, linestyle=":", label=f"{name}: skipped steps" if step == skipped[0] else None)
    loss.axhline(entropy, color="grey", linestyle="--", linewidth=1, label="unigram entropy")
    loss.set(ylabel="loss (bits per byte)")
    rate.set(ylabel="learning rate")
    norm.set(ylabel="gradient norm before clipping", yscale="log", xlabel="step")
    norm.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    norm.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    norm.yaxis.set_minor_formatter(NullFormatter())
    for axes in (loss, rate, norm):
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize="small", borderaxespad=0.2)
    figure.savefig(path, dpi=120, format=path.suffix[1:].lower())
