"""Norms by several groupings at once: right over the whole range, in every form, and the same
whatever stands beside them.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import warmclip_jax as wc
from tests import reference
from tests._norms.test_leaf_norms import FEW_ULP, FEW_ULP_64, FORMS, tree_of
from tests.cases import case
from tests.compiled import summation_error
from tests.trees import LONG, SHORT, assert_same_bits, gradients, normal
from warmclip_jax._norms._frame import Grouping, all_together, each_alone, scaled_norms
from warmclip_jax._norms._range import ScaledNorm

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def grouped(members: Any, number: int) -> Any:
    return lambda _: Grouping(tuple(int(member) for member in members), number)


def some_groups(seed: int, leaves: int) -> tuple[np.ndarray, int]:
    rng = np.random.default_rng(seed)
    number = int(rng.integers(1, leaves + 2))  # some groups may have no leaf
    return rng.integers(0, number, leaves), number


def assert_scaled(mantissa: Any, scale: Any, leaves: list[Any], tolerance: float = FEW_ULP) -> None:
    """A mantissa and a scale, compared by powers of two: the norm itself may be past float64."""
    expected, power = reference.scaled_norm(leaves)
    shift = power + round(math.log2(float(scale)))
    got = math.ldexp(float(mantissa), -shift) if mantissa else 0.0
    tolerance += max((summation_error(leaf.shape) for leaf in leaves), default=0)
    assert got == pytest.approx(
        expected, rel=FEW_ULP_64 if mantissa.dtype == np.float64 else tolerance, abs=0
    )


@pytest.mark.parametrize(("platform", "devices"), FORMS)
def test_groups_and_the_whole_have_the_norm_of_their_leaves_whatever_their_scales(
    as_on, platform, devices
):
    as_on(platform, devices)
    # Here the CPU adds the three sums of GPUs one entry after the other.
    tolerance = 70 * 80 * 2.0**-25 if (platform, devices) == ("gpu", 1) else FEW_ULP
    for long in (False, True) if platform == "cpu" else (False,):
        with jax.enable_x64(long):
            dtypes = LONG if long else SHORT
            members, number = some_groups(4, len(gradients(tree_of(dtypes, 0))))
            assert 2 < len(set(members)) < number  # some have no leaf
            together = grouped(members, number)
            measured = jax.jit(lambda tree: scaled_norms(tree, None, together, all_together))  # noqa: B023
            for seed in range(12):
                tree = tree_of(dtypes, seed)
                leaves = gradients(tree)
                groups, total = measured(tree)
                assert groups.mantissa.shape == (number,)
                for group in range(number):
                    own = [leaf for leaf, of in zip(leaves, members, strict=True) if of == group]
                    with case(long=long, seed=seed, group=group):
                        scaled = (groups.mantissa[group], groups.scale[group])
                        assert_scaled(*scaled, own, tolerance)
                with case(long=long, seed=seed):
                    assert_scaled(total.mantissa, total.scale, leaves, tolerance)


@pytest.mark.parametrize("devices", [1, 8])
def test_what_else_is_measured_changes_no_bit(as_on, devices):
    as_on("cpu", devices)
    leaves = len(gradients(tree_of(SHORT, 0)))
    order = np.random.default_rng(0).permutation(leaves)
    groupings = [
        all_together,
        each_alone,
        grouped(order, leaves),
        grouped(*some_groups(4, leaves)),
        grouped([0] * leaves, 1),
    ]
    at_once = jax.jit(lambda tree: scaled_norms(tree, None, *groupings))
    programs = [jax.jit(lambda tree, by=by: scaled_norms(tree, None, by)[0]) for by in groupings]
    for seed in range(6):
        tree = tree_of(SHORT, seed)
        found = at_once(tree)
        whole, each, permuted, _, one = found
        with case(seed=seed):
            for norm, program in zip(found, programs, strict=True):
                assert_same_bits(norm, program(tree))
            # One group is the whole, and a group of one leaf is that leaf.
            assert_same_bits(ScaledNorm(*(part[order] for part in permuted)), each)
            assert_same_bits(ScaledNorm(*(part[0] for part in one)), whole)


@pytest.mark.parametrize(
    "entries", [[1.0], [1.0, 0.0], [1.0, 1e-30], [1.5e19] * 2, [1.8e19] * 40, [1.8e19, 1e30]]
)
def test_leaves_have_together_the_norm_of_one_leaf_with_their_entries(entries):
    # Those of 1.8e19 have each a sum of squares in the range, and not together.
    tree = [np.full(1, entry, np.float32) for entry in entries]
    (group,) = scaled_norms(tree, None, grouped([1] * len(entries), 2))
    expected = reference.global_norm([np.float32(entries)])
    np.testing.assert_allclose(group.value, [0, expected], rtol=FEW_ULP)


def test_a_bad_leaf_makes_the_norm_of_its_group_bad_and_of_no_other():
    for bad in (math.nan, math.inf):
        tree = [np.float32(entry) for entry in (bad, 1, 2, 3e38, 3e38, 0)]
        groups, total = scaled_norms(tree, None, grouped([0, 0, 1, 2, 2, 3], 5), all_together)
        with case(bad=bad):
            np.testing.assert_array_equal(groups.is_finite, [False, True, True, True, True])
            np.testing.assert_array_equal(groups.value, [bad, 2, math.inf, 0, 0])
            assert not total.is_finite


# Derivatives.


def test_derivatives_of_groups_agree_with_finite_differences_to_second_order(x64):
    def norms(tree: Any) -> Any:
        found = scaled_norms(tree, None, grouped([1, 0, 1], 2), all_together, each_alone)
        return [norm.value for norm in found]

    tree = [
        normal(0, (3,), np.float64),
        normal(1, (2,), np.float64),
        normal(2, (2,), np.complex128),
    ]
    check_grads(jax.jit(norms), (tree,), order=2, modes=("rev",))
    check_grads(jax.jit(norms), (tree,), order=1, modes=("fwd",))


def test_derivatives_of_groups_are_finite_at_zero():
    def total(tree: Any) -> Any:
        groups, whole = scaled_norms(tree, None, grouped([0, 0, 1], 3), all_together)
        return jnp.sum(groups.value) + whole.value

    tree = [np.zeros(3, np.float32), np.zeros((), np.float32), np.zeros(2, np.float32)]
    for gradient in jax.jit(jax.grad(total))(tree):
        np.testing.assert_array_equal(np.asarray(gradient), 0)
    along = jax.jit(lambda rates: jax.jvp(total, (tree,), (rates,))[1])
    assert float(along(jax.tree.map(np.ones_like, tree))) == 0.0
    for second in jax.tree.leaves(jax.jit(jax.jacfwd(jax.grad(total)))(tree)):
        np.testing.assert_array_equal(np.asarray(second), 0)


@pytest.mark.parametrize("size", [1e-35, 1e-20, 1e20, 1e35])
@pytest.mark.parametrize("rate", [1e-30, 1e30])
def test_slopes_are_right_at_every_size_of_gradients_and_tangents(size, rate):
    # Whatever the gradient, the slope is the product of a unit vector and the tangent.
    leaves = [normal(seed, (5,)) * np.float32(size) for seed in range(3)]
    rates = [normal(seed, (5,)) * np.float32(rate) for seed in range(3, 6)]
    exact = [leaf.astype(np.float64) for leaf in leaves]
    products = [
        float(leaf @ along.astype(np.float64)) for leaf, along in zip(exact, rates, strict=True)
    ]
    groups = [[0, 1], [2]]

    def norms(tree: Any) -> Any:
        found = scaled_norms(tree, None, grouped([0, 0, 1], 2), all_together, each_alone)
        return [norm.value for norm in found]

    expected = [
        [
            sum(products[i] for i in of) / reference.global_norm([leaves[i] for i in of])
            for of in groups
        ],
        sum(products) / reference.global_norm(leaves),
        [
            product / reference.global_norm([leaf])
            for product, leaf in zip(products, leaves, strict=True)
        ],
    ]
    _, slopes = jax.jvp(norms, (leaves,), (rates,))
    for slope, right in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(slope, right, rtol=2e-6)
    # Pulled back, a cotangent of the size of the tangent is that unit vector times it.
    _, pull = jax.vjp(lambda tree: wc.global_norm(tree), leaves)
    for pulled, leaf in zip(pull(jnp.float32(rate))[0], exact, strict=True):
        unit = leaf / reference.global_norm(leaves)
        np.testing.assert_allclose(np.asarray(pulled, np.float64), unit * rate, rtol=1e-6)
