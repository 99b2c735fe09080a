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


def after(optimizer: Any, norms: list[float] = NORMS, values: Any = None) -> Any:
    update, state = jax.jit(optimizer.update), optimizer.init(jnp.zeros(2))
    for norm, value in zip(norms, values or [0.0] * len(norms), strict=True):
        given = {"value": jnp.float32(value)} if values else {}
        _, state = update(jnp.array([norm, 0.0]), state, **given)
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
        drawn(below)["learning_rate"][1], [0.0, 0.25, np.nan, 0.5, np.nan, 0.75, 1.0, np.nan]
    )
    assert below.get_xlabel() == "call"
    named = [text.get_text() for text in above.get_legend().get_texts()]
    marks = ["clipped: 2", "skipped for its norm: 1", "NaN or inf: 2"]
    assert named == ["norm", "bound of the clip", "bound of skipping", *marks]


def test_marks_of_what_did_not_happen_and_bounds_that_are_none_are_left_out():
    guard = wc.skip_nonfinite(optax.sgd(0.1), record=4)
    figure = wc.plot_records(after(guard, [1.0, 2.0]))
    assert [list(drawn(ax)) for ax in figure.axes] == [["norm"]]
    assert [list(drawn(ax)) for ax in wc.plot_records(guard.init(jnp.zeros(2))).axes] == [["norm"]]


@pytest.mark.parametrize(
    ("losses", "scale"), [([2.0, 3.0], "linear"), ([2.0, 3e8], "log"), ([-2.0, 3e8], "linear")]
)
def test_a_loss_that_explodes_is_on_a_logarithmic_axis(losses: list[float], scale: str):
    guard = wc.pipeline(
        optax.sgd, wc.exponential_decay(init_value=1.0, decay_rate=1e-6, decay_steps=1), record=4
    )
    state = after(guard, [1.0, 1.0], losses)
    axes = {ax.get_ylabel(): ax.get_yscale() for ax in wc.plot_records(state).axes}
    assert axes["value"] == scale
    assert axes["learning rate"] == "linear"


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


def test_values_stand_above_and_what_was_skipped_for_them_is_told_apart():
    optimizer = wc.pipeline(optax.sgd, 0.1, skip_above=10.0, skip_value_above=5.0, record=8)
    state = after(optimizer, [1.0, 2.0, 20.0, 1.0, 30.0], [2.0, 6.0, 2.0, np.nan, 7.0])
    figure = wc.plot_records(state)
    above, middle, below = figure.axes
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "value",
        "gradient norm before clipping",
        "learning rate",
    ]
    np.testing.assert_equal(drawn(above)["value"][1], [2.0, 6.0, 2.0, np.nan, 7.0])
    assert drawn(above)["bound of its skipping"][1] == [5.0] * 5
    for ax, hidden, at in ((above, "_", 6.0), (middle, "", 2.0)):
        assert drawn(ax)[f"{hidden}skipped for its value: 1"] == ([1], [at])
        assert drawn(ax)[f"{hidden}skipped for its norm: 2"][0] == [2, 4]
        assert drawn(ax)[f"{hidden}NaN or inf: 1"][0] == [3, 3]
    forms = [line.get_marker() for line in middle.get_lines() if "skipped" in line.get_label()]
    assert len(set(forms)) == 2
    assert drawn(middle)["norm"][1] == [1.0, 2.0, 20.0, 1.0, 30.0]
    np.testing.assert_equal(drawn(below)["learning_rate"][1][1:], [np.nan] * 4)


def test_calls_that_were_not_recorded_leave_a_gap():
    state = after(FULL, [1.0, *[np.nan] * 20, 2.0, 3.0])
    calls, norms = drawn(wc.plot_records(state).axes[0])["norm"]
    np.testing.assert_equal(calls[-4:], [16, np.nan, 21, 22])
    np.testing.assert_equal(norms[-4:], [np.nan, np.nan, 2.0, 3.0])


def test_a_point_without_neighbours_has_a_mark_and_a_record_that_ends_early_is_told():
    optimizer = wc.pipeline(optax.sgd, 0.1, max_norm=None, record=32)
    figure = wc.plot_records(after(optimizer, [1.0, 2.0, np.nan, 3.0, *[np.nan] * 20]))
    above, below = figure.axes
    (norm,) = [line for line in above.get_lines() if line.get_marker() == "o"]
    assert (norm.get_label(), norm.get_markevery()) == ("norm", [3])
    assert below.get_xlabel() == "call; the record ends at 19 of 24"
    inside = wc.skip_nonfinite(optax.MultiSteps(wc.pipeline(optax.sgd, 0.1, record=8), 2))
    assert wc.plot_records(after(inside, [1.0] * 4)).axes[-1].get_xlabel() == "call"


@pytest.mark.parametrize("norms", [[np.inf, np.nan], [0.0], []])
def test_calls_of_which_no_norm_can_be_drawn_are_drawn_without_a_warning(norms: list[float]):
    optimizer = wc.pipeline(optax.sgd, 0.1, max_norm=None, record=4)
    figure = wc.plot_records(after(optimizer, norms))
    figure.canvas.draw()
    bad = [line for line in figure.axes[0].get_lines() if "NaN or inf" in line.get_label()]
    assert len(bad) == np.sum(~np.isfinite(norms))


def test_a_finite_norm_past_float32_is_no_bad_call(x64: None):
    optimizer = wc.pipeline(optax.sgd, 0.1, max_norm=None, record=4)
    state = after(optimizer, [1e300])
    assert "NaN or inf" not in str(drawn(wc.plot_records(state).axes[0]))
    assert "No call had a NaN or inf." in wc.report(state)
    assert np.isfinite(wc.records(state)["grad_norm"]).all()


@pytest.mark.parametrize("wrong", ["figure", "several", 3])
def test_what_is_no_axes_is_an_error_that_says_what_to_pass(wrong: Any):
    figure = figures.Figure()
    ax = {"figure": figure, "several": figure.subplots(2)}.get(wrong, wrong)
    with pytest.raises(TypeError, match=r"plot_records: ax must be the axes .*axes\[0\]"):
        wc.plot_records(after(FULL), ax=ax)
