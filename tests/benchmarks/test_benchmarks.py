"""The benchmarks at a tiny size: that they measure what they say, and write it. What they find is
for a quiet machine.
"""

import itertools
import json
import math
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.benchmarks import __main__ as command
from tests.benchmarks import compiling, figure, growth, jax_steps, machine, report, small_leaves
from tests.benchmarks.turns import in_turns, median_ratio
from tests.benchmarks.workloads import (
    LEARNING_RATE,
    MAX_NORM,
    SCALE,
    WORKLOADS,
    Workload,
    filled,
    jax_filled,
)

SHAPES = ((3, 5), (7,))
TINY = {
    "adamw": Workload("tiny, AdamW", SHAPES),
    "sgd_bf16": Workload(
        "tiny, SGD, bfloat16 gradients", SHAPES, optimizer="SGD", gradient_dtype="bfloat16"
    ),
}
SIZES = command.Sizes(TINY, SHAPES, schedule_calls=2, counts=20, growing_leaves=(2,))
PNG = b"\x89PNG"
JAX = set(jax_steps.optimizers("AdamW")) - set(jax_steps.PARTS)
#: Of the second workload: compiling each contender twice shows nothing more.
FEW = (jax_steps.REFERENCE, jax_steps.OPTAX, jax_steps.OPTAX_SKIP, jax_steps.OURS)
#: Enough where it does not matter which.
TWO = (jax_steps.REFERENCE, jax_steps.OURS)


@pytest.fixture
def without_others(monkeypatch: pytest.MonkeyPatch):
    for module in ("torch", "tensorflow"):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], pathlib.Path]:
    """One run of the whole command without growth; what it wrote."""
    folder = tmp_path_factory.mktemp("benchmarks")
    written, drawn = folder / "new" / "results.json", folder / "figure.png"
    every = jax_steps.optimizers

    def of_kind(kind: str) -> dict[str, Any]:
        return {name: pair for name, pair in every(kind).items() if kind == "AdamW" or name in FEW}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax_steps, "optimizers", of_kind)
        command.main(["--rounds", "1", "--json", str(written), "--plot", str(drawn)], SIZES)
    return json.loads(written.read_text(encoding="utf-8")), drawn


def taking_part(workload: str) -> set[str]:
    """The JAX contenders of a workload: `optax.apply_if_finite` cannot be traced with gradients in
    bfloat16.
    """
    return JAX if workload == "adamw" else {*FEW} - {jax_steps.OPTAX_SKIP}


def is_positive(number: float) -> bool:
    return math.isfinite(number) and number > 0


def quiet(what: str) -> None:
    del what


def test_every_contender_of_a_workload_has_a_positive_ratio_and_the_references_have_one(ran: Any):
    for workload, step in ran[0]["steps"].items():
        rows = {row["contender"]: row for row in step["rows"]}
        assert rows.keys() >= taking_part(workload)
        for name, row in rows.items():
            assert is_positive(row["ratio"])
            assert is_positive(row["ratio_to_ours"])
            assert is_positive(row["milliseconds"])
            assert len(row["seconds"]) == 1
            if name == row["reference"]:
                assert row["ratio"] == 1.0
        assert rows[jax_steps.OURS]["ratio_to_ours"] == 1.0
        for name in taking_part(workload):
            assert all(
                is_positive(rows[name][f"{stage}_seconds"])
                for stage in ("trace", "lower", "compile")
            )
            assert rows[name]["temporary_megabytes"] >= 0
            assert rows[name]["page_faults"] >= 0


@pytest.mark.parametrize(("library", "count"), [("torch", 4), ("tensorflow", 2)])
def test_an_installed_library_takes_part_where_it_has_such_a_step(
    ran: Any, library: str, count: int
):
    if not machine.is_installed(library):
        pytest.skip(f"{library} is not installed")
    prefix = {"torch": "PyTorch", "tensorflow": "Keras"}[library]
    of = {
        name: [row for row in step["rows"] if row["contender"].startswith(prefix)]
        for name, step in ran[0]["steps"].items()
    }
    assert [len(rows) for rows in of.values()] == [
        count,
        0,
    ]  # no gradients of another dtype than the parameters


