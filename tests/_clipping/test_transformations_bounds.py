"""The bound of a clip: any number or schedule, of any size, beside a norm of any size; and what is
no bound.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import warmclip_jax as wc
from tests import reference
from tests.cases import case
from tests.trees import (
    BF16,
    ENTRIES,
    SHORT,
    WAYS,
    assert_clipped,
    assert_norm_is,
    assert_same_bits,
    clipping,
    gradients,
    jitted,
    mixed,
    normal,
    through_transformation,
    update,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")


# What a bound may be.


BOUNDS_OF_TWO = [
    *(2, 2.0, np.int64(2), np.float16(2), np.float32(2), np.float64(2), np.array(2.0)),
    *(jnp.int32(2), jnp.float32(2), jnp.asarray(2, jnp.bfloat16)),
    *(lambda count: 2, lambda count: jnp.float32(2), wc.constant(value=2.0)),
]


@pytest.mark.parametrize("max_norm", BOUNDS_OF_TWO)
def test_a_bound_is_any_number_or_schedule_and_keeps_the_dtype_of_leaves(max_norm):
    tree = mixed(SHORT, lambda dtype: normal(0, (ENTRIES,), dtype))
    clipped, _ = through_transformation(tree, max_norm)
    assert_same_bits(clipped, through_transformation(tree, 2.0)[0])
    assert_clipped(clipped, tree, 2.0)


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_a_traced_bound_of_any_dtype_keeps_the_dtype_of_leaves(kind):
    tree = mixed(SHORT, lambda dtype: normal(0, (ENTRIES,), dtype))
    assert_clipped(update("propagate")(tree, jnp.asarray(2, kind))[0], tree, 2.0)


def test_a_traced_negative_bound_acts_as_zero_and_a_nan_makes_everything_nan():
    tree = [np.ones(4, np.float32)]
    np.testing.assert_array_equal(jitted(tree, -1.0)[0][0], np.zeros(4))
    assert np.all(np.isnan(jitted(tree, math.nan)[0][0]))


def test_a_schedule_that_goes_negative_acts_as_zero():
    clipped, _ = through_transformation([np.ones(3, np.float32)], lambda count: -1.0)
    np.testing.assert_array_equal(clipped[0], np.zeros(3))


def test_a_schedule_is_given_the_number_of_earlier_calls():
    transformation = clipping(lambda count: 1.0 + count.astype(jnp.float32))
    tree = [np.full(1, 100, np.float32)]
    state = transformation.init(tree)
    for call in range(5):
        clipped, state = transformation.update(tree, state)
        assert_clipped(clipped, tree, 1.0 + call)


def test_a_schedule_is_given_calls_that_were_not_finite_too():
    transformation = clipping(wc.polynomial_decay(init_value=8.0, decay_steps=8), nonfinite="zero")
    state = transformation.init([jnp.zeros(1)])
    for leaf in (100.0, math.nan, math.inf):
        _, state = transformation.update([np.full(1, leaf, np.float32)], state)
    clipped, _ = transformation.update([np.full(1, 100, np.float32)], state)
    assert float(clipped[0][0]) == pytest.approx(5.0, rel=4 * 2.0**-23)


# Bounds of every size, of trees of every size.


@pytest.mark.parametrize("dtype", [BF16, np.float32, np.complex64])
def test_every_bound_clips_every_norm_of_the_float32_range(dtype):
    entries = np.array([1.25, -0.75, 0.5, 0.0])
    for power in range(-125, 128, 7):
        leaf = np.ldexp(entries, power).astype(dtype)
        for bound in [0.0, *(1.125 * 2.0**p for p in range(-126, 128, 5))]:
            with case(power=power, bound=bound):
                clipped, _ = jitted([leaf], bound)
                if reference.is_over([leaf], bound):
                    assert_clipped(clipped, [leaf], bound)
                else:
                    assert_same_bits(clipped, [leaf])


def test_every_bound_clips_every_norm_of_the_float64_range(x64):
    entries = np.array([1.25, -0.75, 0.5, 0.0])
    for power in range(-1020, 1024, 47):
        leaf = np.ldexp(entries, power)
        for bound in [0.0, *(1.125 * 2.0**p for p in range(-1022, 1024, 41))]:
            with case(power=power, bound=bound):
                clipped, _ = jitted([leaf], bound)
                if reference.is_over([leaf], bound):
                    assert_clipped(clipped, [leaf], bound)
                else:
                    assert_same_bits(clipped, [leaf])


@WAYS
def test_a_finite_tree_whose_norm_is_not_representable_is_clipped_right(clip):
    tree = {
        "a": np.full((5, 5), 3e38, np.float32),
        "b": np.full(4, -3.3e38, BF16),
        "c": np.full(2, 1.0, np.float16),
    }
    for max_norm in (0, 1.2e-38, 1e-37, 1.0, 1e38, 3.4e38):
        with case(max_norm=max_norm):
            clipped, norm = clip(tree, max_norm)
            assert_clipped(clipped, tree, max_norm)
            assert_norm_is(clipped, max_norm)
            assert float(norm) == math.inf


def test_a_finite_float64_tree_whose_norm_is_not_representable_is_clipped_right(x64):
    tree = [np.full(9, 1.7e308), np.full(4, -1e300)]
    for max_norm in (1e-300, 1.0, 1e308):
        with case(max_norm=max_norm):
            clipped, norm = wc.clip_tree(tree, max_norm)
            assert_clipped(clipped, tree, max_norm)
            assert float(norm) == math.inf


@pytest.mark.parametrize("max_norm", [1e-37, 1e-30, 1e-25])
def test_small_entries_are_clipped_too(max_norm):
    tree = [np.full(100, 1e-25, np.float32), np.full(3, 2e-25, BF16)]
    clipped, _ = wc.clip_tree(tree, max_norm)
    assert_clipped(clipped, tree, max_norm)
    assert_norm_is(clipped, max_norm)


@WAYS
def test_a_bound_of_zero_gives_zeros(clip):
    for scale in (0.0, 1e-7, 1.0, 6e4):
        tree = mixed(SHORT, lambda dtype: np.full(ENTRIES, scale, dtype))  # noqa: B023
        for leaf in gradients(clip(tree, 0.0)[0]):
            with case(scale=scale, dtype=leaf.dtype):
                assert np.all(leaf == 0)


# A norm that is known already.


@pytest.mark.parametrize(
    "norm", [5, 5.0, np.float64(5), np.array(5.0), jnp.float32(5), jnp.asarray(5, jnp.bfloat16)]
)
def test_a_norm_that_is_given_is_used(norm):
    tree = [np.array([3.0, 4.0], np.float32)]
    clipped, returned = wc.clip_tree(tree, 1.0, norm=norm)
    assert_same_bits(clipped, wc.clip_tree(tree, 1.0)[0])
    assert returned.dtype == jnp.float32
    assert float(returned) == 5.0


def test_a_norm_that_is_given_is_not_checked():
    tree = [np.array([3.0, 4.0], np.float32)]
    np.testing.assert_array_equal(wc.clip_tree(tree, 1.0, norm=2.0)[0][0], [1.5, 2.0])
    assert_same_bits(wc.clip_tree(tree, 1.0, norm=1.0)[0], tree)


def test_a_given_norm_of_a_long_tree_is_float64(x64):
    _, norm = wc.clip_tree([np.ones(1)], 0.1, norm=1 + 1e-12)
    assert norm.dtype == jnp.float64
    assert float(norm) == 1 + 1e-12


def test_a_given_norm_and_bound_may_have_any_size():
    clip = jax.jit(lambda leaf, norm, bound: wc.clip_tree(leaf, bound, norm=norm))
    for power, bound in itertools.product(
        [*range(-125, 127, 9), 126], [0.0, *(1.125 * 2.0**p for p in range(-126, 128, 5))]
    ):
        norm = 1.5 * 2.0**power
        leaf = np.full(1, norm, np.float32)
        with case(norm=norm, bound=bound):
            clipped, returned = clip(leaf, norm, bound)
            assert float(returned) == norm
            if bound < norm:
                assert_clipped(clipped, leaf, bound)
            else:
                assert_same_bits(clipped, leaf)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_given_norm_that_is_not_finite_makes_everything_nan(norm):
    assert np.all(np.isnan(wc.clip_tree([np.ones(3, np.float32)], 1.0, norm=norm)[0][0]))
