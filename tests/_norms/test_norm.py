"""`global_norm`: what it adds up, in which precision, over which range, and what is no gradient."""

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
from jax.test_util import check_grads

import warmclip_jax as wc
from tests import reference
from tests.cases import case
from tests.compiled import summation_error
from tests.trees import BF16, ENTRIES, LONG, SHORT, Pair, gradients, mixed, normal

pytestmark = pytest.mark.usefixtures("strict_dtypes")

REAL = [np.float16, BF16, np.float32, np.float64]
#: The float32 sums are pairwise enough for their error to stay this small, in relative terms, up to
#: 10^8 entries.
FEW_ULP = 4 * 2.0**-23
FEW_ULP_64 = 4 * 2.0**-52


jitted = jax.jit(wc.global_norm)


def assert_norm(tree: Any, tolerance: float = FEW_ULP) -> None:
    """The norm of `tree` under `jit` against the reference. An eager call has the same bits, as a
    test below says.
    """
    assert float(jitted(tree)) == pytest.approx(
        reference.global_norm(gradients(tree)), rel=tolerance, abs=0
    )


# What is added up, and in which precision.


@pytest.mark.parametrize("dtype", SHORT)
def test_the_norm_is_the_root_of_the_sum_of_squares_over_all_leaves(dtype):
    tree = {
        "kernel": normal(0, (7, 5), dtype),
        "blocks": [normal(1, (3, 2, 2), dtype), normal(2, (), dtype)],
    }
    assert_norm(tree)


@pytest.mark.parametrize("dtype", LONG)
def test_float64_leaves_are_added_in_float64(x64, dtype):
    tree = [normal(0, (7, 5), dtype), normal(1, (), dtype)]
    assert wc.global_norm(tree).dtype == jnp.float64
    assert_norm(tree, FEW_ULP_64)


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("dtype", SHORT)
def test_the_norm_of_shorter_leaves_is_a_float32_scalar_whether_or_not_float64_is_allowed(
    dtype, allowed
):
    with jax.enable_x64(allowed):
        norm = jax.eval_shape(wc.global_norm, [normal(0, (3,), dtype)])
    assert (norm.shape, norm.dtype) == ((), jnp.float32)


def test_one_float64_leaf_makes_the_whole_norm_float64(x64):
    # 1e-5 is below half a float32 ulp of the sum, which only float64 can hold beside 1.
    tree = [
        np.ones(1, np.float32),
        np.full(1, 1e-5),
        np.zeros(3, BF16),
        np.full(2, 1e-3, np.float16),
    ]
    assert wc.global_norm(tree).dtype == jnp.float64
    assert_norm(tree, FEW_ULP_64)


def test_complex_entries_count_by_their_modulus():
    assert float(wc.global_norm(np.array([3 + 4j], np.complex64))) == 5.0
    assert float(wc.global_norm(np.array([-12j], np.complex64))) == 12.0


@pytest.mark.parametrize(("dtype", "stalls_at"), [(BF16, 256), (np.float16, 2048)])
def test_a_sum_within_a_leaf_does_not_stall_in_a_short_dtype(dtype, stalls_at):
    entries = 100 * stalls_at
    assert float(wc.global_norm(np.ones(entries, dtype))) == pytest.approx(
        math.sqrt(entries), rel=FEW_ULP
    )


def test_a_sum_across_leaves_does_not_stall_in_bfloat16():
    # In bfloat16 16^2 + 1 is 16^2.
    assert float(wc.global_norm([np.full((), 16, BF16), *[np.ones((), BF16)] * 33])) == 17.0


def test_all_dtypes_mix_in_one_tree(x64):
    assert_norm([normal(seed, (4, 3), dtype) for seed, dtype in enumerate(SHORT)])
    assert_norm(
        [normal(seed, (4, 3), dtype) for seed, dtype in enumerate(SHORT + LONG)], FEW_ULP_64
    )


# Accuracy.


@pytest.mark.parametrize("leaves", [1, 2, 3, 17, 100])
def test_the_error_is_a_few_ulp_for_any_number_of_leaves(leaves):
    tree = [normal(seed, (1 + seed % 7,)) for seed in range(leaves)]
    expected = reference.global_norm(tree)
    assert float(wc.global_norm(tree)) == pytest.approx(expected, rel=FEW_ULP)


def test_the_error_is_a_few_ulp_for_thousands_of_leaves(as_on):
    # As on one device, where small leaves are packed: the eight of this process would take minutes
    # to compile so many.
    as_on("cpu", devices=1)
    tree = [normal(seed, (1 + seed % 7,)) for seed in range(2000)]
    assert float(wc.global_norm(tree)) == pytest.approx(reference.global_norm(tree), rel=FEW_ULP)


