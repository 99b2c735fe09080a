"""The ratios as bars, by workload, with what memory traffic allows; and the growth, where it was
measured.
"""

import pathlib
from typing import Any

from tests.benchmarks import growth, report
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
_WIDTH = 0.72  # of all bars of a workload, whose middles are 1 apart


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """Writes the figure in the format of the name of `path`."""
    import matplotlib.figure

    panels = (2 if "growth" in results else 0) + bool(results["steps"])
    if not panels:
        raise ValueError("nothing to draw: no workload was measured, and no growth")
    figure = matplotlib.figure.Figure(figsize=(14, 5.5 * (1 + (panels == 3))), layout="constrained")
    mosaic: Any = [["steps", "steps"]] * (panels != 2) + [["leaves", "parameters"]] * (panels > 1)
    axes = figure.subplot_mosaic(mosaic)
    if results["steps"]:
        _bars(axes["steps"], results["steps"])
    for axis, rows in results.get("growth", {}).items():
        draw_growth(axes[axis], axis, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _bars(ax: Any, steps: dict[str, Any]) -> None:
    ratios = {
        name: {row["contender"]: row["ratio"] for row in step["rows"]}
        for name, step in steps.items()
    }
    labels: set[str] = set()
    width = _WIDTH / len(COLORS)
    for place, (name, step) in enumerate(steps.items()):
        present = [contender for contender in COLORS if contender in ratios[name]]
        for index, contender in enumerate(present):
            left = place + (index - len(present) / 2) * width
            ratio = ratios[name][contender]
            label = contender if contender not in labels else None
            labels.add(contender)
            # From 1 on: what is drawn is what the clip adds.
            ax.bar(
                left,
                ratio - 1,
                0.92 * width,
                bottom=1,
                align="edge",
                color=COLORS[contender],
                label=label,
            )
            above = max(ratio, step["limit"] or 1)  # not across the line of the limit
            ax.text(
                left + 0.46 * width,
                above,
                f" {ratio:.2f}",
                rotation=90,
                ha="center",
                va="bottom",
                fontsize=7.5,
            )
        if step["limit"]:
            ax.hlines(
                step["limit"],
                place - 0.39,
                place + 0.39,
                color="black",
                linestyle="--",
                linewidth=1,
            )
            text = report.fraction(step["limit"])
            ax.text(
                place - 0.4, step["limit"], text, ha="right", va="center", fontsize=8, weight="bold"
            )
    top = max(max(of.get(contender, 1) for contender in COLORS) for of in ratios.values())
    ax.set(
        xlim=(-0.65, len(steps) - 0.4),
        ylim=(min(1, *(min(of.values()) for of in ratios.values())), 1 + 1.12 * (top - 1)),
    )
    ax.set_xticks(range(len(steps)), [report.title(name).replace(", ", ",\n") for name in steps])
    ax.tick_params(axis="x", length=0)
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set_ylabel("step with clip / the same step without")
    ax.set_title(
        "What a clip makes of an optimizer step on a CPU (dashed: what memory traffic allows)"
    )
    _frame(ax)
    ax.legend(ncols=4, fontsize=9, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def draw_growth(ax: Any, axis: str, rows: list[dict[str, Any]]) -> None:
    """Draws a line for each contender; one that ends early says why."""
    last = max(row[axis] for row in rows)
    for contender in [
        contender for contender in COLORS if any(row["contender"] == contender for row in rows)
    ]:
        points = [(row[axis], row["ratio"]) for row in rows if row["contender"] == contender]
        ax.plot(*zip(*points, strict=True), marker="o", color=COLORS[contender], label=contender)
        if points[-1][0] < last:
            text = f"{last:,} left out: compiles\nfor over {growth.PATIENCE // 60} minutes"
            near = {
                "textcoords": "offset points",
                "xytext": (0, -8),
                "ha": "center",
                "va": "top",
                "fontsize": 8,
            }
            ax.annotate(text, points[-1], **near, color=COLORS[contender])
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set(xscale="log", xlabel=axis, ylabel="step with clip / the same step without")
    fixed = "1 M parameters in all" if axis == "leaves" else "20 leaves"
    ax.set_title(f"Growth with {axis} ({fixed}, AdamW)")
    _frame(ax)
    ax.legend(fontsize=9, frameon=False)


def _frame(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25)
    ax.set_axisbelow(True)
