"""States and trees as users really have them: of other optimizers, of checkpoints, of unusual
leaves and nodes.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests.cases import case
from tests.problem import float64_norm

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.array([0.5, -2.0])}
GRADS = {"w": jnp.linspace(0.5, 2.0, 6).reshape(2, 3), "b": jnp.array([1.0, 3.0])}
BAD = {**GRADS, "b": jnp.array([1.0, jnp.nan])}
FOLLOWING = wc.running_bound(deviations=6.0)
by_path = wc.label_by_path(None)

ways = pytest.mark.parametrize("jit", [jax.jit, lambda function: function], ids=["jit", "eager"])

#: Each of ours, plain and with all that adds to its state.
LINKS: dict[str, Any] = {
    "clip": wc.clip_by_global_norm(1.0),
    "clip, all options": wc.clip_by_global_norm(FOLLOWING, record_leaves=True),
    "clip by groups": wc.clip_by_group_norm(1.0, by_path),
    "guard": wc.skip_nonfinite(optax.adam(0.1)),
    "guard, all options": wc.skip_nonfinite(
        optax.adam(0.1), above=FOLLOWING, record=4, record_leaves=True
    ),
    "pipeline": wc.pipeline(optax.adam, 0.1),
    "pipeline, all options": wc.pipeline(
        optax.adam,
        0.1,
        max_norm=FOLLOWING,
        skip_above=FOLLOWING,
        groups=by_path,
        record=4,
        record_leaves=True,
    ),
}

# States that are not their own.

WRONG: dict[str, Any] = {
    "None": None,
    "tuple": (jnp.zeros(2), optax.EmptyState()),
    "dict": {"count": jnp.int32(0)},
    "optax's chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)).init(PARAMS),
    "parameters": PARAMS,
    "a chain with it": lambda link: optax.chain(link, optax.identity()).init(PARAMS),
    "its fields in a dict": lambda link: link.init(PARAMS)._asdict(),
}


@ways
def test_a_state_of_someone_else_is_an_error_that_says_what_came_and_what_to_do(jit: Any):
    for name, link in LINKS.items():
        for wrong, state in WRONG.items():
            state = state(link) if callable(state) else state
            with (
                case(name=name, wrong=wrong),
                pytest.raises(
                    TypeError,
                    match=r"state must be the \w+State that init .* returned; got .*adopt_state\(optimizer",
                ),
            ):
                jit(link.update)(GRADS, state, PARAMS)
        swapped = r"updates and state are swapped.*update\(updates, state, params\)"
        with case(name=name), pytest.raises(TypeError, match=swapped):
            jit(link.update)(link.init(PARAMS), GRADS, PARAMS)


#: An optimizer of ours without options, and the options that change its state.
OPTIONS: list[tuple[Any, dict[str, Any]]] = [
    (
        lambda max_norm=1.0, **options: wc.clip_by_global_norm(max_norm, **options),
        {"max_norm": FOLLOWING, "record_leaves": True},
    ),
    (
        lambda max_norm=1.0: wc.clip_by_group_norm(max_norm, by_path),
        {"max_norm": {"w": 1.0, "b": FOLLOWING}},
    ),
    (
        functools.partial(wc.skip_nonfinite, optax.adam(0.1)),
        {"above": FOLLOWING, "record": 4, "record_leaves": True},
    ),
    (
        functools.partial(wc.pipeline, optax.adam, 0.1),
        {"max_norm": FOLLOWING, "skip_above": FOLLOWING, "groups": by_path, "record": 4},
    ),
]


@ways
def test_a_state_built_with_other_options_is_an_error_that_says_so(jit: Any):
    wrong = r"state must be that of an optimizer with the options of this one; .*adopt_state\("
    for build, options in OPTIONS:
        for name, value in options.items():
            plain, other = build(), build(**{name: value})
            for given, to in ((plain, other), (other, plain)):
                with case(build=build, option=name), pytest.raises(TypeError, match=wrong):
                    jit(to.update)(GRADS, given.init(PARAMS), PARAMS)


@ways
def test_a_state_with_lists_for_tuples_is_an_error_at_the_first_call_good_or_bad(jit: Any):
    wrong = r"state of the structure it was given.*not one with lists for tuples"
    for name in ("guard", "pipeline"):
        state = LINKS[name].init(PARAMS)
        state = state._replace(inner_state=list(state.inner_state))
        for grads in (GRADS, BAD):
            with case(name=name), pytest.raises(TypeError, match=wrong):
                jit(LINKS[name].update)(grads, state, PARAMS)


def test_multi_steps_inside_of_a_pipeline_is_an_error_that_shows_the_right_nesting():
    def accumulated(rate: Any) -> Any:
        return optax.MultiSteps(optax.sgd(rate), 4)

    def transformed(rate: Any) -> Any:
        return accumulated(rate).gradient_transformation()

    wrong = r"must not hold an optax.MultiSteps.*skip_nonfinite\(optax.MultiSteps\(pipeline"
    for inside in (
        accumulated,
        transformed,
        lambda rate: optax.chain(transformed(rate), optax.identity()),
        lambda rate: optax.masked(transformed(rate), {"w": True, "b": False}),
        lambda rate: wc.skip_nonfinite(accumulated(rate)),
    ):
        with pytest.raises(TypeError, match=wrong):
            wc.pipeline(inside, 0.1).init(PARAMS)


# Buffers of the user.


def buffers() -> dict[str, jax.Array]:
    """Arrays that a user built an optimizer with, and goes on using."""
    return {"rate": jnp.float32(0.125), "bound": jnp.float32(2.0), "above": jnp.float32(1e6)}


KEEPERS: dict[str, Callable[[Any], Any]] = {
    "function": lambda user: wc.pipeline(
        optax.adam, lambda count: user["rate"], max_norm=lambda count: user["bound"]
    ),
    "number": lambda user: wc.pipeline(
        optax.adam, user["rate"], max_norm=user["bound"], skip_above=user["above"]
    ),
    "propagating": lambda user: wc.pipeline(
        optax.sgd, user["rate"], max_norm=user["bound"], nonfinite="propagate"
    ),
    "injected": lambda user: wc.pipeline(
        optax.inject_hyperparams(optax.sgd), user["rate"], nonfinite="zero"
    ),
    "clip, function": lambda user: wc.clip_by_global_norm(lambda count: user["bound"]),
    "clip, ceiling": lambda user: wc.clip_by_global_norm(wc.running_bound(ceiling=user["bound"])),
    "guard, function": lambda user: wc.skip_nonfinite(
        optax.adam(0.1), above=lambda count: user["above"]
    ),
}


@pytest.mark.parametrize("name", KEEPERS)
def test_no_state_holds_a_buffer_of_the_users_or_one_buffer_twice(name: str):
    user = buffers()
    optimizer, params = KEEPERS[name](user), jax.tree.map(jnp.copy, PARAMS)
    states = [optimizer.init(params)]
    for grads in (GRADS, BAD):
        states.append(optimizer.update(grads, states[-1], params)[1])
    step = jax.jit(optimizer.update, donate_argnums=(1,))
    for state in states:
        mine = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
        assert len(set(mine)) == len(mine)
        assert not set(mine) & {
            leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((user, params))
        }
    # Those of one state may stand in the next: only the last is given away.
    step(GRADS, states[-1], params)
    assert [float(leaf) for leaf in user.values()] == [0.125, 2.0, 1e6]


# Schedules that cannot be traced.


def on_host(low: float, high: float) -> Any:
    return lambda count: float(np.interp(int(count), [0, 10], [low, high]))


@pytest.mark.parametrize(
    "optimizer",
    [
        wc.pipeline(
            optax.adam, on_host(0.1, 0.0), max_norm=on_host(1.0, 2.0), skip_above=on_host(1e6, 1e3)
        ),
        wc.pipeline(
            lambda rate: optax.partition({"all": optax.adam(rate)}, {"w": "all", "b": "all"}),
            on_host(0.1, 0.0),
        ),
        optax.chain(
            wc.clip_by_global_norm(on_host(1.0, 1.0)),
            wc.skip_nonfinite(optax.adam(on_host(0.1, 0.0))),
        ),
        wc.skip_nonfinite(
            optax.chain(
                wc.clip_by_group_norm(on_host(1.0, 2.0), by_path), optax.adam(on_host(0.1, 0.0))
            )
        ),
    ],
    ids=["pipeline", "partition", "chain", "groups"],
)
def test_a_schedule_that_works_outside_of_jit_only_works_in_bad_steps_too(optimizer: Any):
    def run(stream: Any) -> Any:
        params, state = PARAMS, optimizer.init(PARAMS)
        for grads in stream:
            params, state = wc.apply_gradients(optimizer, params, state, grads=grads)
        return params, wc.metrics(state)

    (params, known), (expected, _) = run([GRADS, BAD, GRADS]), run([GRADS, GRADS])
    for key, leaf in params.items():
        np.testing.assert_array_equal(leaf, expected[key])
    assert int(known["skipped_count"]) == 1
    if "learning_rate" in known:
        np.testing.assert_allclose(known["learning_rate"], 0.1 * 9 / 10, rtol=1e-6)


# Leaves that are no arrays: others of a state are in test_selecting.py.


@pytest.mark.parametrize(
    "jit", [eqx.filter_jit, lambda function: function], ids=["filter_jit", "eager"]
)
def test_numbers_are_chosen_and_what_is_none_passes_through(jit: Any):
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        new = {**state, "calls": state["calls"] + 1, "half": state["half"] / 2}
        return {"a": updates["a"] * 2, "n": None, "x": 1.5, "i": 3, "f": len}, new

    start = {"calls": 0, "half": 0.5, "function": len, "nothing": None, "text": "kept"}
    guard = wc.skip_nonfinite(optax.GradientTransformation(lambda params: start, update))
    step, state = jit(guard.update), guard.init(jnp.zeros(2))
    for entry, factor, made in ((0.25, 1, 1), (jnp.nan, 0, 1), (0.25, 1, 2)):
        grads = {"a": jnp.array([0.25, entry]), "s": "text", "n": None}
        updates, state = step(grads, state)
        np.testing.assert_array_equal(updates["a"], factor * np.full(2, 0.5, np.float32))
        assert [float(updates["x"]), int(updates["i"])] == [1.5 * factor, 3 * factor]
        assert (updates["n"], updates["f"]) == (None, len)
        kept: Any = state.inner_state
        assert (kept["function"], kept["nothing"], kept["text"]) == (len, None, "kept")
        assert [int(kept["calls"]), float(kept["half"])] == [made, 0.5**made / 2]


# Nodes that look at what they are built from.


class Checked:
    """A node that can only be built of a float32 array and an int32 array, as some libraries' own
    are.
    """

    def __init__(self, weights: Any, index: Any):
        for leaf, dtype in ((weights, jnp.float32), (index, jnp.int32)):
            assert getattr(leaf, "dtype", None) == dtype, leaf
        self.weights, self.index = weights, index


jax.tree_util.register_pytree_with_keys(
    Checked,
    lambda node: (
        [
            (jax.tree_util.GetAttrKey("weights"), node.weights),
            (jax.tree_util.GetAttrKey("index"), node.index),
        ],
        None,
    ),
    lambda _, children: Checked(*children),
)
NODE = Checked(jnp.array([3.0, 4.0]), jnp.int32(7))


@ways
def test_a_node_that_checks_itself_is_measured_and_clipped(jit: Any):
    assert float(jit(wc.global_norm)(NODE)) == 5.0
    assert {name: float(norm) for name, norm in jit(wc.leaf_norms)(NODE).items()} == {
        "weights": 5.0
    }
    clipped, norm = jit(functools.partial(wc.clip_tree, max_norm=1.0))(NODE)
    assert float(norm) == 5.0
    np.testing.assert_allclose(clipped.weights, [0.6, 0.8], rtol=1e-6)
    assert int(clipped.index) == 7
    for name in ("clip", "clip, all options", "clip by groups"):
        updates, state = jit(LINKS[name].update)(NODE, LINKS[name].init(NODE), NODE)
        assert int(updates.index) == 7
        assert int(wc.metrics(state)["calls"]) == 1


@ways
def test_a_node_that_checks_itself_is_guarded(jit: Any):
    kept = optax.GradientTransformation(
        lambda params: params, lambda updates, state, params=None: (updates, updates)
    )
    optimizer: Any = wc.skip_nonfinite(kept)
    state = optimizer.init(NODE)
    for grads, index in (
        (Checked(jnp.array([0.3, 0.4]), jnp.int32(5)), 5),
        (Checked(jnp.array([0.3, jnp.nan]), jnp.int32(6)), 0),
    ):
        updates, state = jit(optimizer.update)(grads, state, NODE)
        # Zero updates are zero in every number, and the state is that of the good step.
        assert (int(updates.index), int(state.inner_state.index)) == (index, 5)
        np.testing.assert_array_equal(state.inner_state.weights, np.array([0.3, 0.4], np.float32))


# Symbolic dimensions.


def measured(tree: Any) -> Any:
    return wc.global_norm(tree), wc.leaf_norms(tree)


def clipped(tree: Any) -> Any:
    return wc.clip_tree(tree, 1.0)


#: The rest is a part of these.
SYMBOLIC: Any = [measured, clipped, LINKS["clip, all options"], LINKS["pipeline, all options"]]


@pytest.mark.parametrize("program", SYMBOLIC)
def test_a_program_with_a_symbolic_dimension_is_exported_and_runs_for_every_size(program: Any):
    rows, columns = jax.export.symbolic_shape("rows, columns")
    shapes = {"w": (rows, 3), "b": (columns,), "c": (rows, columns), "d": (4,)}

    def step(params: Any, grads: Any) -> Any:
        if not hasattr(program, "update"):
            return program(grads)
        return program.update(grads, program.init(params), params)[0]

    tree = {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in shapes.items()}
    exported = jax.export.export(jax.jit(step), platforms=["cpu", "cuda", "tpu"])(tree, tree)
    from_export, jitted = jax.jit(exported.call), jax.jit(step)
    for size in (1, 5):
        sizes = {"w": (size, 3), "b": (2 * size,), "c": (size, 2 * size), "d": (4,)}
        grads = {key: jnp.full(shape, 0.7) for key, shape in sizes.items()}
        result = from_export(grads, grads)
        for leaf, direct in zip(
            jax.tree.leaves(result), jax.tree.leaves(jitted(grads, grads)), strict=True
        ):
            np.testing.assert_allclose(leaf, direct, rtol=1e-6)
        if program is measured:
            np.testing.assert_allclose(result[0], float64_norm(grads), rtol=1e-6)
