"""The bound of a clip: any number or schedule, of any size, beside a norm of any size; and what is
no bound.
"""

import itertools
import math
from typing import Any

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


def test_a_bound_is_any_number_or_schedule_and_keeps_the_dtype_of_leaves():
    tree = mixed(SHORT, lambda dtype: normal(0, (ENTRIES,), dtype))
    expected, _ = through_transformation(tree, 2.0)
    assert_clipped(expected, tree, 2.0)
    for index, max_norm in enumerate(BOUNDS_OF_TWO):
        with case(index=index, max_norm=max_norm):
            assert_same_bits(through_transformation(tree, max_norm)[0], expected)
    for kind in (jnp.bfloat16, jnp.float16, jnp.int32):
        with case(traced=kind):
            assert_clipped(update("propagate")(tree, jnp.asarray(2, kind))[0], tree, 2.0)


def test_a_negative_bound_of_a_trace_or_a_schedule_acts_as_zero_and_a_nan_makes_everything_nan():
    tree = [np.ones(4, np.float32)]
    np.testing.assert_array_equal(jitted(tree, -1.0)[0][0], np.zeros(4))
    clipped, _ = through_transformation(tree, lambda count: -1.0)
    np.testing.assert_array_equal(clipped[0], np.zeros(4))
    assert np.all(np.isnan(jitted(tree, math.nan)[0][0]))


def test_a_schedule_is_given_the_number_of_earlier_calls_also_of_those_that_were_not_finite():
    transformation = clipping(lambda count: 1.0 + count.astype(jnp.float32), nonfinite="zero")
    state = transformation.init([jnp.zeros(1)])
    for call, entry in enumerate((100.0, 100.0, math.nan, math.inf, 100.0)):
        tree = [np.full(1, entry, np.float32)]
        clipped, state = transformation.update(tree, state)
        if math.isfinite(entry):
            assert_clipped(clipped, tree, 1.0 + call)


# Bounds of every size, of trees of every size.


@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.float64])
def test_every_bound_clips_every_norm_of_the_range(dtype):
    long = dtype is np.float64
    largest, far, near = (1024, 47, 41) if long else (128, 9, 7)
    entries = np.array([1.25, -0.75, 0.5, 0.0])
    with jax.enable_x64(long):
        for power in range(4 - largest, largest, far):
            leaf = np.ldexp(entries, power).astype(dtype)
            bounds = [1.125 * 2.0**power for power in range(2 - largest, largest, near)]
            for bound in [0.0, *bounds]:
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
            # A state says the largest number that it holds: no entry was inf.
            assert float(norm) == math.inf or clip is through_transformation
            assert float(norm) > 3.34e38


# A norm that is known already.


def test_a_norm_that_is_given_is_used():
    tree = [np.array([3.0, 4.0], np.float32)]
    expected, _ = wc.clip_tree(tree, 1.0)
    norms: Any = (5, 5.0, np.float64(5), np.array(5.0), jnp.float32(5), jnp.asarray(5, BF16))
    for norm in norms:
        clipped, returned = wc.clip_tree(tree, 1.0, norm=norm)
        assert_same_bits(clipped, expected)
        assert (returned.dtype, float(returned)) == (jnp.float32, 5.0)


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
        [*range(-125, 127, 17), 126], [0.0, *(1.125 * 2.0**p for p in range(-126, 128, 9))]
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


def test_a_given_norm_that_is_not_finite_makes_everything_nan():
    for norm in (math.nan, math.inf):
        assert np.all(np.isnan(wc.clip_tree([np.ones(3, np.float32)], 1.0, norm=norm)[0][0]))
