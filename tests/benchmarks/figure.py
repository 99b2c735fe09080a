"""The ratios as bars, by workload, with what memory traffic allows; and the growth, where it was
measured.
"""

import pathlib
from typing import Any

from tests.benchmarks import report
from tests.benchmarks.jax_steps import BARE, OPTAX, OPTAX_SKIP, OURS, SKIP

#: Contenders that are drawn, in order: ours in blue, optax's in orange, other libraries in grey and
#: green.
COLORS = {
    BARE: "#bdd7e7",
    OURS: "#3182bd",
    SKIP: "#08519c",
    OPTAX: "#fdae6b",
    OPTAX_SKIP: "#d9601a",
    "PyTorch, fused, clip_grad_norm_": "#969696",
    "PyTorch, foreach, clip_grad_norm_": "#525252",
    "Keras, tf.clip_by_global_norm": "#74a870",
}
#: Behind a number, so that no line goes through it.
BOX = {"color": "white", "pad": 0.5}
_WIDTH = 0.8  # of all bars of a workload, whose places are 1 apart


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """Writes the figure in the format of the name of `path`."""
    import matplotlib.figure

    steps, growth = results["steps"], results.get("growth", {})
    panels = bool(steps) + len(growth)
    if not panels:
        raise ValueError("nothing to draw: no workload was measured, and no growth")
    figure = matplotlib.figure.Figure(figsize=(max(14, 9 * panels), 5.5), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    if steps:
        _bars(axes[0], steps)
    for ax, (axis, rows) in zip(axes[panels - len(growth) :], growth.items(), strict=True):
        _lines(ax, axis, rows)
    for ax in axes:
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set_ylabel("step with clip / the same step without")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", alpha=0.25)
        ax.set_axisbelow(True)
        ax.legend(ncols=2, fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _bars(ax: Any, steps: dict[str, Any]) -> None:
    width = _WIDTH / len(COLORS)
    for index, (contender, color) in enumerate(COLORS.items()):
        ratios = {
            place + index * width: row["ratio"]
            for place, step in enumerate(steps.values())
            for row in step["rows"]
            if row["contender"] == contender
        }
        # From 1 on: what is drawn is what the clip adds.
        added = [ratio - 1 for ratio in ratios.values()]
        style: dict[str, Any] = {"align": "edge", "color": color, "label": contender}
        bars = ax.bar(list(ratios), added, 0.92 * width, bottom=1, **style)
        texts = [f"{ratio:.2f}" for ratio in ratios.values()]
        ax.bar_label(bars, texts, rotation=90, fontsize=7.5, padding=3, bbox=BOX)
    for place, step in enumerate(steps.values()):
        if step["limit"]:
            ax.hlines(
                step["limit"], place, place + _WIDTH, color="black", linestyle="--", linewidth=1
            )
    ax.margins(y=0.08)
    names = [report.title_of(name).replace(", ", ",\n") for name in steps]
    ax.set_xticks([place + _WIDTH / 2 for place in range(len(steps))], names)
    ax.set_title(
        "What a clip makes of an optimizer step on a CPU (dashed: what memory traffic allows)"
    )


def _lines(ax: Any, axis: str, rows: list[dict[str, Any]]) -> None:
    for contender, color in COLORS.items():
        of_it = [row for row in rows if row["contender"] == contender]
        counts, ratios = ([row[name] for row in of_it] for name in (axis, "ratio"))
        if of_it:
            ax.plot(counts, ratios, marker="o", color=color, label=contender)
    ax.set(xscale="log", xlabel=axis)
    fixed = "1 M parameters in all" if axis == "leaves" else "20 leaves"
    ax.set_title(f"Growth with {axis} ({fixed}, AdamW)")
