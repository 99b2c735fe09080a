"""The final loss by the peak of the learning rate, as curves with bands: the wider the valley, the
more rates train.
"""

import pathlib
from typing import Any

import numpy as np

#: What is drawn, from the bottom up.
COLORS = {"none": "0.55", "clip": "tab:orange", "warm-up, decay": "tab:green", "all": "tab:blue"}


def draw(models: dict[str, Any], path: pathlib.Path) -> None:
    """Medians over seeds, with bands from the least to the largest, of the deepest model of each
    kind. What diverges leaves at the top.
    """
    import matplotlib.figure

    deepest = {name.rpartition(", ")[0]: name for name in models}
    figure = matplotlib.figure.Figure(figsize=(4.6 * len(deepest), 4), layout="constrained")
    figure.suptitle(
        "Loss after training, by the peak of the learning rate: lower and wider is better"
    )
    axes = np.ravel(figure.subplots(1, len(deepest)))
    for ax, name in zip(axes, deepest.values(), strict=True):
        model = models[name]
        peaks, losses = (
            np.array(model["peaks"]),
            np.nan_to_num(np.array(model["losses"]), nan=np.inf),
        )
        medians = np.median(losses, axis=-1)
        best, bare = medians.min(), medians[model["recipes"].index("none")].min()
        # Far above the panel instead of inf, towards which no line is drawn.
        losses = np.minimum(losses, 10 * bare)
        for recipe, color in COLORS.items():
            of_recipe = losses[model["recipes"].index(recipe)]
            ax.plot(peaks, np.median(of_recipe, axis=-1), color=color, label=recipe, linewidth=2)
            ax.fill_between(
                peaks,
                of_recipe.min(axis=-1),
                of_recipe.max(axis=-1),
                color=color,
                alpha=0.15,
                linewidth=0,
            )
        ax.set(xscale="log", ylim=(best - 0.1 * bare, 1.4 * bare), xlabel="peak learning rate")
        ax.set_title(name, fontsize="medium")
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("loss on held-out data")
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(lines), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
