"""Norms by several groupings at once: right over the whole range, in every form, and the same
whatever stands beside them.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import warmclip_jax as wc
from tests import reference
from tests.cases import case
from tests.compiled import summation_error
from tests.trees import BF16, FEW_ULP, FEW_ULP_64, LONG, SHORT, assert_same_bits, gradients, normal
from warmclip_jax._norms._frame import Grouping, all_together, each_alone, scaled_norms
from warmclip_jax._norms._range import ScaledNorm

pytestmark = pytest.mark.usefixtures("strict_dtypes")

FORMS = [("cpu", 1), ("cpu", 8), ("gpu", 1), ("gpu", 8), ("tpu", 1), ("tpu", 8)]
#: Several small ones of one shape, which may be read together; a scalar; an empty one; one that is
#: read by itself.
SHAPES = [(5,), (5,), (2, 3), (), (0, 2), (70, 80)]


def tree_of(dtypes: list[Any], seed: int) -> dict[str, np.ndarray]:
    """Leaves of all shapes and dtypes whose magnitudes are anywhere in the range of their dtype,
    zeros among them.
    """
    rng = np.random.default_rng(seed)
    tree: dict[str, np.ndarray] = {}
    for dtype in dtypes:
        info = reference.limits(np.zeros((), dtype))
        lowest = info.minexp - info.nmant if dtype is np.float16 else info.minexp
        for place, shape in enumerate(SHAPES):
            # No norm of a large leaf is past the largest number.
            highest = info.maxexp - (12 if math.prod(shape) > 10 else 3)
            size = np.ldexp(rng.choice([0.0, 1, 1, 1, 1]), int(rng.integers(lowest, highest)))
            entries: Any = np.clip(normal(seed * 31 + place, shape, np.complex128), -4, 4)
            parts = entries if np.dtype(dtype).kind == "c" else entries.real
            with np.errstate(over="ignore", under="ignore"):
                tree[f"{np.dtype(dtype).name} {place}"] = np.asarray(size * parts).astype(dtype)
    return tree


def grouped(members: Any, number: int) -> Any:
    return lambda _: Grouping(tuple(int(member) for member in members), number)


def some_groups(seed: int, leaves: int) -> tuple[np.ndarray, int]:
    rng = np.random.default_rng(seed)
    number = int(rng.integers(1, leaves + 2))  # some groups may have no leaf
    return rng.integers(0, number, leaves), number


def assert_scaled(norm: ScaledNorm, leaves: list[Any], tolerance: float) -> None:
    """A mantissa and a scale, compared by powers of two: the norm itself may be past float64."""
    expected, power = reference.scaled_norm(leaves)
    shift = power + round(math.log2(float(norm.scale)))
    got = math.ldexp(float(norm.mantissa), -shift) if norm.mantissa else 0.0
    if norm.mantissa.dtype == np.float64:
        tolerance = FEW_ULP_64
    else:
        tolerance += max((summation_error(leaf.shape) for leaf in leaves), default=0)
    assert got == pytest.approx(expected, rel=tolerance, abs=0)
    value, info = reference.global_norm(leaves), np.finfo(norm.value.dtype)
    # As one number it is flushed to zero, or inf, where an entry would be.
    if float(info.tiny) < value < float(info.max):
        assert float(norm.value) == pytest.approx(value, rel=tolerance, abs=0)


@pytest.mark.parametrize(("platform", "devices"), FORMS)
def test_norms_of_leaves_of_groups_and_of_all_are_right_over_the_whole_range_in_every_form(
    as_on, platform, devices
):
    as_on(platform, devices)
    # Here the CPU adds the three sums of GPUs one entry after the other.
    tolerance = 70 * 80 * 2.0**-25 if (platform, devices) == ("gpu", 1) else FEW_ULP
    for dtypes in (SHORT, [*LONG, np.float32, BF16]) if platform == "cpu" else (SHORT,):
        with jax.enable_x64(dtypes is not SHORT):
            leaves = len(gradients(tree_of(dtypes, 0)))
            members, number = some_groups(4, leaves)
            assert 2 < len(set(members)) < number  # some have no leaf
            groupings = [each_alone, grouped(members, number), all_together]
            places = [
                *((0, place, [place]) for place in range(leaves)),
                *((1, group, np.flatnonzero(members == group)) for group in range(number)),
                (2, (), range(leaves)),
            ]
            measured = jax.jit(lambda tree: scaled_norms(tree, None, *groupings))  # noqa: B023
            tree, found = list[Any](), list[Any]()
            for seed in range(8):
                tree = gradients(tree_of(dtypes, seed))
                found = jax.tree.map(np.asarray, measured(tree))
                for grouping, place, own in places:
                    norm = ScaledNorm(*(part[place] for part in found[grouping]))
                    with case(dtypes=dtypes, seed=seed, grouping=grouping, place=place):
                        assert norm.value.dtype == (np.float32 if dtypes is SHORT else np.float64)
                        assert_scaled(norm, [tree[index] for index in own], tolerance)
            if dtypes is SHORT:
                # The front door outside of jit, bit for bit.
                eager = list(wc.leaf_norms(tree).values())
                assert_same_bits(eager, list(found[0].value))
                assert_bad_leaves_are_seen_where_they_are(measured, leaves, places)


def assert_bad_leaves_are_seen_where_they_are(measured: Any, leaves: int, places: Any) -> None:
    tree: list[Any] = [np.ones(leaf.shape, leaf.dtype) for leaf in gradients(tree_of(SHORT, 0))]
    # Finite entries whose norm is not representable are no bad ones.
    large = next(i for i, leaf in enumerate(tree) if (leaf.dtype, leaf.shape) == ("f4", (2, 3)))
    tree[large] = np.full((2, 3), 3e38, np.float32)
    for bad, index in itertools.product((math.nan, math.inf, -math.inf), range(0, leaves, 3)):
        if not tree[index].size:
            continue
        broken = [leaf.copy() for leaf in tree]
        broken[index][(0,) * broken[index].ndim] = bad
        found = jax.tree.map(np.asarray, measured(broken))
        for grouping, place, own in places:
            norm = ScaledNorm(*(part[place] for part in found[grouping]))
            with case(bad=bad, index=index, grouping=grouping, place=place):
                assert bool(norm.is_finite) == (index not in own)
                assert np.isfinite(norm.value) == (index not in own and large not in own)
                if index in own and large not in own:
                    np.testing.assert_array_equal(norm.value, abs(bad))


@pytest.mark.parametrize("devices", [1, 8])
def test_what_else_is_measured_changes_no_bit(as_on, devices):
    as_on("cpu", devices)
    dtypes = [np.complex64, BF16]
    leaves = len(gradients(tree_of(dtypes, 0)))
    order = np.random.default_rng(0).permutation(leaves)
    groupings = [all_together, each_alone, grouped(*some_groups(4, leaves))]
    others = [grouped(order, leaves), grouped([0] * leaves, 1)]
    at_once = jax.jit(lambda tree: scaled_norms(tree, None, *groupings, *others))
    programs = [jax.jit(lambda tree, by=by: scaled_norms(tree, None, by)[0]) for by in groupings]
    for seed in range(6):
        tree = tree_of(dtypes, seed)
        *found, permuted, one = at_once(tree)
        with case(seed=seed):
            for norm, program in zip(found, programs, strict=True):
                assert_same_bits(norm, program(tree))
            # One group is the whole, and a group of one leaf is that leaf.
            assert_same_bits(ScaledNorm(*(part[order] for part in permuted)), found[1])
            assert_same_bits(ScaledNorm(*(part[0] for part in one)), found[0])


def test_leaves_have_together_the_norm_of_one_leaf_with_their_entries():
    # Those of 1.8e19 have each a sum of squares in the range, and not together.
    for entries in ([1.0], [1.0, 0.0], [1.0, 1e-30], [1.5e19] * 2, [1.8e19] * 40, [1.8e19, 1e30]):
        tree = [np.full(1, entry, np.float32) for entry in entries]
        (group,) = scaled_norms(tree, None, grouped([1] * len(entries), 2))
        expected = reference.global_norm([np.asarray(entries, np.float32)])
        with case(entries=entries):
            np.testing.assert_allclose(group.value, [0, expected], rtol=FEW_ULP)


# Derivatives.


def values(tree: Any) -> list[jax.Array]:
    found = scaled_norms(tree, None, grouped([1, 0, 1], 3), all_together, each_alone)
    return [norm.value for norm in found]


#: The leaves of each norm of `values`, in order.
OF_NORMS = [[1], [0, 2], [], [0, 1, 2], [0], [1], [2]]


def test_derivatives_agree_with_finite_differences_to_second_order(x64):
    dtypes = (np.float64, np.float64, np.complex128)
    tree = [normal(seed, (3 - seed % 2,), dtype) for seed, dtype in enumerate(dtypes)]
    # But for the third group, which is at 0.
    norms = jax.jit(lambda tree: (values(tree)[0][:2], *values(tree)[1:]))
    check_grads(norms, (tree,), order=2, modes=("rev",))
    check_grads(norms, (tree,), order=1, modes=("fwd",))


def test_derivatives_are_zero_at_zero_in_the_dtype_of_each_leaf():
    def total(tree: Any) -> Any:
        return sum(jnp.sum(norm) for norm in values(tree))

    for dtypes in ([np.float32] * 3, [np.float16, BF16, np.complex64]):
        tree = [
            np.zeros(shape, dtype) for shape, dtype in zip([(3,), (), (0, 2)], dtypes, strict=True)
        ]
        assert_same_bits(jax.jit(jax.grad(total))(tree), tree)
        along = jax.jit(lambda rates, tree=tree: jax.jvp(total, (tree,), (rates,))[1])
        assert float(along(jax.tree.map(np.ones_like, tree))) == 0.0
    leaf = np.zeros(3, np.float32)
    for outer, inner in itertools.product((jax.jacfwd, jax.jacrev), repeat=2):
        second = jax.jit(outer(inner(lambda leaf: total([leaf, leaf, leaf]))))
        np.testing.assert_array_equal(second(leaf), np.zeros((3, 3)))


def test_slopes_are_right_at_every_size_of_gradients_and_tangents():
    @jax.jit
    def derivatives(tree: Any, along: Any, rate: Any) -> Any:
        _, pull = jax.vjp(lambda tree: jnp.concatenate([jnp.ravel(v) for v in values(tree)]), tree)
        pulled = [pull(row)[0] for row in rate * jnp.eye(len(OF_NORMS))]
        return jax.jvp(values, (tree,), (along,))[1], pulled

    dtypes = (np.float32, np.float32, np.complex64)
    for size, rate in itertools.product((1e-35, 1e-20, 1.0, 1e20, 1e35), (1e-30, 1e30)):
        tree, along = (
            [normal(seed + i, (5,), dtype) * dtype(scale) for i, dtype in enumerate(dtypes)]
            for seed, scale in ((0, size), (3, rate))
        )
        pushed, pulled = derivatives(tree, along, np.float32(rate))
        slopes = np.concatenate([np.ravel(slope) for slope in pushed])
        # Whatever the gradient, the slope is the product of a unit vector and the tangent.
        for of, slope, pull in zip(OF_NORMS, slopes, pulled, strict=True):
            norm = reference.global_norm([tree[index] for index in of])
            with case(size=size, rate=rate, of=of):
                products = [
                    float(np.vdot(leaf.astype(complex), rates.astype(complex)).real)
                    for leaf, rates in ((tree[index], along[index]) for index in of)
                ]
                np.testing.assert_allclose(slope, sum(products) / (norm or 1), rtol=2e-6)
                # Pulled back, a cotangent of the size of the tangent is that unit vector times it;
                # JAX gives the conjugate.
                for index, (leaf, got) in enumerate(zip(tree, pull, strict=True)):
                    unit = np.conj(leaf.astype(complex)) / norm if index in of else 0 * leaf
                    np.testing.assert_allclose(got.astype(complex), unit * rate, rtol=1e-6)
