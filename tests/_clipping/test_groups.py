"""Labels of leaves: from a tree, a prefix, a function, a path; and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import warmclip_jax as wc
from tests._norms.test_leaf_norms import Pair, Variable
from warmclip_jax._clipping._groups import labels_of

TREE = {
    "moe": {"up": jnp.ones(2), "down": jnp.ones(3)},
    "dense": [jnp.ones(4), jnp.ones(5)],
    "step": jnp.int32(1),
}


@pytest.mark.parametrize(
    "groups",
    [
        {"moe": "experts", "dense": "rest", "step": "rest"},
        {"moe": {"up": "experts", "down": "experts"}, "dense": ["rest", "rest"], "step": "count"},
        lambda params: {name: "experts" if name == "moe" else "rest" for name in params},
        wc.label_by_path({"experts": r"moe/.*"}),
        wc.label_by_path({"experts": r"moe/up|moe/down", "never": r"moe/.*"}),
        wc.label_by_path({"rest": r"d.*", "experts": r".*"}),
    ],
)
def test_labels_come_from_a_prefix_or_a_function_in_leaf_order(groups):
    assert labels_of(groups, TREE) == ["rest", "rest", "experts", "experts"]


def test_one_label_is_a_prefix_of_every_tree():
    assert labels_of("all", TREE) == ["all"] * 4


def test_the_first_pattern_that_matches_a_whole_path_wins():
    label = wc.label_by_path(
        {"first": "moe", "second": r"dense/\d", "third": r"dense/0|moe/up"}, default="none"
    )
    assert labels_of(label, TREE) == ["second", "second", "none", "third"]


def test_without_patterns_each_leaf_has_its_path_for_a_label():
    assert labels_of(wc.label_by_path(), TREE) == list(wc.leaf_norms(TREE))
    # Also where two paths are one: each its own.
    pairs = {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}
    assert labels_of(wc.label_by_path(), pairs) == list(wc.leaf_norms(pairs)) == ["a/b#0", "a/b#1"]


def test_a_function_is_given_the_parameters_where_there_are_any():
    updates = {"a": jnp.ones(1), "b": None}

    def by_size(params: Any) -> Any:
        return jax.tree.map(lambda leaf: str(leaf.size), params)

    assert labels_of(by_size, updates, {"a": jnp.ones(7), "b": jnp.ones(8)}) == ["7"]
    assert labels_of(by_size, {"a": jnp.ones(1)}) == ["1"]


def test_a_leaf_that_is_no_gradient_needs_a_label_and_counts_for_none():
    tree = {"a": optax.MaskedNode(), "b": None, "c": jnp.ones(1), "d": 3}
    assert labels_of({"a": "x", "b": "y", "c": "z", "d": "w"}, tree) == ["z"]


def test_variables_are_labelled_alike_at_init_and_at_update():
    label = wc.label_by_path({"kernels": r"(.*/)?kernel"})
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    assert (
        labels_of(label, state) == labels_of(label, nnx.to_pure_dict(state)) == ["rest", "kernels"]
    )
    assert labels_of(
        label, {"kernel": Variable(jnp.ones(1)), "pair": Pair(jnp.ones(1), jnp.ones(1))}
    ) == [
        "kernels",
        "rest",
        "rest",
    ]


def test_optax_partition_takes_label_by_path():
    optimizer = optax.partition(
        {"experts": optax.sgd(1.0), "rest": optax.set_to_zero()},
        wc.label_by_path({"experts": "moe/.*"}),
    )
    params = {"moe": {"up": jnp.ones(2)}, "dense": jnp.ones(3)}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert {path: float(norm) for path, norm in wc.leaf_norms(updates).items()} == {
        "dense": 0,
        "moe/up": pytest.approx(2**0.5, rel=1e-6),
    }


def test_a_message_about_a_large_tree_of_labels_is_short():
    groups = {f"layer{index}": "a" for index in range(500)}
    with pytest.raises(ValueError, match="prefix") as caught:
        labels_of(groups, {f"layer{index}": np.ones(1, np.float32) for index in range(501)})
    assert len(str(caught.value)) < 600
