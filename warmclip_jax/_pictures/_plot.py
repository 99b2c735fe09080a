"""A matplotlib figure of schedules."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from warmclip_jax._pictures._limits import limits
from warmclip_jax._pictures._sampling import Sampled, sampled
from warmclip_jax._values import FLAG, broken_rule, named

AnySchedule = Callable[[Any], Any]

#: More curves than this take their colours from one scale, and the legend names only this many of
#: them.
_MANY = 10
#: In characters.
_LEGEND_WIDTH = 40
#: What marks look like, by their names in the legend.
_MARKS: dict[str, dict[str, Any]] = {
    "warm-up ends": {"linestyle": ":"},
    "peak": {"linestyle": "", "marker": "^"},
    "no longer changes": {
        "linestyle": "",
        "marker": "s",
        "markersize": 9,
        "markerfacecolor": "none",
    },
}


@named
def plot(
    schedules: AnySchedule | Sequence[AnySchedule] | Mapping[str, AnySchedule],
    *,
    steps: int | None = None,
    ax: Any = None,
    log_scale: bool = False,
    label: str = "value",
) -> Any:
    """A figure of one schedule or several, with warm-up, peak and end marked.

    Each schedule is one line over the steps 0 to `steps`; a stacked one (built under `jax.vmap`) is
    one line for each entry. A dotted line marks where its warm-up ends, a triangle its peak, a
    square the step from which it no longer changes. Length and marks are found in the values, up to
    the largest count, so schedules of other libraries have them too.

    Args:
      schedules: a schedule (a `Schedule`, any optax schedule, or a pure function from a count to a
        value), a list of them, or a dict from names for the legend to schedules.
      steps: how far to draw, in steps, 1 or more; None for a tenth more than it takes the last
        schedule to stop changing, or to fall to a tenth where it goes on for much longer.
      ax: the matplotlib axes to draw on; None for a new figure.
      log_scale: whether the values are drawn on a logarithmic axis, which shows none that are 0 or
        negative, nor the last steps of a decay to 0.
      label: what the values are, for the vertical axis.

    Returns:
      The matplotlib figure, neither shown nor saved: `figure.savefig("lr.png")`.

    Raises:
      TypeError, ValueError: for an argument that breaks its rule. What a function of another
        library computes is not checked.
      ModuleNotFoundError: without matplotlib, with the command that installs it.

    >>> import warmclip_jax as wc
    >>> schedule = wc.warmup_cosine_decay(peak_value=1e-3, total_steps=1000, warmup_steps=100)
    >>> figure = wc.plot({"cosine": schedule, "constant": wc.constant(value=1e-4)})
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['cosine', 'constant', 'warm-up ends', 'peak', 'no longer changes']
    """
    lines = sampled(schedules, steps)
    FLAG.check("log_scale", log_scale)
    if not isinstance(label, str):
        raise broken_rule("label", "a string", label, "It stands beside the axis.", TypeError)
    low, high = limits(lines, log_scale)
    if ax is None:
        figure = matplotlib_figure().Figure(figsize=(8, 4.5), layout="constrained")
        ax = figure.subplots()
    elif not hasattr(ax, "update_datalim"):
        remedy = "Of several, pass one: axes[0]; of a figure, figure.gca()."
        raise broken_rule("ax", "the axes to draw on", ax, remedy, TypeError)
    ax.set(xlabel="step", ylabel=label, yscale="log" if log_scale else "linear")
    ax.set_xmargin(0)
    ax.update_datalim([(0.0, low), (lines[0].steps[-1], high)])
    ax.grid(alpha=0.25)
    for index, line in enumerate(lines):
        _draw(ax, line, index, len(lines), low)
    _add_legend(ax)
    return ax.figure


def _draw(ax: Any, line: Sampled, index: int, number: int, low: float) -> None:
    """One curve with its marks.

    Each is thinner than the one before, and dashed: where curves coincide, all are seen.
    """
    from matplotlib import colormaps

    many = number > _MANY
    over = 0 if many else (number - 1 - index) * min(1, 4 / number)
    style = (
        {"color": colormaps["viridis"](index / (number - 1))}
        if many
        else {"dashes": (4, 1.5) if index else ()}
    )
    values = np.where(line.values >= low, line.values, np.nan)
    # Matplotlib hides names that begin with `_`, and reads text between two `$` as a formula.
    shown = " " * line.name.startswith("_") + line.name.replace("$", r"\$")
    (drawn,) = ax.plot(line.steps, values, label=shown, linewidth=1.5 + over, **style)
    color, (warmup, peak, end) = drawn.get_color(), line.marks
    if warmup is not None:
        # Where the lines of several coincide, the dots of each fall into the gaps of the others.
        dots = _MARKS["warm-up ends"] if many else {"linestyle": (2 * index, (2, 2 * number))}
        ax.axvline(warmup, color=color, linewidth=1.5, label=f"_{line.name} warm-up ends", **dots)
    for kind, step in (("peak", peak), ("no longer changes", end)):
        if step is not None and line.at(step) >= low:
            (mark,) = ax.plot(step, line.at(step), color=color, **_MARKS[kind])
            mark.set(label=f"_{line.name} {kind}", markersize=mark.get_markersize() + 2.5 * over)
            # Marks often stand at the ends of curves: the axes must not cut them.
            mark.set_clip_on(False)


def _add_legend(ax: Any) -> None:
    """Names some of the curves and all kinds of marks."""
    from matplotlib.lines import Line2D

    labels = [line.get_label() for line in ax.get_lines()]
    curves = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    named = np.unique(np.linspace(0, len(curves) - 1, min(len(curves), _MANY)).round().astype(int))
    marks = [
        Line2D([], [], color="gray", label=kind, **style)
        for kind, style in _MARKS.items()
        if any(label.startswith("_") and label.endswith(kind) for label in labels)
    ]
    # A layout engine makes room for a legend beside the axes; without one it stands where it covers
    # least.
    beside = (
        {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if ax.figure.get_layout_engine() else {}
    )
    legend = ax.legend(
        handles=[*(curves[index] for index in named), *marks],
        fontsize="small",
        frameon=not beside,
        **beside,
    )
    for text in legend.get_texts():
        text.set_text(_in_lines(text.get_text(), max(1, 24 // named.size)))


def _in_lines(name: str, most: int) -> str:
    """A name in `most` lines or about so many, without its middle where it is longer."""
    half = most * _LEGEND_WIDTH // 2
    if len(name) > 2 * half:
        name = f"{name[: half - 2]} … {name[2 - half :]}"
    return textwrap.fill(name, _LEGEND_WIDTH)


def matplotlib_figure(function: str = "plot") -> Any:
    """The module `matplotlib.figure`; without it, an error with the command that installs it."""
    try:
        import matplotlib.figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{function} needs matplotlib, which is not installed; run: pip install "
            "'warmclip-jax[plot]'",
            name=error.name,
        ) from error
    return matplotlib.figure
