"""A figure of the last calls that an optimizer state recorded."""

from typing import Any, NamedTuple

import numpy as np

from warmclip_jax._pictures import matplotlib_figure
from warmclip_jax._telemetry._finding import calls_of
from warmclip_jax._telemetry._records import check_one_run, on_host, recorded, ring_of
from warmclip_jax._values import broken_rule, named


class _Panel(NamedTuple):
    label: str
    height: int
    bounds: dict[str, tuple[str, str]]  # by column: what it is, and how it is drawn


_PANELS = {
    "value": _Panel("value", 2, {"value_bound": ("bound of its skipping", ":")}),
    "grad_norm": _Panel(
        "gradient norm before clipping",
        3,
        {"max_norm": ("bound of the clip", "--"), "skip_bound": ("bound of skipping", ":")},
    ),
    "learning_rate": _Panel("learning rate", 1, {}),
}
_SKIPPED = {
    "marker": "X",
    "color": "C3",
    "markersize": 9,
    "markeredgecolor": "white",
    "linestyle": "",
}
#: A form for each, so that they are told apart without colours.
_MARKS = {
    "clipped": {"marker": ".", "color": "C1", "markersize": 6, "linestyle": ""},
    "skipped for its norm": _SKIPPED,
    "skipped for its value": _SKIPPED | {"marker": "^"},
}


@named
def plot_records(opt_state: Any, *, ax: Any = None) -> Any:
    """A figure of the calls that an optimizer built with `record=N` recorded.

    The value, where calls were given one; the norm before clipping, on a logarithmic axis; the
    learning rate of the updates; and the bounds in force. A dot marks a clipped call, a cross one
    that was skipped for its norm, a triangle one for its value, a vertical line one with a NaN or
    inf. Calls that were not recorded leave a gap.

    Args:
      opt_state: any optimizer state with a recorder, as in `records`, of one run.
      ax: the matplotlib axes to draw the norms on, alone; None for a new figure with all.

    Returns:
      The matplotlib figure, neither shown nor saved: `figure.savefig("records.png")`.

    Raises:
      TypeError, ValueError: as `records`, for the state of several runs, and where `ax` is no axes.
      ModuleNotFoundError: without matplotlib, with the command that installs it.

    >>> import jax.numpy as jnp, optax
    >>> import warmclip_jax as wc
    >>> optimizer = wc.pipeline(optax.sgd, 0.1, record=8)
    >>> state = optimizer.init(jnp.zeros(2))
    >>> for size in (0.5, jnp.nan, 3.0):
    ...     _, state = optimizer.update(jnp.array([size, 0.0]), state)
    >>> [line.get_label() for line in wc.plot_records(state).axes[0].get_lines()]
    ['norm', 'bound of the clip', 'clipped: 1', 'NaN or inf: 1']
    """
    seen = on_host(opt_state)
    check_one_run(seen)
    columns = recorded(seen)
    if ax is None:
        measured = (name for name in _PANELS if np.isfinite(columns[name]).any())
        names = sorted({"grad_norm", *measured}, key=[*_PANELS].index)
        heights = [_PANELS[name].height for name in names]
        module = matplotlib_figure("plot_records")
        figure = module.Figure(figsize=(8, 1 + sum(heights)), layout="constrained")
        grid = figure.subplots(len(names), squeeze=False, sharex=True, height_ratios=heights)
        drawn = dict(zip(names, grid[:, 0], strict=True))
    elif hasattr(ax, "update_datalim"):
        drawn = {"grad_norm": ax}
    else:
        remedy = "Of several, pass one: axes[0]; of a figure, figure.gca()."
        raise broken_rule("ax", "the axes to draw on", ax, remedy, TypeError)
    for name, panel in drawn.items():
        _draw_lines(panel, columns, name)
        if name != "learning_rate":
            # One legend explains the marks in both panels.
            _draw_marks(panel, columns, name, "" if name == "grad_norm" else "_")
            # Above the axes: inside, it would cover what it names; on the left, a power of ten.
            above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.2}
            panel.legend(ncols=3, frameon=False, fontsize="small", **above)
    lowest = [*drawn.values()][-1]
    # The outermost recorder is the one that is drawn; a guard without one may count other calls.
    made = next(int(calls_of(each.state)) for each in seen if ring_of(each.state) is not None)
    last = columns["call"].max(initial=-1)
    rest = f"; the record ends at {last} of {made}" if last + 1 < made else ""
    lowest.set_xlabel(f"call{rest}")
    return lowest.figure


def _draw_lines(ax: Any, columns: dict[str, np.ndarray], name: str) -> None:
    panel, is_norm = _PANELS[name], name == "grad_norm"
    calls = columns["call"].astype(np.float64)
    gaps = np.flatnonzero(np.diff(calls) > 1) + 1
    lines = {name: ("norm" if is_norm else name, "-"), **panel.bounds}
    for column, (label, style) in lines.items():
        numbers = columns[column].astype(np.float64)
        # A logarithmic axis shows no norm of 0.
        is_shown = np.isfinite(numbers) & ((numbers > 0) | ~np.bool_(is_norm))
        if column != name and not is_shown.any():
            continue
        numbers[~is_shown] = np.nan
        x, y = (np.insert(each, gaps, np.nan) for each in (calls, numbers))
        color = "C0" if column == name else "black"
        around = np.isnan(np.r_[np.nan, y, np.nan])
        # No line leads to a point without neighbours: it has a mark.
        alone = np.flatnonzero(~np.isnan(y) & around[:-2] & around[2:])
        (line,) = ax.plot(x, y, color=color, linestyle=style, linewidth=1.2, label=label)
        if alone.size:
            line.set(marker="o", markersize=3, markevery=alone.tolist())
        low, high = np.nanmin(numbers, initial=np.inf), np.nanmax(numbers, initial=0)
        # A loss too, where a line would lie on the axis until it explodes.
        if name != "learning_rate" and 0 < (low if is_norm else 1e4 * low) <= high:
            ax.set_yscale("log")
    ax.set_ylabel(panel.label)
    ax.grid(alpha=0.25)
    ax.set_xmargin(0.01)
    if name == "learning_rate":
        ax.set_ylim(0, None)


def _draw_marks(ax: Any, columns: dict[str, np.ndarray], name: str, prefix: str) -> None:
    calls, bad = columns["call"], columns["is_bad"]
    clipped = ~columns["skipped"] & ~bad & (columns["clip_coef"] < 1)
    skipped = columns["skipped"] & ~bad
    is_over = columns["value"] > columns["value_bound"]
    for_value = skipped & is_over & ~(columns["grad_norm"] > columns["skip_bound"])
    for chosen, (label, style) in zip(
        (clipped, skipped & ~for_value, for_value), _MARKS.items(), strict=True
    ):
        if chosen.any():
            label = f"{prefix}{label}: {chosen.sum()}"
            ax.plot(calls[chosen], columns[name][chosen], zorder=3, label=label, **style)
    for call in calls[bad]:
        label = f"{prefix}NaN or inf: {bad.sum()}"
        ax.axvline(call, color="C3", linewidth=1.5, alpha=0.7, zorder=0, label=label)
        prefix = "_"
