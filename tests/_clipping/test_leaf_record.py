"""What a state keeps of its last calls, as arrays: `records` and `report` read it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from warmclip_jax._clipping._leaf_record import names_of

PARAMS = {"a": jnp.ones(2), "b": {"c": jnp.ones(3)}}
CLIP: Any = wc.clip_by_global_norm(5.0, record_leaves=True)


def after(stream: Any, state: Any = None) -> Any:
    update, state = jax.jit(CLIP.update), CLIP.init(PARAMS) if state is None else state
    for a, c in stream:
        _, state = update({"a": jnp.array([a, 0.0]), "b": {"c": jnp.array([c, 0.0, 0.0])}}, state)
    return state


def test_leaves_are_named_and_their_norms_are_those_of_the_last_bad_and_large_calls():
    leaves = after([(3.0, 4.0), (6.0, 8.0), (np.nan, -np.inf), (1.0, 2.0)]).leaves
    assert names_of(leaves) == ["a", "b/c"]
    assert leaves.leaf_norms.tolist() == [1.0, 2.0]
    assert (int(leaves.bad_call), int(leaves.spike_call)) == (2, 1)
    np.testing.assert_equal(
        np.asarray(leaves.bad_leaf_norms), np.array([np.nan, np.inf], np.float32)
    )
    assert leaves.spike_leaf_norms.tolist() == [6.0, 8.0]


def test_a_call_in_which_a_leaf_stands_out_is_kept_until_the_next_of_its_kind():
    usual = [(1.0, 6.0)] * 10
    state = after([*usual, (1e4, 6.0), *usual])
    assert (int(state.leaves.spike_call), int(state.clipped_count)) == (10, 21)
    # What is usual was 1 throughout, and its deviation from a mean of equal logarithms counts as
    # 0.1.
    np.testing.assert_allclose(state.leaves.spike_deviations, np.log(1e4) / 0.1, rtol=0.05)
    assert int(after([(1.0, 1e5)], state).leaves.spike_call) == 21


def test_before_a_bad_and_a_large_call_the_record_knows_of_none():
    for leaves in (CLIP.init(PARAMS).leaves, after([(1.0, 2.0)]).leaves):
        assert (int(leaves.bad_call), int(leaves.spike_call), float(leaves.spike_deviations)) == (
            -1,
            -1,
            0.0,
        )
        assert not leaves.bad_leaf_norms.any()
        assert not leaves.spike_leaf_norms.any()


def test_at_the_limit_a_leaf_stands_out():
    state = after([(1.0, 6.0)])
    at_limit = state._replace(leaves=state.leaves._replace(spike_deviations=jnp.float32(6.0)))
    assert int(after([(1.0, 6.0)], at_limit).leaves.spike_call) == 0
    assert int(after([(1.0, 6.0)], state).leaves.spike_call) == 1
    # The next leaf that stands out is kept: log(8) is six deviations of 1/2 above log(8) - 3.
    history = state.leaves.leaf_history._replace(
        log_mean=jnp.float32([0.0, np.log(np.float32(8)) - 3]),
        log_variance=jnp.float32([0.25, 0.25]),
    )
    at_limit = state._replace(
        leaves=state.leaves._replace(spike_deviations=jnp.float32(9.0), leaf_history=history)
    )
    leaves = after([(1.0, 8.0)], at_limit).leaves
    assert (int(leaves.spike_call), float(leaves.spike_deviations)) == (1, 6.0)


def test_a_finite_leaf_stays_finite_where_its_norm_is_past_the_largest_number():
    leaves = after([(3e38, 1.0)] * 2 + [(np.nan, 3e38)]).leaves
    assert np.isfinite(np.asarray(leaves.bad_leaf_norms)).tolist() == [False, True]
    big = {"a": jnp.full(2, 3e38), "b": {"c": jnp.array([jnp.nan, 0.0, 0.0])}}
    _, state = CLIP.update(big, CLIP.init(PARAMS))
    assert np.isfinite(np.asarray(state.leaves.bad_leaf_norms)).tolist() == [True, False]


def test_gradients_of_other_leaves_than_at_init_are_an_error_in_words():
    with pytest.raises(
        ValueError, match=r"updates must have the gradients that init saw, 2 leaves; got 1\."
    ):
        CLIP.update({"a": jnp.ones(2)}, CLIP.init(PARAMS))


def test_a_record_costs_nothing_in_the_state_where_it_is_not_asked_for():
    state: Any = wc.pipeline(optax.sgd, 0.1).init(PARAMS)
    assert (state.ring, state.clip_state.leaves) == ((), ())
