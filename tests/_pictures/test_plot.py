"""What a matplotlib figure of schedules shows: its curves, its marks, its axes and its legend."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import warmclip_jax as wc

pytest.importorskip("matplotlib", reason="the extra named plot")

RUN = wc.warmup_polynomial_decay(peak_value=0.5, total_steps=100, warmup_steps=10, end_value=0.1)


def drawn(figure: Any) -> dict[str, tuple[list[float], list[float]]]:
    lines = figure.axes[0].get_lines()
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_a_schedule_is_drawn_at_every_step_with_its_marks_where_they_are():
    figure = wc.plot({"run": RUN}, steps=120, label="momentum")
    lines = drawn(figure)
    steps, values = lines["run"]
    assert steps == list(range(121))
    np.testing.assert_array_equal(np.array(values, np.float32), RUN(jnp.arange(121)))
    assert lines["_run warm-up ends"][0] == [10, 10]
    assert lines["_run peak"] == ([10], [0.5])
    assert lines["_run no longer changes"] == ([100], [pytest.approx(0.1)])
    assert figure.axes[0].get_ylabel() == "momentum"


def test_the_legend_names_the_curves_and_the_marks_that_are_there():
    assert legend(wc.plot([RUN, wc.constant(value=0.2)], steps=120)) == [
        "warmup_polynomial_decay",
        "constant",
        "warm-up ends",
        "peak",
        "no longer changes",
    ]
    assert legend(wc.plot({"run": RUN}, steps=50)) == ["run", "warm-up ends", "peak"]
    assert legend(wc.plot(wc.constant(value=0.2))) == ["constant"]


def test_no_legend_or_axis_covers_a_mark():
    figure = wc.plot([RUN, RUN, RUN], steps=120)
    axes = figure.axes[0]
    figure.draw_without_rendering()
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1
    marks = [line for line in axes.get_lines() if line.get_marker() in ("^", "s")]
    assert len(marks) == 6
    assert not any(line.get_clip_on() for line in marks)
    assert axes.get_xlim() == (0, 120)
    assert axes.get_ylim()[0] < 0 < 0.5 < axes.get_ylim()[1]


def test_many_curves_share_a_scale_of_colours_and_a_short_legend():
    sweep = jax.vmap(
        lambda peak: wc.warmup_cosine_decay(peak_value=peak, total_steps=100, warmup_steps=10)
    )(jnp.linspace(0.1, 1, 37))
    figure = wc.plot({"sweep": sweep})
    curves = [line for line in figure.axes[0].get_lines() if line.get_label().startswith("sweep")]
    assert len(curves) == 37
    assert len({line.get_color() for line in curves}) == 37
    names = legend(figure)
    assert (names[0], names[9]) == ("sweep peak_value=0.1", "sweep peak_value=1")
    assert names[10:] == ["warm-up ends", "peak", "no longer changes"]


def test_a_logarithmic_axis_leaves_out_what_is_not_positive_and_the_last_steps_to_zero():
    schedules = {
        "run": wc.cosine_decay(init_value=1.0, decay_steps=1000),
        "zero": wc.constant(value=0.0),
        "below": wc.constant(value=-1.0),
    }
    figure = wc.plot(schedules, log_scale=True)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert (axes.get_yscale(), axes.get_xlim()) == ("log", (0, 1100))
    assert 1e-4 < axes.get_ylim()[0] < 1e-3
    lines = drawn(figure)
    # All but a few of the last steps before 1000.
    assert 980 < np.flatnonzero(np.isfinite(lines["run"][1]))[-1] < 1000
    assert np.all(np.isnan([lines["zero"][1], lines["below"][1]]))
    assert {"_run peak"} == {label for label in lines if label.startswith("_")}


def test_every_name_stands_in_the_legend_as_it_is():
    from matplotlib import cbook

    names = ["_private", "$a$ and $b$", "5 $"]
    figure = wc.plot(dict.fromkeys(names, RUN))
    texts = figure.axes[0].get_legend().get_texts()[:3]
    # Where there is no formula, matplotlib draws `\\$` as a dollar.
    assert not any(cbook.is_math_text(text.get_text()) for text in texts)
    assert [text.get_text().replace(r"\$", "$").strip() for text in texts] == names


def test_long_names_leave_room_for_the_curves():
    for number in (1, 3, 10):
        figure = wc.plot({f"{index} {RUN!r}": RUN for index in range(number)})
        figure.draw_without_rendering()
        axes = figure.axes[0]
        assert axes.get_window_extent().width > 0.5 * figure.bbox.width
        assert figure.bbox.y0 <= axes.get_legend().get_window_extent().y0
        names = [name.replace("\n", " ") for name in legend(figure)[:number]]
        assert [name[:9] for name in names] == [f"{index} warmup_" for index in range(number)]
        assert all(name.endswith("'warmup_end')") for name in names)


def test_it_draws_on_the_axes_it_is_given_beside_what_is_there():
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert wc.plot(RUN, ax=right) is figure
    assert (len(left.get_lines()), len(right.get_lines())) == (0, 4)
    wc.plot({"short": wc.constant(value=-1.0)}, ax=right, steps=5)
    assert right.get_xlim() == (0, 110)
    assert right.get_ylim()[0] < -1 < 0.5 < right.get_ylim()[1]
    assert [text.get_text() for text in right.get_legend().get_texts()][:2] == [
        "warmup_polynomial_decay",
        "short",
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ({"schedules": wc.constant(value=0.0), "log_scale": True}, ValueError, "plot: log_scale"),
        ({"schedules": RUN, "label": None}, TypeError, "label"),
        ({"schedules": RUN, "ax": np.zeros(2)}, TypeError, r"ax must be .*axes\[0\]"),
    ],
)
def test_a_bad_argument_is_refused_by_name(
    arguments: dict[str, Any], error: type[Exception], word: str
):
    with pytest.raises(error, match=word):
        wc.plot(**arguments)


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'warmclip-jax\[plot\]'"):
        wc.plot(RUN)
