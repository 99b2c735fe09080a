"""What `clip_by_global_norm` counts and remembers, and how optax and JAX carry it."""

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import warmclip_jax as wc
from tests.trees import BF16, assert_same_bits, clipping, normal
from warmclip_jax._clipping._coding import decoded

pytestmark = pytest.mark.usefixtures("strict_dtypes")


INT32_MAX = 2**31 - 1


# The state.


def test_the_state_is_a_named_tuple_of_scalars():
    state = clipping(1.0).init({"w": jnp.ones(3)})
    assert isinstance(state, wc.ClipState)
    arrays = {
        name: value for name, value in state._asdict().items() if isinstance(value, jax.Array)
    }
    assert {name: (value.shape, value.dtype.name) for name, value in arrays.items()} == {
        "clip_calls": ((), "int32"),
        "grad_norm": ((), "float32"),
        "norm_bound": ((), "float32"),
        "clip_coef": ((), "float32"),
        "clipped_count": ((), "int32"),
        "nonfinite_count": ((), "int32"),
        "counts_from": ((), "int32"),
    }
    assert {name: float(decoded(value)) for name, value in arrays.items() if value != 0} == {
        "grad_norm": pytest.approx(math.nan, nan_ok=True),
        "norm_bound": pytest.approx(math.nan, nan_ok=True),
        "clip_coef": pytest.approx(math.nan, nan_ok=True),
    }
    assert len(jax.tree.leaves(state)) == len(arrays)


def test_the_state_of_float32_parameters_stays_what_it_is_under_float64_gradients(x64):
    transformation = wc.clip_by_global_norm(1.0)
    before = transformation.init([jnp.zeros(2, jnp.float32)])
    _, after = transformation.update([jnp.array([3.0, 4.0], jnp.float64)], before)
    assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [
        leaf.dtype for leaf in jax.tree.leaves(before)
    ]


def test_the_state_of_float64_parameters_holds_a_float64_norm(x64):
    transformation = clipping(1.0)
    tree = [np.full(1, 1 + 1e-12), np.zeros(1, BF16)]
    _, state = transformation.update(tree, transformation.init(tree))
    assert (state.grad_norm.dtype, state.clip_coef.dtype) == (jnp.float64, jnp.float64)
    assert float(state.grad_norm) == 1 + 1e-12


def run(max_norm: Any, leaves: list[float], nonfinite: Any = "propagate") -> list[wc.ClipState]:
    transformation = clipping(max_norm, nonfinite=nonfinite)
    state = transformation.init([jnp.zeros(1)])
    states = []
    for leaf in leaves:
        _, state = transformation.update([np.full(1, leaf, np.float32)], state)
        states.append(state)
    return states


@pytest.mark.parametrize(("nonfinite", "of_bad"), [("propagate", math.nan), ("zero", 0.0)])
def test_the_state_counts_calls_and_holds_the_last_norm_as_it_is_and_the_last_coefficient(
    nonfinite, of_bad
):
    states = run(2.0, [1.0, 4.0, math.nan, 2.0, -math.inf, 0.0], nonfinite)
    for field, expected in {
        "clip_calls": [1, 2, 3, 4, 5, 6],
        "clipped_count": [0, 1, 1, 1, 1, 1],
        "nonfinite_count": [0, 0, 1, 1, 2, 2],
        "grad_norm": [1, 4, math.nan, 2, math.inf, 0],
        "clip_coef": [1, 0.5, of_bad, 1, of_bad, 1],
    }.items():
        read = np.asarray if "count" in field or "calls" in field else decoded
        found = [read(getattr(state, field)) for state in states]
        np.testing.assert_array_equal(found, expected, err_msg=field)


@pytest.mark.parametrize(
    ("leaf", "max_norm"),
    [(3e38, 1e-3), (3e38, 1e-37), (2.0**100, 2.0**-40), (2.0**60, 2.0**-64), (1e-30, 1e-37)],
)
def test_the_coefficient_is_the_bound_over_the_norm_as_far_as_it_can_be_held(leaf, max_norm):
    coef = float(run(max_norm, [leaf])[0].clip_coef)
    exact = float(np.float32(max_norm)) / float(np.float32(leaf))
    # Below the smallest normal number there is only zero.
    assert coef == pytest.approx(exact if exact >= 2.0**-126 else 0.0, rel=4 * 2.0**-23, abs=0)


@pytest.mark.parametrize("bound", [0.0, 0.25, 3.0, None, math.inf])
def test_the_state_and_metrics_tell_the_bound_that_was_in_force(bound):
    (state,) = run(bound, [4.0])
    shown = math.inf if bound is None else bound
    assert float(decoded(state.norm_bound)) == shown
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert float(wc.metrics(state)["max_norm"]) == shown


def test_a_traced_bound_below_zero_is_told_as_the_zero_that_it_acts_as():
    state = jax.jit(lambda bound: run(bound, [4.0])[0])(-1.0)
    assert (float(state.norm_bound), float(state.clip_coef)) == (0.0, 0.0)


