"""`clip_tree` and `clip_by_global_norm`: the bound, the bits below it, the direction above it, the state, the derivative."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import warmclip_jax as wc
from tests import reference
from tests._gradients.compiled import readers

pytestmark = pytest.mark.usefixtures("strict_dtypes")

BF16 = ml_dtypes.bfloat16
SHORT = [np.float16, BF16, np.float32, np.complex64]
LONG = [np.float64, np.complex128]
INT32_MAX = 2**31 - 1


def normal(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    entries = rng.standard_normal(shape)
    return (entries + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else entries).astype(dtype)


def clipping(max_norm: Any, **options: Any) -> Any:
    """`clip_by_global_norm` without optax's types, which know no fields of a state."""
    return wc.clip_by_global_norm(max_norm, **options)


def through_transformation(tree: Any, max_norm: Any, **options: Any) -> tuple[Any, Any]:
    transformation = clipping(max_norm, **options)
    clipped, state = transformation.update(tree, transformation.init(tree))
    return clipped, state.grad_norm


def jitted(tree: Any, max_norm: Any) -> tuple[Any, Any]:
    return jax.jit(wc.clip_tree)(tree, max_norm)


#: Every way to clip, so that one test speaks of them all.
WAYS = pytest.mark.parametrize("clip", [wc.clip_tree, jitted, through_transformation])


def assert_same_bits(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.tobytes() == b.tobytes()


def rounding(leaf: Any) -> float:
    """The largest relative error of one rounding into a leaf."""
    return float(reference.limits(leaf).eps) / 2


def coefficient_error(leaves: list[Any]) -> float:
    """What norm, coefficient and product may be off by, relatively, in the precision that the norm is computed in."""
    long = any(np.asarray(leaf).dtype in (np.float64, np.complex128) for leaf in leaves)
    return 6 * (2.0**-52 if long else 2.0**-23)


def assert_clipped(clipped: Any, tree: Any, max_norm: float) -> None:
    """Every entry is that of the formula to one rounding of its leaf, and every leaf has its shape and dtype."""
    leaves = jax.tree.leaves(tree)
    error = coefficient_error(leaves)
    for got, leaf, parts in zip(jax.tree.leaves(clipped), leaves, reference.clip(leaves, max_norm), strict=True):
        assert (got.shape, got.dtype) == (np.shape(leaf), np.asarray(leaf).dtype)
        for got_part, part in zip(reference.real_parts(got), parts, strict=True):
            allowed = (rounding(leaf) + error) * np.abs(part) + reference.floor(leaf)
            assert np.all(np.abs(got_part - part) <= allowed), (got_part, part)


def assert_norm_is(clipped: Any, max_norm: float) -> None:
    """The norm of a clipped tree is the bound, but for the rounding of its leaves."""
    leaves = jax.tree.leaves(clipped)
    lost = math.sqrt(sum(leaf.size * reference.floor(leaf) ** 2 for leaf in leaves))
    allowed = (max(map(rounding, leaves)) + coefficient_error(leaves)) * max_norm + lost
    assert abs(reference.global_norm(leaves) - max_norm) <= allowed


# Below the bound.


def odd_entries(dtype: Any) -> np.ndarray:
    """Numbers that a multiplication by one may change, none of them large."""
    info = ml_dtypes.finfo(np.finfo(dtype).dtype if np.dtype(dtype).kind == "c" else dtype)
    entries = np.array([0.0, -0.0, info.smallest_subnormal, -info.smallest_subnormal, info.tiny, 0.3, -0.3])
    entries = np.append(entries, float(info.tiny) / 3)
    return entries.astype(dtype) if np.dtype(dtype).kind != "c" else (entries + 1j * entries[::-1]).astype(dtype)


@WAYS
@pytest.mark.parametrize("dtype", [*SHORT, *LONG])
@pytest.mark.parametrize("max_norm", [1.0])
def test_below_the_bound_every_leaf_comes_back_bit_for_bit(x64, clip, dtype, max_norm):
    tree = {"odd": odd_entries(dtype), "empty": np.zeros((0, 2), dtype), "scalar": np.asarray(0.1, dtype)}
    assert_same_bits(clip(tree, max_norm)[0], tree)


@WAYS
@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_a_norm_equal_to_the_bound_is_not_over_it(clip, dtype, scale):
    tree = [normal(0, (7,), dtype) * np.asarray(scale, dtype), normal(1, (), dtype)]
    norm = float(wc.global_norm(tree))
    assert_same_bits(clip(tree, norm)[0], tree)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 100.0, 1e30])
def test_a_norm_one_ulp_over_the_bound_is_over_it(scale):
    tree = [np.full(1, scale, np.float32)]
    below = np.nextafter(tree[0][0], np.float32(0))
    transformation = clipping(float(below))
    clipped, state = transformation.update(tree, transformation.init(tree))
    assert int(state.clipped_count) == 1
    assert float(state.clip_coef) < 1
    assert_clipped(clipped, tree, float(below))
    assert float(clipped[0][0]) < scale


@WAYS
@pytest.mark.parametrize("max_norm", [None, math.inf, np.float32(np.inf), jnp.asarray(jnp.inf)])
@pytest.mark.parametrize("dtype", SHORT)
def test_none_and_inf_measure_only(clip, max_norm, dtype):
    tree = [odd_entries(dtype), np.full(3, 6e4, dtype)]
    if clip is jitted and max_norm is None:
        clipped, norm = jax.jit(lambda tree: wc.clip_tree(tree, None))(tree)
    else:
        clipped, norm = clip(tree, max_norm)
    assert_same_bits(clipped, tree)
    assert float(norm) == pytest.approx(reference.global_norm(tree), rel=4 * 2.0**-23)


