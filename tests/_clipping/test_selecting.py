import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from warmclip_jax._clipping._selecting import choose


@jax.jit
def jitted(x):
    return jnp.cos(x), x + 1


def program(x, state):
    """One of each kind of result: made on the way, by a nested program, of another dtype, given,
    twice, a constant.
    """
    moment = 0.5 * state["moment"] + x
    first, inside = jitted(moment)
    branched = jax.lax.cond(
        state["count"] > 1, lambda: (moment, 2 * moment), lambda: (2 * moment, moment)
    )
    new = {
        "moment": moment,
        "count": state["count"] + 1,
        "dtype": state["dtype"] * inside,
        "narrower": (state["narrower"] + x).astype(jnp.float16),
        "given": state["given"],
        "moved": state["given"],
        "constant": 3.0,
        "twice": moment,
        "branch": branched[1],
    }
    return first / jnp.sqrt(1 + moment) + branched[0] * state["count"] + new["dtype"], new


X = jnp.array([0.5, 2.0, -0.25])
STATE = {
    "moment": jnp.array([1.0, 2.0, 3.0]),
    "count": jnp.int32(1),
    "dtype": jnp.array([1.0, 2.0, 3.0], jnp.bfloat16),
    "narrower": jnp.array([1.0, 2.0, 3.0]),
    "given": jnp.array([7.0, 8.0]),
    "moved": jnp.array([9.0, 10.0]),
    "constant": jnp.float32(0.0),
    "twice": jnp.array([4.0, 5.0, 6.0]),
    "branch": jnp.zeros(3),
}

COUNT = {"count": jnp.int32(1)}


def early(condition, x, state):
    return choose(condition, program, (x, state), before=(state,))


def late(condition, x, state):
    def select(new, old):
        return jnp.where(condition, new, jnp.asarray(old, jnp.result_type(new)))

    return jax.tree.map(select, program(x, state), (jnp.zeros_like(x), state))


@pytest.mark.parametrize("condition", [True, False])
def test_it_is_the_select_after_the_program(condition):
    expected = jax.jit(late)(condition, X, STATE)
    chex.assert_trees_all_equal(jax.jit(early)(condition, X, STATE), expected)
    # Outside of `jit` the program sees zeros in the place of an update that is dropped.
    chex.assert_trees_all_close(early(jnp.bool_(condition), X, STATE), expected, rtol=1e-6)


def test_it_is_so_for_a_batch_of_conditions():
    conditions, xs = jnp.array([True, False, True]), jnp.stack([X, 2 * X, 3 * X])
    ways: list[Any] = [
        jax.jit(jax.vmap(functools.partial(way, state=STATE))) for way in (early, late)
    ]
    chex.assert_trees_all_close(ways[0](conditions, xs), ways[1](conditions, xs), rtol=1e-6)


@pytest.mark.parametrize("condition", [True, False])
def test_it_has_the_derivative_of_the_select(condition):
    def squared(way, x):
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(way(condition, x, STATE)))

    chex.assert_trees_all_close(
        *(jax.jit(jax.grad(functools.partial(squared, way)))(X) for way in (early, late)), rtol=1e-5
    )


def test_what_a_program_does_last_it_does_though_no_result_comes_of_it():
    seen: list[Any] = []

    def telling(x, state):
        doubled, new = 2 * x, {"count": state["count"] + 1}
        jax.debug.callback(lambda x: seen.append(x.tolist()), jnp.sqrt(x))
        return doubled, new

    counts = jax.jit(
        lambda taken: choose(taken, telling, (jnp.float32([4, 9]), COUNT), before=(COUNT,))
    )(True)
    jax.effects_barrier()
    assert seen == [[2.0, 3.0]]
    assert int(counts[1]["count"]) == 2


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("traced", [False, True])
def test_a_state_may_hold_arrays_of_numpy_names_and_python_numbers(traced, taken):
    state = {
        "names": np.array(["w", "b"]),
        "was_seen": np.array([False, False]),
        "half": np.array([1, 2], jnp.bfloat16),
        "repeats": 2,
        "mark": "before",
    }
    marked: list[Any] = []

    def repeated(x, state):
        marked.append(object())
        for _ in range(state["repeats"]):  # which a tracer could not be given to
            x = 2 * x
        new = {"was_seen": state["was_seen"] | True, "half": 2 * state["half"]}
        # No number can be taken back: one that changes is handed on from a dropped call too.
        return {"update": x, "mark": marked[-1]}, state | new | {"mark": marked[-1]}

    kept: list[Any] = []

    def run(taken):
        updates, new = choose(taken, repeated, (X, state), before=(state,))
        kept.extend((new.pop("names"), new.pop("mark"), updates.pop("mark")))
        return updates, new

    updates, new = (jax.jit(run) if traced else run)(jnp.bool_(taken))
    assert kept[0] is state["names"]
    assert kept[1] is kept[2] is marked[-1]
    np.testing.assert_array_equal(updates["update"], 4 * X if taken else 0 * X)
    assert (new["was_seen"].tolist(), new["half"].tolist()) == (
        ([True, True], [2, 4]) if taken else ([False, False], [1, 2])
    )
    assert (new["half"].dtype, int(new["repeats"])) == (jnp.bfloat16, 2)
