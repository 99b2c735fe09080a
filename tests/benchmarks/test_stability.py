"""The experiment on learning rates that train: its recipes, how a width is counted, and a run at a
tiny size.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.benchmarks import stability, stability_models
from tests.benchmarks.stability import RECIPES, RUNNING, Recipe


def test_the_schedules_of_the_recipes_are_warm_up_and_cosine():
    counts = np.arange(100)
    rise, fall = np.minimum((counts + 1) / 10, 1), (1 + np.cos(np.pi * counts / 100)) / 2
    expected = {
        "none": 1,
        "warm-up": rise,
        "decay": fall,
        "warm-up, decay": rise * fall,
        "clip": 1,
        "all": rise * fall,
    }
    for name, factor in expected.items():
        values = stability.schedule(0.3, RECIPES[name], 100)(counts)
        np.testing.assert_allclose(
            values, np.broadcast_to(0.3 * factor, 100), rtol=1e-5, atol=1e-8, err_msg=name
        )


def test_a_width_counts_the_decades_within_five_percent_of_the_best():
    losses = np.array([[[1.0], [1.04], [1.06], [np.nan]], [[1.2], [1.12], [1.15], [1.1]]])
    own, of_all = stability.widths(losses, np.geomspace(1e-3, 1e-1, 4))
    np.testing.assert_allclose(own, [[2 * 2 / 3], [3 * 2 / 3]])
    np.testing.assert_allclose(of_all, [[2 * 2 / 3], [0]])


def test_a_recipe_bounds_what_it_says():
    task, rate, bound = stability_models.TASKS[1], 0.01, 1e-3
    data = task.data(2, 0, 5)
    start = float(task.loss(data.start, data.held_out, 2))
    trained = jax.jit(
        functools.partial(stability.trained, task, 2),
        static_argnums=(3,),
        static_argnames="running",
    )

    def moved(recipe: Recipe, *, running: bool = False) -> float:
        numbers = jax.tree.map(jnp.float32, recipe)
        return abs(float(trained(data, rate, numbers, 5, running=running).loss) - start)

    # Five clipped steps with momentum move the parameters by less than 5e-5 / (1 - 0.9).
    clipped = moved(Recipe(max_norm=bound))
    assert 0 < clipped < 0.02 * start < moved(Recipe())
    assert moved(Recipe(max_norm=bound), running=True) == pytest.approx(clipped, rel=1e-3)


def test_the_command_writes_tables_json_and_figure(monkeypatch, tmp_path, capsys):
    task = stability_models.TASKS[1]._replace(depths=(2,), peaks=np.geomspace(1e-3, 1.0, 4))
    monkeypatch.setattr(stability, "TASKS", (task,))
    monkeypatch.setattr(stability, "QUICK", {"steps": 20, "seeds": 2, "every": 1})
    names = ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]
    monkeypatch.setattr(sys, "argv", ["stability", "--quick", *names])
    stability.main()
    (model,) = json.loads((tmp_path / "a.json").read_text())["models"].values()
    losses = np.array(model["losses"])
    assert losses.shape == (len(RECIPES) + 1, 4, 2)
    assert model["recipes"][-1] == RUNNING
    assert np.isfinite(losses[:, 0]).all()
    assert len(np.unique(losses[:-1, 0, 0])) == len(RECIPES)
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert "decades within 5 % of its best" in capsys.readouterr().out
