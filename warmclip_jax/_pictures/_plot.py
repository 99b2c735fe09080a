"""A matplotlib figure of schedules."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from warmclip_jax._pictures._sampling import Drawable, Sampled, sampled
from warmclip_jax._values import FLAG, named

#: More curves than this take their colours from one scale, and the legend names only this many of
#: them.
_MANY = 10


@named
def plot(
    schedules: Drawable | Sequence[Drawable] | Mapping[str, Drawable],
    *,
    steps: int | None = None,
    ax: Any = None,
    log_scale: bool = False,
) -> Any:
    """A figure of one schedule or several, with warm-up, peak and end marked.

    Each schedule is one line over the steps 0 to `steps`; a stacked one (built under `jax.vmap`) is
    one line for each entry. A dotted line marks where its warm-up ends, a triangle its peak, a
    square the step from which it no longer changes. The marks are found in the values, so schedules
    of other libraries have them too.

    Args:
      schedules: a schedule (a `Schedule`, any optax schedule, or a pure function from a count to a
        value), a list of them, or a dict from names for the legend to schedules.
      steps: how far to draw, in steps, 1 or more; None for the length of the longest schedule and a
        tenth more.
      ax: the matplotlib axes to draw on; None for a new figure.
      log_scale: whether the values are drawn on a logarithmic axis, which does not show zeros and
        negative values.

    Returns:
      The matplotlib figure, neither shown nor saved: `figure.savefig("lr.png")`.

    Raises:
      TypeError, ValueError: for an argument that breaks its rule. What a function of another
        library computes is not checked.
      ModuleNotFoundError: without matplotlib, with the command that installs it.

    >>> import warmclip_jax as wc
    >>> schedule = wc.warmup_cosine_decay(peak_value=1e-3, total_steps=1000, warmup_steps=100)
    >>> figure = wc.plot({"cosine": schedule, "constant": wc.constant(value=1e-4)})
    >>> [line.get_label() for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")]
    ['cosine', 'constant']
    """
    lines = sampled(schedules, steps)
    FLAG.check("log_scale", log_scale)
    if ax is None:
        figure = matplotlib_figure().Figure(figsize=(8, 4.5), layout="constrained")
        ax = figure.subplots()
    ax.set(xlabel="step", ylabel="learning rate", yscale="log" if log_scale else "linear")
    ax.set_xmargin(0)
    ax.update_datalim([(0.0, 0.0), (lines[0].steps[-1], 0.0)], updatey=not log_scale)
    ax.grid(alpha=0.25)
    for place, line in enumerate(lines):
        _draw(ax, line, place, len(lines), log_scale)
    curves = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    named = np.unique(np.linspace(0, len(curves) - 1, min(len(curves), _MANY)).round().astype(int))
    # A layout engine makes room for a legend beside the axes; without one it stands where it covers
    # least.
    beside = (
        {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if ax.figure.get_layout_engine() else {}
    )
    ax.legend(
        handles=[*(curves[place] for place in named), *_marks(ax)],
        fontsize="small",
        frameon=not beside,
        **beside,
    )
    return ax.figure


def _draw(ax: Any, line: Sampled, place: int, number: int, log_scale: bool) -> None:
    """One curve with its marks. Each is thinner than the one before and dashed: where curves coincide, all are seen."""
    from matplotlib import colormaps

    many = number > _MANY
    over = 0 if many else (number - 1 - place) * min(1, 4 / number)
    values = np.where(line.values > 0, line.values, np.nan) if log_scale else line.values
    style = (
        {"color": colormaps["viridis"](place / (number - 1))}
        if many
        else {"dashes": (4, 1.5) if place else ()}
    )
    (drawn,) = ax.plot(line.steps, values, label=line.name, linewidth=1.5 + over, **style)
    color = drawn.get_color()
    if line.warmup is not None:
        dots = (2 * place, (2, 2 * number)) if not many else ":"
        ax.axvline(
            line.warmup, color=color, linestyle=dots, linewidth=1.5, label=f"_{line.name} warm-up"
        )
    # Marks often stand at the ends of curves: the axes must not cut them.
    mark = {"color": color, "clip_on": False}
    if line.at(line.peak) > 0 or not log_scale:
        ax.plot(
            line.peak,
            line.at(line.peak),
            "^",
            **mark,
            markersize=6 + 2.5 * over,
            label=f"_{line.name} peak",
        )
    if line.end is not None and (line.at(line.end) > 0 or not log_scale):
        hollow = {"markerfacecolor": "none", "markersize": 9 + 2.5 * over}
        ax.plot(line.end, line.at(line.end), "s", **mark, **hollow, label=f"_{line.name} end")


def _marks(ax: Any) -> list[Any]:
    """Legend entries for the marks that are drawn, one for all schedules."""
    from matplotlib.lines import Line2D

    drawn = [line.get_label() for line in ax.get_lines()]
    styles = {
        "warm-up": {"linestyle": ":", "label": "warm-up ends"},
        "peak": {"linestyle": "", "marker": "^", "label": "peak"},
        "end": {
            "linestyle": "",
            "marker": "s",
            "markersize": 9,
            "markerfacecolor": "none",
            "label": "no longer changes",
        },
    }
    return [
        Line2D([], [], color="gray", **style)
        for mark, style in styles.items()
        if any(label.startswith("_") and label.endswith(f" {mark}") for label in drawn)
    ]


def matplotlib_figure(function: str = "plot") -> Any:
    """The module `matplotlib.figure`. Raises ModuleNotFoundError with the command that installs it."""
    try:
        import matplotlib.figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{function} needs matplotlib, which is not installed; run: pip install "
            "'warmclip-jax[plot]'",
            name=error.name,
        ) from error
    return matplotlib.figure