@pytest.mark.parametrize("value", [None, math.inf, jnp.inf, np.float32(np.inf)])
def test_a_schedule_may_measure_only(value):
    tree = [odd_entries(np.float32), np.full(3, 1e30, np.float32)]
    assert_same_bits(through_transformation(tree, lambda count: value)[0], tree)


@pytest.mark.parametrize("max_norm", [None, math.inf])
def test_measuring_keeps_the_payloads_of_nans(max_norm):
    # Quiet ones: what a signalling NaN becomes is up to the machine that moves it.
    leaf = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000, 0x00000001, 0x3F800000], np.uint32).view(np.float32)
    clipped, norm = through_transformation([leaf], max_norm)
    assert_same_bits(clipped, [leaf])
    assert math.isnan(norm)
    assert_same_bits(jax.jit(lambda tree: wc.clip_tree(tree, max_norm))([leaf])[0], [leaf])


def test_measuring_touches_no_finite_tree_whose_norm_is_not_representable():
    tree = [np.full(4, 3e38, np.float32)]
    for max_norm in (None, math.inf):
        assert_same_bits(wc.clip_tree(tree, max_norm)[0], tree)


# Above the bound.


@WAYS
@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 2.0])
def test_above_the_bound_every_entry_is_the_formula_rounded_to_its_leaf(clip, dtype, max_norm):
    tree = {"kernel": normal(0, (5, 4), dtype), "bias": [normal(1, (), dtype), normal(2, (0,), dtype)]}
    clipped, norm = clip(tree, max_norm)
    assert_clipped(clipped, tree, max_norm)
    assert_norm_is(clipped, max_norm)
    assert float(norm) == pytest.approx(reference.global_norm(jax.tree.leaves(tree)), rel=4 * 2.0**-23)


@pytest.mark.parametrize("dtype", LONG)
def test_float64_leaves_are_clipped_in_float64(x64, dtype):
    tree = [normal(0, (5, 4), dtype), normal(1, (), np.float64)]
    clipped, norm = wc.clip_tree(tree, 0.1)
    assert_clipped(clipped, tree, 0.1)
    assert_norm_is(clipped, 0.1)
    assert norm.dtype == jnp.float64


def test_all_dtypes_mix_in_one_tree(x64):
    for dtypes in (SHORT, [*SHORT, *LONG]):
        tree = [normal(seed, (6,), dtype) for seed, dtype in enumerate(dtypes)]
        assert_clipped(wc.clip_tree(tree, 0.5)[0], tree, 0.5)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("max_norm", [1e-20, 0.1, 3.0])
def test_each_float32_leaf_is_the_input_times_one_scalar_rounded_once(dtype, max_norm):
    tree = [normal(0, (1000,), dtype) * dtype(10), normal(1, (30, 2), dtype)]
    transformation = clipping(max_norm)
    clipped, state = transformation.update(tree, transformation.init(tree))
    coef = float(state.clip_coef)
    for got, leaf in zip(clipped, tree, strict=True):
        for got_part, part in zip(reference.real_parts(got), reference.real_parts(leaf), strict=True):
            # 24 bits times 24 bits are exact in float64.
            np.testing.assert_array_equal(got_part, (part * coef).astype(np.float32))


def test_each_float64_leaf_is_the_input_times_one_scalar_rounded_once(x64):
    leaf = normal(0, (1000,), np.float64)
    transformation = clipping(0.3)
    clipped, state = transformation.update(leaf, transformation.init(leaf))
    np.testing.assert_array_equal(np.asarray(clipped), leaf * float(state.clip_coef))


@pytest.mark.parametrize("dtype", [np.float16, BF16])
@pytest.mark.parametrize("jit", [False, True])
def test_each_short_leaf_is_the_input_times_one_float32_scalar_rounded_to_it(dtype, jit):
    leaf = normal(0, (40_000,), dtype)
    transformation = clipping(3.0)
    update = jax.jit(transformation.update) if jit else transformation.update
    clipped, state = update(leaf, transformation.init(leaf))
    # A coefficient in bfloat16 would shift every product by up to 0.4 %; the product itself is one of float32.
    product = leaf.astype(np.float32) * np.float32(state.clip_coef)
    np.testing.assert_array_equal(np.asarray(clipped).astype(np.float32), product.astype(dtype).astype(np.float32))


def test_float16_results_below_the_smallest_normal_are_rounded_not_lost():
    leaf = np.array([1.0, 3.1, -0.7, 0.01], np.float16)
    assert_clipped(wc.clip_tree(leaf, 1e-6)[0], leaf, 1e-6)
    assert np.asarray(wc.clip_tree(leaf, 1e-6)[0])[0] > 0


@pytest.mark.parametrize("dtype", [*SHORT, *LONG])
@pytest.mark.parametrize("max_norm", [1e-3, 0.7])
def test_clipping_twice_is_clipping_once(x64, dtype, max_norm):
    tree = [normal(0, (50, 3), dtype), normal(1, (), dtype)]
    once, _ = wc.clip_tree(tree, max_norm)
    twice, _ = wc.clip_tree(once, max_norm)
    error = coefficient_error(tree)
    for first, second in zip(once, twice, strict=True):
        for a, b in zip(reference.real_parts(first), reference.real_parts(second), strict=True):
            # The norm may be over the bound by one rounding, and the product with what corrects that is rounded again.
            assert np.all(np.abs(a - b) <= (2 * rounding(first) + error) * np.abs(a) + reference.floor(first))


def test_many_equal_bfloat16_leaves_end_at_the_bound():
    tree = [np.full(1, 0.1, BF16)] * 200
    clipped, _ = wc.clip_tree(tree, 1.0)
    assert_norm_is(clipped, 1.0)


