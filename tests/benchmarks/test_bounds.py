"""The rules that the running bound is compared with, on streams small enough to follow, and both
commands at a tiny size.
"""

import sys
from typing import Any

import numpy as np
import pytest

from tests.benchmarks import bound_rules, bound_training, bounds
from warmclip_jax._clipping._history import Rule


def through(rule: bound_rules.BoundRule, norms: Any) -> list[float]:
    return rule(np.asarray(norms, float)[:, None])[:, 0].tolist()


def test_autoclip_clips_at_numpys_percentile_and_is_poisoned_by_a_nan():
    norms = np.random.default_rng(0).lognormal(size=50)
    expected = np.array(
        [min(norm, np.percentile(norms[: call + 1], 10)) for call, norm in enumerate(norms)]
    )
    np.testing.assert_allclose(through(bound_rules.autoclip, norms), expected)
    assert np.isnan(through(bound_rules.autoclip, [1.0, np.nan, 1.0])).tolist() == [
        False,
        True,
        True,
    ]


def test_zclip_clips_a_larger_spike_to_less():
    ordinary = [0.9, 1.1] * 12 + [1.0]
    deviation = np.std(ordinary)
    passed = [through(bound_rules.zclip, [*ordinary, 1 + z * deviation])[-1] for z in (2, 5, 500)]
    # Past 2.5 deviations: 2.5 of them, by 5 / 2.5 and by 500 / 2.5.
    np.testing.assert_allclose(passed, 1 + deviation * np.array([2, 1.25, 0.0125]), rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "after"), [(bound_rules.maxtext, 0.0), (bound_rules.levanter, 1.0 + 3 * 0.1)]
)
def test_a_window_acts_from_64_norms_on(rule: bound_rules.BoundRule, after: float):
    ordinary = [0.9, 1.1] * 32
    assert through(rule, [*ordinary[:62], 9.0])[-1] == 9.0
    assert through(rule, [*ordinary, 9.0])[-1] == pytest.approx(after)


def test_axlearns_never_takes_a_step_again_after_a_first_norm_of_zero():
    assert through(bound_rules.axlearn, [0.0, 1.0, 1.0, 1.0]) == [0.0, 0.0, 0.0, 0.0]
    assert through(bound_rules.axlearn, [1.0, 19.0, 1.0, 300.0]) == [1.0, 19.0, 1.0, 0.0]


def test_adagc_clips_at_1_05_times_what_it_let_through():
    passed = through(bound_rules.adagc, [*[0.5] * 100, 2.0, 2.0])
    assert passed[-2] == pytest.approx(1.05 * 0.5)
    assert passed[-1] == pytest.approx(1.05 * (0.98 * 0.5 + 0.02 * passed[-2]))


@pytest.fixture(scope="module")
def streams() -> bounds.Streams:
    return bounds.Streams(seeds=1)


@pytest.mark.parametrize(
    ("name", "deviations"), [("running bound, clip at 3", 3.0), ("running bound, skip at 6", 6.0)]
)
def test_the_library_decides_as_its_formula_on_every_stream(
    streams: bounds.Streams, name: str, deviations: float
):
    passed = streams.through(bound_rules.RULES[name][0])
    differ, calls = bounds.disagreements(streams, passed, Rule(deviations, 1 - 0.99, None))
    assert calls == bounds.CALLS * len(streams.norms)
    assert differ <= 1e-5 * calls  # ties


def test_the_table_has_a_row_for_each_rule(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rules = {name: bound_rules.RULES[name] for name in ("fixed 1.0", "running bound, clip at 3")}
    monkeypatch.setattr(bounds, "RULES", rules)
    monkeypatch.setattr(sys, "argv", ["bounds", "--seeds", "1"])
    bounds.main()
    rows = [
        line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")
    ]
    assert {len(row) for row in rows if "---" not in row[0]} == {len(bounds.HEADS)}
    fixed, running = rows[-2:]
    assert (fixed[3], running[3].split(" / ")[0].isdigit()) == ("always / always / always", True)
    assert (fixed[2], fixed[4], running[4]) == ("1.00 / 1.00 / 1.00", "100", "100")
    assert [float(share) < 1 for share in running[1].split(" / ")] == [True] * 3


def test_the_experiment_reports_every_bound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    make, _ = bound_training.OPTIMIZERS["SGD"]
    monkeypatch.setattr(bound_training, "OPTIMIZERS", {"SGD": (make, np.array([1e-3, 0.1, 1e3]))})
    monkeypatch.setattr(bound_training, "STEPS", 40)
    monkeypatch.setattr(bound_training, "SEEDS", 2)
    monkeypatch.setattr(sys, "argv", ["bounds", "--train"])
    bounds.main()
    rows = [
        line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")
    ][2:]
    assert [row[0].removeprefix("| ") for row in rows] == list(bound_training.SETTINGS)
    by_name = {row[0].removeprefix("| "): row for row in rows}
    assert by_name["no bound"][1] == "0.1"  # a rate of 1000 diverges, one of 0.001 is too slow
    assert by_name["max_norm=1"][3] == "+0.00 ± 0.00"
    assert float(by_name["max_norm=0.01"][5]) == 100
    assert float(by_name["no bound"][5]) == 0
