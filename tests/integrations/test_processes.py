"""Training on other devices and in several real processes is training on one's own, also after a
death.

Two processes; as many as `--processes` says, of 2, 4 and 8.
"""

import pathlib
import shutil
import signal
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType

import warmclip_jax as wc
from tests.integrations import layouts, process_worker
from tests.integrations.layouts import mesh_of, trained
from tests.integrations.process_worker import CALLS, LOSS, NAN, SPIKE
from tests.integrations.real_processes import processes

HALF, PATIENCE = layouts.CALLS // 2, 240
Known = list[dict[str, np.ndarray]]  # of each process


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The checkpoints of a run on eight devices after half of its calls."""
    folder = tmp_path_factory.mktemp("half")
    trained(mesh_of(4, 2), folder, HALF)
    return folder


@pytest.fixture(scope="module")
def stayed(half: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Parameters and state of the run that stayed there to the end."""
    folder = shutil.copytree(half, tmp_path_factory.mktemp("stayed") / "run")
    return trained(mesh_of(4, 2), folder)


def assert_equal_but_for_the_order_of_sums(got: Any, expected: Any, rounded: int = 64) -> None:
    """Within some roundings of float32, of what is largest in an array."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, left), right in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
    ):
        left, right, name = np.asarray(left), np.asarray(right), jax.tree_util.keystr(path)
        assert left.dtype == right.dtype
        if left.dtype.kind != "f":
            np.testing.assert_array_equal(left, right, err_msg=name)
            continue
        known = np.isfinite(right) & (np.abs(right) < 1e30)
        rtol = rounded * float(np.finfo(left.dtype).eps)
        scale = float(np.max(np.abs(right), initial=0, where=known))
        np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol * scale, err_msg=name)


@pytest.mark.parametrize(
    ("data", "model", "kind"),
    [(4, 1, AxisType.Auto), (1, 1, AxisType.Auto), (2, 2, AxisType.Explicit)],
)
def test_a_run_goes_on_on_other_devices_as_on_its_own(
    data: int, model: int, kind: AxisType, half: pathlib.Path, stayed: Any, tmp_path: pathlib.Path
):
    folder = shutil.copytree(half, tmp_path / "run")
    moved = trained(mesh_of(data, model, kind), folder)
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(moved)} == {data * model}
    assert_equal_but_for_the_order_of_sums(moved, stayed)
    records = wc.records(moved[1])
    assert records["call"].tolist() == list(range(layouts.CALLS))
    assert np.flatnonzero(records["skipped"]).tolist() == [layouts.NAN, layouts.SPIKE]
    assert wc.report(wc.read_state(folder)) == wc.report(moved[1])


class Runs:
    """How the processes ended in which the last died, where they left their run, and what all knew
    in those that lived.
    """

    def __init__(self, count: int, folder: pathlib.Path) -> None:
        self.victim, *self.survivors = self._codes(count, folder, "die")[::-1]
        self.left_by_dead = {path.name for path in (folder / "run").iterdir()}
        codes = self._codes(count, folder, "live")
        assert set(codes) == {0}, "".join(path.read_text() for path in folder.glob("*.log"))
        self.restarted, self.known = folder / "run", []
        for process in range(count):
            with np.load(folder / f"{process}.npz") as file:
                self.known.append(dict(file))

    @staticmethod
    def _codes(count: int, folder: pathlib.Path, what: str) -> list[int]:
        deadline = time.monotonic() + PATIENCE
        with processes("process_worker", folder, *[[folder, what]] * count) as workers:
            return [worker.wait(deadline - time.monotonic()) for worker in workers]


@pytest.fixture(scope="module")
def runs(
    half: pathlib.Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Runs:
    count: Any = request.config.getoption("--processes")
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(half, folder / "run")
    return Runs(count, folder)


def test_processes_of_which_one_dies_in_a_checkpoint_end_and_go_on_as_one_that_lives(
    runs: Runs, stayed: Any
):
    assert runs.victim == -signal.SIGKILL
    assert 0 not in runs.survivors
    assert max(int(name) for name in runs.left_by_dead if name.isdigit()) == HALF
    unfinished = f"{process_worker.DIES}.orbax-checkpoint-tmp"
    assert any(name.startswith(unfinished) for name in runs.left_by_dead)
    with ocp.CheckpointManager(runs.restarted) as manager:
        assert manager.latest_step() == layouts.CALLS
        like = jax.tree.map(np.zeros_like, stayed)
        restarted = manager.restore(layouts.CALLS, args=ocp.args.StandardRestore(like))
    assert_equal_but_for_the_order_of_sums(restarted, stayed)
    calls = wc.records(wc.read_state(runs.restarted))["call"]
    assert calls.tolist() == list(range(layouts.CALLS))


def merged(known: Known) -> dict[str, np.ndarray]:
    """What any of them knows; where several know it, they know the same bits."""
    all_of_it: dict[str, np.ndarray] = {}
    for each in known:
        for name, value in each.items():
            first = all_of_it.setdefault(name, value)
            assert (first.dtype, first.tobytes()) == (value.dtype, value.tobytes()), name
    return all_of_it


def test_metrics_records_report_and_shards_are_the_same_bits_in_all_processes(runs: Runs):
    for each in runs.known:
        assert {"records grad_norm", "metrics table/max_norm", "report"} < each.keys()
    assert merged(runs.known).keys() > merged(runs.known[:1]).keys()  # each has shards of its own


def test_all_processes_compute_what_one_does(runs: Runs):
    # A few roundings of float32 for each call.
    assert_equal_but_for_the_order_of_sums(merged(runs.known), process_worker.train(), CALLS * 8)


def test_what_one_device_sees_is_left_out_on_all(runs: Runs):
    (nan, _), (spike, _), (loss, _) = NAN, SPIKE, LOSS
    for known in runs.known:
        assert np.flatnonzero(known["records skipped"]).tolist() == [nan, spike, loss]
        assert known["metrics nonfinite_count"].tolist() == [call >= nan for call in range(CALLS)]
        norms, bounds = known["records grad_norm"], known["records skip_bound"]
        values, value_bounds = known["records value"], known["records value_bound"]
        # Each for its own reason: the first is NaN, the next is far out, of the last the loss alone.
        assert np.isnan([norms[nan], values[nan]]).all()
        assert norms[spike] > bounds[spike]
        assert norms[loss] < bounds[loss]
        assert values[loss] > value_bounds[loss]
        assert known["metrics step"][-1] == CALLS - 3
        report = str(known["report"])
        assert f"Last call with NaN or inf: call {nan}, step {nan}, skipped." in report
        assert f"Last spike of the loss: call {loss}" in report