# Bounds of every size, of trees of every size.


@pytest.mark.parametrize("dtype", [BF16, np.float32, np.complex64])
def test_every_bound_clips_every_norm_of_the_float32_range(dtype):
    clip = jax.jit(lambda leaf, bound: wc.clip_tree([leaf], bound)[0])
    entries = np.array([1.25, -0.75, 0.5, 0.0])
    for power in range(-125, 128, 7):
        leaf = np.ldexp(entries, power).astype(dtype)
        for bound in [0.0, *(1.125 * 2.0**p for p in range(-126, 128, 5))]:
            if reference.is_over([leaf], bound):
                assert_clipped(clip(leaf, bound), [leaf], bound)
            else:
                assert_same_bits(clip(leaf, bound), [leaf])


def test_every_bound_clips_every_norm_of_the_float64_range(x64):
    clip = jax.jit(lambda leaf, bound: wc.clip_tree([leaf], bound)[0])
    entries = np.array([1.25, -0.75, 0.5, 0.0])
    for power in range(-1020, 1024, 47):
        leaf = np.ldexp(entries, power)
        for bound in [0.0, *(1.125 * 2.0**p for p in range(-1022, 1024, 41))]:
            if reference.is_over([leaf], bound):
                assert_clipped(clip(leaf, bound), [leaf], bound)
            else:
                assert_same_bits(clip(leaf, bound), [leaf])


@WAYS
@pytest.mark.parametrize("max_norm", [0, 1.2e-38, 1e-37, 1.0, 1e38, 3.4e38])
def test_a_finite_tree_whose_norm_is_not_representable_is_clipped_right(clip, max_norm):
    tree = {"a": np.full((5, 5), 3e38, np.float32), "b": np.full(4, -3.3e38, BF16), "c": np.full(2, 1.0, np.float16)}
    clipped, norm = clip(tree, max_norm)
    assert_clipped(clipped, tree, max_norm)
    assert_norm_is(clipped, max_norm)
    assert float(norm) == math.inf


def test_a_finite_float64_tree_whose_norm_is_not_representable_is_clipped_right(x64):
    tree = [np.full(9, 1.7e308), np.full(4, -1e300)]
    for max_norm in (1e-300, 1.0, 1e308):
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
@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("scale", [0.0, 1e-7, 1.0, 6e4])
def test_a_bound_of_zero_gives_zeros(clip, dtype, scale):
    clipped, _ = clip([np.full(5, scale, dtype), np.zeros(2, np.float32)], 0.0)
    for leaf in clipped:
        assert np.all(np.asarray(leaf) == 0)


# What a bound may be.


BOUNDS_OF_TWO = [
    *(2, 2.0, np.int64(2), np.float16(2), np.float32(2), np.float64(2), np.array(2.0)),
    *(jnp.int32(2), jnp.float32(2), jnp.asarray(2, jnp.bfloat16)),
    *(lambda count: 2, lambda count: jnp.float32(2), wc.constant(value=2.0)),
]


@pytest.mark.parametrize("dtype", [np.float16, BF16, np.float32])
@pytest.mark.parametrize("max_norm", BOUNDS_OF_TWO)
def test_a_bound_is_any_number_or_schedule_and_keeps_the_dtype_of_leaves(dtype, max_norm):
    tree = [normal(0, (30,), dtype)]
    clipped, _ = through_transformation(tree, max_norm)
    assert_same_bits(clipped, through_transformation(tree, 2.0)[0])
    assert_clipped(clipped, tree, 2.0)


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int32])
def test_a_traced_bound_of_any_dtype_keeps_the_dtype_of_leaves(kind):
    tree = [normal(0, (30,), np.float32), normal(1, (3,), BF16), normal(2, (3,), np.float16)]
    clipped = jax.jit(lambda bound: through_transformation(tree, bound)[0])(jnp.asarray(2, kind))
    assert_clipped(clipped, tree, 2.0)


def test_a_traced_negative_bound_acts_as_zero():
    clipped = jax.jit(lambda bound: wc.clip_tree([np.ones(3, np.float32)], bound)[0])(-1.0)
    np.testing.assert_array_equal(clipped[0], np.zeros(3))


def test_a_schedule_that_goes_negative_acts_as_zero():
    clipped, _ = through_transformation([np.ones(3, np.float32)], lambda count: -1.0)
    np.testing.assert_array_equal(clipped[0], np.zeros(3))


def test_a_traced_nan_as_bound_makes_everything_nan():
    clipped = jax.jit(lambda bound: wc.clip_tree([np.ones(3, np.float32)], bound)[0])(math.nan)
    assert np.all(np.isnan(clipped[0]))


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


def test_hyperparameters_can_be_injected_on_a_mixed_tree():
    tree = {"short": normal(0, (9,), BF16), "half": normal(1, (9,), np.float16), "long": normal(2, (9,))}
    transformation: Any = optax.inject_hyperparams(wc.clip_by_global_norm, static_args=("nonfinite",))(max_norm=0.5)
    # The injection itself casts between the dtypes of the tree.
    with jax.numpy_dtype_promotion("standard"):
        state = transformation.init(tree)
        clipped, state = jax.jit(transformation.update)(tree, state)
        assert_clipped(clipped, tree, 0.5)
        state.hyperparams["max_norm"] = jnp.float32(0.25)
        clipped, state = jax.jit(transformation.update)(tree, state)
    assert_clipped(clipped, tree, 0.25)
    assert int(state.inner_state.clipped_count) == 2