def test_the_other_pieces_have_positive_numbers_for_each_contender(ran: Any):
    results, _ = ran
    assert {row["contender"] for row in results["norm"]} >= {
        "wc.global_norm",
        "optax.tree.norm",
        "jnp.sum, one array",
    }
    assert {row["contender"] for row in results["clip"]} == {
        jax_steps.BARE,
        jax_steps.OPTAX,
        jax_steps.OURS,
    }
    assert len(results["schedules"]) == 3
    for piece in ("norm", "clip", "schedules"):
        for row in results[piece]:
            numbers = {name: value for name, value in row.items() if isinstance(value, float)}
            assert numbers
            assert all(map(is_positive, numbers.values())), row
    assert (
        max(row["share"] for row in results["norm"] if row["contender"].endswith("one array"))
        == 1.0
    )
    assert (
        next(row["ratio"] for row in results["clip"] if row["contender"] == jax_steps.BARE) == 1.0
    )


def test_what_is_written_says_what_it_was_measured_on_and_gives_the_tables_again(
    ran: Any, tmp_path: pathlib.Path
):
    results, _ = ran
    assert results["machine"]["cpus"] >= 1
    assert results["machine"]["versions"]["jax"]
    again = tmp_path / "again.json"
    again.write_text(json.dumps(results))
    assert report.markdown(json.loads(again.read_text())) == report.markdown(results)
    rows = [line for line in report.markdown(results).splitlines() if line.startswith("|")]
    assert (
        sum(line.startswith("| wc.clip_by_global_norm |") for line in rows) == 2 + len(TINY) + 1
    )  # summary, compiling, clip
    assert not any(f" {word} " in line for line in rows for word in ("nan", "inf", "None"))


def test_every_row_of_a_table_has_as_many_cells_as_its_head(ran: Any):
    tables = report.markdown(ran[0]).split("\n\n")
    for table in (part.splitlines() for part in tables if part.startswith("|")):
        assert len({line.count("|") for line in table}) == 1, table


def test_the_figure_is_drawn(ran: Any):
    assert ran[1].read_bytes().startswith(PNG)


def test_the_parts_of_a_clip_of_small_leaves_are_timed_beside_the_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.setattr(small_leaves, "NAMES", (jax_steps.REFERENCE, *jax_steps.PARTS))
    small_leaves.main(["--rounds", "2"], TINY["adamw"])
    title, *rows = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(("tiny", "| "))
    ]
    assert title == "tiny, AdamW: step by the step without a clip"
    medians = {
        row.split(" | ")[0].strip("| "): float(row.split(" | ")[1].split()[0]) for row in rows[1:]
    }
    assert medians[jax_steps.REFERENCE] == 1.0
    assert all(map(is_positive, medians.values()))
    assert medians.keys() == {jax_steps.REFERENCE, *jax_steps.PARTS}


