"""Every kind of state, saved and restored by every library: the run goes on to the same bits."""

import io
import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import warmclip_jax as wc
from tests.cases import case

LOSS = wc.running_bound(deviations=6.0)
EVERYTHING: dict[str, Any] = {
    "max_norm": wc.running_bound(ceiling=1.0),
    "skip_above": LOSS,
    "skip_value_above": LOSS,
    "record": 4,
    "record_leaves": True,
}


def full(**options: Any) -> Any:
    return wc.pipeline(optax.adam, 0.1, **EVERYTHING, **options)


LEAF, OTHER = jnp.linspace(-1.0, 2.0, 4), jnp.ones((2, 2))
#: An optimizer with parameters of which something is unusual.
STATES: dict[str, tuple[Any, Any]] = {
    "plain": (wc.pipeline(optax.adam, 0.1), {"w": LEAF, "b": OTHER}),
    "one parameter": (full(), {"w": LEAF}),
    "a bare array": (full(), LEAF),
    "the key ''": (full(groups=wc.label_by_path()), {"": LEAF, "b": OTHER}),
    "a part without leaves": (full(groups="all"), {"w": LEAF, "none": {}, "nothing": None}),
    "labels": (full(groups=wc.label_by_path({"first": "w"})), {"w": LEAF, "b": OTHER}),
    "a mask": (
        optax.masked(full(groups=wc.label_by_path()), {"w": True, "b": False}),
        {"w": LEAF, "b": OTHER},
    ),
    "a mask of nothing": (optax.masked(full(), {"w": False}), {"w": LEAF}),
    "pairs of lookahead": (
        optax.lookahead(full(groups=wc.label_by_path()), 2, 0.5),
        optax.LookaheadParams.init_synced({"w": LEAF, "b": OTHER}),
    ),
    "a partition": (
        optax.partition({"one": full(), "two": optax.sgd(0.1)}, {"w": "one", "b": "two"}),
        {"w": LEAF, "b": OTHER},
    ),
    "injected": (
        optax.inject_hyperparams(lambda rate: wc.pipeline(optax.adam, rate))(rate=0.1),
        {"w": LEAF, "b": OTHER},
    ),
    "accumulated": (optax.MultiSteps(full(), 2), {"w": LEAF, "b": OTHER}),
    "guard outside": (
        wc.skip_nonfinite(optax.MultiSteps(optax.adam(0.1), 2), record=4, record_leaves=True),
        {"w": LEAF, "b": OTHER},
    ),
}


def abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def by_orbax(tree: Any, folder: pathlib.Path) -> Any:
    like = abstract(tree)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder / "saved", args=ocp.args.PyTreeSave(tree))
        arguments = ocp.checkpoint_utils.construct_restore_args(like)
        restore = ocp.args.PyTreeRestore(like, restore_args=arguments)
        return checkpointer.restore(folder / "saved", args=restore)


def by_manager(tree: Any, folder: pathlib.Path) -> Any:
    """Asynchronously, by the standard handler."""
    with ocp.CheckpointManager(folder) as manager:
        manager.save(3, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()
        return manager.restore(3, args=ocp.args.StandardRestore(abstract(tree)))


def by_flax(tree: Any, folder: pathlib.Path) -> Any:
    (folder / "saved").write_bytes(flax.serialization.to_bytes(tree))
    return flax.serialization.from_bytes(tree, (folder / "saved").read_bytes())


def by_equinox(tree: Any, folder: pathlib.Path) -> Any:
    eqx.tree_serialise_leaves(folder / "saved.eqx", tree)
    return eqx.tree_deserialise_leaves(folder / "saved.eqx", jax.tree.map(jnp.zeros_like, tree))


def by_pickle(tree: Any, folder: pathlib.Path) -> Any:
    return pickle.load(io.BytesIO(pickle.dumps(jax.device_get(tree))))


LIBRARIES: dict[str, Callable[[Any, pathlib.Path], Any]] = {
    "orbax": by_orbax,
    "orbax, manager": by_manager,
    "flax": by_flax,
    "equinox": by_equinox,
    "pickle": by_pickle,
}


def run(step: Any, carry: Any, calls: range) -> Any:
    for call in calls:
        size = jnp.nan if call == 2 else 1.0 + call  # call 2 is bad, and skipped
        grads = jax.tree.map(lambda leaf, size=size: size * (leaf + 1), carry[0])
        grads = getattr(grads, "fast", grads)
        carry = step(carry, grads, jnp.float32(4.0 - call))
    return carry


def stepped(optimizer: Any) -> Any:
    def step(carry: Any, grads: Any, loss: Any) -> Any:
        params, state = carry
        optional = {} if isinstance(optimizer, optax.GradientTransformation) else {"value": loss}
        updates, state = optimizer.update(grads, state, params, **optional)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


@pytest.mark.parametrize("name", STATES)
def test_a_run_that_was_saved_and_restored_goes_on_to_the_same_bits(
    name: str, tmp_path: pathlib.Path
):
    optimizer, params = STATES[name]
    step = stepped(optimizer)
    saved = run(step, (params, optimizer.init(params)), range(4))
    wanted = run(step, saved, range(4, 6))
    told = wc.report(saved[1])
    assert not any(np.size(leaf) == 0 for leaf in jax.tree.leaves(saved))
    for index, (library, trip) in enumerate(LIBRARIES.items()):
        folder = tmp_path / str(index)
        folder.mkdir()
        with case(library=library):
            restored = trip(saved, folder)
            assert jax.tree.structure(restored) == jax.tree.structure(saved)
            got = run(step, jax.tree.map(jnp.asarray, restored), range(4, 6))
            jax.tree.map(np.testing.assert_array_equal, got, wanted)
            assert wc.report(restored[1]) == told
