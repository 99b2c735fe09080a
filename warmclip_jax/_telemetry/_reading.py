"""What a checkpoint on disk holds of this package's states, read on any machine."""

import contextlib
import functools
import importlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from warmclip_jax._telemetry._account import listed
from warmclip_jax._telemetry._finding import found, kind_of
from warmclip_jax._telemetry._msgpack import outline
from warmclip_jax._values import ArgumentValueError, broken_rule, named

#: The name of a step's folder or file: `12`, `00000012`, `checkpoint_12`.
_STEP = re.compile(r"(?:.*_)?(\d+)")
#: What orbax writes into the folder of a tree, and into that of a checkpoint.
_TREE, _CHECKPOINT = "_METADATA", "_CHECKPOINT_METADATA"


@named
def read_state(path: Any, *, step: int | None = None) -> Any:
    """What a checkpoint holds of this package's states, for `report`, `records` and the others.

    Reads on any machine what any number of devices or processes wrote, without the code that
    trained. Parameters and moments are not read; nothing is written, unpickled or run.

    Args:
      path: what orbax wrote: the folder of a `StandardCheckpointer` or `PyTreeCheckpointer`, of
        `Composite` items or one of them, the root of a `CheckpointManager`, or one of its steps.
        What flax wrote: a file of `flax.serialization.to_bytes`, or the folder of
        `flax.training.checkpoints`.
      step: which step of a root to read; None for the newest.

    Returns:
      The tree of the checkpoint, with NumPy arrays, each state as a dict of its fields, and () for
      what is not read. Where several items hold states, a dict of their trees.

    Raises:
      FileNotFoundError, PermissionError: where nothing is, or nothing that may be read.
      ValueError: for what is no checkpoint, is damaged, holds no state of this package or one that
        another version wrote, and for a step that is not there.
      ModuleNotFoundError: without orbax or flax, with the command that installs it.

    >>> import pathlib, tempfile
    >>> import jax.numpy as jnp, optax
    >>> import orbax.checkpoint as ocp
    >>> import warmclip_jax as wc
    >>> params = {"w": jnp.ones(3)}
    >>> state = wc.pipeline(optax.adam, 0.1).init(params)
    >>> with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
    ...     checkpointer.save(pathlib.Path(folder) / "saved", {"params": params, "state": state})
    ...     checkpointer.wait_until_finished()
    ...     tree = wc.read_state(pathlib.Path(folder) / "saved")
    >>> tree["params"], tree["state"]["clip_state"]["clip_calls"]
    ((), array(0, dtype=int32))
    """
    checkpoint = _checkpoint(path, step)
    trees, names = {}, []
    for name, item in _items(checkpoint).items():
        with _as_damage_of(item):
            tree, array = _of_orbax(item) if item.is_dir() else _of_flax(item)
            ours = jax.tree.map(array, _ours(tree))
        if jax.tree.leaves(ours):
            trees[name] = ours
        names += [f"{name}/{key}".strip("/") for key in tree] or [name]
    if not trees:
        raise ArgumentValueError(
            "path must be a checkpoint with a state of clip_by_global_norm, skip_nonfinite or "
            f"pipeline; {checkpoint} holds {listed(names)}."
        )
    state = trees.popitem()[1] if len(trees) == 1 else trees
    found(state)
    return state


def steps_in(path: Any) -> dict[int, Any]:
    """The checkpoints of a root by their steps, in order; none for the path of one checkpoint."""
    root = _as_path(path)
    if not root.is_dir() or (root / _TREE).exists() or (root / _CHECKPOINT).exists():
        return {}
    names = {child: _STEP.fullmatch(child.name) for child in root.iterdir()}
    return dict(sorted((int(match[1]), child) for child, match in names.items() if match))


def _checkpoint(path: Any, step: int | None) -> Any:
    """The folder or file of one checkpoint."""
    root, steps = _as_path(path), steps_in(path)
    if step is None:
        return steps[max(steps)] if steps else root
    if step not in steps:
        there = f"steps {listed(steps)}" if steps else "one checkpoint, not several steps"
        raise ArgumentValueError(
            f"step must be one that is in path; got {step!r}, and {root} holds {there}."
        )
    return steps[step]


