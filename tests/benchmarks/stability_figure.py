"""The final loss by the peak of the learning rate, as curves with bands: the wider the valley, the more rates train."""

import pathlib
from typing import Any

import numpy as np

#: What is drawn, from the bottom up.
COLORS = {"none": "0.55", "clip": "tab:orange", "warm-up, decay": "tab:green", "all": "tab:blue", "all, running bound": "black"}
DASHED = {"all, running bound"}


def draw(models: dict[str, Any], path: pathlib.Path) -> None:
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(4.2 * len(models), 4), layout="constrained")
    for ax, (name, model) in zip(np.ravel(figure.subplots(1, len(models))), models.items(), strict=True):
        peaks, losses = np.array(model["peaks"]), np.nan_to_num(np.array(model["losses"]), nan=np.inf)
        best = losses.min()
        for recipe, color in COLORS.items():
            of_recipe = np.minimum(losses[model["recipes"].index(recipe)], 10 * best)
            style = {"linestyle": "--"} if recipe in DASHED else {}
            ax.plot(peaks, of_recipe.mean(axis=-1), color=color, label=recipe, linewidth=2, **style)
            ax.fill_between(peaks, of_recipe.min(axis=-1), of_recipe.max(axis=-1), color=color, alpha=0.15, linewidth=0)
        ax.set(xscale="log", yscale="log", title=name, xlabel="peak learning rate", ylim=(0.95 * best, 3 * best))
    figure.axes[0].set_ylabel("loss on held-out data")
    figure.axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
