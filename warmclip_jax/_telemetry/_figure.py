"""A figure of the last calls that an optimizer state recorded."""

from typing import Any

import numpy as np

from warmclip_jax._pictures import matplotlib_figure
from warmclip_jax._telemetry._records import check_one_run, on_host, recorded
from warmclip_jax._values import named


@named
def plot_records(opt_state: Any, *, ax: Any = None) -> Any:
    """A figure of the calls that an optimizer built with `record=N` recorded: the norm, the bounds, and the learning rate.

    Above, on a logarithmic axis, the norm of each call before clipping and the bounds in force. A
    dot marks a clipped call, a cross one that was skipped for its norm, a vertical line one with a
    NaN or inf. Below, the learning rate of the updates.

    Args:
      opt_state: any optimizer state with a recorder, as in `records`, of one run.
      ax: the matplotlib axes to draw the norms on, without the learning rate; None for a new figure
        with both.

    Returns:
      The matplotlib figure, neither shown nor saved: `figure.savefig("records.png")`.

    Raises:
      TypeError, ValueError: as `records`, and for the state of several runs.
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
    known = recorded(seen)
    panels = [ax]
    if ax is None:
        figure = matplotlib_figure("plot_records").Figure(figsize=(8, 5), layout="constrained")
        heights = (3, 1) if np.isfinite(known["learning_rate"]).any() else (1,)
        panels = figure.subplots(len(heights), squeeze=False, sharex=True, height_ratios=heights)[
            :, 0
        ]
    _draw_norms(panels[0], known)
    for below in panels[1:]:
        below.plot(known["call"], known["learning_rate"], color="C0", linewidth=1.5)
        below.set(ylabel="learning rate", ylim=(0, None))
        below.grid(alpha=0.25)
    panels[-1].set_xlabel("call")
    return panels[0].figure


def _draw_norms(ax: Any, known: dict[str, np.ndarray]) -> None:
    calls, norms, skipped = known["call"], known["grad_norm"].astype(np.float64), known["skipped"]
    finite = np.isfinite(norms)
    # A logarithmic axis has no place for a norm of 0 either.
    ax.plot(
        calls, np.where(finite & (norms > 0), norms, np.nan), color="C0", linewidth=1, label="norm"
    )
    for name, label, style in (
        ("max_norm", "bound of the clip", "--"),
        ("skip_bound", "bound of skipping", ":"),
    ):
        bounds = np.where(np.isfinite(known[name]) & (known[name] > 0), known[name], np.nan)
        if not np.isnan(bounds).all():
            ax.plot(calls, bounds, color="black", linestyle=style, linewidth=1.2, label=label)
    for label, chosen, style in (
        (
            "clipped",
            finite & ~skipped & (known["clip_coef"] < 1),
            {"marker": ".", "color": "C1", "markersize": 6},
        ),
        (
            "skipped for its norm",
            finite & skipped,
            {"marker": "X", "color": "C3", "markersize": 9, "markeredgecolor": "white"},
        ),
    ):
        if chosen.any():
            ax.plot(
                calls[chosen],
                norms[chosen],
                linestyle="",
                zorder=3,
                **style,
                label=f"{label}: {chosen.sum()}",
            )
    label = f"NaN or inf: {(~finite).sum()}"
    for call in calls[~finite]:
        ax.axvline(call, color="C3", linewidth=1.5, alpha=0.7, zorder=0, label=label)
        label = f"_{label.lstrip('_')}"
    ax.set(ylabel="gradient norm before clipping", yscale="log")
    ax.grid(alpha=0.25)
    ax.set_xmargin(0.01)
    # Above the axes: inside, it would cover what it names.
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        fontsize="small",
        borderaxespad=0.2,
    )
