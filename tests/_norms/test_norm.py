"""`global_norm`: what it adds up, in which precision, over which range, and what is no gradient."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests import reference
from tests.cases import case
from tests.compiled import summation_error
from tests.trees import (
    BF16,
    ENTRIES,
    FEW_ULP,
    FEW_ULP_64,
    LONG,
    SHORT,
    gradients,
    mixed,
    normal,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")

jitted = jax.jit(wc.global_norm)


def assert_norm(tree: Any, tolerance: float = FEW_ULP) -> None:
    """The norm of `tree` under `jit` against the reference. An eager call has the same bits, as a
    test below says.
    """
    expected = reference.global_norm(gradients(tree))
    assert float(jitted(tree)) == pytest.approx(expected, rel=tolerance, abs=0)


# What is added up, and in which precision.


def test_all_dtypes_mix_and_the_norm_is_float32_unless_a_leaf_is_float64(x64):
    short = [normal(seed, (4, 3), dtype) for seed, dtype in enumerate(SHORT)]
    assert_norm(short)
    assert jitted(short).dtype == jnp.float32
    assert_norm(
        [normal(seed, (4, 3), dtype) for seed, dtype in enumerate(SHORT + LONG)], FEW_ULP_64
    )
    for dtype in LONG:
        # 1e-5 is below half a float32 ulp of the sum, which only float64 can hold beside 1.
        tree = [np.ones(1, np.float32), np.full(1, 1e-5, dtype), np.zeros(3, BF16)]
        assert jitted(tree).dtype == jnp.float64
        assert_norm(tree, FEW_ULP_64)


def test_a_sum_does_not_stall_in_a_short_dtype():
    for dtype, stalls_at in ((BF16, 256), (np.float16, 2048)):
        assert_norm(np.ones(100 * stalls_at, dtype))
    # In bfloat16 16^2 + 1 is 16^2.
    assert float(wc.global_norm([np.full((), 16, BF16), *[np.ones((), BF16)] * 33])) == 17.0


# Accuracy.


@pytest.mark.parametrize(("devices", "leaves"), [(8, 3), (8, 17), (1, 2000)])
def test_the_error_is_a_few_ulp_for_any_number_of_leaves(as_on, devices, leaves):
    # Thousands as on one device, where small leaves are packed: the eight of this process would
    # take minutes to compile so many.
    as_on("cpu", devices)
    assert_norm([normal(seed, (1 + seed % 7,)) for seed in range(leaves)])


def test_the_error_is_a_few_ulp_for_a_hundred_million_entries():
    # Equal entries are the hardest: the rounding of each addition has the same sign.
    leaf = jnp.full(10**8, 0.1, jnp.float32)
    assert float(wc.global_norm(leaf)) == pytest.approx(1e4 * float(np.float32(0.1)), rel=FEW_ULP)


def test_the_error_is_a_few_ulp_for_any_shape_of_a_million_entries():
    shapes = [(10**6,), (1000, 1000), (10**5, 2, 5), (5, 2 * 10**5), (2 * 10**5, 5)]
    for shape, dtype in [((10**6,), BF16), *((shape, np.float32) for shape in shapes)]:
        with case(shape=shape, dtype=dtype):
            tolerance = FEW_ULP + summation_error(shape)
            assert_norm(normal(0, shape, dtype) + np.asarray(1, dtype), tolerance)
            # As large as there are a million of that have a norm.
            assert_norm(np.full(shape, 3e35, dtype), tolerance)


# Range: over all of it, in every form, in test_sums.py.


def test_subnormals_of_float32_count_as_zero():
    below, smallest = np.full(9, 1e-38, np.float32), np.full(9, 2.0**-126, np.float32)
    assert float(jitted([below])) == 0.0
    assert float(jitted([below, smallest])) == 3 * 2.0**-126


def test_nothing_is_lost_where_squares_begin_to_underflow():
    # A million entries of any of these sizes add up to what a single pass may have lost in part or
    # whole.
    for power in range(-66, -54):
        large = np.array([2.0 ** (power + 5)], np.float32)
        assert_norm([np.full(10**6, 2.0**power, np.float32), large])
    # The sum of the small squares is a quarter of the large one.
    assert_norm([np.full(2**20, 2.0**-41, np.float32), np.array([2.0**-30], np.float32)])


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_a_sum_at_the_limit_of_what_can_be_trusted_is_right_in_every_form(as_on, platform):
    as_on(platform, devices=1)
    # The least sum of squares that is taken as it is, that below it and that above it, to the last
    # bit.
    for entry in np.float32(2.0**-30) * np.array([1 - 2.0**-24, 1, 1 + 2.0**-23], np.float32):
        tree = {"w": np.full(1, entry)}
        assert float(wc.global_norm(tree)) == float(wc.leaf_norms(tree)["w"]) == entry


def test_a_norm_past_the_largest_number_is_inf(x64):
    assert float(wc.global_norm(np.full(4, 3e38, np.float32))) == math.inf
    assert_norm(np.full(2, 2.4e38, np.float32))
    assert float(wc.global_norm(np.full(4, 1.7e308))) == math.inf


# Entries that are not finite.


def filled(size: float, dtype: Any) -> np.ndarray:
    return np.full(ENTRIES, min(size, 6e4) if dtype is np.float16 else size, dtype)


def test_one_entry_that_is_not_finite_makes_the_norm_not_finite():
    sizes = [0.0, 1e-30, 1.0, 1e30]
    for dtype, bad, size in itertools.product(SHORT, [math.nan, math.inf, -math.inf], sizes):
        tree = mixed(SHORT, functools.partial(filled, size))
        tree[np.dtype(dtype).name][5] = bad
        with case(dtype=dtype, bad=bad, size=size):
            np.testing.assert_array_equal(jitted(tree), abs(bad))
    for bad in (complex(0, math.nan), complex(0, -math.inf), complex(math.inf, math.nan)):
        tree = [np.array([1, bad], np.complex64), np.ones(2, np.float32)]
        assert not np.isfinite(jitted(tree)), bad


# Leaves that are no gradients, and trees of every kind.


@pytest.mark.parametrize("tree", [{}, [], (), None, {"a": {}, "b": [None]}, [optax.MaskedNode()]])
def test_an_empty_tree_has_norm_zero(tree):
    norm = wc.global_norm(tree)
    assert (norm.shape, norm.dtype, float(norm)) == ((), jnp.float32, 0.0)
    assert wc.leaf_norms(tree) == {}


NO_GRADIENTS = {
    "none": None,
    "float0": np.zeros((3,), jax.dtypes.float0),
    "int32": np.full(3, 100, np.int32),
    "uint8": np.full(3, 100, np.uint8),
    "int4": np.full(3, 7, ml_dtypes.int4),
    "python int": 100,
    "bool": np.array([True, False]),
    "python bool": True,
    "masked": optax.MaskedNode(),
    "key": jax.random.key(0),
    "old key": jax.random.PRNGKey(0),
}


def test_leaves_that_are_no_gradients_take_no_part():
    for kind, other in NO_GRADIENTS.items():
        tree = {"gradient": np.array([3.0, 4.0], np.float32), "other": other}
        with case(kind=kind):
            assert float(wc.global_norm(tree)) == 5.0
            assert wc.leaf_norms(tree) == {"gradient": 5.0}
            assert float(wc.global_norm(other)) == 0.0
    assert wc.leaf_norms({"name": "w"}) == {}


def test_a_bare_number_is_a_gradient_and_leaves_without_entries_add_nothing():
    empty = [np.zeros((0, 3), dtype) for dtype in SHORT]
    numbers: list[Any] = [-4.0, 1j, np.float64(1), np.float32(1), np.complex64(-1j), jnp.float32(1)]
    assert float(wc.global_norm([*numbers, *empty, jnp.asarray(10, jnp.bfloat16)])) == 11.0
    assert float(wc.global_norm(empty)) == 0.0


# Under transformations.


@pytest.mark.parametrize("long", [False, True])
def test_an_eager_call_gives_the_bits_of_a_jitted_one(long):
    with jax.enable_x64(long):
        tree = mixed([*SHORT, *LONG] if long else SHORT, lambda dtype: normal(0, (ENTRIES,), dtype))
        for scale in (1e-30, 1.0, 1e30):
            tree["large"] = normal(0, (300, 70)) * np.float32(scale)
            assert wc.global_norm(tree).tobytes() == jitted(tree).tobytes()


# Derivatives: see test_frame.py too.


@pytest.mark.parametrize("dtype", [np.float16, BF16])
def test_the_gradient_of_a_short_leaf_is_the_unit_vector_in_its_dtype(dtype):
    gradient = jax.grad(wc.global_norm)(np.array([3, 4], dtype))
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(np.asarray(gradient), np.array([0.6, 0.8]).astype(dtype))


def test_an_empty_tree_has_a_derivative():
    assert jax.grad(wc.global_norm)({}) == {}
    assert float(jax.jvp(wc.global_norm, ([],), ([],))[1]) == 0.0


def test_second_derivatives_in_either_order_are_right_at_both_ends_of_the_range_too(x64):
    leaf = normal(0, (5,), np.float64)
    unit = leaf / reference.global_norm([leaf])
    gradient = jax.grad(wc.global_norm)
    orders = [
        jax.jit(gradient),
        jax.jit(jax.jacfwd(gradient)),
        jax.jit(jax.jacrev(jax.jacfwd(wc.global_norm))),
    ]
    for scale in (1e-200, 1.0, 1e200):
        projector = (np.eye(5) - np.outer(unit, unit)) / reference.global_norm([leaf * scale])
        first, *seconds = (order(leaf * scale) for order in orders)
        np.testing.assert_allclose(first, unit, rtol=FEW_ULP_64, err_msg=str(scale))
        for second in seconds:
            tolerance = 16 * 2.0**-52 * abs(projector).max()
            np.testing.assert_allclose(
                second, projector, rtol=0, atol=tolerance, err_msg=str(scale)
            )