def test_the_error_is_a_few_ulp_for_a_hundred_million_entries():
    # Equal entries are the hardest: the rounding of each addition has the same sign.
    leaf = jnp.full(10**8, 0.1, jnp.float32)
    assert float(wc.global_norm(leaf)) == pytest.approx(1e4 * float(np.float32(0.1)), rel=FEW_ULP)


@pytest.mark.parametrize(
    "shape", [(10**6,), (1000, 1000), (10**5, 2, 5), (5, 2 * 10**5), (2 * 10**5, 5)]
)
@pytest.mark.parametrize("dtype", [BF16, np.float32])
def test_the_error_is_a_few_ulp_for_any_shape_of_a_million_entries(shape, dtype):
    assert_norm(normal(0, shape, dtype) + np.asarray(1, dtype), FEW_ULP + summation_error(shape))


# Range.


def edges(dtype: Any) -> list[float]:
    """Numbers over the whole range of a dtype, on both sides of where squares leave it or leave
    float32.
    """
    info = ml_dtypes.finfo(dtype)
    smallest = float(info.smallest_subnormal if dtype is np.float16 else info.tiny)
    largest = float(info.max)
    inner = [
        2.0**e
        for e in (
            -500,
            -450,
            -100,
            -64,
            -63,
            -62,
            -31,
            -30,
            -29,
            0,
            29,
            31,
            62,
            63,
            64,
            65,
            100,
            450,
            500,
        )
    ]
    return [
        smallest,
        smallest * 3,
        *(x for x in inner if smallest < x < largest / 4),
        largest / 4,
        largest,
    ]


RANGE = [
    pytest.param(dtype, value, id=f"{np.dtype(dtype).name}-{value:.1e}")
    for dtype in REAL
    for value in edges(dtype)
]


@pytest.mark.parametrize(("dtype", "value"), RANGE)
def test_equal_entries_of_any_size_have_the_norm_of_one_times_the_root_of_their_number(
    x64, dtype, value
):
    entries = 1 if value > float(ml_dtypes.finfo(dtype).max) / 2 else 7
    tolerance = FEW_ULP_64 if dtype is np.float64 else FEW_ULP
    assert_norm([np.full(entries, value, dtype)], tolerance)


@pytest.mark.parametrize("value", [1.5e-38, 1e-30, 1e-20, 1e20, 1e30, 1e38])
def test_both_parts_of_complex_entries_have_the_whole_range(value):
    assert_norm(np.array([value * (1 + 1j), value * 0.5j, value], np.complex64))


@pytest.mark.parametrize("value", [1e-307, 1e-200, 1e-140, 1e140, 1e200, 1e307])
def test_both_parts_of_long_complex_entries_have_the_whole_range(x64, value):
    assert_norm(np.array([value * (1 + 1j), value * 0.5j, value]), FEW_ULP_64)


def test_the_smallest_subnormal_of_float16_counts():
    assert float(wc.global_norm(np.full(4, 2.0**-24, np.float16))) == 2.0**-23


@pytest.mark.parametrize("dtype", [BF16, np.float32])
def test_subnormals_of_float32_and_bfloat16_count_as_zero(dtype):
    below, smallest = np.full(9, 1e-38, dtype), np.full(9, 2.0**-126, dtype)
    assert float(wc.global_norm(below)) == 0.0
    assert float(wc.global_norm([below, smallest])) == 3 * 2.0**-126


def test_small_and_large_entries_mix_within_a_leaf_and_across_leaves():
    assert_norm([np.array([3e38, 1e-38, 1.0], np.float32)])
    assert_norm(
        [np.array([1e-30, 3e-31], np.float32), np.array([2e-30], BF16), np.zeros(3, np.float16)]
    )
    assert_norm(
        [np.array([1e-38], BF16), np.array([1e20, 1e21], np.float32), np.array([65504], np.float16)]
    )


@pytest.mark.parametrize("power", range(-66, -54))
def test_nothing_is_lost_where_squares_begin_to_underflow(power):
    # A million entries of any of these sizes add up to what a single pass may have lost in part or
    # whole.
    assert_norm(
        [np.full(10**6, 2.0**power, np.float32), np.array([2.0 ** (power + 5)], np.float32)]
    )


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_a_sum_at_the_limit_of_what_can_be_trusted_is_right_in_every_form(as_on, platform):
    as_on(platform, devices=1)
    # The least sum of squares that is taken as it is, that below it and that above it, to the last
    # bit.
    for entry in np.float32(2.0**-30) * np.array([1 - 2.0**-24, 1, 1 + 2.0**-23], np.float32):
        tree = {"w": np.full(1, entry)}
        assert float(wc.global_norm(tree)) == float(wc.leaf_norms(tree)["w"]) == entry


