"""The norm of each leaf: names, and what recording does in maps. Their numbers are in test_frame.py."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests.cases import case
from tests.compiled import summation_error
from tests.trees import FEW_ULP, Pair, assert_same_bits, normal
from warmclip_jax._norms._leaves import shortened

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@jax.tree_util.register_pytree_with_keys_class
class Variable:
    """As a variable of flax.nnx: a node, and an array to whoever asks for one."""

    def __init__(self, value: Any):
        self.value = value

    def __jax_array__(self) -> Any:
        return jnp.asarray(self.value)

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("value"), self.value)], None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any]):
        return cls(*children)


def test_paths_stop_at_variables_and_are_numbered_where_two_leaves_share_one():
    one = np.ones(1, np.float32)
    tree = {
        "block": [Variable(one), {"w": 2 * one}],
        "a/b": 3 * one,
        "a": {"b": 4 * one},
        "pair": Pair(5 * one, 6 * one),
    }
    norms = {path: float(norm) for path, norm in wc.leaf_norms(tree).items()}
    # In leaf order.
    assert list(norms) == ["a/b#0", "a/b#1", "block/0", "block/1/w", "pair/0", "pair/1"]
    assert norms == {"a/b#0": 4, "a/b#1": 3, "block/0": 1, "block/1/w": 2, "pair/0": 5, "pair/1": 6}


def test_every_leaf_has_a_name_of_its_own_that_can_be_written():
    one = np.ones(1, np.float32)
    tree = {"a/b": one, "a": {"b": one, "c d": one, "c\nd": one}, "a/b#0": one, "\udc80": one}
    tree |= {"\\udc80": one, "a/b#2": one, "": one}
    names = list(wc.leaf_norms(tree))
    assert len(set(names)) == len(tree) + 2
    assert {"a/b#0", "a/b#1", "a/b#2", "a/b#3"} <= set(names)
    assert {"a/c d#0", "a/c d#1", "\\udc80#0", "\\udc80#1"} <= set(names)
    clip: Any = wc.clip_by_global_norm(1.0, record_leaves=True)
    state = clip.update(tree, clip.init(tree))[1]
    recorded = [name for name in wc.metrics(state, leaves=True) if name.endswith("/grad_norm")]
    assert set(recorded) == {f"leaf/{name}/grad_norm" for name in names}


def test_a_message_shows_200_characters_of_a_long_value():
    assert shortened("x" * 198) == repr("x" * 198)
    assert shortened("x" * 199) == repr("x" * 199)[:200] + " ..."


def test_vmap_takes_each_tree_in_its_own_range():
    scales = np.array([0, 1e-36, 1e-30, 1, 1e20, 1e37, math.inf], np.float32)
    tree = {
        "small": scales[:, None] * np.array([[1, 2, 2]], np.float32),
        "large": np.broadcast_to(scales[:, None, None], (7, 70, 80)),
    }
    norms, whole = jax.vmap(lambda tree: (wc.leaf_norms(tree), wc.global_norm(tree["small"])))(tree)
    for each in (norms["small"], whole):
        np.testing.assert_allclose(each, 3 * scales.astype(np.float64), rtol=FEW_ULP)
    # The last sum is of 5,600 entries, 70 times the root of them: past float32.
    tolerance = FEW_ULP + summation_error((70, 80))
    np.testing.assert_allclose(
        norms["large"][:-2], math.sqrt(5600) * scales[:-2].astype(np.float64), rtol=tolerance
    )


def test_large_leaves_of_one_shape_compile_as_one():
    # What XLA compiles alike it compiles once; slices of a vector would each be a program.
    leaves = [jnp.ones((70, 80))] * 12
    text: Any = jax.jit(wc.leaf_norms).lower(leaves).compile().as_text()
    assert " slice(" not in text[text.index("\nENTRY") :]


# In maps.


def in_a_map(typed: bool, function: Any) -> Any:
    """`function(shard, axis_name)` on two devices, each with half of an array."""
    auto = (jax.sharding.AxisType.Auto,)
    mapped = jax.shard_map(
        lambda shard: function(shard, None if typed else "d"),
        mesh=jax.make_mesh((2,), ("d",), auto, devices=jax.devices()[:2]),
        in_specs=jax.P("d"),
        out_specs=jax.P(),
        check_vma=typed,
    )
    return jax.jit(mapped)


@pytest.mark.parametrize(("typed", "power"), [(True, 25), (False, 20)])
def test_a_leaf_of_large_shards_has_the_norm_that_the_whole_tree_has(typed, power):
    # Added one entry after the other, 2^20 squares of 0.1 are 0.7 % off, and 2^25 of them 12 %.
    whole = jnp.full(2 * 2**power, 0.1)
    expected = float(np.float32(0.1)) * math.sqrt(whole.size)

    def norms(shard: Any, axis_name: Any) -> Any:
        tree = {"w": shard, "b": shard[:5]}
        clip: Any = wc.clip_by_group_norm(None, {"w": "w", "b": "b"}, axis_name=axis_name)
        grouped = clip.update(tree, clip.init(tree))[1].grad_norm[1]
        leaf = wc.leaf_norms({"w": shard}, axis_name=axis_name)["w"]
        return leaf, grouped, wc.global_norm(shard, axis_name=axis_name)

    for norm in in_a_map(typed, norms)(whole):
        assert float(norm) == pytest.approx(expected, rel=FEW_ULP)


@pytest.mark.parametrize("typed", [True, False])
def test_recording_leaves_and_calls_changes_no_bit_of_a_run_in_a_map(typed):
    def run(shard: Any, axis_name: Any) -> Any:
        tree = [shard, *(shard[: 3 + 11 * index].reshape(-1, 1) for index in range(9))]
        found = []
        for options in ({}, {"record_leaves": True, "record": 4}):
            optimizer = wc.pipeline(optax.sgd, 0.1, axis_name=axis_name, **options)
            _, state = optimizer.update(tree, optimizer.init(tree), tree)
            metrics = wc.metrics(state)
            found.append((metrics["grad_norm"], metrics["clip_coef"]))
        return found

    mapped = in_a_map(typed, run)
    # In sizes with a second pass too, which reads leaves in another order than norms of each do.
    for size in (1.0, 1e-25, 1e25):
        alone, recorded = mapped(jnp.asarray(normal(3, (2 * 5000,)) * np.float32(size)))
        with case(size=size):
            assert_same_bits(recorded, alone)
