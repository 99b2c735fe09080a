"""The final loss by the peak of the learning rate, as curves with bands: the wider the valley, the
more rates train.
"""

import pathlib
from typing import Any

import numpy as np

#: What is drawn, from the bottom up.
COLORS = {"none": "0.55", "clip": "tab:orange", "warm-up, decay": "tab:green", "all": "tab:blue"}


def draw(models: dict[str, Any], path: pathlib.Path) -> None:
    """Medians over seeds, with bands from the least to the largest. What diverges leaves at the
    top.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(3.2 * len(models), 3.4), layout="constrained")
    axes = np.ravel(figure.subplots(1, len(models)))
    for ax, (name, model) in zip(axes, models.items(), strict=True):
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
        ax.set_title(name.replace(", ", "\n", 1), fontsize="medium")
    axes[0].set_ylabel("loss on held-out data")
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
