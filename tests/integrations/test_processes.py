"""Training in several real processes, in shards and with everything on, is training in one.

Two processes; as many as `--processes` says, of 2, 4 and 8.
"""

import pathlib
import signal
import time
from typing import Any

import numpy as np
import pytest

from tests.integrations import process_worker
from tests.integrations.process_worker import CALLS, HALF, LOSS, NAN, SPIKE
from tests.integrations.real_processes import processes

PATIENCE = 240
Known = list[dict[str, np.ndarray]]  # of each process


class Runs:
    """How the processes ended in which the last died, and what all knew in those that lived."""

    def __init__(self, count: int, folder: pathlib.Path) -> None:
        self.victim, *self.survivors = self._codes(count, folder, "die")[::-1]
        self.left_by_dead = sorted(path.name for path in folder.glob("dead*"))
        codes = self._codes(count, folder, "live")
        assert set(codes) == {0}, "".join(path.read_text() for path in folder.glob("*.log"))
        self.continued, self.whole = (
            [self._loaded(folder / f"{name} {process}.npz") for process in range(count)]
            for name in ("continued", "whole")
        )

    @staticmethod
    def _codes(count: int, folder: pathlib.Path, what: str) -> list[int]:
        deadline = time.monotonic() + PATIENCE
        with processes("process_worker", folder, *[[folder, what]] * count) as workers:
            return [worker.wait(deadline - time.monotonic()) for worker in workers]

    @staticmethod
    def _loaded(path: pathlib.Path) -> dict[str, np.ndarray]:
        with np.load(path) as file:
            return dict(file)


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    count: Any = request.config.getoption("--processes")
    return Runs(count, tmp_path_factory.mktemp("runs"))


def merged(known: Known) -> dict[str, np.ndarray]:
    """What any of them knows; where several know it, they know the same bits."""
    all_of_it: dict[str, np.ndarray] = {}
    for each in known:
        for name, value in each.items():
            first = all_of_it.setdefault(name, value)
            assert (first.dtype, first.tobytes()) == (value.dtype, value.tobytes()), name
    return all_of_it


def test_metrics_records_report_and_shards_are_the_same_bits_in_all_processes(runs: Runs):
    for each in (*runs.whole, *runs.continued):
        assert {"records grad_norm", "metrics table/max_norm", "report"} < each.keys()
    assert merged(runs.whole).keys() > merged(runs.whole[:1]).keys()  # each has shards of its own
    merged(runs.continued)


def test_all_processes_compute_what_one_does(runs: Runs, tmp_path: pathlib.Path):
    # Without shards by hand two processes run in test_layouts.py.
    alone, together = process_worker.train(tmp_path), merged(runs.whole)
    assert together.keys() == alone.keys()
    for name, value in together.items():
        assert value.dtype == alone[name].dtype
        if value.dtype.kind != "f":
            np.testing.assert_array_equal(value, alone[name], err_msg=name)
            continue
        # Sums over eight devices in another order: a few roundings of float32, once for each call.
        rtol = CALLS * 8 * float(np.finfo(value.dtype).eps)
        size = np.max(np.abs(value), initial=0, where=np.isfinite(value) & (np.abs(value) < 1e30))
        np.testing.assert_allclose(value, alone[name], rtol=rtol, atol=rtol * size, err_msg=name)


def test_what_one_device_sees_is_left_out_on_all(runs: Runs):
    (nan, _), (spike, _), (loss, _) = NAN, SPIKE, LOSS
    for known in runs.whole:
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


def test_no_process_waits_for_ever_for_one_that_died_within_a_step(runs: Runs):
    assert runs.victim == -signal.SIGKILL
    assert 0 not in runs.survivors
    assert runs.left_by_dead == []


def test_from_the_checkpoint_of_the_run_that_died_all_goes_on_as_if_nobody_had(runs: Runs):
    whole: Any = merged(runs.whole)
    for name, value in merged(runs.continued).items():
        expected = whole[name][HALF:] if name.startswith("metrics") else whole[name]
        assert value.tobytes() == expected.tobytes(), name
