"""A run goes on from its checkpoint on other devices, in other processes, and after a death."""

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
from tests.integrations.layout_worker import CALLS, EVERY, NAN, SPIKE, mesh_of, trained
from tests.integrations.real_processes import processes

HALF = CALLS // 2


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


def assert_equal_but_for_the_order_of_sums(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, left), right in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
    ):
        left, right = np.asarray(left), np.asarray(right)
        assert left.dtype == right.dtype
        if left.dtype.kind in "iub":
            np.testing.assert_array_equal(left, right, err_msg=jax.tree_util.keystr(path))
        else:
            # A few roundings of float32 a call, through eight calls of AdamW.
            scale = float(np.max(np.abs(right), initial=0, where=np.abs(right) < 1e30))
            rtol = 64 * float(np.finfo(left.dtype).eps)
            np.testing.assert_allclose(
                left, right, rtol=rtol, atol=rtol * scale, err_msg=jax.tree_util.keystr(path)
            )


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
    assert records["call"].tolist() == list(range(CALLS))
    assert np.flatnonzero(records["skipped"]).tolist() == [NAN, SPIKE]
    assert wc.report(wc.read_state(folder)) == wc.report(moved[1])


def workers(folder: pathlib.Path, logs: pathlib.Path, moment: int) -> Any:
    """Two, of which the second dies in the checkpoint after `moment` calls."""
    return processes("layout_worker", logs, [folder, 0], [folder, moment])


def test_two_processes_of_which_one_dies_in_a_checkpoint_end_as_one_that_lives(
    half: pathlib.Path, stayed: Any, tmp_path: pathlib.Path
):
    folder = shutil.copytree(half, tmp_path / "run")
    deadline = time.monotonic() + 240
    with workers(folder, tmp_path, HALF + EVERY) as (_, victim):
        code = victim.wait(deadline - time.monotonic())
    log = (tmp_path / "1.log").read_text()
    assert code == -signal.SIGKILL, log
    assert "dies at" in log
    names = {path.name for path in folder.iterdir()}
    assert max(int(name) for name in names if name.isdigit()) == HALF
    assert any(name.startswith(f"{HALF + EVERY}.orbax-checkpoint-tmp") for name in names)
    with workers(folder, tmp_path, 0) as both:
        codes = [worker.wait(deadline - time.monotonic()) for worker in both]
    assert codes == [0, 0], (tmp_path / "0.log").read_text()
    with ocp.CheckpointManager(folder) as manager:
        assert manager.latest_step() == CALLS
        like = jax.tree.map(np.zeros_like, stayed)
        restarted = manager.restore(CALLS, args=ocp.args.StandardRestore(like))
    assert_equal_but_for_the_order_of_sums(restarted, stayed)
    assert wc.records(wc.read_state(folder))["call"].tolist() == list(range(CALLS))
