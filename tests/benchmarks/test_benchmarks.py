"""Each benchmark at a tiny size: that it runs to its tables. What they find is for a quiet machine."""

import json
import math
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import reference
from tests.benchmarks import __main__ as command
from tests.benchmarks import (
    bound_rules,
    bound_training,
    bounds,
    clip_alone,
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


#: Small trees, short runs and few contenders.
SMALL: list[tuple[Any, dict[str, Any]]] = [
    (command, {"WORKLOADS": {"tiny": TINY}}),
    (growth, {"NAMES": TWO, "COUNTS": {"leaves": (2,)}}),
    (reading, {"SHAPES": TINY.shapes}),
    (clip_alone, {"SHAPES": TINY.shapes}),
    (small_leaves, {"NAMES": TWO}),
    (compiling, {"SKIP": jax_steps.OURS}),
    (memory, {"DTYPES": {"float32": memory.DTYPES["float32"]}}),
    (bounds, {"SEEDS": 1, "CALLS": 2200, "HALF": 1100, "BURSTS": (10,)}),
    (bound_training, {"OPTIMIZERS": {"SGD": (optax.sgd, np.array([1e-3, 0.1]))}}),
    (bound_training, {"STEPS": 20, "SEEDS": 2}),
    (stability, {"SIZE": {"steps": 20, "seeds": 2}}),
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, constants in SMALL:
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)


def test_the_command_measures_writes_and_draws_everything(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    timed = {*TWO, jax_steps.RECORDED}
    monkeypatch.setattr(jax_steps, "SLOW", set(jax_steps.optimizers("AdamW")) - timed)
    for module in ("torch", "tensorflow"):  # which are left out, and named
        monkeypatch.setitem(sys.modules, module, None)
    written, drawn = tmp_path / "new" / "results.json", tmp_path / "figure.png"
    files = ["--json", str(written), "--plot", str(drawn)]
    command.main(["--rounds", "1", "--growth", *files])
    told = capsys.readouterr().out
    assert "torch is left out: not installed (pip install torch" in told
    results = json.loads(written.read_text(encoding="utf-8"))
    assert report.markdown(results) in told
    rows = results["steps"]["tiny"]["rows"]
    assert {row["contender"] for row in rows} == timed
    for row in [*rows, *results["clip"], *results["growth"]["leaves"]]:
        assert 0 < row["ratio"] < math.inf
        assert row["ratio"] == 1 or row["contender"] != row.get("reference", jax_steps.BARE)
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
    rows = steps.measured(TINY, 2, lambda doing: None, TWO)
    results = {"machine": machine.facts(), "steps": {"adamw": {"limit": None, "rows": rows}}}
    assert report.markdown(results).startswith("NVIDIA H100 80GB HBM3; ")
    # One in a block of steps took half a second. The peaks are of turns in the order of what they need.
    assert {row["contender"]: row["milliseconds"] for row in rows} == dict.fromkeys(TWO, 500.0)
    in_order = sorted(rows, key=lambda row: row["temporary_megabytes"])
    assert [row["peak_megabytes"] for row in in_order] == [1000.0, 2000.0]
    assert len(timed) == len(TWO) * (1 + 1 + 2)
    assert set(steps.left_out()) == {"torch", "tensorflow"}
    sums = reading.measured(1, lambda doing: None)
    assert not [row for row in sums if row["contender"].startswith("np")]


@pytest.mark.parametrize("name", [jax_steps.OURS, jax_steps.OPTAX, jax_steps.SKIP])
def test_a_clip_that_is_timed_acts(name: str):
    assert min(workload.entries for workload in WORKLOADS.values()) > (2 * MAX_NORM / SCALE) ** 2
    grads, params = jax_filled(TINY.shapes, SCALE), jax_filled(TINY.shapes, seed=1)
    optimizer, step = jax_steps.optimizers("SGD")[name]
    after, _ = jax.jit(step)(params, optimizer.init(params), grads)
    squares = [float(jnp.sum((new - old) ** 2)) for new, old in zip(after, params, strict=True)]
    # Differences of parameters of 1, which are rounded to 6e-8, make up a step of 1e-6.
    assert math.sqrt(sum(squares)) == pytest.approx(LEARNING_RATE * MAX_NORM, rel=0.2)


def test_parts_seconds_and_memory_have_their_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    small_leaves.main(["--rounds", "2"], TINY)
    compiling.main(["--rounds", "1", "--leaves", "3", "--only", *TWO])
    name = "`wc.clip_by_global_norm`"
    monkeypatch.setattr(memory, "OPTIMIZERS", {name: memory.OPTIMIZERS[name]})
    memory.main()
    lines = capsys.readouterr().out.splitlines()
    assert f"| {jax_steps.REFERENCE} | 1.000 (1.000 to 1.000) |" in lines
    (seconds,) = [line for line in lines if line.endswith(" s (1.00) |")]
    assert seconds.startswith(f"| {jax_steps.OURS} | ")
    assert lines[-1] == f"| {name} | 0.0 |"


def test_a_ratio_is_the_median_of_the_rounds_in_which_both_took_part():
    assert median_ratio([2.0, 20.0, 3.0], [1.0, 10.0, 3.0]) == 2.0
    assert median_ratio([2.0, 6.0], [1.0, 2.0, 100.0]) == 2.5


def test_every_rule_setting_and_recipe_has_its_row(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    bounds.main([])
    bounds.main(["--train"])
    written, drawn = tmp_path / "a.json", tmp_path / "a.png"
    task = stability.TASKS[1]._replace(depths=(2,), peaks=np.geomspace(1e-3, 1.0, 2))
    monkeypatch.setattr(stability, "TASKS", (task,))
    stability.main(["--json", str(written), "--plot", str(drawn)])
    told = capsys.readouterr().out
    names = (*bound_rules.RULES, *bound_training.SETTINGS, *stability.RECIPES)
    assert [name for name in names if f"| {name} | " not in told] == []
    (model,) = json.loads(written.read_text())["models"].values()
    losses = np.array(model["losses"])
    assert losses.shape == (len(stability.RECIPES), 2, 2)
    assert len(np.unique(losses[:-1, 0, 0])) == len(stability.RECIPES) - 1
    assert drawn.read_bytes().startswith(PNG)


def corrupted(case: robustness.Case, right: list[np.ndarray]) -> list[Any]:
    """Wrong results, each by one corruption that shows in this case."""
    zeros = [np.zeros_like(leaf) for leaf in right]
    if not robustness.is_finite(case.leaves):
        return [zeros]
    wrong: list[Any] = [TypeError()]
    for change in (np.float64, lambda leaf: leaf[None], lambda leaf: np.full_like(leaf, np.nan)):
        wrong.append([change(right[0]), *right[1:]])
    if reference.global_norm(right) > 1e-3:
        for factor in (-1, 0.97, 1.03):
            wrong.append([(factor * leaf.astype(np.float64)).astype(leaf.dtype) for leaf in right])
        wrong.append(zeros)
    if reference.is_over(case.leaves, 2 * case.max_norm):
        wrong.append(case.leaves)
    return wrong


def test_the_judge_passes_the_formula_and_catches_each_corruption():
    for case in robustness.stream(2 * len(robustness.KINDS), seed=1):
        right = [np.full_like(leaf, math.nan) for leaf in case.leaves]
        if robustness.is_finite(case.leaves):
            parts = [part for (part,) in reference.clip(case.leaves, case.max_norm)]
            right = [part.astype(leaf.dtype) for part, leaf in zip(parts, case.leaves, strict=True)]
        assert robustness.verdict(case, right) is None, case.kind
        for wrong in corrupted(case, right):
            assert robustness.verdict(case, wrong) is not None, (case, wrong)


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