def test_growth_is_measured_on_both_axes_and_drawn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    monkeypatch.setattr(growth, "NAMES", TWO)
    grown = growth.measured((2,), (40,), 1, quiet)
    assert [row["leaves"] for row in grown["leaves"]] == [2] * 2
    assert [row["contender"] for row in grown["parameters"]] == list(TWO)
    assert all(is_positive(row["ratio"]) for rows in grown.values() for row in rows)
    results = {"machine": machine.facts(), "steps": {}, "growth": grown}
    assert report.markdown(results).count("Growth with") == 2
    figure.draw(results, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(PNG)


def test_growth_leaves_out_what_would_compile_for_too_long(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(growth, "NAMES", (*TWO, jax_steps.OPTAX))
    monkeypatch.setattr(growth, "PATIENCE", 0)
    grown = growth.measured((2, 3), (), 1, quiet)
    assert [row["leaves"] for row in grown["leaves"] if row["contender"] == jax_steps.OPTAX] == [2]
    assert [row["leaves"] for row in grown["leaves"] if row["contender"] == jax_steps.OURS] == [
        2,
        3,
    ]
    ax = Figure().subplots()
    figure.draw_growth(ax, "leaves", grown["leaves"])
    assert [text.get_text() for text in ax.texts] == ["3 left out: compiles\nfor over 0 minutes"]


@pytest.mark.usefixtures("without_others")
def test_a_library_that_is_not_installed_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
):
    all_of_them = jax_steps.optimizers
    monkeypatch.setattr(
        jax_steps, "optimizers", lambda kind: {name: all_of_them(kind)[name] for name in TWO}
    )
    command.main(
        ["--only", "adamw", "--rounds", "1", "--json", str(tmp_path / "results.json")], SIZES
    )
    said = capsys.readouterr().out
    assert "torch is not installed: left out (pip install torch" in said
    assert "tensorflow is not installed: left out (pip install tensorflow" in said
    (step,) = json.loads((tmp_path / "results.json").read_text())["steps"].values()
    assert {row["contender"] for row in step["rows"]} == set(TWO)


def test_a_clip_has_to_act_in_every_workload():
    for workload in WORKLOADS.values():
        assert SCALE * math.sqrt(workload.entries) > 2 * MAX_NORM
    block = filled([(1000,)], SCALE)[0]
    assert math.sqrt(float((block**2).sum())) == pytest.approx(SCALE * math.sqrt(1000), rel=0.1)


@pytest.mark.parametrize(
    ("name", "limit"),
    [("gpt2", 8 / 7), ("gpt2_sgd", 6 / 5), ("gpt2_bf16", 14 / 13), ("middle_leaves", 8 / 7)],
)
def test_the_limit_is_the_words_moved_with_the_norm_by_those_moved_without(name: str, limit: float):
    assert WORKLOADS[name].limit == pytest.approx(limit, rel=1e-12)
    above, below = report.fraction(limit).split("/")
    assert int(above) / int(below) == pytest.approx(limit, rel=1e-12)


def test_gpt2_small_has_its_size_in_either_form():
    plain, stacked = WORKLOADS["gpt2"], WORKLOADS["gpt2_stacked"]
    assert plain.entries == stacked.entries == 124_439_808
    assert (len(plain.shapes), len(stacked.shapes)) == (148, 16)


def test_contenders_take_turns_in_a_changing_order_and_first_rounds_do_not_count():
    order: list[str] = []

    def turn(name: str) -> Any:
        return lambda: order.append(name) or len(order)

    taken = in_turns({name: turn(name) for name in "abc"}, 8, quiet, uncounted=2)
    rounds = [tuple(order[start : start + 3]) for start in range(0, 30, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    before = {tuple(pair) for names in rounds for pair in itertools.pairwise(names)}
    assert len(before) == 6  # each behind each other one
    assert all(len(values) == 8 and min(values) > 6 for values in taken.values())


def test_a_slow_contender_takes_part_in_the_first_rounds_alone(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def slow() -> None:
        clock[0] += 3

    taken = in_turns({"slow": slow, "fast": lambda: None}, 6, quiet)
    assert {name: len(values) for name, values in taken.items()} == {"slow": 3, "fast": 6}


def test_seconds_of_compiling_are_compared_round_by_round(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(compiling, "WORKLOADS", TINY)
    monkeypatch.setattr(compiling, "NAMES", (jax_steps.REFERENCE, jax_steps.SKIP))
    compiling.main(["--workload", "adamw", "--rounds", "2"])
    assert "tiny, AdamW, seconds:" in capsys.readouterr().out
    told = compiling.table(
        "",
        {
            jax_steps.REFERENCE: np.array([1.0, 2.0, 9.0]),
            jax_steps.SKIP: np.array([2.0, 4.0, 12.0]),
        },
    )
    last = told.splitlines()[-1]
    assert last == f"| {jax_steps.SKIP} | 4.0 (3.0 to 8.0) | 2.0 (1.5 to 2.5) | 0.0 (0.0 to 0.0) |"


def test_a_ratio_is_the_median_of_ratios_and_not_of_times():
    assert median_ratio([2.0, 20.0, 3.0], [1.0, 10.0, 3.0]) == 2.0
    assert median_ratio([2.0, 6.0], [1.0, 2.0, 100.0]) == 2.5  # the slow one left after two rounds


@pytest.mark.parametrize(
    "name", sorted(JAX - {jax_steps.REFERENCE, "wc.clip_by_global_norm(None)"})
)
def test_every_clip_of_a_step_makes_it_as_long_as_the_bound_says(name: str):
    grads, params = jax_filled(SHAPES, SCALE), jax_filled(SHAPES, seed=1)
    optimizer, step = jax_steps.optimizers("SGD")[name]
    after, _ = jax.jit(step)(params, optimizer.init(params), grads)
    moved = math.sqrt(
        sum(float(jnp.sum((new - old) ** 2)) for new, old in zip(after, params, strict=True))
    )
    # Each group of leaves moves as far as the bound says.
    groups = {jax_steps.GROUPS: min(8, len(SHAPES)), jax_steps.EACH: len(SHAPES)}.get(name, 1)
    # Differences of parameters of 1, which are rounded to 6e-8, make up a step of 1e-6.
    assert moved == pytest.approx(LEARNING_RATE * MAX_NORM * math.sqrt(groups), rel=0.2)
