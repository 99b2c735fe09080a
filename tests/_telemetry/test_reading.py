"""Reading a checkpoint without the code, the devices and the arrays of the training that wrote it."""

import json
import os
import pathlib
import pickle
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from typing import Any

import flax
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training import checkpoints
from jax.sharding import NamedSharding, PartitionSpec

import warmclip_jax as wc

OPTIMIZER = wc.pipeline(
    optax.adamw,
    wc.constant(value=0.1),
    max_norm=wc.running_bound(),
    skip_above=wc.running_bound(deviations=6.0),
    record=4,
    record_leaves=True,
)
#: Where each of these stands below the folder of `saved`.
SAVED = (
    *("standard", "bare", "tuple", "pytree", "plain", "zarr3", "a folder, 100 %#?"),
    *("manager", "manager/5", "manager/5/default", "prefixed", "composite", "composite/state"),
    *("flax", "flax/checkpoint_5", "flax_with_orbax", "bytes.msgpack"),
)


@pytest.fixture(scope="module")
def state() -> Any:
    """The state of a run on eight devices, with a bad call and a spike."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    kernel = jax.device_put(
        np.ones((16, 4), np.float32), NamedSharding(mesh, PartitionSpec("data"))
    )
    params = {
        "kernel": kernel,
        "bias": jax.device_put(kernel[0], NamedSharding(mesh, PartitionSpec())),
    }
    step = jax.jit(lambda state, scale: OPTIMIZER.update(_times(params, scale), state, params)[1])
    state = jax.jit(OPTIMIZER.init)(params)
    for scale in (1.0, 2.0, np.nan, 1e6, 1.0):
        state = step(state, scale)
    return state


@pytest.fixture(scope="module")
def saved(state: Any, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("saved")
    params = jax.tree.leaves(state.inner_state)[1]
    train = {"step": 5, "params": {"w": params}, "opt_state": state}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "standard", train)
        checkpointer.save(folder / "bare", state)
        checkpointer.save(folder / "tuple", (train["params"], state))
        checkpointer.save(folder / "a folder, 100 %#?", {"x/y.z": state})
        checkpointer.save(folder / "other", {"params": params, "adam": state.inner_state})
    ocp.PyTreeCheckpointer().save(folder / "pytree", jax.device_get(train))
    ocp.PyTreeCheckpointer(use_ocdbt=False).save(folder / "plain", train)
    ocp.PyTreeCheckpointer(use_zarr3=True).save(folder / "zarr3", train)
    with ocp.CheckpointManager(folder / "manager") as manager:
        for step in (1, 5):
            manager.save(
                step, args=ocp.args.StandardSave(train | ({"opt_state": 0} if step < 5 else {}))
            )
    options = ocp.CheckpointManagerOptions(step_prefix="run", step_format_fixed_length=8)
    with ocp.CheckpointManager(folder / "prefixed", options=options) as manager:
        manager.save(5, args=ocp.args.StandardSave(train))
    items: dict[str, Any] = {
        "weights": ocp.args.StandardSave(train["params"]),
        "array": ocp.args.ArraySave(params),
        "notes": ocp.args.JsonSave({"a": 1}),
        "state": ocp.args.PyTreeSave(state),
        "train": ocp.args.StandardSave(train),
    }
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder / "composite", args=ocp.args.Composite(**items))
    (folder / "bytes.msgpack").write_bytes(serialization.to_bytes(train))
    uses_orbax = flax.config.flax_use_orbax_checkpointing
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Flax Checkpointing will soon be deprecated")
        for name, uses in (("flax", False), ("flax_with_orbax", True)):
            flax.config.update("flax_use_orbax_checkpointing", uses)
            checkpoints.save_checkpoint(folder / name, train, 5)
    flax.config.update("flax_use_orbax_checkpointing", uses_orbax)
    return folder


def _times(tree: Any, scale: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf * scale, tree)


def told(state: Any) -> str:
    """All that can be read of one state."""
    records = {name: column.tolist() for name, column in wc.records(state).items()}
    metrics = {name: value.item() for name, value in wc.metrics(state).items()}
    return f"{wc.report(state)}\n{records}\n{metrics}"


def contents(folder: pathlib.Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("name", SAVED)
def test_what_any_library_saved_is_told_as_the_state_itself(
    name: str, saved: pathlib.Path, state: Any
):
    before = contents(saved / name)
    read = wc.read_state(saved / name)
    states = list(read.values()) if name == "composite" else [read]
    assert [told(each) for each in states] == [told(state)] * (2 if name == "composite" else 1)
    assert {type(leaf) for leaf in jax.tree.leaves(read)} <= {np.ndarray, np.int32, np.float32}
    assert contents(saved / name) == before


def test_the_state_of_an_nnx_optimizer_is_read(tmp_path: pathlib.Path):
    model: Any = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", nnx.state((model, optimizer)))
    assert told(wc.read_state(tmp_path / "saved")) == told(optimizer)


def test_several_states_have_the_names_that_they_have_in_memory(tmp_path: pathlib.Path):
    params = {"embed": np.ones(2, np.float32), "head": np.ones(3, np.float32)}
    each: Any = {name: wc.pipeline(optax.sgd, 0.1, max_norm=1.0) for name in params}
    chained = optax.chain(optax.partition(each, {name: name for name in params}))
    state = chained.init(params)
    train = {"params": params, "opt_state": wc.skip_nonfinite(chained).init(params)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", {"opt_state": state})
        checkpointer.save(tmp_path / "guarded", train)
    (tmp_path / "flax").write_bytes(serialization.to_bytes({"opt_state": state}))
    for name in ("orbax", "flax"):
        assert wc.metrics(wc.read_state(tmp_path / name)).keys() == wc.metrics(state).keys()
    assert "embed/grad_norm" in wc.metrics(state)
    guarded = wc.read_state(tmp_path / "guarded")
    assert wc.metrics(guarded).keys() == wc.metrics(train["opt_state"]).keys()


def test_parameters_and_moments_need_not_be_there(
    saved: pathlib.Path, state: Any, tmp_path: pathlib.Path
):
    shutil.copytree(saved / "plain", tmp_path / "plain")
    others = [
        path
        for path in (tmp_path / "plain").iterdir()
        if ".inner_state" in path.name or path.name.startswith("params")
    ]
    assert len(others) == 7
    for path in others:
        shutil.rmtree(path)
    assert told(wc.read_state(tmp_path / "plain")) == told(state)


def damages(path: pathlib.Path) -> list[Callable[[], object]]:
    half = path.read_bytes()[: path.stat().st_size // 2]
    return [lambda: path.write_bytes(half), lambda: path.write_bytes(b""), path.unlink]


@pytest.mark.parametrize("name", ["standard", "zarr3", "plain", "flax"])
def test_a_damaged_file_is_one_sentence_and_never_another_state(
    name: str,
    saved: pathlib.Path,
    state: Any,
    tmp_path: pathlib.Path,
    capfd: pytest.CaptureFixture[str],
):
    folder = tmp_path / "damaged"
    shutil.copytree(saved / name, folder)
    whole, refused = contents(folder), list[str]()
    # Where each array has files of its own, those of three arrays stand for all.
    skipped = ("opt_state", "params") if name == "plain" else ()
    for file in map(pathlib.Path, whole):
        below = file.relative_to(folder).parts[0]
        if below.startswith(skipped) and not below.endswith(
            ("ring_numbers", "leaf_names", "clip_calls")
        ):
            continue
        for damage in damages(file):
            damage()
            try:
                assert told(wc.read_state(folder)) == told(state)
            except ValueError as error:
                refused.append(str(error))
            file.write_bytes(whole[str(file)][0])
    assert len(refused) >= 3
    start = f"read_state: path must be a (whole )?checkpoint.*; {re.escape(str(folder))}.+"
    assert [message for message in refused if not re.fullmatch(start, message)] == []
    assert capfd.readouterr() == ("", "")


def test_a_path_may_go_up_and_through_a_link(
    saved: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "link").symlink_to(saved)
    monkeypatch.chdir(tmp_path)
    expected = told(wc.read_state(saved / "standard"))
    for path in ("link/standard", "./link/bare/../standard"):
        assert told(wc.read_state(path)) == expected


def test_what_is_no_checkpoint_is_one_sentence(saved: pathlib.Path, tmp_path: pathlib.Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"clip_calls": Bomb(), "clip_coef": 1}))
    (tmp_path / "list").write_bytes(serialization.msgpack_serialize([{"clip_calls": 1}]))
    (tmp_path / "deep").write_bytes(b"\x91" * 10_000)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "5.orbax-checkpoint-tmp").mkdir()
    cases: list[tuple[Any, int | None, type[Exception], str]] = [
        (tmp_path / "gone", None, FileNotFoundError, "gone is not there"),
        (tmp_path / "pickle" / "below", None, FileNotFoundError, "below is not there"),
        (tmp_path / "empty", None, ValueError, "empty holds nothing"),
        (tmp_path / "notes", None, ValueError, "notes holds a.txt"),
        (tmp_path / "run", None, ValueError, "run holds 5.orbax-checkpoint-tmp"),
        (tmp_path / "pickle", None, ValueError, "pickle is not: it is no dict of flax"),
        (tmp_path / "list", None, ValueError, "list is not: it is no dict of flax"),
        (tmp_path / "deep", None, ValueError, "deep is not: maximum recursion depth"),
        (saved / "other", None, ValueError, "other holds adam, params"),
        (
            saved / "manager",
            1,
            ValueError,
            "manager/1 holds default/opt_state, default/params, default/step",
        ),
        (saved / "manager", 4, ValueError, "got 4, and .*manager holds steps 1, 5"),
        (saved / "standard", 4, ValueError, "got 4, and .*standard holds one checkpoint"),
        (3, None, TypeError, "that of a checkpoint; got 3"),
    ]
    for path, step, kind, message in cases:
        with pytest.raises(kind, match=f"^read_state: .*{message}") as caught:
            wc.read_state(path, step=step)
        assert "\n" not in str(caught.value)
        assert caught.type is kind


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_a_state_that_a_later_version_wrote_is_named(saved: pathlib.Path, tmp_path: pathlib.Path):
    shutil.copytree(saved / "bare", tmp_path / "later")
    file = tmp_path / "later" / "_METADATA"
    about = json.loads(file.read_text())
    entry = about["tree_metadata"].pop("('last_learning_rate',)")
    entry["key_metadata"][0]["key"] = "above_bound"
    about["tree_metadata"]["('weather',)"] = {
        **entry,
        "key_metadata": [{"key": "weather", "key_type": 2}],
        "value_metadata": {"value_type": "None", "skip_deserialize": True},
    }
    file.write_text(json.dumps(about))
    with pytest.raises(
        ValueError, match="PipelineState without last_learning_rate and with weather"
    ):
        wc.read_state(tmp_path / "later")


def test_without_orbax_or_flax_it_says_what_to_install(
    saved: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    for name, module, package in (
        ("standard", "tensorstore", "orbax-checkpoint"),
        ("bytes.msgpack", "flax.serialization", "flax"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ModuleNotFoundError, match=f"read_state needs {package}.*pip install"):
            wc.read_state(saved / name)
