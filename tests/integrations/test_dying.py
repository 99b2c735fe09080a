"""A training process that is killed in a step or in a checkpoint, and started again, ends as one
that never was killed.
"""

import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import chex
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import warmclip_jax as wc
from tests.integrations import dying_worker
from tests.integrations.dying_worker import CALLS, NAN, SPIKE

pytestmark = pytest.mark.usefixtures("compiled_once")

ROOT = pathlib.Path(__file__).parents[2]
#: What kills each process, and what is then complete; a checkpoint is written after the first call,
#: 4, 8 and so on. In the middle of one a process dies in test_layouts.py.
DEATHS = [("call 6", 4), ("commit 20", 16)]


def run_until(moment: str, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    arguments = [
        sys.executable,
        "-m",
        "tests.integrations.dying_worker",
        str(folder),
        *moment.split(),
    ]
    return subprocess.run(
        arguments, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return dying_worker.trained(tmp_path_factory.mktemp("alive"))[0]


def test_a_run_that_was_killed_twice_ends_as_one_that_never_was(
    never_killed: Any, tmp_path: pathlib.Path
):
    folder = tmp_path / "run"
    for moment, complete in DEATHS:
        process = run_until(moment, folder)
        assert process.returncode == -signal.SIGKILL, (moment, process.stderr)
        steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        assert steps[-1] == complete, moment
        # Killed within a checkpoint, a process leaves the beginning of one behind.
        begun = [path.name for path in folder.iterdir() if not path.name.isdigit()]
        assert len(begun) == (moment.split()[0] != "call"), begun
    process = run_until("never 0", folder)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "began with 16\n"
    with ocp.CheckpointManager(folder) as manager:
        assert manager.latest_step() == CALLS
        killed = manager.restore(
            CALLS, args=ocp.args.StandardRestore(jax.tree.map(np.zeros_like, never_killed))
        )
    chex.assert_trees_all_equal_shapes_and_dtypes(killed, never_killed)
    for (path, got), expected in zip(
        jax.tree.leaves_with_path(killed), jax.tree.leaves(never_killed), strict=True
    ):
        assert np.asarray(got).tobytes() == np.asarray(expected).tobytes(), jax.tree_util.keystr(
            path
        )
    assert wc.report(killed) == wc.report(never_killed)


def test_the_counts_are_those_of_the_bad_calls(never_killed: Any):
    params, state = never_killed
    known = {
        name: int(value) for name, value in wc.metrics(state).items() if value.dtype == np.int32
    }
    assert (known["calls"], known["step"]) == (CALLS, CALLS - len(NAN) - 1)
    assert (known["nonfinite_count"], known["skipped_count"], known["last_skipped_call"]) == (
        len(NAN),
        len(NAN) + 1,
        max(NAN),
    )
    assert int(optax.tree.get(state.inner_state[0], "count")) == known["step"]
    record = wc.records(state)
    assert record["call"][record["skipped"]].tolist() == [
        call for call in (*NAN, SPIKE) if call >= CALLS - 8
    ]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
