"""Labels of leaves: from a tree, a prefix, a function, a path; and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
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


def test_patterns_match_the_path_of_leaves_that_share_one_as_in_optax_partition():
    one = jnp.ones(1)
    tree = {
        "a/b": one,
        "a": {"b": one},
        "kernel": Pair(one, one),
        "two": in_box({"w": one, "b": one}),
        "c": one,
    }
    label = wc.label_by_path({"x": r"a/b", "y": r"two|kernel/."})
    expected = ["x", "x", "rest", "y", "y", "y", "y"]
    assert labels_of(label, tree) == expected
    tree.pop("kernel")  # its children have no names for optax either
    transforms: Any = {each: optax.set_to_zero() for each in "xy"} | {"rest": optax.identity()}
    by_optax = optax.partition(transforms, label)
    updates, _ = by_optax.update(tree, by_optax.init(tree))
    zeroed = ["rest" if leaf.any() else "" for leaf in jax.tree.leaves(updates)]
    assert zeroed == ["", "", "rest", "", ""]


def in_box(value: Any) -> Any:
    return nn.Partitioned(value, names=(None,))


def test_boxed_parameters_have_the_paths_of_those_without_boxes():
    boxed = {"kernel": in_box(jnp.ones((2, 3))), "moe": {"kernel": in_box(jnp.ones(2))}}
    plain = nn.meta.unbox(boxed)
    label = wc.label_by_path({"kernels": r"(.*/)?kernel"})
    assert labels_of(label, boxed) == labels_of(label, plain) == ["kernels"] * 2
    assert list(wc.leaf_norms(boxed)) == list(wc.leaf_norms(plain)) == ["kernel", "moe/kernel"]
    optimizer = wc.pipeline(optax.sgd, 0.1, groups=label, record_leaves=True)
    for updates in (boxed, plain):
        _, state = jax.jit(optimizer.update)(updates, optimizer.init(boxed), boxed)
        assert "leaf/moe/kernel/grad_norm" in wc.metrics(state, leaves=True)


@pytest.mark.parametrize(
    "groups",
    [
        {"a": "x", "b": "y"},
        wc.label_by_path({"x": "a"}, default="y"),
    ],
)
def test_states_of_shapes_alone_have_the_structure_of_those_of_arrays(groups):
    params = {"a": jnp.ones(3), "b": jnp.ones((), jnp.bfloat16)}
    shapes = jax.eval_shape(lambda: params)
    for optimizer in (
        wc.clip_by_group_norm(wc.running_bound(), groups, record_leaves=True),
        wc.pipeline(optax.adam, 0.1, groups=groups, record=3, record_leaves=True),
        wc.skip_nonfinite(optax.adam(0.1), record_leaves=True),
    ):
        found = [optimizer.init(shapes), jax.eval_shape(optimizer.init, shapes)]
        expected = jax.tree.map(jax.typeof, optimizer.init(params))
        for state in found:
            assert (
                jax.tree.map(lambda leaf: jax.typeof(jnp.zeros(leaf.shape, leaf.dtype)), state)
                == expected
            )


@pytest.mark.parametrize(
    ("outer", "groups"),
    [("chain", None), ("pipeline", wc.label_by_path()), ("guard", {"a": "x", "b": "y"})],
)
def test_lookahead_is_measured_by_its_fast_parameters(outer, groups):
    def lookahead(rate: Any) -> Any:
        return optax.lookahead(optax.sgd(rate), sync_period=2, slow_step_size=0.5)

    clip: Any = wc.clip_by_global_norm(1.0, record_leaves=True)
    if groups is not None:
        clip = wc.clip_by_group_norm(1.0, groups, record_leaves=True)
    optimizer = {
        "chain": optax.chain(clip, lookahead(0.1)),
        "pipeline": wc.pipeline(lookahead, 0.1, groups=groups, record_leaves=True),
        "guard": wc.skip_nonfinite(optax.chain(clip, lookahead(0.1)), record_leaves=True),
    }[outer]
    params = optax.LookaheadParams.init_synced({"a": jnp.ones(3), "b": jnp.ones(2)})
    state = optimizer.init(params)
    _, state = jax.jit(optimizer.update)(params.fast, state, params)
    names = [name.split("/", 1)[-1] for name in wc.metrics(state, leaves=True)]
    assert {"a/grad_norm", "b/grad_norm"} <= {name.removeprefix("leaf/") for name in names}
