"""What a picture of a schedule shows: its data, its marks, its size; in matplotlib and in characters."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from warmclip_jax._pictures._chart import chart
from warmclip_jax._pictures._plot import sampled
from warmclip_jax._pictures._sampling import extent, sample

pytest.importorskip("matplotlib", reason="the extra named plot")

RUN = wc.warmup_polynomial_decay(peak_value=0.5, total_steps=100, warmup_steps=10, end_value=0.1)


def drawn(figure: Any) -> dict[str, tuple[list[float], list[float]]]:
    lines = figure.axes[0].get_lines()
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}


def test_the_line_is_the_schedule_at_every_step():
    steps, values = drawn(wc.plot(RUN, steps=120))["warmup_polynomial_decay"]
    assert steps == list(range(121))
    np.testing.assert_array_equal(np.array(values, np.float32), RUN(jnp.arange(121)))


def test_warm_up_peak_and_end_are_marked_where_they_are():
    marks = drawn(wc.plot({"run": RUN}, steps=120))
    assert marks["_run warm-up"][0] == [10, 10]
    assert marks["_run peak"] == ([10], [0.5])
    assert marks["_run end"] == ([100], [pytest.approx(0.1)])


def test_the_marks_of_another_librarys_schedule_are_found_in_its_values():
    marks = drawn(wc.plot({"theirs": optax.warmup_cosine_decay_schedule(0.0, 1.0, 20, 100)}, steps=150))
    assert marks["_theirs warm-up"][0] == [20, 20]
    assert marks["_theirs peak"] == ([20], [1.0])
    assert marks["_theirs end"][0] == [100]


@pytest.mark.parametrize(
    ("schedule", "warmup"),
    [
        (wc.warmup_polynomial_decay(peak_value=1.0, total_steps=100, warmup_steps=10, decay_from="zero"), 10),
        (wc.shift(wc.with_warmup(wc.constant(value=1.0), warmup_steps=10), by=4), 6),
        (wc.join([wc.linear_warmup(peak_value=1.0, warmup_steps=7), wc.constant(value=1.0)], boundaries=[30]), 7),
        (wc.warmup_cosine_decay(peak_value=1.0, total_steps=100, warmup_steps=0), None),
        (wc.cosine_decay(init_value=1.0, decay_steps=100), None),
        (wc.constant(value=1.0), None),
    ],
)
def test_a_warm_up_is_marked_where_the_schedule_says_it_ends(schedule: wc.Schedule, warmup: int | None):
    assert sample(schedule, 110).warmup == warmup


def test_several_are_overlaid_under_their_names_with_one_legend():
    figure = wc.plot({"a": RUN, "b": wc.constant(value=0.2)}, steps=50)
    assert {"a", "b"} <= drawn(figure).keys()
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["a", "b", "warm-up ends", "peak", "no longer changes"]


def test_a_logarithmic_scale_is_drawn_on_request():
    assert wc.plot(RUN, log_scale=True).axes[0].get_yscale() == "log"
    assert wc.plot(RUN).axes[0].get_yscale() == "linear"


def test_it_draws_on_the_axes_it_is_given():
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots(1, 2)
    assert wc.plot(RUN, ax=axes[1]) is figure
    assert (len(axes[0].get_lines()), len(axes[1].get_lines())) == (0, 4)


def test_a_long_run_is_thinned_out_but_keeps_its_seams():
    line = sample(
        wc.warmup_stable_decay(peak_value=1.0, total_steps=2 * 10**9, warmup_steps=12_345, decay_steps=777), 2 * 10**9
    )
    assert line.steps.size < 5000
    assert {0, 12_344, 12_345, 12_346, 2 * 10**9 - 777, 2 * 10**9} <= set(line.steps.tolist())
    assert (line.warmup, line.peak) == (12_345, 12_345)


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (RUN, 110),
        (wc.constant(value=1.0), 110),
        (wc.linear_warmup(peak_value=1.0, warmup_steps=10), 11),
        (wc.linear_warmup(peak_value=1.0, warmup_steps=0), 1),
        (wc.polynomial_decay(init_value=1.0, decay_steps=10, cycle=True), 33),
        (wc.inverse_sqrt_decay(init_value=1.0, timescale=100), 330),
        (wc.with_warmup(wc.cosine_decay(init_value=1.0, decay_steps=90), warmup_steps=10), 110),
        (wc.shift(RUN, by=50), 55),
        (wc.shift(RUN, by=500), 1),
        (wc.repeat(RUN, period=20), 66),
        (wc.join([RUN, RUN], boundaries=[100]), 220),
        (optax.constant_schedule(1.0), 110),
        (wc.linear_warmup(peak_value=1.0, warmup_steps=1e20), 1968526677),
    ],
)
def test_without_steps_it_looks_a_tenth_further_than_the_schedule_is_long(schedule: Any, steps: int):
    assert extent(schedule) == steps
    assert drawn(wc.plot({"it": schedule}))["it"][0][-1] == steps


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ({"schedules": {}}, ValueError, "schedules"),
        ({"schedules": 0.1}, TypeError, "0.1"),
        ({"schedules": {"a": RUN, "b": "text"}}, TypeError, "'b'"),
        ({"schedules": RUN, "steps": 0}, ValueError, "steps"),
        ({"schedules": RUN, "steps": 2.5}, ValueError, "steps"),
        ({"schedules": RUN, "log_scale": 1}, TypeError, "log_scale"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], error: type[Exception], word: str):
    with pytest.raises(error, match=word):
        wc.plot(**arguments)


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'warmclip-jax\[plot\]'"):
        wc.plot(RUN)


# In characters.


def heights(text: str, glyph: str) -> list[int]:
    """The row of the highest `glyph` in each column, counted from the bottom; -1 where there is none."""
    rows = [line[11:].ljust(69) for line in text.splitlines() if line[10:11] == "|"]
    columns = zip(*reversed(rows), strict=True)
    return [max((row for row, cell in enumerate(column) if cell == glyph), default=-1) for column in columns]


def test_a_chart_fits_80_columns_and_24_lines_whatever_the_names_and_sizes():
    many = {f"a schedule with a name that is much too long for one line, number {index}": RUN for index in range(3)}
    for schedules in ({"run": RUN}, many, {"big": wc.linear_warmup(peak_value=1.2345678e30, warmup_steps=2**31 - 1)}):
        text = chart(sampled(schedules, None))
        assert max(map(len, text.splitlines())) <= 80
        assert len(text.splitlines()) <= 24
        assert text.isascii()


def test_a_chart_rises_to_the_peak_and_falls_to_the_end():
    text = chart(sampled({"run": wc.warmup_polynomial_decay(peak_value=0.5, total_steps=100, warmup_steps=20)}, 100))
    rows = heights(text, "*")
    assert min(rows) >= 0
    top = rows.index(max(rows))
    assert max(rows) == 17
    assert abs(top - 69 * 0.2) <= 1
    assert rows[: top + 1] == sorted(rows[: top + 1])
    assert rows[top:] == sorted(rows[top:], reverse=True)
    assert rows[-1] == 0
    assert text.splitlines()[0].split()[0] == "0.5"
    assert text.splitlines()[-1] == "* run: warm-up to 20; peak 0.5 at 20"


def test_on_a_logarithmic_chart_an_exponential_is_a_straight_line():
    schedule = wc.exponential_decay(init_value=1.0, decay_steps=10, decay_rate=0.1)
    rows = heights(chart(sampled({"exp": schedule}, 100), log_scale=True), "*")
    assert np.abs(np.array(rows) - np.linspace(17, 0, 69)).max() <= 1


@pytest.mark.parametrize("log_scale", [False, True])
@pytest.mark.parametrize("value", [0.0, 1e-3, -1.0])
def test_a_chart_of_a_constant_is_one_row(value: float, log_scale: bool):
    rows = heights(chart(sampled({"c": wc.constant(value=value)}, None), log_scale=log_scale), "*")
    assert len(set(rows)) == 1


def test_drawing_does_not_depend_on_the_precision():
    with jax.enable_x64(True):
        assert drawn(wc.plot({"run": RUN}))["_run end"][0] == [100]