def test_small_entries_add_to_one_that_fits():
    # 2^-30 and 2^20 entries of 2^-41: the sum of the small squares is a quarter of the large one.
    tree = [np.array([2.0**-30], np.float32), np.full(2**20, 2.0**-41, np.float32)]
    assert float(wc.global_norm(tree)) == pytest.approx(2.0**-30 * math.sqrt(1.25), rel=FEW_ULP)


@pytest.mark.parametrize("shape", [(10**6,), (1000, 1000)])
def test_a_million_of_the_largest_float32_entries_that_have_a_norm(shape):
    assert_norm(np.full(shape, 3e35, np.float32), FEW_ULP + summation_error(shape))


def test_a_norm_past_the_largest_number_is_inf():
    assert float(wc.global_norm(np.full(4, 3e38, np.float32))) == math.inf
    assert float(wc.global_norm(np.full(2, 2.4e38, np.float32))) == pytest.approx(
        2.4e38 * math.sqrt(2), rel=FEW_ULP
    )


def test_a_long_norm_past_the_largest_number_is_inf(x64):
    assert float(wc.global_norm(np.full(4, 1.7e308))) == math.inf


# Entries that are not finite.


def test_one_entry_that_is_not_finite_makes_the_norm_not_finite():
    for dtype, bad, others in itertools.product(
        SHORT, [math.nan, math.inf, -math.inf], [0.0, 1e-30, 1.0, 1e30]
    ):
        tree = mixed(
            SHORT,
            lambda dtype: np.full(
                ENTRIES,
                min(others, 6e4) if dtype is np.float16 else others,  # noqa: B023
                dtype,
            ),
        )
        tree[np.dtype(dtype).name][5] = bad
        with case(dtype=dtype, bad=bad, others=others):
            np.testing.assert_array_equal(jitted(tree), abs(bad))


@pytest.mark.parametrize(
    "bad", [complex(0, math.nan), complex(0, -math.inf), complex(math.inf, math.nan)]
)
def test_one_part_that_is_not_finite_makes_the_norm_not_finite(bad):
    assert not np.isfinite(
        wc.global_norm([np.array([1, bad], np.complex64), np.ones(2, np.float32)])
    )


def test_a_bad_entry_of_any_dtype_is_seen_where_another_leaf_is_float64(x64):
    for dtype, bad in itertools.product([*SHORT, *LONG], [math.nan, math.inf]):
        tree = mixed([*SHORT, *LONG], lambda dtype: np.ones(ENTRIES, dtype))
        tree[np.dtype(dtype).name][5] = bad
        with case(dtype=dtype, bad=bad):
            np.testing.assert_array_equal(jitted(tree), bad)


# Leaves that are no gradients, and trees of every kind.


@pytest.mark.parametrize("tree", [{}, [], (), None, {"a": {}, "b": [None]}, [optax.MaskedNode()]])
def test_an_empty_tree_has_norm_zero(tree):
    norm = wc.global_norm(tree)
    assert norm.dtype == jnp.float32
    assert norm.shape == ()
    assert float(norm) == 0.0


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


@pytest.mark.parametrize("kind", NO_GRADIENTS)
def test_leaves_that_are_no_gradients_take_no_part(kind):
    assert (
        float(
            wc.global_norm(
                {"gradient": np.array([3.0, 4.0], np.float32), "other": NO_GRADIENTS[kind]}
            )
        )
        == 5.0
    )
    assert float(wc.global_norm(NO_GRADIENTS[kind])) == 0.0


@pytest.mark.parametrize(
    "leaf",
    [
        -12.0,
        12j,
        np.float64(12),
        np.float32(12),
        np.complex64(-12j),
        jnp.float32(12),
        jnp.asarray(12, jnp.bfloat16),
    ],
)
def test_a_bare_number_is_a_gradient(leaf):
    assert float(wc.global_norm([leaf, np.full(1, 5, np.float32)])) == 13.0


def test_leaves_without_entries_add_nothing():
    empty = [np.zeros((0, 3), dtype) for dtype in SHORT]
    assert float(wc.global_norm(empty)) == 0.0
    assert float(wc.global_norm([*empty, np.array([3.0, 4.0], np.float32)])) == 5.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    name: str = dataclasses.field(metadata={"static": True})