def test_a_scheduled_hyperparameter_is_followed():
    schedule = wc.polynomial_decay(init_value=4.0, end_value=1.0, decay_steps=3)
    transformation: Any = optax.inject_hyperparams(wc.clip_by_global_norm)(max_norm=schedule)
    tree = [normal(0, (9,), BF16) * np.asarray(100, BF16)]
    state = transformation.init(tree)
    for bound in (4.0, 3.0, 2.0):
        clipped, state = transformation.update(tree, state)
        assert_clipped(clipped, tree, bound)


def test_vmap_takes_a_bound_for_each_tree():
    trees = np.stack([normal(seed, (4,)) * np.float32(scale) for seed, scale in enumerate((1e-30, 1, 1e30, 0))])
    bounds = np.array([1e-31, 10, 1e-3, 0], np.float32)
    clipped, _ = jax.vmap(wc.clip_tree)(trees, jnp.asarray(bounds))
    for got, tree, bound in zip(clipped, trees, bounds, strict=True):
        assert_clipped([got], [tree], float(bound))
    assert_same_bits(clipped[1], trees[1])


# A norm that is known already.


@pytest.mark.parametrize("norm", [5, 5.0, np.float64(5), np.array(5.0), jnp.float32(5), jnp.asarray(5, jnp.bfloat16)])
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


@pytest.mark.parametrize("power", [*range(-125, 127, 9), 126])
def test_a_given_norm_and_bound_may_have_any_size(power):
    norm = 1.5 * 2.0**power
    clip = jax.jit(lambda leaf, norm, bound: wc.clip_tree(leaf, bound, norm=norm))
    leaf = np.full(1, norm, np.float32)
    for bound in [0.0, *(1.125 * 2.0**p for p in range(-126, 128, 5))]:
        clipped, returned = clip(leaf, norm, bound)
        assert float(returned) == norm
        if bound < norm:
            assert_clipped(clipped, [leaf], bound)
        else:
            assert_same_bits(clipped, leaf)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_given_norm_that_is_not_finite_makes_everything_nan(norm):
    assert np.all(np.isnan(wc.clip_tree([np.ones(3, np.float32)], 1.0, norm=norm)[0][0]))


# Entries that are not finite.


@WAYS
@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("max_norm", [0.0, 1.0, 3e38])
def test_one_bad_entry_makes_every_entry_nan(clip, dtype, bad, max_norm):
    tree = {"bad": np.full(4, 2, dtype), "good": np.ones(3, np.float32), "zero": np.zeros(2, BF16), "count": np.arange(3)}
    tree["bad"][1] = bad
    clipped, norm = clip(tree, max_norm)
    for name in ("bad", "good", "zero"):
        assert clipped[name].dtype == tree[name].dtype
        assert np.all(np.isnan(reference.real_parts(clipped[name])))
    np.testing.assert_array_equal(clipped["count"], np.arange(3))
    assert not np.isfinite(norm)


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("max_norm", [0.0, 1.0, 3e38, None, math.inf])
@pytest.mark.parametrize("jit", [False, True])
def test_zero_turns_an_update_with_one_bad_entry_into_zeros(dtype, bad, max_norm, jit):
    tree = {"bad": np.full(4, 2, dtype), "good": np.ones(3, np.float32), "count": np.arange(3)}
    tree["bad"][1] = bad
    transformation = clipping(max_norm, nonfinite="zero")
    update = jax.jit(transformation.update) if jit else transformation.update
    clipped, state = update(tree, transformation.init(tree))
    for name in ("bad", "good"):
        assert clipped[name].dtype == tree[name].dtype
        assert np.all(np.asarray(clipped[name]) == 0)
    np.testing.assert_array_equal(clipped["count"], np.arange(3))
    assert (int(state.nonfinite_count), int(state.clipped_count)) == (1, 0)


def test_zero_changes_no_finite_update():
    tree = [normal(0, (9,)), normal(1, (9,), BF16)]
    for max_norm in (0.0, 0.5, 100.0, None):
        finite = clipping(max_norm)
        zero = clipping(max_norm, nonfinite="zero")
        expected = finite.update(tree, finite.init(tree))
        assert_same_bits(zero.update(tree, zero.init(tree)), expected)


def test_a_finite_tree_whose_norm_is_not_representable_is_not_bad():
    tree = [np.full(4, 3e38, np.float32)]
    transformation = clipping(1.0, nonfinite="zero")
    clipped, state = transformation.update(tree, transformation.init(tree))
    assert_clipped(clipped, tree, 1.0)
    assert (int(state.clipped_count), int(state.nonfinite_count)) == (1, 0)


# The state.


def test_the_state_is_a_named_tuple_of_scalars():
    state = clipping(1.0).init({"w": jnp.ones(3)})
    assert isinstance(state, wc.ClipState)
    assert {name: (value.shape, value.dtype.name) for name, value in state._asdict().items()} == {
        "clip_calls": ((), "int32"),
        "grad_norm": ((), "float32"),
        "clip_coef": ((), "float32"),
        "clipped_count": ((), "int32"),
        "nonfinite_count": ((), "int32"),
    }
    assert [float(value) for value in state] == [0, 0, 1, 0, 0]


def test_the_state_of_float32_parameters_stays_what_it_is_under_float64_gradients(x64):
    transformation = wc.clip_by_global_norm(1.0)
    before = transformation.init([jnp.zeros(2, jnp.float32)])
    _, after = transformation.update([jnp.array([3.0, 4.0], jnp.float64)], before)
    assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [leaf.dtype for leaf in jax.tree.leaves(before)]


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


def test_the_state_counts_calls_clipped_and_bad_updates():
    states = run(2.0, [1.0, 4.0, math.nan, 2.0, math.inf, 8.0])
    assert [int(state.clip_calls) for state in states] == [1, 2, 3, 4, 5, 6]
    assert [int(state.clipped_count) for state in states] == [0, 1, 1, 1, 1, 2]
    assert [int(state.nonfinite_count) for state in states] == [0, 0, 1, 1, 2, 2]


