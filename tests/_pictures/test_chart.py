"""A picture in characters: it fits a terminal, and its curves are where the values are."""

import numpy as np

import warmclip_jax as wc
from warmclip_jax._pictures._chart import chart
from warmclip_jax._pictures._sampling import sampled

RUN = wc.warmup_polynomial_decay(peak_value=0.5, total_steps=100, warmup_steps=20)


def rows_of(text: str) -> list[str]:
    """The cells of the chart, from the bottom."""
    return [line[11:].ljust(69) for line in reversed(text.splitlines()) if line[10:11] == "|"]


def heights(text: str, glyph: str) -> list[int]:
    """The row of the highest `glyph` in each column, counted from the bottom; -1 where there is
    none.
    """
    columns = zip(*rows_of(text), strict=True)
    return [
        max((row for row, cell in enumerate(column) if cell == glyph), default=-1)
        for column in columns
    ]


def test_a_chart_fits_80_columns_and_24_lines_whatever_the_names_and_sizes():
    many = {
        f"a schedule with a name that is much too long for one line, number {index}": RUN
        for index in range(3)
    }
    for schedules in (
        {"run": RUN},
        many,
        {"big\nname": wc.linear_warmup(peak_value=1.2345678e30, warmup_steps=2**31 - 1)},
    ):
        text = chart(sampled(schedules, None))
        assert max(map(len, text.splitlines())) <= 80
        assert len(text.splitlines()) <= 24
        assert text.isascii()
        assert text.splitlines()[-1][2:5] in ("run", "a s", "big")


def test_a_chart_rises_to_the_peak_and_falls_to_the_end():
    text = chart(sampled({"run": RUN}, 100))
    rows = heights(text, "*")
    assert min(rows) >= 0
    top = rows.index(max(rows))
    assert max(rows) == 17
    assert abs(top - 69 * 0.2) <= 1
    assert rows[: top + 1] == sorted(rows[: top + 1])
    assert rows[top:] == sorted(rows[top:], reverse=True)
    assert rows[-1] == 0
    assert text.splitlines()[0].split()[0] == "0.5"
    assert text.splitlines()[-1] == "* run: warm-up to 20; peak 0.5 at 20; 0 from 100 on"


def test_the_axis_ends_at_the_last_step_of_a_run_past_int32():
    lengths = wc.repeat(wc.cosine_decay(init_value=1.0, decay_steps=10**9), period=10**9)
    assert chart(sampled(lengths, None)).splitlines()[-2].split() == [
        "0",
        "1073741823",
        "2147483647",
    ]


def test_curves_that_coincide_take_turns():
    cells = "".join(rows_of(chart(sampled({"first": RUN, "second": RUN}, 100))))
    assert 0.8 < cells.count("*") / cells.count("o") < 1.25


def test_on_a_logarithmic_chart_an_exponential_is_a_straight_line():
    schedule = wc.exponential_decay(init_value=1.0, decay_steps=10, decay_rate=0.1)
    rows = heights(chart(sampled({"exp": schedule}, 100), log_scale=True), "*")
    assert np.abs(np.array(rows) - np.linspace(17, 0, 69)).max() <= 1


def test_a_chart_of_a_constant_is_one_row_and_says_its_value():
    for value, log_scale in [(0.0, False), (0.3, False), (-1.0, False), (1e38, True)]:
        text = chart(sampled({"c": wc.constant(value=value)}, 9), log_scale=log_scale)
        assert len(set(heights(text, "*"))) == 1
        assert text.splitlines()[-1] == f"* c: {value:g} at 9"


def test_a_narrow_range_has_digits_enough():
    run = wc.linear_warmup(init_value=0.999, peak_value=0.9999, warmup_steps=9)
    text = chart(sampled({"b2": run}, 10))
    ends = [line.split()[0] for line in text.splitlines() if line[:9].strip()]
    assert ends[:3] == ["0.9999", "0.99945", "0.999"]
    assert text.splitlines()[-1] == "* b2: warm-up to 9; peak 0.9999 at 9; 0.9999 from 9 on"
