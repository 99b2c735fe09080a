"""What a bound may be, and the running bound as a value."""

import copy
import inspect
import math
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from warmclip_jax._clipping._bounds import (
    RunningBound,
    check_bound,
    running_bound,
)
from warmclip_jax._clipping._history import History, bound_from, init_history
from warmclip_jax._clipping._limit import Limit
from warmclip_jax._clipping._rule import Rule

pytestmark = pytest.mark.usefixtures("strict_dtypes")

#: Each with a ceiling of another sort.
BOUNDS = {
    "plain": running_bound(),
    "number": running_bound(deviations=6, ceiling=1, decay=0.9),
    "schedule": running_bound(ceiling=wc.linear_warmup(peak_value=1.0, warmup_steps=10)),
}
KNOWN = History(jnp.float32(0), jnp.float32(0.25), jnp.int32(5))


@pytest.mark.parametrize("name", ["max_norm", "skip_above"])
@pytest.mark.parametrize(
    ("bound", "checked"),
    [
        (None, None),
        (math.inf, None),
        (np.float32(np.inf), None),
        (jnp.asarray(jnp.inf), None),
        (0, 0.0),
        (np.float16(0.1), 0.1),
        (jnp.float32(2.5), 2.5),
        (np.int64(3), 3.0),
        (BOUNDS["number"], BOUNDS["number"]),
        (wc.constant(value=1.0), wc.constant(value=1.0)),
    ],
)
def test_a_bound_is_none_a_number_a_schedule_or_a_running_bound(
    name: str, bound: Any, checked: Any
):
    assert check_bound(name, bound) == checked
    assert (check_bound(name, bound) is None) == (checked is None)


def test_any_function_of_a_count_is_a_schedule():
    bound = check_bound("max_norm", optax.linear_schedule(1.0, 3.0, 4))
    for given, value in ((bound, 2.0), (2.0, 2.0), (None, None)):
        assert Limit(given).at((), jnp.int32(2)) == value


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_it_is_a_value(bound: RunningBound):
    assert eval(repr(bound), {"running_bound": running_bound, **vars(wc)}) == bound
    for same in (
        pickle.loads(pickle.dumps(bound)),
        copy.deepcopy(bound),
        jax.jit(lambda value: value)(bound),
    ):
        assert same == bound
        assert repr(same) == repr(bound)
    assert hash(copy.copy(bound)) == hash(bound)
    assert (
        len({repr(value): value for value in BOUNDS.values()})
        == len(set(BOUNDS.values()))
        == len(BOUNDS)
    )
    assert not callable(bound)
    with pytest.raises(AttributeError, match="immutable"):
        bound.deviations = 2.0  # pyright: ignore[reportAttributeAccessIssue]


def test_its_leaves_are_its_numbers():
    assert jax.tree.leaves(BOUNDS["number"]) == [6.0, 1.0, 0.9]
    assert jax.tree.map(
        lambda number: 2 * number, running_bound(deviations=1.5, decay=0.25)
    ) == running_bound(decay=0.5)


def test_an_infinite_ceiling_is_none_and_its_options_are_keyword_only():
    assert running_bound(ceiling=math.inf) == running_bound()
    assert {
        parameter.kind for parameter in inspect.signature(running_bound).parameters.values()
    } == {inspect.Parameter.KEYWORD_ONLY}


def test_a_decay_near_one_keeps_what_float32_would_lose():
    assert running_bound(decay=1 - 1e-9).rule.rate == pytest.approx(1e-9, rel=1e-6)
    assert jnp.float32(1 - 1e-9) == 1
    through_jit = jax.jit(lambda bound: bound)(running_bound())
    assert through_jit.rule == running_bound().rule


def test_traced_numbers_and_stacked_ones_sweep():
    def bound_at_5(deviations: jax.Array, ceiling: jax.Array) -> jax.Array:
        return bound_from(
            KNOWN, running_bound(deviations=deviations, ceiling=ceiling).rule, jnp.int32(5)
        )

    found = jax.jit(jax.vmap(bound_at_5))(jnp.float32([1, 2, 20]), jnp.float32([9, 1, 9]))
    np.testing.assert_allclose(found, [math.exp(0.5), 1, 9], rtol=1e-6)
    many = jax.tree.map(
        lambda *numbers: jnp.stack(numbers),
        running_bound(ceiling=9.0),
        running_bound(deviations=1, ceiling=9),
    )
    found = jax.jit(jax.vmap(lambda bound: bound_from(KNOWN, bound.rule, jnp.int32(5))))(many)
    np.testing.assert_allclose(found, [math.exp(1.5), math.exp(0.5)], rtol=1e-6)


def test_a_scheduled_ceiling_is_given_the_count():
    for count in (0, 3, 20):
        bound = bound_from(init_history(), BOUNDS["schedule"].rule, jnp.int32(count))
        np.testing.assert_allclose(bound, min(count / 10, 1), rtol=1e-6)


def test_groups_with_bounds_of_their_own_are_as_each_alone():
    calls = []

    def twice(count: jax.Array) -> jax.Array:
        calls.append(count)
        return 2 * count

    scheduled = check_bound("max_norm", twice)
    bounds = [
        None,
        1.5,
        scheduled,
        BOUNDS["plain"],
        BOUNDS["number"],
        scheduled,
        BOUNDS["schedule"],
        BOUNDS["plain"],
    ]
    for history in (init_history(), KNOWN):
        groups = jax.tree.map(lambda field: jnp.full(len(bounds), field), history)
        calls.clear()
        together = bound_from(groups, Rule.of_groups(bounds), jnp.int32(4))
        assert len(calls) == 1  # two groups of one schedule ask it once
        np.testing.assert_array_equal(
            together, [bound_from(history, Rule.of(bound), jnp.int32(4)) for bound in bounds]
        )
    np.testing.assert_allclose(together[:4], [math.inf, 1.5, 8, math.exp(1.5)], rtol=1e-6)