def test_the_state_holds_the_last_norm_as_it_is():
    np.testing.assert_array_equal(
        [state.grad_norm for state in run(2.0, [1.0, 4.0, math.nan, -math.inf, 0.0])], [1, 4, math.nan, math.inf, 0]
    )


@pytest.mark.parametrize(("nonfinite", "of_bad"), [("propagate", math.nan), ("zero", 0.0)])
def test_the_state_holds_the_last_coefficient(nonfinite, of_bad):
    coefs = [state.clip_coef for state in run(2.0, [1.0, 4.0, math.nan, math.inf, 2.0, 0.0], nonfinite)]
    np.testing.assert_array_equal(coefs, [1, 0.5, of_bad, of_bad, 1, 1])


def test_a_bound_of_zero_clips_with_a_coefficient_of_zero():
    states = run(0.0, [3.0, 0.0])
    assert [float(state.clip_coef) for state in states] == [0, 1]
    assert [int(state.clipped_count) for state in states] == [1, 1]


@pytest.mark.parametrize(
    ("leaf", "max_norm"), [(3e38, 1e-3), (3e38, 1e-37), (2.0**100, 2.0**-40), (2.0**60, 2.0**-64), (1e-30, 1e-37)]
)
def test_the_coefficient_is_the_bound_over_the_norm_as_far_as_it_can_be_held(leaf, max_norm):
    coef = float(run(max_norm, [leaf])[0].clip_coef)
    exact = float(np.float32(max_norm)) / float(np.float32(leaf))
    # Below the smallest normal number there is only zero.
    assert coef == pytest.approx(exact if exact >= 2.0**-126 else 0.0, rel=4 * 2.0**-23, abs=0)


def test_measuring_counts_bad_updates_and_clips_none():
    states = run(None, [3.0, math.nan, math.inf])
    assert [int(state.clipped_count) for state in states] == [0, 0, 0]
    assert [int(state.nonfinite_count) for state in states] == [0, 1, 2]
    assert [float(state.clip_coef) for state in states] == [1, 1, 1]


@pytest.mark.parametrize("field", ["clip_calls", "clipped_count", "nonfinite_count"])
def test_counters_stop_at_the_largest_int32(field):
    transformation = clipping(1.0)
    leaf = math.nan if field == "nonfinite_count" else 4.0
    state = transformation.init([jnp.zeros(1)])._replace(**{field: jnp.int32(INT32_MAX - 1)})
    for _ in range(3):
        _, state = transformation.update([np.full(1, leaf, np.float32)], state)
        assert int(getattr(state, field)) == INT32_MAX


def types(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf), jax.typeof(leaf).weak_type), tree)


@pytest.mark.parametrize("max_norm", [1.0, None, 0, wc.linear_warmup(peak_value=1.0, warmup_steps=3), lambda count: 1])
@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_the_state_keeps_its_structure_and_types(max_norm, nonfinite):
    transformation = clipping(max_norm, nonfinite=nonfinite)
    tree = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2, jnp.float16)}
    before = transformation.init(tree)
    _, after = transformation.update(tree, before)
    assert types(after) == types(before)


def test_the_state_is_carried_through_scan():
    transformation = clipping(2.0, nonfinite="zero")
    leaves = np.array([1, 4, np.nan, 8, np.inf, 0], np.float32)[:, None]

    def step(state, leaf):
        clipped, state = transformation.update(leaf, state)
        return state, clipped

    state, clipped = jax.lax.scan(step, transformation.init(jnp.zeros(1)), leaves)
    np.testing.assert_array_equal(clipped[:, 0], [1, 2, 0, 2, 0, 0])
    assert [float(value) for value in state] == [6, 0, 1, 2, 2]


def test_the_state_is_mapped_by_vmap():
    transformation = clipping(2.0, nonfinite="zero")
    leaves = np.array([1, 4, np.nan, 1e30, 1e-30], np.float32)[:, None]
    states = jax.vmap(transformation.init)(leaves)
    clipped, states = jax.vmap(transformation.update)(leaves, states)
    np.testing.assert_allclose(clipped[:, 0], [1, 2, 0, 2, 1e-30], rtol=4 * 2.0**-23)
    assert states.nonfinite_count.tolist() == [0, 0, 1, 0, 0]
    assert states.clipped_count.tolist() == [0, 1, 0, 1, 0]


def test_a_fresh_state_and_the_updates_can_be_donated():
    transformation = clipping(1.0)
    update = jax.jit(transformation.update, donate_argnums=(0, 1))
    leaf = jnp.full(4, 2.0)
    updates, state = [leaf], transformation.init([leaf])
    for _ in range(2):
        updates, state = update(updates, state)
    assert leaf.is_deleted()
    np.testing.assert_array_equal(updates[0], [0.5] * 4)


# The optax interface.


def test_params_and_extra_arguments_are_accepted_and_not_needed():
    transformation = clipping(1.0)
    assert isinstance(transformation, optax.GradientTransformationExtraArgs)
    tree = [normal(0, (3,))]
    state = transformation.init(tree)
    assert_same_bits(transformation.update(tree, state, tree, value=1.0), transformation.update(tree, state))


def test_it_chains_and_masks():
    tree = {"a": np.full(1, 30, np.float32), "b": np.full(1, 40, np.float32)}
    transformation: Any = optax.chain(optax.masked(wc.clip_by_global_norm(3.0), {"a": True, "b": False}), optax.scale(-1.0))
    clipped, state = transformation.update(tree, transformation.init(tree))
    assert {name: float(leaf[0]) for name, leaf in clipped.items()} == {"a": -3.0, "b": -40.0}
    assert float(state[0].inner_state.grad_norm) == 30.0