def _items(checkpoint: Any) -> dict[str, Any]:
    """The folders of the trees in a checkpoint by their names; of a single folder or file, ""."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"read_state: path must be a checkpoint; {checkpoint} is not there")
    if not checkpoint.is_dir() or (checkpoint / _TREE).exists():
        return {"": checkpoint}
    children = sorted(checkpoint.iterdir())
    items = {child.name: child for child in children if (child / _TREE).exists()}
    if not items:
        there = listed(child.name for child in children) or "nothing"
        raise ArgumentValueError(
            f"path must be a checkpoint of orbax or flax; {checkpoint} holds {there}."
        )
    return items


def _of_orbax(folder: Any) -> tuple[Any, Callable[[str], np.ndarray]]:
    """The tree in a folder, with the names of its arrays, and what reads an array by its name.

    orbax's own `metadata` and `restore` open every array, which takes seconds for thousands, and
    wait for the other processes.
    """
    tensorstore = _library("tensorstore", "orbax-checkpoint")
    about = json.loads((folder / _TREE).read_text())
    tree: dict[Any, Any] = {}
    for entry in about["tree_metadata"].values():
        keys = [key["key"] for key in entry["key_metadata"]]
        *above, last = keys or [""]
        node = functools.reduce(lambda node, key: node.setdefault(key, {}), above, tree)
        node[last] = () if entry["value_metadata"]["skip_deserialize"] else ".".join(keys)
    driver = "zarr3" if about.get("use_zarr3") else "zarr"
    is_database = (folder / "manifest.ocdbt").exists()

    def store(name: str) -> Any:
        where = f"{folder}/{name}"
        return where if "://" in where else {"driver": "file", "path": where}

    def array(name: str) -> np.ndarray:
        database = {"driver": "ocdbt", "base": store(""), "path": f"{name}/"}
        spec = {
            "driver": driver,
            "kvstore": database if is_database else store(f"{name}/"),
            "fill_missing_data_reads": False,
        }
        return tensorstore.open(spec, read=True, open=True).result().read().result()

    return tree, array


def _of_flax(file: Any) -> tuple[Any, Callable[[slice], Any]]:
    """The tree in a file, with where its arrays are, and what reads an array from there."""
    decode = _library("flax.serialization", "flax").msgpack_restore
    with file.open("rb") as opened:
        tree = outline(opened)

    def array(part: slice) -> Any:
        with file.open("rb") as opened:
            opened.seek(part.start)
            return decode(opened.read(part.stop - part.start))

    return tree, array


def _ours(node: Any) -> Any:
    """A tree with () for all that is not in a state of this package, and lists where there were."""
    if not isinstance(node, Mapping):
        return ()
    is_state = kind_of(node) is not None
    kept = {
        key: value if is_state and key != "inner_state" else _ours(value)
        for key, value in node.items()
    }
    if not jax.tree.leaves(kept):
        return ()
    numbers = [str(number) for number in range(len(kept))]
    return [kept[number] for number in numbers] if kept.keys() == set(numbers) else kept


def _as_path(path: Any) -> Any:
    if not isinstance(path, (str, os.PathLike)):
        remedy = "Pass its folder or file."
        raise broken_rule("path", "that of a checkpoint", path, remedy, TypeError)
    text = os.fspath(path)
    if "://" in text:  # a bucket
        return _library("etils.epath", "orbax-checkpoint").Path(text)
    return pathlib.Path(text).resolve()


def _library(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"read_state needs {package}, which is not installed; run: pip install {package}",
            name=error.name,
        ) from error


@contextlib.contextmanager
def _as_damage_of(item: Any) -> Iterator[None]:
    """One sentence for whatever the libraries raise over a damaged file."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:
        # tensorstore tells in brackets how the array was opened.
        reason = re.split(r"\n| \[", str(error))[0] or type(error).__name__
        raise ArgumentValueError(
            f"path must be a whole checkpoint; {item} is not: {reason}."
        ) from error
