"""What a state keeps of the leaves of its calls: `records` and `report` read it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import warmclip_jax as wc
from warmclip_jax._clipping._coding import coded, decoded, is_unknown, unknown
from warmclip_jax._clipping._leaf_record import names_of

PARAMS = {"a": jnp.ones(2), "b": {"c": jnp.ones(3)}}
CLIP: Any = wc.clip_by_global_norm(5.0, record_leaves=True)
USUAL = [(1.0, 6.0)] * 10


def after(stream: Any, state: Any = None) -> Any:
    update, state = jax.jit(CLIP.update), CLIP.init(PARAMS) if state is None else state
    for a, c in stream:
        _, state = update({"a": jnp.array([a, 0.0]), "b": {"c": jnp.array([c, 0.0, 0.0])}}, state)
    return state


def test_leaves_are_named_and_their_norms_are_those_of_the_last_call_and_the_last_spike():
    leaves = after([*USUAL, (1e4, 6.0), (1.0, 2.0)]).leaves
    assert names_of(leaves) == ["a", "b/c"]
    assert leaves.leaf_norms.tolist() == [1.0, 2.0]
    assert int(leaves.spike_call) == 10
    assert leaves.spike_leaf_norms.tolist() == [1e4, 6.0]
    # Norms that are all equal have a deviation of 0.1 in logarithms; the first counts as 0.5.
    np.testing.assert_allclose(leaves.spike_deviations, np.log(1e4) / 0.1, rtol=0.05)


def test_of_a_run_of_bad_calls_the_first_is_kept_and_the_number_of_the_last():
    bad = [(np.nan, 6.0), (np.nan, np.inf), (np.inf, np.nan)]
    leaves = after([(np.inf, 1.0), *USUAL, *bad, (1.0, 6.0)]).leaves
    assert (int(leaves.bad_call), int(leaves.last_bad_call)) == (11, 13)
    np.testing.assert_equal(
        decoded(np.asarray(leaves.bad_leaf_norms)), np.array([np.nan, 6.0], np.float32)
    )
    leaves = after([(np.nan, 1.0), (np.inf, -np.inf)]).leaves
    assert (int(leaves.bad_call), int(leaves.last_bad_call)) == (0, 1)
    np.testing.assert_equal(
        decoded(np.asarray(leaves.leaf_norms)), np.array([np.inf, np.inf], np.float32)
    )


@pytest.mark.parametrize(
    ("call", "is_spike"),
    [
        ((1e4, 6.0), True),  # without a bound that it is over, as well as with one
        ((100.0, 6.0), True),
        ((8.0, 6.0), False),  # the leaf stands out; all leaves together are not twice the usual
        ((13.0, 6.0), True),
        ((2.0, 13.0), True),
        ((1.0, 9.0), False),
    ],
)
def test_a_spike_is_over_twice_the_usual_norm_and_one_of_its_leaves_stands_out(
    call: Any, is_spike: bool
):
    leaves = after([*[(1.0, 6.0)] * 200, call]).leaves
    assert int(leaves.spike_call) == (200 if is_spike else -1)


def test_what_is_just_at_a_limit_stands_out_and_is_not_over_twice_the_usual():
    def spike_call(norm: float, log_mean: float, log_variance: float) -> int:
        state = after([(1.0, 0.0)])
        usual = state.leaves.leaf_history._replace(
            log_mean=jnp.float32([log_mean, 0]), log_variance=jnp.float32([log_variance, 0])
        )
        state = state._replace(leaves=state.leaves._replace(leaf_history=usual))
        return int(after([(norm, 0.0)], state).leaves.spike_call)

    # Six deviations of a half above; and log(2) above, nearly seven of a tenth.
    assert spike_call(1.0, -3.0, 0.25) == 1
    assert spike_call(2.0, 0.0, 0.01) == -1
    assert spike_call(2.001, 0.0, 0.01) == 1


def test_runs_side_by_side_have_the_names_of_one():
    assert names_of(jax.vmap(CLIP.init)(jax.tree.map(lambda leaf: leaf[None], PARAMS)).leaves) == [
        "a",
        "b/c",
    ]


def test_before_a_bad_call_and_a_spike_the_record_holds_none():
    for leaves in (CLIP.init(PARAMS).leaves, after([(1.0, 2.0), (1e3, 2.0)][:1]).leaves):
        calls = leaves.bad_call, leaves.last_bad_call, leaves.spike_call
        assert [*map(int, calls)] == [-1, -1, -1]
        assert float(leaves.spike_deviations) == 0.0
        assert is_unknown(leaves.bad_leaf_norms).all()
        assert is_unknown(leaves.spike_leaf_norms).all()


def test_a_skipped_finite_call_is_a_spike_though_no_leaf_stands_out():
    guard: Any = wc.skip_nonfinite(wc.clip_by_global_norm(1.0), above=4.0, record_leaves=True)
    _, state = guard.update(PARAMS, guard.init(PARAMS))
    _, state = guard.update(jax.tree.map(lambda leaf: 2 * leaf, PARAMS), state)
    assert int(state.leaves.spike_call) == 1
    assert float(state.leaves.spike_deviations) < 6


def test_a_finite_leaf_stays_finite_where_its_norm_is_past_the_largest_number():
    big = {"a": jnp.full(2, 3e38), "b": {"c": jnp.array([jnp.nan, 0.0, 0.0])}}
    _, state = CLIP.update(big, CLIP.init(PARAMS))
    norms = decoded(np.asarray(state.leaves.bad_leaf_norms))
    assert np.isfinite(norms).tolist() == [True, False]


@pytest.mark.parametrize("kept", [CLIP, wc.skip_nonfinite(CLIP, record_leaves=True)])
def test_a_leaf_that_is_no_gradient_is_not_in_the_record_and_the_others_are(kept: Any):
    tree = {**PARAMS, "count": jnp.int32(3)}
    _, state = kept.update(tree, kept.init(tree))
    assert names_of(state.leaves) == ["a", "b/c"]
    np.testing.assert_allclose(state.leaves.leaf_norms, np.sqrt([2, 3]), rtol=1e-6)


def test_gradients_of_other_leaves_than_at_init_are_an_error_in_words():
    with pytest.raises(ValueError, match=r"updates must have the gradients that init saw, 2 le.*1"):
        CLIP.update({"a": jnp.ones(2)}, CLIP.init(PARAMS))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.usefixtures("x64")
def test_every_number_of_a_state_is_finite_and_is_read_as_what_it_was(dtype: Any):
    like = jnp.zeros(8, dtype)
    numbers = jnp.array([0.0, -1.5, 3e38, -3e38, 1e-30, jnp.nan, jnp.inf, -jnp.inf], dtype)
    held = coded(numbers, like)
    assert held.dtype == dtype
    assert jnp.isfinite(held).all()
    for number in (held, np.asarray(held)):
        np.testing.assert_array_equal(decoded(number).astype(float), numbers.astype(float))
        assert type(decoded(number)) is (np.ndarray if number is not held else type(held))
    assert not is_unknown(held).any()
    assert is_unknown(coded(None, like)).all()
    assert is_unknown(unknown((2,), dtype)).all()
    assert np.isnan(decoded(np.asarray(unknown((), dtype))))
    # What a state in float32 holds is the same after a cast to bfloat16.
    narrow = coded(numbers.astype(jnp.float32), like.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.isnan(decoded(narrow)), np.isnan(numbers))
    np.testing.assert_array_equal(np.isinf(decoded(narrow)), np.isinf(numbers))
    past_the_end = coded(jnp.float32(3.4e38), like)  # of bfloat16
    assert np.isfinite(decoded(past_the_end)).all()
