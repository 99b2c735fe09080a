"""What the figure of recorded calls shows: every norm, every bound, and a mark for each call that
was clipped or skipped.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc

figures = pytest.importorskip("matplotlib.figure", reason="the extra named plot")

NORMS = [1.0, 4.0, np.nan, 1.0, 20.0, 0.0, 8.0, np.inf]


def after(optimizer: Any, norms: list[float] = NORMS) -> Any:
    update, state = jax.jit(optimizer.update), optimizer.init(jnp.zeros(2))
    for norm in norms:
        _, state = update(jnp.array([norm, 0.0]), state)
    return state


def drawn(ax: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in ax.get_lines()
    }


FULL = wc.pipeline(
    optax.sgd,
    wc.linear_warmup(peak_value=1.0, warmup_steps=4),
    max_norm=2.0,
    skip_above=10.0,
    record=8,
)


def test_norms_bounds_and_what_was_done_are_on_a_logarithmic_axis_with_the_rate_below():
    figure = wc.plot_records(after(FULL))
    above, below = figure.axes
    lines = drawn(above)
    np.testing.assert_equal(
        lines["norm"], (list(range(8)), [1.0, 4.0, np.nan, 1.0, 20.0, np.nan, 8.0, np.nan])
    )
    assert lines["bound of the clip"][1] == [2.0] * 8
    assert lines["bound of skipping"][1] == [10.0] * 8
    assert lines["clipped: 2"] == ([1, 6], [4.0, 8.0])
    assert lines["skipped for its norm: 1"] == ([4], [20.0])
    bad = [line for line in above.get_lines() if "NaN or inf" in str(line.get_label())]
    assert [line.get_xdata()[0] for line in bad] == [2, 7]
    assert above.get_yscale() == "log"
    np.testing.assert_equal(
        drawn(below).popitem()[1][1], [0.0, 0.25, np.nan, 0.5, np.nan, 0.75, 1.0, np.nan]
    )
    assert below.get_xlabel() == "call"
    named = [text.get_text() for text in above.get_legend().get_texts()]
    assert named == [
        "norm",
        "bound of the clip",
        "bound of skipping",
        "clipped: 2",
        "skipped for its norm: 1",
        "NaN or inf: 2",
    ]


def test_marks_of_what_did_not_happen_and_bounds_that_are_none_are_left_out():
    guard = wc.skip_nonfinite(optax.sgd(0.1), record=4)
    figure = wc.plot_records(after(guard, [1.0, 2.0]))
    assert [list(drawn(ax)) for ax in figure.axes] == [["norm"]]
    assert [list(drawn(ax)) for ax in wc.plot_records(guard.init(jnp.zeros(2))).axes] == [["norm"]]


def test_norms_go_on_axes_that_are_given():
    ax = figures.Figure().subplots()
    assert wc.plot_records(after(FULL), ax=ax) is ax.figure
    assert ax.figure.axes == [ax]
    assert "norm" in drawn(ax)


def test_bad_states_are_errors_in_words():
    with pytest.raises(
        ValueError, match="plot_records: opt_state must hold a recorder; got one without"
    ):
        wc.plot_records(wc.pipeline(optax.sgd, 0.1).init(jnp.zeros(2)))
    with pytest.raises(
        ValueError, match=r"plot_records: opt_state must be of one run; got .* axes \(3,\) in front"
    ):
        wc.plot_records(jax.vmap(lambda size: FULL.init(size * jnp.ones(2)))(jnp.ones(3)))


def test_without_matplotlib_the_message_has_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"plot_records needs matplotlib.*pip install"):
        wc.plot_records(FULL.init(jnp.zeros(2)))
