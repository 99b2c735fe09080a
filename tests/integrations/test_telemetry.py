"""`metrics` against what can be seen without our state: the rate in an update of SGD, the number of
updates in parameters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests.problem import float64_norm
from tests.trees import Pair

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.array([0.5, -2.0])}
GRADS = {"w": jnp.linspace(0.5, 2.0, 6).reshape(2, 3), "b": jnp.array([1.0, 3.0])}
BAD = {**GRADS, "b": jnp.array([1.0, jnp.nan])}
BOUND = 0.5
SCHEDULE = wc.warmup_polynomial_decay(peak_value=0.1, total_steps=20, warmup_steps=4)

ways = pytest.mark.parametrize("jit", [jax.jit, lambda function: function], ids=["jit", "eager"])


def clipped(grads: Any) -> dict[str, np.ndarray]:
    coefficient = min(1.0, BOUND / float64_norm(grads))
    return {key: coefficient * np.asarray(leaf, np.float64) for key, leaf in grads.items()}


def rate_in(updates: Any, grads: Any = GRADS, rtol: float = 1e-5) -> float:
    """The rate of a step of SGD: an update divided by its clipped gradient, the same for every
    entry.
    """
    rates = np.concatenate(
        [
            np.ravel(-np.asarray(updates[key], np.float64) / leaf)
            for key, leaf in clipped(grads).items()
        ]
    )
    np.testing.assert_allclose(rates, rates[0], rtol=rtol)
    return rates[0]


def sgd(rate: Any) -> Any:
    return optax.sgd(rate)


def injected(rate: Any) -> Any:
    return optax.inject_hyperparams(optax.sgd)(learning_rate=rate)


def after(optimizer: Any, calls: int, update: Any = None) -> Any:
    state = optimizer.init(PARAMS)
    for _ in range(calls):
        _, state = (update or optimizer.update)(GRADS, state, PARAMS)
    return state


def unchanged(state: Any, optimizer: Any) -> Any:
    del optimizer
    return state


def setting(**values: Any) -> Callable[[Any, Any], Any]:
    return lambda state, optimizer: optax.tree.set(state, **values)


def with_another_rate_held(state: Any, optimizer: Any) -> Any:
    del optimizer
    return state._replace(
        inner_state=state.inner_state._replace(hyperparams={"learning_rate": jnp.float32(0.01)})
    )


def with_moments_of_another_run(state: Any, optimizer: Any) -> Any:
    return state._replace(inner_state=after(optimizer, 2).inner_state)


def after_a_bad_step(state: Any, optimizer: Any) -> Any:
    return optimizer.update(BAD, state, PARAMS)[1]


#: An optimizer, its rate, and what happens to the state between one update and the next.
RATES: dict[str, tuple[Any, Any, Callable[[Any, Any], Any]]] = {
    "schedule": (sgd, SCHEDULE, unchanged),
    "optax's schedule": (sgd, optax.linear_schedule(0.1, 0.0, 10), unchanged),
    "number": (sgd, 0.3, unchanged),
    "product": (lambda rate: optax.sgd(1.0 * rate), SCHEDULE, unchanged),
    "bad step": (sgd, SCHEDULE, after_a_bad_step),
    "count set": (sgd, SCHEDULE, setting(count=jnp.int32(1))),
    "moments of another run": (sgd, SCHEDULE, with_moments_of_another_run),
    "injected number": (injected, 0.3, unchanged),
    "injected number set": (injected, 0.3, setting(learning_rate=jnp.float32(0.01))),
    "injected schedule": (injected, SCHEDULE, unchanged),
    "injected schedule whose count is set": (injected, SCHEDULE, setting(count=jnp.int32(1))),
    # What is set there is worked out anew by optax before it is used.
    "injected schedule set": (injected, SCHEDULE, with_another_rate_held),
    "partition": (
        lambda rate: optax.partition({"all": optax.sgd(rate)}, {"w": "all", "b": "all"}),
        SCHEDULE,
        unchanged,
    ),
    "masked": (
        lambda rate: optax.masked(optax.sgd(rate), {"w": True, "b": True}),
        SCHEDULE,
        unchanged,
    ),
    "named_chain": (
        lambda rate: optax.named_chain(("sgd", optax.sgd(rate))),
        SCHEDULE,
        setting(count=jnp.int32(2)),
    ),
}

#: Those that differ outside of jit too.
EAGER = ("schedule", "bad step", "injected number set", "injected schedule", "partition")


@pytest.mark.parametrize(
    ("case", "jit"), [*((case, True) for case in RATES), *((case, False) for case in EAGER)]
)
def test_the_learning_rate_is_the_one_in_the_update(case: str, jit: bool):
    build, rate, between = RATES[case]
    optimizer: Any = wc.pipeline(build, rate, max_norm=BOUND)
    update = jax.jit(optimizer.update) if jit else optimizer.update
    state = between(after(optimizer, 3, update), optimizer)
    updates, state = update(GRADS, state, PARAMS)
    used = rate_in(updates)
    assert used > 0
    np.testing.assert_allclose(wc.metrics(state)["learning_rate"], used, rtol=1e-5)
    # A bad step uses none: the last update's is told.
    _, state = update(BAD, state, PARAMS)
    np.testing.assert_allclose(wc.metrics(state)["learning_rate"], used, rtol=1e-5)


@ways
def test_the_learning_rate_of_pipelines_around_which_it_is_injected_is_the_one_in_the_update(
    jit: Any,
):
    optimizer: Any = optax.inject_hyperparams(
        lambda rate: wc.pipeline(optax.sgd, rate, max_norm=BOUND)
    )(rate=0.3)
    update = jit(optimizer.update)
    state = after(optimizer, 2, update)
    state.hyperparams["rate"] = jnp.float32(0.02)
    updates, state = update(GRADS, state, PARAMS)
    np.testing.assert_allclose(wc.metrics(state)["learning_rate"], rate_in(updates), rtol=1e-5)


@ways
def test_a_schedule_that_is_asked_twice_in_an_update_is_told_as_schedule_free_steps_with_it(
    jit: Any,
):
    optimizer: Any = wc.pipeline(
        lambda rate: optax.contrib.schedule_free(optax.sgd(rate), rate, b1=0.9),
        SCHEDULE,
        max_norm=BOUND,
    )
    update = jit(optimizer.update)
    before = after(optimizer, 3, update)
    _, state = update(GRADS, before, PARAMS)
    # Optax keeps the iterate that SGD itself moves.
    moved = jax.tree.map(jnp.subtract, state.inner_state.z, before.inner_state.z)
    np.testing.assert_allclose(
        wc.metrics(state)["learning_rate"], rate_in(moved, rtol=1e-4), rtol=1e-4
    )


@ways
def test_in_lookahead_the_learning_rate_is_that_of_the_fast_step(jit: Any):
    optimizer: Any = wc.pipeline(
        lambda rate: optax.lookahead(optax.sgd(rate), 5, 0.5), SCHEDULE, max_norm=BOUND
    )
    params = optax.LookaheadParams.init_synced(PARAMS)
    updates: Any = None
    update, state = jit(optimizer.update), optimizer.init(params)
    for _ in range(3):
        updates, state = update(GRADS, state, params)
    np.testing.assert_allclose(wc.metrics(state)["learning_rate"], rate_in(updates.fast), rtol=1e-5)


def test_vmapped_runs_tell_a_rate_each():
    optimizer: Any = wc.pipeline(sgd, SCHEDULE, max_norm=BOUND)
    states = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(after(optimizer, calls) for calls in (1, 2, 7))
    )
    updates, states = jax.vmap(lambda state: optimizer.update(GRADS, state, PARAMS))(states)
    used = [rate_in({key: leaf[run] for key, leaf in updates.items()}) for run in range(3)]
    np.testing.assert_allclose(wc.metrics(states)["learning_rate"], used, rtol=1e-5)


def branching(rate: Any) -> Any:
    return optax.apply_if_finite(optax.sgd(rate), 3)


def jitted_by_itself(rate: Any) -> Any:
    inner = optax.sgd(rate)
    return optax.GradientTransformation(inner.init, jax.jit(inner.update))


@ways
@pytest.mark.parametrize(
    "build",
    [branching, jitted_by_itself],
    ids=["asked inside of a branch", "asked inside of a jit"],
)
def test_a_rate_that_cannot_be_known_is_nan_and_none_that_was_not_used(build: Any, jit: Any):
    optimizer: Any = wc.pipeline(build, SCHEDULE, max_norm=BOUND)
    state = after(optimizer, 2, jit(optimizer.update))
    known = wc.metrics(state)
    assert np.isnan(known["learning_rate"])
    assert int(known["step"]) == 2


# Several of ours in one state.

RATE = 0.125


def test_skips_of_a_guard_and_of_the_pipeline_in_it_have_names_of_their_own():
    optimizer: Any = wc.skip_nonfinite(wc.pipeline(sgd, RATE))
    state = after(optimizer, 1)
    # The guard keeps it from what is inside, so only a pipeline called by itself has skips of its
    # own.
    state = state._replace(
        inner_state=wc.pipeline(sgd, RATE).update(BAD, state.inner_state, PARAMS)[1]
    )
    _, state = optimizer.update(BAD, state, PARAMS)
    known = wc.metrics(state)
    assert (int(known["skipped_count"]), int(known["update/skipped_count"])) == (1, 1)
    assert (int(known["nonfinite_count"]), int(known["calls"]), int(known["update/calls"])) == (
        1,
        2,
        2,
    )


class Hidden:
    """A node that gives its children one and the same key."""

    def __init__(self, *children: Any):
        self.children = children


jax.tree_util.register_pytree_with_keys(
    Hidden,
    lambda node: ([(jax.tree_util.GetAttrKey("child"), child) for child in node.children], None),
    lambda _, children: Hidden(*children),
)

SMALL: Any = wc.pipeline(sgd, 0.1)


@pytest.mark.parametrize(
    "node",
    [Pair, lambda *both: both, lambda *both: list(both), lambda *both: dict(enumerate(both))],
)
def test_two_pipelines_side_by_side_are_told_by_their_places(node: Any):
    norms = [float64_norm(GRADS), 2 * float64_norm(GRADS)]
    states = [
        SMALL.update(jax.tree.map(lambda g, k=k: k * g, GRADS), SMALL.init(PARAMS), PARAMS)[1]
        for k in (1.0, 2.0)
    ]
    known = wc.metrics(node(*states))
    np.testing.assert_allclose([known["0/grad_norm"], known["1/grad_norm"]], norms, rtol=1e-6)
    assert all(name[:2] in ("0/", "1/") for name in known)


def test_two_that_would_share_a_name_are_an_error_that_says_where():
    with pytest.raises(
        ValueError,
        match=r"metrics must have names of their own; .*'child/.*\.child.*different keys",
    ):
        wc.metrics(Hidden(SMALL.init(PARAMS), SMALL.init(PARAMS)))
