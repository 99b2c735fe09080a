"""`python -m warmclip_jax report`: a checkpoint told, listed, drawn and exported."""

import csv
import json
import math
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization

import warmclip_jax as wc
from warmclip_jax.__main__ import main

OPTIMIZER = wc.pipeline(optax.sgd, 0.1, max_norm=2.0, record=4)


def state_after(*norms: float, optimizer: Any = OPTIMIZER) -> Any:
    state = optimizer.init(jnp.zeros(2))
    for norm in norms:
        _, state = optimizer.update(jnp.array([norm, 0.0]), state)
    return state


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The root of a run: a recorded state, one without a record, one of optax, a damaged one."""
    root = tmp_path_factory.mktemp("run")
    states = {
        8: {"params": jnp.ones(3), "opt_state": state_after(1.0, 3.0, math.nan)},
        12: state_after(1.0, optimizer=wc.pipeline(optax.sgd, 0.1)),
        16: {"optimizer": optax.adam(0.1).init(jnp.ones(2))},
        20: {"opt_state": state_after()},
        100: state_after(1.0),
    }
    with ocp.CheckpointManager(root) as manager:
        for step, state in states.items():
            manager.save(step, args=ocp.args.StandardSave(state))
    (root / "100" / "default" / "_METADATA").write_text("{")
    return root


def printed(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["report", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["report", *map(str, arguments)])
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_it_prints_the_report_of_the_step_that_is_named_or_the_newest(
    run: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    expected = wc.report(wc.read_state(run, step=8))
    assert printed(capsys, run, "--step", 8) == printed(capsys, run / "8") == f"{expected}\n"
    assert "100/default is not: " in refused(capsys, run)


def test_it_reads_on_one_device_what_eight_wrote_and_escapes_what_cannot_be_printed(
    tmp_path: pathlib.Path,
):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = {"größe": jax.device_put(jnp.ones(8), sharding)}
    optimizer = wc.pipeline(optax.adam, 0.1, record=4, record_leaves=True)
    step = jax.jit(lambda grads, state: optimizer.update(grads, state, params)[1])
    state = step({"größe": params["größe"] * jnp.nan}, jax.jit(optimizer.init)(params))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", {"params": params, "opt_state": state})
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "warmclip_jax", "report", str(tmp_path / "saved")]
    ran = subprocess.run(command, cwd=root, env=environment, capture_output=True, check=True)
    expected = wc.report(state)
    assert "Leaves with NaN, 1 of 1: größe" in expected
    assert ran.stdout.decode() == expected.encode("ascii", "backslashreplace").decode() + "\n"
    assert ran.stderr == b""


def test_the_list_has_every_step_and_what_it_holds(
    run: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    lines = printed(capsys, run, "--list").splitlines()
    assert lines[0] == "step 8: calls recorded: 3, the last is 2"
    assert lines[1] == "step 12: no record"
    assert lines[2].startswith("step 16: read_state: path must be a checkpoint with a state of")
    assert lines[3] == "step 20: calls recorded: 0"
    assert lines[4].startswith("step 100: read_state: path must be a whole checkpoint")
    assert len(lines) == 5
    alone = printed(capsys, run / "8", "--list")
    assert alone == "one checkpoint: calls recorded: 3, the last is 2\n"


def test_metrics_and_rows_and_picture_are_those_of_the_state(
    run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    files = tmp_path / "rows.csv", tmp_path / "picture.png"
    text = printed(capsys, run, "--step", 8, "--json", "--csv", files[0], "--out", files[1])
    state = wc.read_state(run, step=8)
    expected = {name: value.item() for name, value in wc.metrics(state).items()}
    assert json.loads(text) == {
        name: value if math.isfinite(value) else None for name, value in expected.items()
    }
    with files[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, column in wc.records(state).items():
        read = np.array([row[name] or "nan" for row in rows])
        read = read == "True" if column.dtype == bool else read.astype(column.dtype)
        np.testing.assert_array_equal(read, column, err_msg=name)
    assert rows[1]["learning_rate"] == "0.1"
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_vmapped_runs_have_their_number_in_the_rows_and_lists_in_the_metrics(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    states = [state_after(1.0), state_after(2.0, math.nan)]
    runs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    (tmp_path / "runs").write_bytes(serialization.to_bytes(runs))
    text = printed(capsys, tmp_path / "runs", "--json", "--csv", tmp_path / "rows.csv")
    assert json.loads(text)["grad_norm"] == [1.0, None]
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    numbers = [(row["run"], row["call"], row["grad_norm"]) for row in rows]
    assert numbers == [("0", "0", "1.0"), ("1", "0", "2.0"), ("1", "1", "")]


def test_every_failure_is_one_line_and_writes_nothing(
    run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out.csv"
    for arguments, message in (
        ([tmp_path / "gone"], "is not there"),
        ([run, "--step", 9], "holds steps 8, 12, 16, 20, 100"),
        ([run, "--step", "x"], "invalid int value"),
        ([run, "--step", 12], "must hold a recorder"),
        ([run, "--step", 20, "--out", tmp_path], "--out must name a file"),
        ([run, "--step", 8, "--out", tmp_path / "a.txt"], "cannot draw"),
        ([run, "--step", 8, "--csv", tmp_path], "Is a directory"),
        ([], "required"),
    ):
        csv_too = [] if "--csv" in arguments or not arguments else ["--csv", out]
        assert message in refused(capsys, *arguments, *csv_too), arguments
        assert not any(tmp_path.iterdir()), arguments
