"""`clip_tree` and `clip_by_global_norm`: every bit below the bound, the formula above it, and trees
of every kind.
"""

import dataclasses
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
from tests.trees import (
    BF16,
    ENTRIES,
    LONG,
    SHORT,
    WAYS,
    assert_clipped,
    assert_norm_is,
    assert_same_bits,
    clipping,
    coefficient_error,
    gradients,
    jitted,
    mixed,
    normal,
    rounding,
    through_transformation,
    update,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.fixture(params=["float32", "float64"])
def dtypes(request: pytest.FixtureRequest):
    """The dtypes of a tree, named by what its norm is computed in."""
    long = request.param == "float64"
    with jax.enable_x64(long):
        yield [*SHORT, *LONG] if long else SHORT


def norms_precision(tree: Any) -> float:
    """What the norm of a tree may be off by, relatively."""
    return coefficient_error(gradients(tree)) * 2 / 3


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


@WAYS
def test_below_the_bound_every_leaf_comes_back_bit_for_bit(clip, dtypes):
    tree = mixed(dtypes, odd_entries)
    assert_same_bits(clip(tree, 4.0)[0], tree)


@WAYS
def test_a_norm_equal_to_the_bound_is_not_over_it(clip, dtypes):
    for scale in (1e-3, 1.0, 100.0):
        tree = mixed(dtypes, lambda dtype: normal(0, (ENTRIES,), dtype) * np.asarray(scale, dtype))  # noqa: B023
        with case(scale=scale):
            assert_same_bits(clip(tree, float(wc.global_norm(tree)))[0], tree)


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
def test_none_and_inf_measure_only(clip, max_norm):
    tree = mixed(
        SHORT,
        lambda dtype: np.where(odd_entries(dtype) == 0, np.asarray(6e4, dtype), odd_entries(dtype)),
    )
    clipped, norm = clip(tree, max_norm)
    assert_same_bits(clipped, tree)
    assert float(norm) == pytest.approx(reference.global_norm(gradients(tree)), rel=4 * 2.0**-23)


@pytest.mark.parametrize("value", [math.inf, jnp.inf, np.float32(np.inf)])
def test_a_schedule_may_measure_only(value):
    tree = [odd_entries(np.float32), np.full(3, 1e30, np.float32)]
    assert_same_bits(through_transformation(tree, lambda count: value)[0], tree)


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


def test_measuring_touches_no_finite_tree_whose_norm_is_not_representable():
    tree = [np.full(4, 3e38, np.float32)]
    for max_norm in (None, math.inf):
        assert_same_bits(wc.clip_tree(tree, max_norm)[0], tree)


# Above the bound.


@WAYS
def test_above_the_bound_every_entry_is_the_formula_rounded_to_its_leaf(clip, dtypes):
    tree = mixed(dtypes, lambda dtype: normal(0, (ENTRIES,), dtype))
    for max_norm in (1e-3, 0.5, 2.0):
        with case(max_norm=max_norm):
            clipped, norm = clip(tree, max_norm)
            assert_clipped(clipped, tree, max_norm)
            assert_norm_is(clipped, max_norm)
            assert norm.dtype == (jnp.float32 if dtypes is SHORT else jnp.float64)
            assert float(norm) == pytest.approx(
                reference.global_norm(gradients(tree)), rel=norms_precision(tree)
            )


@pytest.mark.parametrize("way", ["eager", "jitted"])
def test_each_leaf_is_the_input_times_one_float32_scalar_rounded_once(way):
    # Many entries, so that a second rounding would show; a coefficient in bfloat16 would shift
    # every product by up to 0.4 %.
    tree = {"half": normal(0, (40_000,), np.float16), "brain": normal(1, (40_000,), BF16)}
    tree |= {"single": normal(2, (1000,)) * 10, "complex": normal(3, (30, 2), np.complex64)}
    for max_norm in (1e-20, 0.1, 3.0):
        transformation = clipping(max_norm)
        run = (
            transformation.update
            if way == "eager"
            else lambda tree, _: update("propagate")(tree, max_norm)  # noqa: B023
        )
        clipped, state = run(tree, transformation.init(tree))
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


def test_float16_results_below_the_smallest_normal_are_rounded_not_lost():
    leaf = np.array([1.0, 3.1, -0.7, 0.01], np.float16)
    clipped = np.asarray(wc.clip_tree(leaf, 1e-6)[0])
    assert_clipped(clipped, leaf, 1e-6)
    assert clipped[0] > 0


def test_clipping_twice_is_clipping_once(dtypes):
    for kinds, max_norm in itertools.product((dtypes, [np.float32]), (1e-3, 0.7)):
        tree = mixed(kinds, lambda dtype: normal(0, (ENTRIES,), dtype))
        once, _ = wc.clip_tree(tree, max_norm)
        twice, _ = wc.clip_tree(once, max_norm)
        # The norm may be over the bound by one rounding of the coarsest leaf; what corrects that is
        # rounded again.
        over = max(rounding(leaf) for leaf in gradients(tree) if leaf.size) + coefficient_error(
            gradients(tree)
        )
        for first, second in zip(gradients(once), gradients(twice), strict=True):
            for a, b in zip(reference.real_parts(first), reference.real_parts(second), strict=True):
                with case(kinds=kinds, max_norm=max_norm, dtype=first.dtype):
                    assert np.all(
                        np.abs(a - b)
                        <= (over + rounding(first)) * np.abs(a) + reference.floor(first)
                    )


def test_equal_bfloat16_leaves_end_at_the_bound():
    # Their squares add up to 16^2 + 33 = 17^2; in bfloat16 256 + 1 is 256.
    tree = [np.full(1, 16, BF16), *[np.ones(1, BF16)] * 33]
    clipped, norm = wc.clip_tree(tree, 1.0)
    assert float(norm) == 17.0
    assert_norm_is(clipped, 1.0)


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
    clipped, _ = wc.clip_tree(
        [Layer(np.full(1, 3, np.float32), "first"), Layer(np.full(1, 4, np.float32), "second")], 1.0
    )
    assert [layer.name for layer in clipped] == ["first", "second"]
    np.testing.assert_allclose([layer.kernel[0] for layer in clipped], [0.6, 0.8], rtol=2.0**-23)


# Eager, jitted, traced once, mapped.


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


def test_new_numbers_do_not_trace_again():
    transformation = clipping(wc.linear_warmup(peak_value=1.0, warmup_steps=3))
    traces = []

    @jax.jit
    def run(tree, state):
        traces.append(tree)
        return transformation.update(tree, state)

    state = transformation.init([jnp.ones(3)])
    for scale in (0.0, 1e-30, 1.0, 1e30, math.nan):
        _, state = run([np.full(3, scale, np.float32)], state)
    assert len(traces) == 1


def test_vmap_takes_a_bound_for_each_tree():
    trees = np.stack(
        [normal(seed, (4,)) * np.float32(scale) for seed, scale in enumerate((1e-30, 1, 1e30, 0))]
    )
    bounds = np.array([1e-31, 10, 1e-3, 0], np.float32)
    clipped, _ = jax.vmap(wc.clip_tree)(trees, jnp.asarray(bounds))
    for got, tree, bound in zip(clipped, trees, bounds, strict=True):
        assert_clipped([got], [tree], float(bound))
    assert_same_bits(clipped[1], trees[1])