def test_measuring_counts_bad_updates_and_clips_none():
    states = run(None, [3.0, math.nan, math.inf])
    assert [int(state.clipped_count) for state in states] == [0, 0, 0]
    assert [int(state.nonfinite_count) for state in states] == [0, 1, 2]
    assert [float(state.clip_coef) for state in states] == [1, 1, 1]


def test_counters_stop_at_the_largest_int32():
    transformation = clipping(1.0)
    for field in ("clip_calls", "clipped_count", "nonfinite_count"):
        leaf = math.nan if field == "nonfinite_count" else 4.0
        state = transformation.init([jnp.zeros(1)])._replace(**{field: jnp.int32(INT32_MAX - 1)})
        for _ in range(3):
            _, state = transformation.update([np.full(1, leaf, np.float32)], state)
            assert int(getattr(state, field)) == INT32_MAX


def types(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf), jax.typeof(leaf).weak_type), tree
    )


HEAVY = functools.partial(optax.sgd, momentum=0.9)
#: What keeps arrays with an entry for each call, leaf or group.
WITH_ARRAYS: dict[str, Any] = {
    "skip_nonfinite": lambda: wc.skip_nonfinite(HEAVY(0.1), record=8),
    "clip_by_global_norm": lambda: wc.clip_by_global_norm(1.0, record_leaves=True),
    "clip_by_group_norm": lambda: wc.clip_by_group_norm(1.0, wc.label_by_path()),
    "pipeline": lambda: wc.pipeline(HEAVY, 0.1, max_norm=wc.running_bound(), record=8),
}


def test_the_state_keeps_its_structure_and_types_so_that_a_step_is_traced_once():
    tree = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2, jnp.float16)}
    bounds = (0, None, wc.linear_warmup(peak_value=1.0, warmup_steps=3), lambda count: 1)
    clips = [clipping(max_norm, nonfinite="zero") for max_norm in bounds]
    for transformation in (*clips, *(build() for build in WITH_ARRAYS.values())):
        before = transformation.init(tree)
        assert types(transformation.update(tree, before, tree)[1]) == types(before)


def test_the_state_is_carried_through_scan():
    transformation = clipping(2.0, nonfinite="zero")
    leaves = np.array([1, 4, np.nan, 8, np.inf, 0], np.float32)[:, None]

    def step(state, leaf):
        clipped, state = transformation.update(leaf, state)
        return state, clipped

    state, clipped = jax.lax.scan(step, transformation.init(jnp.zeros(1)), leaves)
    np.testing.assert_array_equal(clipped[:, 0], [1, 2, 0, 2, 0, 0])
    assert [float(value) for value in jax.tree.leaves(state)] == [6, 0, 2, 1, 2, 2, 0]


# The optax interface.


def test_params_and_extra_arguments_are_accepted_and_not_needed():
    transformation = clipping(1.0)
    assert isinstance(transformation, optax.GradientTransformationExtraArgs)
    tree = [normal(0, (3,))]
    state = transformation.init(tree)
    assert_same_bits(
        transformation.update(tree, state, tree, value=1.0), transformation.update(tree, state)
    )


def test_an_injected_bound_can_be_set_between_updates():
    injected: Any = optax.inject_hyperparams(wc.clip_by_global_norm)(max_norm=0.5)
    grads = jnp.float32([3, 4])
    state, update = injected.init(grads), jax.jit(injected.update)
    for bound in (0.5, 0.25):
        state.hyperparams["max_norm"] = jnp.float32(bound)
        clipped, state = update(grads, state)
        np.testing.assert_allclose(clipped, bound * grads / 5, rtol=1e-6)


@pytest.mark.parametrize("name", WITH_ARRAYS)
def test_a_state_may_be_sharded_by_the_compiler_and_on_an_explicit_mesh_but_for_its_own_arrays(
    name,
):
    transformation, tree = WITH_ARRAYS[name](), {key: jnp.ones((8, 2)) for key in "abcdefgh"}
    state, update = transformation.init(tree), jax.jit(transformation.update)
    expected, _ = update(tree, state, tree)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
        whole, parts = NamedSharding(mesh, P()), NamedSharding(mesh, P("d"))
        places = jax.tree.map(lambda leaf: parts if leaf.ndim else whole, (tree, state))  # noqa: B023
        grads, spread = jax.device_put((tree, state), places)
        if kind is AxisType.Explicit:
            for each in (transformation.update, update):
                with pytest.raises(TypeError, match=rf"^{name}: state must be whole .*\w\('d',"):
                    each(grads, spread, grads)
            inner_state = getattr(spread, "inner_state", ())
            spread = jax.device_put(state, whole)
            if inner_state:
                spread = spread._replace(inner_state=inner_state)
        chex.assert_trees_all_equal(update(grads, spread, grads)[0], expected)