# Leaves that are no gradients, and trees of every kind.


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    name: str = dataclasses.field(metadata={"static": True})


@pytest.mark.parametrize("bad", [False, True])
def test_leaves_that_are_no_gradients_come_back_untouched(bad):
    others = {
        "none": None,
        "float0": np.zeros((3,), jax.dtypes.float0),
        "int": np.full(3, 100, np.int32),
        "uint": jnp.full(3, 100, jnp.uint8),
        "python int": 100,
        "bool": np.array([True, False]),
        "python bool": True,
        "masked": optax.MaskedNode(),
        "key": jax.random.key(0),
    }
    gradient = np.array([30.0, math.nan if bad else 40.0], np.float32)
    for options in ({}, {"nonfinite": "zero"}):
        clipped, _ = through_transformation({"gradient": gradient, **others}, 1.0, **options)
        for name, other in others.items():
            assert clipped[name] is other or name == "masked"
    clipped, _ = wc.clip_tree({"gradient": gradient, **others}, 1.0)
    assert all(clipped[name] is other for name, other in others.items() if name != "masked")
    assert clipped["masked"] == optax.MaskedNode()


@WAYS
@pytest.mark.parametrize("tree", [{}, [], (), None, {"a": [None, ()]}])
def test_an_empty_tree_comes_back_with_a_norm_of_zero(clip, tree):
    clipped, norm = clip(tree, 0.0)
    assert clipped == tree
    assert float(norm) == 0.0
    assert norm.dtype == jnp.float32


@WAYS
def test_bare_numbers_are_clipped_as_scalars(clip):
    clipped, norm = clip([3.0, np.float32(4), np.zeros((0, 2), np.float32), 12j], 6.5)
    assert float(norm) == 13.0
    np.testing.assert_array_equal([complex(clipped[index]) for index in (0, 1, 3)], [1.5, 2.0, 6j])
    assert [leaf.shape for leaf in clipped] == [(), (), (0, 2), ()]


def test_custom_nodes_and_dataclasses_come_back_as_what_they_are():
    clipped, _ = wc.clip_tree([Layer(np.full(1, 3, np.float32), "first"), Layer(np.full(1, 4, np.float32), "second")], 1.0)
    assert [layer.name for layer in clipped] == ["first", "second"]
    np.testing.assert_allclose([layer.kernel[0] for layer in clipped], [0.6, 0.8], rtol=2.0**-23)


# Eager, jitted, traced once.


@pytest.mark.parametrize("max_norm", [0.0, 1e-37, 0.1, 10.0, 1e10, None])
@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_an_eager_update_gives_the_bits_of_a_jitted_one(max_norm, nonfinite):
    tree = {"a": normal(0, (300, 70)), "b": normal(1, (11,), BF16), "c": normal(2, (5,), np.complex64)}
    tree["d"] = normal(3, (6,), np.float16)
    transformation = clipping(max_norm, nonfinite=nonfinite)
    state = transformation.init(tree)
    assert_same_bits(transformation.update(tree, state), jax.jit(transformation.update)(tree, state))


def test_new_numbers_do_not_trace_again():
    transformation = clipping(wc.linear_warmup(peak_value=1.0, warmup_steps=3))
    traces = []

    @jax.jit
    def update(tree, state):
        traces.append(tree)
        return transformation.update(tree, state)

    state = transformation.init([jnp.ones(3)])
    for scale in (0.0, 1e-30, 1.0, 1e30, math.nan):
        _, state = update([np.full(3, scale, np.float32)], state)
    assert len(traces) == 1


# Derivatives.


def entries_of(tree: Any) -> np.ndarray:
    return np.concatenate([part.ravel() for leaf in jax.tree.leaves(tree) for part in reference.real_parts(leaf)])


def clipped_to(max_norm: float) -> Callable[[Any], Any]:
    return lambda tree: wc.clip_tree(tree, max_norm)[0]


