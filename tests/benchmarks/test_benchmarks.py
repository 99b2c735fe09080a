"""Each benchmark at a tiny size: that it runs to its tables. What they find is for a quiet machine."""

import json
import math
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks import (
    bound_rules,
    bound_training,
    bounds,
    compiling,
    fuzzing,
    growth,
    jax_steps,
    machine,
    memory,
    reading,
    report,
    robustness,
    small_leaves,
    stability,
    stability_models,
    steps,
)
from tests.benchmarks.turns import median_ratio
from tests.benchmarks.workloads import (
    LEARNING_RATE,
    MAX_NORM,
    SCALE,
    WORKLOADS,
    Workload,
    jax_filled,
)

TINY = Workload("tiny, AdamW", ((3, 5), (7,)), slow_to_build=True)
PNG = b"\x89PNG"
TWO = (jax_steps.REFERENCE, jax_steps.OURS)


def test_the_command_measures_writes_and_draws_everything(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(growth, "NAMES", TWO)
    for module in ("torch", "tensorflow"):  # which are left out, and named
        monkeypatch.setitem(sys.modules, module, None)
    written, drawn = tmp_path / "new" / "results.json", tmp_path / "figure.png"
    sizes = command.Sizes({"adamw": TINY}, TINY.shapes, 2, 20, (2,), (40,))
    arguments = ["--rounds", "1", "--growth", "--json", str(written), "--plot", str(drawn)]
    command.main(arguments, sizes)
    told = capsys.readouterr().out
    assert "torch is left out: not installed (pip install torch" in told
    results = json.loads(written.read_text(encoding="utf-8"))
    assert report.markdown(results) in told
    rows = results["steps"]["adamw"]["rows"]
    every = set(jax_steps.optimizers("AdamW")) - {*jax_steps.PARTS, *jax_steps.SLOW}
    assert {row["contender"] for row in rows} == every
    for row in [*rows, *results["clip"], *results["growth"]["leaves"]]:
        assert 0 < row["ratio"] < math.inf
    assert all(row["ratio"] == 1 for row in rows if row["contender"] == row["reference"])
    assert drawn.read_bytes().startswith(PNG)


class FakeGPU:
    """What the benchmarks ask of a device, as a GPU answers. The peak is what was asked for so far."""

    platform, device_kind, asked = "gpu", "NVIDIA H100 80GB HBM3", 0

    def memory_stats(self) -> dict[str, int]:
        self.asked += 1
        return {"bytes_in_use": 10**6, "peak_bytes_in_use": self.asked * 10**9}


def test_on_a_gpu_it_is_named_its_memory_told_and_what_runs_elsewhere_left_out(
    monkeypatch: pytest.MonkeyPatch,
):
    gpu, timed = FakeGPU(), []
    monkeypatch.setattr(machine.jax, "devices", lambda: [gpu])
    monkeypatch.setattr(machine, "is_installed", lambda module: True)

    def seconds_of(function: Any, *arguments: Any) -> Any:
        timed.append(function)
        return jax_steps.BLOCK * 0.5, function(*arguments)

    monkeypatch.setattr(jax_steps, "seconds_of", seconds_of)
    all_of_jax = jax_steps.contenders
    monkeypatch.setattr(
        jax_steps, "contenders", lambda workload, say, _: all_of_jax(workload, say, TWO)
    )
    rows = steps.measured(TINY, 2, lambda doing: None)
    results = {"machine": machine.facts(), "steps": {"adamw": {"limit": None, "rows": rows}}}
    told = report.markdown(results)
    assert told.startswith("NVIDIA H100 80GB HBM3; ")
    assert "| peak MB |" in told
    # One in a block of steps took half a second. The peaks are of turns in the order of what they need.
    assert {row["contender"]: row["milliseconds"] for row in rows} == dict.fromkeys(TWO, 500.0)
    in_order = sorted(rows, key=lambda row: row["temporary_megabytes"])
    assert [row["peak_megabytes"] for row in in_order] == [1000.0, 2000.0]
    assert len(timed) == len(TWO) * (1 + 1 + 2)
    assert set(steps.left_out()) == {"torch", "tensorflow"}
    sums = reading.measured(TINY.shapes, 1, lambda doing: None)
    assert not [row for row in sums if row["contender"].startswith(("np", "torch"))]


@pytest.mark.parametrize("name", [jax_steps.OURS, jax_steps.OPTAX, jax_steps.SKIP])
def test_a_clip_that_is_timed_acts(name: str):
    assert min(workload.entries for workload in WORKLOADS.values()) > (2 * MAX_NORM / SCALE) ** 2
    grads, params = jax_filled(TINY.shapes, SCALE), jax_filled(TINY.shapes, seed=1)
    optimizer, step = jax_steps.optimizers("SGD")[name]
    after, _ = jax.jit(step)(params, optimizer.init(params), grads)
    squares = [float(jnp.sum((new - old) ** 2)) for new, old in zip(after, params, strict=True)]
    # Differences of parameters of 1, which are rounded to 6e-8, make up a step of 1e-6.
    assert math.sqrt(sum(squares)) == pytest.approx(LEARNING_RATE * MAX_NORM, rel=0.2)


def test_seconds_and_parts_are_told_as_quartiles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(small_leaves, "NAMES", TWO)
    monkeypatch.setattr(compiling, "SKIP", jax_steps.OURS)
    small_leaves.main(["--rounds", "2"], TINY)
    assert "1.000 (1.000 to 1.000)" in capsys.readouterr().out
    compiling.main(["--rounds", "2", "--leaves", "1", "3", "--only", *TWO])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if " s (" in line]
    assert [row[0].strip("| ") for row in rows] == list(TWO)
    assert all(cell.strip(" |").endswith("(1.00)") for cell in rows[1][1:])


