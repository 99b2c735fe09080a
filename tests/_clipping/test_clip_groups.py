"""Clips by group: one coefficient for each group, the same bits as the global clip for one, bad
steps, and what is refused.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests import reference
from tests.cases import case
from tests.trees import BF16, assert_clipped, assert_same_bits, gradients, normal
from warmclip_jax._clipping._coding import decoded
from warmclip_jax._clipping._groups import from_keys

RATES = {"a": 1.0, "b": 0.25, "c": None}
LABELS = {"first": "a", "second": {"x": "b", "y": "a", "zero": "idle"}, "third": "c"}
RULES = {**RATES, "idle": 0.5, "not there": 3.0}


def by_group(max_norm: Any, groups: Any, **options: Any) -> Any:
    """`clip_by_group_norm` without optax's types, which know no fields of a state."""
    return wc.clip_by_group_norm(max_norm, groups, **options)


def tree_of(seed: int, scale: float = 1.0) -> dict[str, Any]:
    def leaf(place: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        size = np.float64(scale) if dtype in (np.float32, BF16) else 1.0
        return (normal(9 * seed + place, shape, np.float64) * size).astype(dtype)

    return {
        "first": leaf(0, (70, 80), np.float32),
        "second": {
            "x": leaf(1, (7,), BF16),
            "y": leaf(2, (3, 2), np.float16),
            "zero": np.zeros(4, np.float32),
        },
        "third": leaf(3, (5,), np.complex64),
    }


def of_group(tree: Any, label: str) -> list[np.ndarray]:
    parts = {
        "a": [tree["first"], tree["second"]["y"]],
        "b": [tree["second"]["x"]],
        "c": [tree["third"]],
    }
    return [np.asarray(leaf) for leaf in {**parts, "idle": [tree["second"]["zero"]]}[label]]


def test_each_group_is_clipped_by_its_own_norm_and_rule():
    clip = by_group(RULES, LABELS)
    update = jax.jit(clip.update)
    for seed, scale in enumerate([1.0, 1e-30, 1e30, 1e-3]):
        tree = tree_of(seed, scale)
        with case(scale=scale):
            clipped, state = update(tree, clip.init(tree))
            assert from_keys(state.group_labels) == ["a", "b", "c", "idle"]
            for place, label in enumerate(from_keys(state.group_labels)):
                norm = reference.global_norm(of_group(tree, label))
                assert float(state.grad_norm[place]) == pytest.approx(norm, rel=1e-6)
                if RULES[label] is None or norm <= RULES[label]:
                    assert_same_bits(of_group(clipped, label), of_group(tree, label))
                    assert float(state.clip_coef[place]) == 1
                    assert int(state.group_clipped_count[place]) == 0
                else:
                    assert_clipped(of_group(clipped, label), of_group(tree, label), RULES[label])
                    assert float(state.clip_coef[place]) == pytest.approx(
                        RULES[label] / norm, rel=1e-6
                    )
                    assert int(state.group_clipped_count[place]) == 1
            np.testing.assert_array_equal(decoded(state.norm_bound), [1, 0.25, np.inf, 0.5])
            assert int(state.clipped_count) == any(np.asarray(state.group_clipped_count))


@pytest.mark.parametrize(
    ("max_norm", "nonfinite"),
    [
        pytest.param(0.5, "propagate", id="low"),
        pytest.param(None, "zero", id="none"),
        pytest.param(wc.running_bound(ceiling=1.0), "zero", id="running, zero"),
        pytest.param(wc.linear_warmup(peak_value=2.0, warmup_steps=3), "zero", id="schedule"),
    ],
)
def test_one_group_is_the_global_clip_bit_for_bit(max_norm, nonfinite):
    whole: Any = wc.clip_by_global_norm(max_norm, nonfinite=nonfinite)
    alone: Any = wc.clip_by_group_norm(max_norm, "all", nonfinite=nonfinite)
    states = whole.init(tree_of(0)), alone.init(tree_of(0))
    steps = jax.jit(whole.update), jax.jit(alone.update)
    for seed, scale in enumerate([1.0, 0.01, 1e-30, 1e30, math.nan, 1.0]):
        tree = tree_of(seed, scale)
        results = [step(tree, state) for step, state in zip(steps, states, strict=True)]
        states = tuple(state for _, state in results)
        with case(scale=scale):
            assert_same_bits(results[1][0], results[0][0])
            for field in ("grad_norm", "norm_bound", "clip_coef", "clip_history"):
                one = jax.tree.map(lambda value: value[0], getattr(states[1], field))
                assert_same_bits(one, getattr(states[0], field))
            for field in ("clip_calls", "clipped_count", "nonfinite_count"):
                assert_same_bits(getattr(states[1], field), getattr(states[0], field))


@pytest.mark.parametrize(
    "bound", [1.0, {"a": wc.running_bound(), "b": 1.0, "expert": wc.running_bound()}]
)
def test_an_idle_group_changes_no_other_and_learns_nothing(bound):
    clip = by_group(bound, {"a": "a", "b": "b", "expert": "expert"})
    step = jax.jit(clip.update)
    params = {"a": normal(0, (3,)), "b": normal(0, (70, 80)), "expert": normal(0, (5000,))}
    with_idle = without = clip.init(params)
    for seed in range(6):
        tree = {name: normal(seed, leaf.shape) for name, leaf in params.items()}
        idle = {**tree, "expert": np.zeros(5000, np.float32)}
        busy_updates, without = step(tree, without)
        idle_updates, with_idle = step(idle, with_idle)
        for name in ("a", "b"):
            assert_same_bits(idle_updates[name], busy_updates[name])
        assert_same_bits(idle_updates["expert"], idle["expert"])
        for field in ("grad_norm", "norm_bound", "clip_coef", "group_clipped_count"):
            np.testing.assert_array_equal(
                getattr(with_idle, field)[:2], getattr(without, field)[:2]
            )
        assert float(with_idle.clip_coef[2]) == 1
    if not isinstance(bound, float):
        assert with_idle.clip_history.norms_taught.tolist() == [6, 6, 0]


@pytest.mark.parametrize(
    ("rules", "nonfinite"),
    [(RULES, "propagate"), (wc.running_bound(), "zero")],
    ids=["each", "running, zero"],
)
def test_one_bad_entry_makes_the_call_bad_for_every_group(rules, nonfinite):
    clip = by_group(rules, LABELS, nonfinite=nonfinite)
    step = jax.jit(clip.update)
    for bad in (math.nan, math.inf):
        for place in (("first",), ("second", "x"), ("third",)):
            tree = tree_of(1)
            leaf = tree[place[0]] if len(place) == 1 else tree[place[0]][place[1]]
            leaf[(0,) * leaf.ndim] = bad
            clipped, state = step(tree, clip.init(tree))
            with case(bad=bad, place=place):
                for got in gradients(clipped):
                    assert np.isnan(got).all() if nonfinite == "propagate" else not np.any(got)
                assert int(state.nonfinite_count) == 1
                assert int(state.clipped_count) == 0
                assert not np.any(state.group_clipped_count)


def test_measuring_groups_only_changes_nothing():
    for bound in (None, math.inf, {"a": None, "b": None, "c": math.inf, "idle": None}):
        tree = tree_of(0)
        tree["first"][0, 0] = math.nan
        clipped, state = by_group(bound, LABELS).update(tree, by_group(bound, LABELS).init(tree))
        assert_same_bits(clipped, tree)
        assert int(state.nonfinite_count) == 1
        assert float(state.grad_norm[1]) == pytest.approx(
            reference.global_norm(of_group(tree, "b")), rel=1e-6
        )


def test_leaves_that_updates_lack_leave_their_groups_idle():
    # As under `optax.masked`, or where a parameter has no gradient.
    params = {name: np.ones(3, np.float32) for name in "abcd"}
    clip = by_group(1.0, wc.label_by_path())
    for updates in (
        {**params, "d": None},
        {**params, "a": optax.MaskedNode()},
        {**dict.fromkeys("abc"), "d": params["d"]},
    ):
        clipped, state = jax.jit(clip.update)(updates, clip.init(params))
        for place, name in enumerate("abcd"):
            there = isinstance(updates[name], np.ndarray)
            assert float(state.grad_norm[place]) == pytest.approx(
                math.sqrt(3) if there else 0, rel=1e-6
            )
            if there:
                np.testing.assert_allclose(clipped[name], 1 / math.sqrt(3), rtol=1e-6)


@pytest.mark.parametrize("tree", [{"count": jnp.int32(1)}, None])
def test_a_tree_without_gradients_has_no_groups(tree):
    optimizer: Any = wc.pipeline(
        optax.sgd, 0.1, groups=wc.label_by_path(), record=2, record_leaves=True
    )
    updates, state = optimizer.update(tree, optimizer.init(tree), tree)
    assert jax.tree.structure(updates) == jax.tree.structure(tree)
    known = wc.metrics(state)
    assert float(known["grad_norm"]) == 0
    assert float(known["clip_coef"]) == 1


def test_labels_may_be_names_that_optax_looks_for():
    # A parameter may well be called `count`; the state must not answer for it.
    params = {name: np.ones(2, np.float32) for name in ("count", "step", "mu", "learning_rate")}
    optimizer: Any = wc.pipeline(
        optax.sgd, optax.linear_schedule(0.1, 0.0, 9), groups=wc.label_by_path(), record_leaves=True
    )
    state = optimizer.init(params)
    assert int(optax.tree.get(state, "count")) == 0
    assert (
        optax.tree.get(state, "mu")
        is optax.tree.get(state, "step")
        is optax.tree.get(state, "learning_rate")
        is None
    )
    assert int(optax.tree.get(optax.tree.set(state, count=jnp.int32(7)), "count")) == 7


# How it lives: in float64, and after a cast. Side by side: test_bounds_in_use.py.


def test_float64_leaves_have_float64_histories_and_coefficients(x64):
    clip = by_group(wc.running_bound(ceiling=1.0), wc.label_by_path())
    tree = {"a": normal(0, (3,), np.float64) * 1e200, "b": normal(1, (70, 80), np.float64)}
    clipped, state = jax.jit(clip.update)(tree, clip.init(tree))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float64", "int32"}
    for name in tree:
        assert_clipped(clipped[name], tree[name], 1.0)


def test_a_state_keeps_its_structure_and_dtypes_and_works_after_a_cast():
    clip = by_group(
        {"a": wc.running_bound(), "b": 1.0, "c": 2.0, "idle": 1.0}, LABELS, record_leaves=True
    )
    tree = tree_of(0)
    start = clip.init(tree)
    step = jax.jit(clip.update, donate_argnums=1)
    for cast in (None, jnp.bfloat16):
        state = start if cast is None else optax.tree.cast(start, cast)
        _, after = step(tree, jax.tree.map(jnp.copy, state))
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
        assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)
