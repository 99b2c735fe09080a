"""`clip_tree` and `clip_by_global_norm`: every bit below the bound, the formula above it, and trees
of every kind.
"""

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
from tests.trees import (
    BF16,
    ENTRIES,
    LONG,
    SHORT,
    WAYS,
    assert_clipped,
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


# Below the bound.


def odd_entries(dtype: Any) -> np.ndarray:
    """Numbers that a multiplication by one may change, none of them large."""
    info = ml_dtypes.finfo(np.finfo(dtype).dtype if np.dtype(dtype).kind == "c" else dtype)
    entries = np.array(
        [0.0, -0.0, info.smallest_subnormal, -info.smallest_subnormal, info.tiny, 0.3, -0.3]
    )
    entries = np.append(entries, float(info.tiny) / 3)
    return (
        entries.astype(dtype)
        if np.dtype(dtype).kind != "c"
        else (entries + 1j * entries[::-1]).astype(dtype)
    )


@pytest.mark.parametrize("long", [False, True])
def test_a_norm_equal_to_the_bound_is_not_over_it(long):
    with jax.enable_x64(long):
        for scale in (1e-3, 1.0, 100.0):
            tree = mixed(
                [*SHORT, *LONG] if long else SHORT,
                lambda dtype: normal(0, (ENTRIES,), dtype) * np.asarray(scale, dtype),  # noqa: B023
            )
            with case(scale=scale):
                assert_same_bits(jitted(tree, float(wc.global_norm(tree)))[0], tree)


def test_a_norm_one_ulp_over_the_bound_is_over_it():
    for scale in (1e-30, 1e-3, 1.0, 100.0, 1e30):
        tree = [np.full(1, scale, np.float32)]
        below = np.nextafter(tree[0][0], np.float32(0))
        clipped, state = update("propagate")(tree, below)
        with case(scale=scale):
            assert int(state.clipped_count) == 1
            assert float(state.clip_coef) < 1
            assert_clipped(clipped, tree, float(below))
            assert float(clipped[0][0]) < scale


@WAYS
def test_none_and_inf_measure_only(clip):
    def entries(dtype: Any) -> np.ndarray:
        odd = odd_entries(dtype)
        return np.where(odd == 0, np.asarray(6e4, dtype), odd)

    tree = mixed(SHORT, entries)
    schedules = [lambda count: math.inf] if clip is through_transformation else []
    for max_norm in (None, math.inf, np.float32(np.inf), jnp.asarray(jnp.inf), *schedules):
        clipped, norm = clip(tree, max_norm)
        assert_same_bits(clipped, tree)
        expected = reference.global_norm(gradients(tree))
        assert float(norm) == pytest.approx(expected, rel=4 * 2.0**-23)


@pytest.mark.parametrize("max_norm", [None, math.inf])
def test_measuring_keeps_the_payloads_of_nans(max_norm):
    # Quiet ones: what a signalling NaN becomes is up to the machine that moves it.
    leaf = np.array(
        [0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000, 0x00000001, 0x3F800000], np.uint32
    ).view(np.float32)
    clipped, norm = through_transformation([leaf], max_norm)
    assert_same_bits(clipped, [leaf])
    assert math.isnan(norm)
    assert_same_bits(jitted([leaf], max_norm)[0], [leaf])


# Above the bound.


def test_each_leaf_is_the_input_times_one_float32_scalar_rounded_once():
    # Many entries, so that a second rounding would show; a coefficient in bfloat16 would shift
    # every product by up to 0.4 %.
    tree = {"half": normal(0, (40_000,), np.float16), "brain": normal(1, (40_000,), BF16)}
    tree |= {"single": normal(2, (1000,)) * 10, "complex": normal(3, (30, 2), np.complex64)}
    for max_norm in (1e-20, 0.1, 3.0):
        clipped, state = update("propagate")(tree, max_norm)
        for name, leaf in tree.items():
            for got, part in zip(
                reference.real_parts(clipped[name]), reference.real_parts(leaf), strict=True
            ):
                # 24 bits times 24 bits are exact in float64.
                product = (part * float(state.clip_coef)).astype(np.float32)
                expected = product if leaf.dtype.kind == "c" else product.astype(leaf.dtype)
                with case(max_norm=max_norm, leaf=name):
                    np.testing.assert_array_equal(got, expected.astype(np.float64))


def test_each_float64_leaf_is_the_input_times_one_scalar_rounded_once(x64):
    leaf = normal(0, (1000,), np.float64)
    transformation = clipping(0.3)
    clipped, state = transformation.update(leaf, transformation.init(leaf))
    np.testing.assert_array_equal(np.asarray(clipped), leaf * float(state.clip_coef))


# Leaves that are no gradients, and trees of every kind.


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
def test_an_empty_tree_comes_back_with_a_norm_of_zero(clip):
    for tree in ({}, [], (), None, {"a": [None, ()]}):
        clipped, norm = clip(tree, 0.0)
        assert clipped == tree
        assert (float(norm), norm.dtype) == (0.0, jnp.float32)


@WAYS
def test_bare_numbers_are_clipped_as_scalars(clip):
    clipped, norm = clip([3.0, np.float32(4), np.zeros((0, 2), np.float32), 12j], 6.5)
    assert float(norm) == 13.0
    np.testing.assert_array_equal([complex(clipped[index]) for index in (0, 1, 3)], [1.5, 2.0, 6j])
    assert [leaf.shape for leaf in clipped] == [(), (), (0, 2), ()]


# Eager, jitted, mapped.


@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_an_eager_update_gives_the_bits_of_a_jitted_one(nonfinite):
    tree = {
        "a": normal(0, (300, 70)),
        "b": normal(1, (11,), BF16),
        "c": normal(2, (5,), np.complex64),
    }
    tree["d"] = normal(3, (6,), np.float16)
    for max_norm in (0.0, 1e-37, 0.1, 10.0, 1e10, None):
        # A bound that is a constant of the program, where one may be folded into something else,
        # and one that is traced.
        programs = [update(nonfinite)] if max_norm else []
        programs += [update(nonfinite, max_norm)] if max_norm in (0.0, 0.1, None) else []
        transformation = clipping(max_norm, nonfinite=nonfinite)
        eager = transformation.update(tree, transformation.init(tree))
        for program in programs:
            with case(max_norm=max_norm):
                assert_same_bits(eager, program(tree, max_norm))


def test_vmap_takes_a_bound_for_each_tree():
    trees = np.stack(
        [normal(seed, (4,)) * np.float32(scale) for seed, scale in enumerate((1e-30, 1, 1e30, 0))]
    )
    bounds = np.array([1e-31, 10, 1e-3, 0], np.float32)
    clipped, _ = jax.vmap(wc.clip_tree)(trees, jnp.asarray(bounds))
    for got, tree, bound in zip(clipped, trees, bounds, strict=True):
        assert_clipped([got], [tree], float(bound))
    assert_same_bits(clipped[1], trees[1])