def test_memory_is_told_in_multiples_of_the_gradients(monkeypatch: pytest.MonkeyPatch):
    name = "`wc.clip_by_global_norm`"
    monkeypatch.setattr(memory, "DTYPES", {"float32": memory.DTYPES["float32"]})
    monkeypatch.setattr(memory, "OPTIMIZERS", {name: memory.OPTIMIZERS[name]})
    assert memory.table().splitlines()[-1] == f"| {name} | 0.0 |"


def test_a_ratio_is_the_median_of_the_rounds_in_which_both_took_part():
    assert median_ratio([2.0, 20.0, 3.0], [1.0, 10.0, 3.0]) == 2.0
    assert median_ratio([2.0, 6.0], [1.0, 2.0, 100.0]) == 2.5


def test_every_rule_of_a_bound_has_its_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, length in (("CALLS", 2200), ("HALF", 1100), ("BURSTS", (10,))):
        monkeypatch.setattr(bounds, name, length)
    monkeypatch.setattr(sys, "argv", ["bounds", "--seeds", "1"])
    bounds.main()
    told = capsys.readouterr().out
    assert all(f"| {name} | " in told for name in bound_rules.RULES)


def test_both_trainings_report_every_setting(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    make, _ = bound_training.OPTIMIZERS["SGD"]
    monkeypatch.setattr(bound_training, "OPTIMIZERS", {"SGD": (make, np.array([1e-3, 0.1]))})
    monkeypatch.setattr(bound_training, "STEPS", 20)
    monkeypatch.setattr(bound_training, "SEEDS", 2)
    monkeypatch.setattr(sys, "argv", ["bounds", "--train"])
    bounds.main()
    told = capsys.readouterr().out
    assert all(f"| {name} | " in told for name in bound_training.SETTINGS)

    task = stability_models.TASKS[1]._replace(depths=(2,), peaks=np.geomspace(1e-3, 1.0, 2))
    monkeypatch.setattr(stability, "TASKS", (task,))
    monkeypatch.setattr(stability, "QUICK", {"steps": 20, "seeds": 2, "every": 1})
    names = ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]
    monkeypatch.setattr(sys, "argv", ["stability", "--quick", *names])
    stability.main()
    (model,) = json.loads((tmp_path / "a.json").read_text())["models"].values()
    losses = np.array(model["losses"])
    assert losses.shape == (len(stability.RECIPES) + 1, 2, 2)
    assert len(np.unique(losses[:-1, 0, 0])) == len(stability.RECIPES)
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_the_judge_passes_the_formula_and_catches_each_planted_corruption():
    for case in robustness.stream(2 * len(robustness.KINDS), seed=1):
        exact = robustness.exact(case)
        assert robustness.verdict(case, exact) is None, case.kind
        for name, planted in robustness.planted(case, exact):
            assert robustness.verdict(case, planted) is not None, (case.kind, name)


def test_the_fuzz_passes_what_is_right_and_catches_each_number_that_is_not(
    monkeypatch: pytest.MonkeyPatch,
):
    tree = fuzzing.Tree("two leaves", [np.ones(3, np.float32), np.full(4, 2, np.float32)], 1.5)
    right = jax.tree.map(np.asarray, fuzzing.program(tree.leaves, tree.max_norm))
    leaves, structure = jax.tree.flatten(right)
    fuzzing.check(tree)
    for place, leaf in enumerate(leaves):
        wrong = [*leaves[:place], leaf * np.float32(1 + 1e-5), *leaves[place + 1 :]]
        monkeypatch.setattr(fuzzing, "program", lambda *_, wrong=wrong: structure.unflatten(wrong))
        with pytest.raises(AssertionError):
            fuzzing.check(tree)


def test_the_fuzz_goes_through_shards_and_names_the_seed_of_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(fuzzing, "small_trees", lambda seed: [])
    sizes = (2**17,)
    assert list(fuzzing.failures(0, 2, sizes)) == ["", ""]
    right = fuzzing.large_program()

    def one_entry_off(*arguments: object) -> object:
        norm, ((kernel, bias), *known), two = right(*arguments)
        return norm, ([kernel.at[1, -1].multiply(1.5), bias], *known), two

    monkeypatch.setattr(fuzzing, "large_program", lambda: one_entry_off)
    told, _ = fuzzing.failures(64, 1, sizes)
    assert told.startswith("seed 64, large: entries from ")
