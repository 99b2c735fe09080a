"""Pictures of schedules: a figure of matplotlib's, and a chart of characters for the terminal."""

from collections.abc import Mapping
from typing import Any

from warmclip_jax._checks import Choice, Number, broken_rule
from warmclip_jax._pictures._sampling import Drawable, Sampled, extent, sample
from warmclip_jax._schedules._schedule import Schedule

_STEPS = Number("a whole number of steps, 1 or more, or None", "It is how far to draw.", lambda n: 1 <= n < 2**31, whole=True)


def plot(
    schedules: Drawable | Mapping[str, Drawable], *, steps: int | None = None, ax: Any = None, log_scale: bool = False
) -> Any:
    """A figure of one schedule or several, with warm-up, peak and end marked.

    Each schedule is one line over the steps 0 to `steps`. A dotted line marks where its warm-up ends, a triangle its peak, a
    square the step from which it no longer changes; each is found in the values, so schedules of other libraries have them too.

    Args:
      schedules: a schedule (a `Schedule`, any optax schedule, or a pure function from a count to a value), or a dict of them by
        the names for the legend.
      steps: how far to draw, in steps, 1 or more; None for what the longest of them takes and a tenth more.
      ax: the matplotlib axes to draw on; None for a new figure.
      log_scale: whether rates are drawn on a logarithmic axis, where a zero is not shown.

    Returns:
      The matplotlib figure, neither shown nor saved: `figure.savefig("lr.png")`.

    Raises:
      TypeError, ValueError: for an argument that breaks its rule. What a function of another library computes is not checked.
      ModuleNotFoundError: without matplotlib, with the command that installs it.

    >>> import warmclip_jax as wc
    >>> schedule = wc.warmup_cosine_decay(peak_value=1e-3, total_steps=1000, warmup_steps=100)
    >>> figure = wc.plot({"cosine": schedule, "constant": wc.constant(value=1e-4)})
    >>> [line.get_label() for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")]
    ['cosine', 'constant']
    """
    lines = sampled(schedules, steps)
    Choice((False, True)).check("log_scale", log_scale)
    if ax is None:
        figure = _matplotlib_figure().Figure(figsize=(8, 4.5), layout="constrained")
        ax = figure.subplots()
    drawn = [_draw(ax, name, line) for name, line in lines.items()]
    ax.set(
        xlabel="step",
        ylabel="learning rate",
        yscale="log" if log_scale else "linear",
        xlim=(0, max(int(line.steps[-1]) for line in lines.values())),
    )
    if not log_scale:
        ax.set_ylim(bottom=min(0.0, *(float(line.values.min()) for line in lines.values())))
    ax.grid(alpha=0.25)
    ax.legend(handles=[*drawn, *_marks()], fontsize="small")
    return ax.figure


def sampled(schedules: Drawable | Mapping[str, Drawable], steps: int | None) -> dict[str, Sampled]:
    """What is drawn, by name; a schedule alone is named by its kind."""
    named = schedules if isinstance(schedules, Mapping) else {_name(schedules): schedules}
    if not named:
        raise broken_rule("schedules", "a schedule, or a dict of at least one", schedules, "Pass a schedule.")
    for name, schedule in named.items():
        if not callable(schedule):
            remedy = "Pass warmclip_jax.linear_warmup(...) or any optax schedule."
            raise broken_rule("schedules", f"a schedule, or a dict of them (here {name!r})", schedule, remedy, TypeError)
    length = max(map(extent, named.values())) if steps is None else int(_STEPS.check("steps", steps))
    return {str(name): sample(schedule, length) for name, schedule in named.items()}


def _name(schedule: Any) -> str:
    return schedule.kind if isinstance(schedule, Schedule) else getattr(schedule, "__name__", "schedule")


def _draw(ax: Any, name: str, line: Sampled) -> Any:
    (drawn,) = ax.plot(line.steps, line.values, label=name)
    color = drawn.get_color()
    if line.warmup is not None:
        ax.axvline(line.warmup, color=color, linestyle=":", linewidth=1, label=f"_{name} warm-up")
    ax.plot([line.peak], [line.at(line.peak)], "^", color=color, label=f"_{name} peak")
    if line.end is not None:
        ax.plot([line.end], [line.at(line.end)], "s", color=color, label=f"_{name} end")
    return drawn


def _marks() -> list[Any]:
    """What the legend says of the marks, once for all schedules."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color="gray", linestyle=":", label="warm-up ends"),
        Line2D([], [], color="gray", linestyle="", marker="^", label="peak"),
        Line2D([], [], color="gray", linestyle="", marker="s", label="no longer changes"),
    ]


def _matplotlib_figure() -> Any:
    try:
        import matplotlib.figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plot needs matplotlib, which is not installed; run: pip install 'warmclip-jax[plot]'", name=error.name
        ) from error
    return matplotlib.figure