#: The norm of `TREE` is about 2.9: one bound below it and one above.
TREE = [normal(0, (3,)), normal(1, ()), normal(2, (2,), np.complex64)]
ALONG = [normal(3, (3,)), normal(4, ()), normal(5, (2,), np.complex64)]


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_jvp_and_vjp_are_those_of_the_formula(max_norm):
    expected = np.concatenate([np.ravel(part) for parts in reference.clip_derivative(TREE, max_norm, ALONG) for part in parts])
    _, rate = jax.jvp(clipped_to(max_norm), (TREE,), (ALONG,))
    np.testing.assert_allclose(entries_of(rate), expected, rtol=0, atol=8 * 2.0**-23 * np.abs(expected).max())
    _, pullback = jax.vjp(clipped_to(max_norm), TREE)
    # JAX pulls back without the conjugate.
    (back,) = pullback([np.conj(leaf) for leaf in ALONG])
    np.testing.assert_allclose(
        entries_of([np.conj(leaf) for leaf in back]), expected, rtol=0, atol=8 * 2.0**-23 * np.abs(expected).max()
    )


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_derivatives_agree_with_finite_differences_to_second_order(x64, max_norm):
    tree = [normal(0, (3,), np.float64), normal(2, (2,), np.complex128)]
    check_grads(jax.jit(clipped_to(max_norm)), (tree,), order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_the_derivative_agrees_with_the_differences_of_the_reference(x64, max_norm):
    leaf, along = normal(0, (6,), np.float64), normal(1, (6,), np.float64)
    step = 1e-5
    ahead, behind = (reference.clip([leaf + sign * step * along], max_norm)[0][0] for sign in (1, -1))
    _, rate = jax.jvp(clipped_to(max_norm), (leaf,), (along,))
    np.testing.assert_allclose(rate, (ahead - behind) / (2 * step), rtol=0, atol=1e-9)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_forward_over_reverse_agrees_with_differences_of_the_gradient(x64, max_norm):
    leaf, along = normal(0, (5,), np.float64), normal(1, (5,), np.float64)
    weights = normal(2, (5,), np.float64)

    def gradient(leaf):
        return jax.grad(lambda leaf: jnp.vdot(jnp.sin(clipped_to(max_norm)(leaf)), weights))(leaf)

    step = 1e-5
    differences = (gradient(leaf + step * along) - gradient(leaf - step * along)) / (2 * step)
    _, rate = jax.jvp(gradient, (leaf,), (along,))
    np.testing.assert_allclose(rate, differences, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("max_norm", [0.0, 1e-37, 1.0, None])
def test_the_derivative_at_zero_is_the_identity(dtype, max_norm):
    # The norm, 0, is not over any bound.
    zero, along = np.zeros(4, dtype), np.array([1, -2, 3, 0.5], dtype)
    _, rate = jax.jvp(lambda leaf: wc.clip_tree(leaf, max_norm)[0], (zero,), (along,))
    np.testing.assert_array_equal(np.asarray(rate), along)
    _, pullback = jax.vjp(lambda leaf: wc.clip_tree(leaf, max_norm)[0], zero)
    np.testing.assert_array_equal(np.asarray(pullback(along)[0]), along)


def test_the_derivative_is_zero_where_the_bound_is():
    _, rate = jax.jvp(clipped_to(0.0), (normal(0, (4,)),), (normal(1, (4,)),))
    np.testing.assert_array_equal(rate, np.zeros(4))


@pytest.mark.parametrize(
    ("scale", "along"), [(1e-30, 1.0), (1e-10, 1.0), (1e-10, 1e-10), (1e10, 1.0), (1.3e19, 1.0), (1e30, 1.0)]
)
def test_the_derivative_is_right_for_gradients_of_every_size(scale, along):
    leaf, along = normal(0, (5,)) * np.float32(scale), normal(1, (5,)) * np.float32(along)
    for max_norm in (scale / 10, scale * 10):
        (expected,) = reference.clip_derivative([leaf], max_norm, [along])[0]
        _, rate = jax.jvp(clipped_to(max_norm), (leaf,), (along,))
        np.testing.assert_allclose(rate, expected, rtol=0, atol=8 * 2.0**-23 * np.abs(expected).max())
        _, pullback = jax.vjp(clipped_to(max_norm), leaf)
        np.testing.assert_allclose(pullback(along)[0], expected, rtol=0, atol=8 * 2.0**-23 * np.abs(expected).max())


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_the_derivative_is_right_through_a_norm_that_is_given(scale):
    leaf, along = normal(0, (5,)) * np.float32(scale), normal(1, (5,)) * np.float32(scale)
    (expected,) = reference.clip_derivative([leaf], scale / 10, [along])[0]
    _, rate = jax.jvp(lambda leaf: wc.clip_tree(leaf, scale / 10, norm=wc.global_norm(leaf))[0], (leaf,), (along,))
    np.testing.assert_allclose(rate, expected, rtol=0, atol=8 * 2.0**-23 * np.abs(expected).max())


def test_the_derivative_by_the_bound_is_the_unit_vector():
    tree = normal(0, (5,))
    norm = reference.global_norm([tree])
    _, rate = jax.jvp(lambda bound: wc.clip_tree(tree, bound)[0], (jnp.float32(0.5),), (jnp.float32(1),))
    np.testing.assert_allclose(rate, tree / norm, rtol=4 * 2.0**-23)
    _, rate = jax.jvp(lambda bound: wc.clip_tree(tree, bound)[0], (jnp.float32(50),), (jnp.float32(1),))
    np.testing.assert_array_equal(rate, np.zeros(5))


@pytest.mark.parametrize("dtype", [np.float16, BF16])
def test_the_gradient_through_short_leaves_keeps_their_dtype(dtype):
    tree = np.array([3, 4], dtype)
    gradient = jax.grad(lambda tree: jnp.sum(clipped_to(1.0)(tree).astype(jnp.float32) * np.array([1, 0], np.float32)))(tree)
    assert gradient.dtype == dtype
    expected = reference.clip_derivative([tree], 1.0, [np.array([1.0, 0.0])])[0][0]
    np.testing.assert_allclose(np.asarray(gradient).astype(np.float64), expected, atol=4 * rounding(tree) * 0.2)


def test_meta_gradients_flow_through_an_update_in_an_inner_loop(x64):
    transformation: Any = optax.chain(wc.clip_by_global_norm(0.5), optax.sgd(0.1))
    target = normal(0, (4,), np.float64)

    def outer(start):
        params, state = start, transformation.init(start)
        for _ in range(3):
            updates, state = transformation.update(params - target, state, params)
            params = optax.apply_updates(params, updates)
        return jnp.sum((params - target) ** 2)

    check_grads(outer, (normal(1, (4,), np.float64) * 3,), order=1, modes=("rev",))
    assert np.all(np.isfinite(jax.grad(outer)(target)))


# Bad arguments.

BAD_NUMBERS = [-1.0, -1e-300, -1, np.float32(-1), math.nan, -math.inf, np.float32(np.nan), 1e39, 10**400]
BAD_TYPES = [True, False, np.True_, "1.0", b"1", [1.0], (1.0,), {}, 1j, np.complex64(1), complex(math.inf, 0), frozenset()]
ARRAYS = [np.ones(1, np.float32), np.ones((2, 2)), np.array([math.inf])]


@pytest.mark.parametrize("build", [wc.clip_by_global_norm, lambda bound: wc.clip_tree([np.ones(1, np.float32)], bound)])
@pytest.mark.parametrize(
    ("max_norm", "error"),
    [*((bound, ValueError) for bound in BAD_NUMBERS + ARRAYS), *((bound, TypeError) for bound in BAD_TYPES)],
    ids=lambda value: repr(value)[:30],
)
def test_a_bound_that_breaks_its_rule_is_named_and_quoted(build, max_norm, error):
    with pytest.raises(error) as raised:
        build(max_norm)
    message = str(raised.value)
    shown = max_norm.item() if isinstance(max_norm, np.generic) and error is ValueError else max_norm
    assert message.startswith("max_norm must be a non-negative number, a schedule, or None")
    assert repr(shown) in message
    if error is TypeError:
        assert type(max_norm).__name__ in message


def test_a_jax_array_that_breaks_the_rule_is_quoted():
    with pytest.raises(ValueError, match=r"max_norm must be .*; got -2\.0\."):
        wc.clip_by_global_norm(jnp.float32(-2))
    with pytest.raises(TypeError, match="max_norm must be"):
        wc.clip_by_global_norm(jnp.array(True))


def test_a_traced_bound_of_the_wrong_shape_or_dtype_is_an_error():
    with pytest.raises(ValueError, match=r"max_norm must be .*shape is \(2,\)"):
        jax.jit(lambda bound: wc.clip_tree(jnp.ones(2), bound))(jnp.ones(2))
    with pytest.raises(TypeError, match="max_norm must be"):
        jax.jit(lambda bound: wc.clip_tree(jnp.ones(2), bound))(jnp.array(True))


def test_a_schedule_needs_a_step_that_clip_tree_does_not_have():
    with pytest.raises(TypeError, match=r"max_norm must be a number or None in clip_tree.*Call it first"):
        wc.clip_tree([np.ones(1, np.float32)], wc.constant(value=1.0))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("nonfinite", ["skip", "Zero", "", "zeros"])
def test_an_unknown_policy_is_named_with_those_there_are(nonfinite):
    with pytest.raises(ValueError, match=f"nonfinite must be one of 'propagate', 'zero'; got {re.escape(repr(nonfinite))}"):
        wc.clip_by_global_norm(1.0, nonfinite=nonfinite)


@pytest.mark.parametrize("nonfinite", [None, True, 0, ["zero"]])
def test_a_policy_is_a_string(nonfinite):
    with pytest.raises(TypeError, match=r"nonfinite must be one of 'propagate', 'zero'; got .*" + type(nonfinite).__name__):
        wc.clip_by_global_norm(1.0, nonfinite=nonfinite)


def test_options_are_given_by_name():
    with pytest.raises(TypeError):
        wc.clip_by_global_norm(1.0, "data")  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError):
        wc.clip_tree([1.0], 1.0, 2.0)  # pyright: ignore[reportCallIssue]


# What it costs: the structure of the compiled program, not its time.


def compiled_update(tree: Any, max_norm: Any) -> Any:
    transformation = clipping(max_norm)
    return jax.jit(transformation.update, donate_argnums=(0, 1)).lower(tree, transformation.init(tree)).compile()


@pytest.mark.parametrize("max_norm", [1.0, wc.linear_warmup(peak_value=1.0, warmup_steps=10)])
def test_clipping_reads_a_gradient_twice_once_to_measure_and_once_to_scale(max_norm):
    tree = {"leaf": jnp.ones((1000, 100)), "flat": jnp.ones(10**6), "four": jnp.ones((64, 3, 3, 64))}
    compiled = compiled_update(tree, max_norm)
    for name in tree:
        assert readers(compiled, f"updates[\\'{name}\\']") == ["fusion", "fusion"]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("shape", [(1000, 1000), (10**6,), (2, 5 * 10**5), (256, 3, 3, 400)])
@pytest.mark.parametrize("max_norm", [1.0, None, wc.linear_warmup(peak_value=1.0, warmup_steps=10)])
def test_a_donated_clip_works_in_place(dtype, shape, max_norm):
    leaf = jnp.ones(shape, dtype)
    used = compiled_update([leaf], max_norm).memory_analysis()
    assert used.alias_size_in_bytes >= leaf.nbytes
    assert used.temp_size_in_bytes < leaf.nbytes / 4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])  # of float16, XLA makes a float32 copy to add it up
@pytest.mark.parametrize("max_norm", [1.0, None])
@pytest.mark.parametrize("optimizer", [optax.adamw(0.1), optax.sgd(0.1, momentum=0.9)], ids=["adamw", "momentum"])
def test_a_step_with_the_clip_keeps_no_copy_of_a_gradient(dtype, max_norm, optimizer):
    params = {"w": jnp.ones((1000, 1000))}
    grads = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    chain = optax.chain(clipping(max_norm), optimizer)

    def step(params, state, grads):
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):  # what optax's optimizers take
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, chain.init(params), grads)
    used: Any = lowered.compile().memory_analysis()
    assert used.temp_size_in_bytes < grads["w"].nbytes / 4


@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_the_coefficient_is_worked_out_once_and_not_for_every_leaf(nonfinite):
    tree = [jnp.ones((100, 100))] * 20
    transformation = clipping(1.0, nonfinite=nonfinite)
    program = str(jax.jit(transformation.update).lower(tree, transformation.init(tree)).compile().as_text())
    # All that a leaf's loop does with scalars is to compare them: `factor == 1`, whether it is far off, whether all is finite.
    for operation in ("minimum", "maximum", "not", "and", "divide"):
        assert program.count(f" {operation}(") < len(tree), operation