def test_custom_nodes_and_dataclasses_are_looked_into():
    assert (
        float(
            wc.global_norm(
                Pair(np.full(1, 3, np.float32), Layer(np.full(1, 4, np.float32), "first"))
            )
        )
        == 5.0
    )


# Under transformations.


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("long", [False, True])
def test_an_eager_call_gives_the_bits_of_a_jitted_one(scale, long):
    with jax.enable_x64(long):
        tree = mixed([*SHORT, *LONG] if long else SHORT, lambda dtype: normal(0, (ENTRIES,), dtype))
        tree["large"] = normal(0, (300, 70)) * np.float32(scale)
        assert wc.global_norm(tree).tobytes() == jitted(tree).tobytes()


def test_new_numbers_do_not_trace_again():
    traces = []

    @jax.jit
    def norm(tree):
        traces.append(tree)
        return wc.global_norm(tree)

    for scale in (0.0, 1e-30, 1.0, 1e30, math.nan):
        norm([np.full(3, scale, np.float32), np.full(2, 1, BF16)])
    assert len(traces) == 1


def test_vmap_takes_each_tree_in_its_own_range():
    scales = np.array([0, 1e-36, 1e-30, 1, 1e20, 1e38, math.inf, math.nan], np.float32)
    trees = scales[:, None] * np.array([1, 2, 2], np.float32) / np.float32(3)
    norms = np.asarray(jax.vmap(wc.global_norm)(trees))
    np.testing.assert_allclose(norms, [*scales[:-1], math.nan], rtol=FEW_ULP)


# Derivatives.


@pytest.mark.parametrize("scale", [1e-35, 1e-30, 1.0, 1e30, 1e37])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_the_gradient_is_the_unit_vector(dtype, scale):
    leaves = [normal(0, (4,), dtype) * dtype(scale), normal(1, (), dtype) * dtype(scale / 10)]
    norm = reference.global_norm(leaves)
    for gradient, leaf in zip(jax.grad(wc.global_norm)(leaves), leaves, strict=True):
        # jax.grad of a real function of z gives the conjugate of the direction of ascent.
        np.testing.assert_allclose(
            np.asarray(gradient), np.conj(leaf).astype(np.complex128) / norm, rtol=FEW_ULP
        )
        assert gradient.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float16, BF16])
def test_the_gradient_of_a_short_leaf_is_the_unit_vector_in_its_dtype(dtype):
    gradient = jax.grad(wc.global_norm)(np.array([3, 4], dtype))
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(np.asarray(gradient), np.array([0.6, 0.8]).astype(dtype))


def test_the_gradient_at_zero_is_zero():
    tree = [np.zeros(shape, dtype) for dtype in SHORT for shape in ((3,), (), (0, 2))]
    for gradient, leaf in zip(jax.jit(jax.grad(wc.global_norm))(tree), tree, strict=True):
        assert gradient.dtype == leaf.dtype
        np.testing.assert_array_equal(np.asarray(gradient), leaf)
    rate = jax.jit(lambda tree, along: jax.jvp(wc.global_norm, (tree,), (along,))[1])
    assert float(rate(tree, [np.ones_like(leaf) for leaf in tree])) == 0.0


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
def test_the_second_derivative_at_zero_is_zero(outer, inner):
    np.testing.assert_array_equal(
        outer(inner(wc.global_norm))(np.zeros(3, np.float32)), np.zeros((3, 3))
    )


def test_an_empty_tree_has_a_derivative():
    assert jax.grad(wc.global_norm)({}) == {}
    assert float(jax.jvp(wc.global_norm, ([],), ([],))[1]) == 0.0


def test_derivatives_agree_with_finite_differences_to_second_order(x64):
    tree = [normal(0, (3,), np.float64), normal(2, (2,), np.complex128)]
    check_grads(jitted, (tree,), order=2, modes=("fwd", "rev"))


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


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_derivative_along_a_direction_is_its_part_along_the_unit_vector(scale):
    leaf, direction = normal(0, (50,)), normal(1, (50,))
    expected = np.dot(
        leaf.astype(np.float64), direction.astype(np.float64)
    ) / reference.global_norm([leaf])
    _, rate = jax.jvp(wc.global_norm, (leaf * np.float32(scale),), (direction,))
    assert float(rate) == pytest.approx(expected, abs=FEW_ULP * reference.global_norm([direction]))
