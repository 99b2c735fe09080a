"""The norm of each leaf and of each group: their range, what is no gradient, derivatives, and what
they cost.
"""

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
from tests.compiled import readers, summation_error, temporaries
from tests.trees import BF16, LONG, SHORT, gradients, normal
from warmclip_jax._norms._axes import Reduction
from warmclip_jax._norms._leaf_norms import _bundles, combined, scaled_leaf_norms
from warmclip_jax._norms._leaves import shortened
from warmclip_jax._norms._range import ScaledNorm

pytestmark = pytest.mark.usefixtures("strict_dtypes")

FEW_ULP = 4 * 2.0**-23
FEW_ULP_64 = 4 * 2.0**-52
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
        # No norm of a leaf of 5,600 entries is past the largest number; the largest one is another
        # test's.
        lowest, highest = (
            (info.minexp - info.nmant if dtype is np.float16 else info.minexp),
            info.maxexp - 3,
        )
        for place, shape in enumerate(SHAPES):
            power = rng.integers(lowest, highest - (9 if math.prod(shape) > 10 else 0))
            entries = np.clip(normal(seed * 31 + place, shape, np.complex128), -4, 4) * rng.choice(
                [0, 1, 1, 1, 1]
            )
            parts = entries if np.dtype(dtype).kind == "c" else entries.real
            with np.errstate(over="ignore", under="ignore"):
                tree[f"{np.dtype(dtype).name} {place}"] = np.asarray(
                    np.ldexp(1.0, int(power)) * parts
                ).astype(dtype)
    return tree


def assert_norms(norms: dict[str, Any], tree: dict[str, np.ndarray], tolerance: float) -> None:
    assert list(norms) == sorted(tree)
    for name, leaf in tree.items():
        expected = reference.global_norm([leaf])
        # A norm below the smallest normal number is flushed to zero as an entry is.
        dtype = np.asarray(norms[name]).dtype
        absolute = float(np.finfo(dtype).tiny)
        relative = tolerance + (summation_error(leaf.shape) if dtype == np.float32 else 0)
        with case(name=name):
            assert float(norms[name]) == pytest.approx(
                expected, rel=relative, abs=0 if expected > absolute else absolute
            )


@pytest.mark.parametrize(("platform", "devices"), FORMS)
def test_each_leaf_has_its_norm_over_the_whole_range_in_every_form_and_a_bad_entry_is_of_its_leaf_alone(
    as_on, platform, devices
):
    as_on(platform, devices)
    # Here the CPU adds the three sums of accelerators one entry after the other, and so rounds as
    # often.
    tolerance = FEW_ULP if platform == "cpu" or devices > 1 else 70 * 80 * 2.0**-25
    jitted = jax.jit(scaled_leaf_norms)
    tree = tree_of(SHORT, 0)
    names = sorted(tree)
    for seed in range(25):
        tree = tree_of(SHORT, seed)
        with case(seed=seed):
            assert_norms(dict(zip(names, jitted(tree).value, strict=True)), tree, tolerance)
    # The front door outside of jit, bit for bit.
    eager = wc.leaf_norms(tree)
    assert list(eager) == names
    assert [norm.tobytes() for norm in eager.values()] == [
        norm.tobytes() for norm in jitted(tree).value
    ]

    tree = {name: np.asarray(np.ones(leaf.shape), leaf.dtype) for name, leaf in tree.items()}
    tree["float32 2"] = np.full((2, 3), 3e38, np.float32)
    for bad in (math.nan, math.inf, -math.inf):
        for name in ("float16 0", "bfloat16 5", "float32 1", "complex64 2", "float32 3"):
            broken = dict(tree)
            broken[name] = tree[name].copy()
            broken[name][(0,) * tree[name].ndim] = bad
            with case(bad=bad, name=name):
                norms = jitted(broken)
                assert [n for n, fine in zip(names, norms.is_finite, strict=True) if not fine] == [
                    name
                ]
                assert abs(norms.value[names.index(name)]) != abs(bad) or math.isinf(bad)
                # Finite entries whose norm is not representable are no bad ones.
                assert math.isinf(norms.value[names.index("float32 2")])


def many_leaves() -> dict[str, np.ndarray]:
    """So many that are read one by one that second passes are shared, of two shapes, at every
    magnitude.
    """
    rng = np.random.default_rng(0)
    powers = rng.choice([-100, -60, 0, 0, 0, 60, 100], 96)
    leaves = [
        np.float32(2.0**power) * normal(place, (4100 + 100 * (place % 2),))
        for place, power in enumerate(powers)
    ]
    leaves[7] = np.zeros_like(leaves[7])
    return {f"{place:02}": leaf for place, leaf in enumerate(leaves)}


@pytest.mark.parametrize("members", [None, np.arange(96) // 2 % 2], ids=["one group", "two groups"])
def test_many_leaves_that_share_second_passes_have_the_norms_that_each_has_alone(as_on, members):
    as_on("cpu", 1)
    tree = many_leaves()
    norms = jax.jit(lambda tree: scaled_leaf_norms(tree, members=members).value)(tree)
    assert_norms(dict(zip(sorted(tree), norms, strict=True)), tree, FEW_ULP)


def test_no_leaf_shares_its_second_pass_with_one_of_another_shape_or_group():
    leaves = gradients(many_leaves())
    members = tuple(place // 2 % 2 for place in range(96))
    bundles = _bundles([(Reduction((), ()), jnp.asarray(leaf)) for leaf in leaves], {3, 5}, members)
    assert sorted(place for places in bundles for place in places) == sorted({*range(96)} - {3, 5})
    assert 32 <= len(bundles) < 60
    assert max(map(len, bundles)) == (96 - 2) // 32
    for places in bundles:
        assert len({(members[place], leaves[place].shape) for place in places}) == 1


def test_one_float64_leaf_makes_all_norms_float64(x64):
    jitted = jax.jit(wc.leaf_norms)
    for seed in range(25):
        tree = tree_of([*LONG, np.float32, BF16], seed)
        with case(seed=seed):
            norms = jitted(tree)
            assert {norm.dtype for norm in norms.values()} == {np.dtype(np.float64)}
            assert_norms(norms, tree, FEW_ULP_64)


def test_what_is_no_gradient_has_no_norm():
    rest = {
        "none": None,
        "int": np.ones(3, np.int32),
        "key": jax.random.key(0),
        "masked": optax.MaskedNode(),
        "name": "w",
    }
    rest["float0"] = np.zeros(3, jax.dtypes.float0)
    assert wc.leaf_norms(rest) == {}
    assert wc.leaf_norms({}) == {}
    none = scaled_leaf_norms({})
    assert none.mantissa.shape == none.scale.shape == (0,)
    assert {
        name: float(norm)
        for name, norm in wc.leaf_norms({**rest, "w": np.array([3.0, 4.0], np.float32)}).items()
    } == {"w": 5}


@jax.tree_util.register_pytree_with_keys_class
class Variable:
    """As a variable of flax.nnx: a node, and an array to whoever asks for one."""

    def __init__(self, value: Any):
        self.value = value

    def __jax_array__(self) -> Any:
        return jnp.asarray(self.value)

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("value"), self.value)], None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any]):
        return cls(*children)


@jax.tree_util.register_pytree_node_class
class Pair:
    """A node whose children have no names of their own."""

    def __init__(self, left: Any, right: Any):
        self.left, self.right = left, right

    def tree_flatten(self):
        return (self.left, self.right), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any, Any]):
        return cls(*children)


def test_paths_stop_at_variables_and_are_numbered_where_two_leaves_share_one():
    one = np.ones(1, np.float32)
    tree = {
        "block": [Variable(one), {"w": 2 * one}],
        "a/b": 3 * one,
        "a": {"b": 4 * one},
        "pair": Pair(5 * one, 6 * one),
    }
    norms = {path: float(norm) for path, norm in wc.leaf_norms(tree).items()}
    # In leaf order.
    assert list(norms) == ["a/b#0", "a/b#1", "block/0", "block/1/w", "pair/0", "pair/1"]
    assert norms == {"a/b#0": 4, "a/b#1": 3, "block/0": 1, "block/1/w": 2, "pair/0": 5, "pair/1": 6}


def test_vmap_takes_each_tree_in_its_own_range():
    scales = np.array([0, 1e-36, 1e-30, 1, 1e20, 1e37, math.inf], np.float32)
    tree = {
        "small": scales[:, None] * np.array([[1, 2, 2]], np.float32),
        "large": np.broadcast_to(scales[:, None, None], (7, 70, 80)),
    }
    norms = jax.vmap(wc.leaf_norms)(tree)
    np.testing.assert_allclose(norms["small"], 3 * scales.astype(np.float64), rtol=FEW_ULP)
    # The last sum is of 5,600 entries, 70 times the root of them: past float32.
    tolerance = FEW_ULP + summation_error((70, 80))
    np.testing.assert_allclose(
        norms["large"][:-2], math.sqrt(5600) * scales[:-2].astype(np.float64), rtol=tolerance
    )


# Derivatives.


@pytest.mark.parametrize("scale", [1e-35, 1.0, 1e30])
def test_the_derivative_of_each_norm_is_the_unit_vector_of_its_leaf(scale):
    tree = {
        "a": normal(0, (5,)) * np.float32(scale),
        "b": normal(1, (70, 80)),
        "zero": np.zeros(3, np.float32),
    }
    units = {
        name: leaf.astype(np.float64) / (reference.global_norm([leaf]) or 1)
        for name, leaf in tree.items()
    }
    norms, pull = jax.vjp(jax.jit(wc.leaf_norms), tree)
    for name in tree:
        (gradient,) = pull({other: jnp.float32(other == name) for other in norms})
        for other, unit in units.items():
            expected = unit if other == name else np.zeros_like(unit)
            np.testing.assert_allclose(
                np.asarray(gradient[other]), expected, rtol=FEW_ULP, err_msg=f"{name} {other}"
            )


def test_derivatives_of_groups_agree_with_finite_differences_to_second_order(x64):
    def norms(tree: Any) -> Any:
        each = scaled_leaf_norms(tree)
        return combined(each, np.array([1, 0, 1]), 2).value, combined(each).value

    tree = [
        normal(0, (3,), np.float64),
        normal(1, (2,), np.float64),
        normal(2, (2,), np.complex128),
    ]
    check_grads(jax.jit(norms), (tree,), order=2, modes=("rev",))
    check_grads(jax.jit(norms), (tree,), order=1, modes=("fwd",))


def test_derivatives_of_groups_are_finite_at_zero():
    def total(tree: Any) -> Any:
        each = scaled_leaf_norms(tree)
        return jnp.sum(combined(each, np.array([0, 0, 1]), 3).value) + combined(each).value

    tree = [np.zeros(3, np.float32), np.zeros((), np.float32), np.zeros(2, np.float32)]
    for gradient in jax.jit(jax.grad(total))(tree):
        np.testing.assert_array_equal(np.asarray(gradient), 0)
    along = jax.jit(lambda rates: jax.jvp(total, (tree,), (rates,))[1])
    assert float(along(jax.tree.map(np.ones_like, tree))) == 0.0
    for second in jax.tree.leaves(jax.jit(jax.jacfwd(jax.grad(total)))(tree)):
        np.testing.assert_array_equal(np.asarray(second), 0)


# Groups.


def members_of(seed: int, leaves: int) -> tuple[np.ndarray, int]:
    rng = np.random.default_rng(seed)
    number = int(rng.integers(1, leaves + 2))  # some groups may have no leaf
    return rng.integers(0, number, leaves), number


@pytest.mark.parametrize("long", [False, True])
def test_groups_have_the_norm_of_their_leaves_whatever_their_scales(long):
    with jax.enable_x64(long):
        dtypes = LONG if long else SHORT
        members, number = members_of(4, len(gradients(tree_of(dtypes, 0))))
        assert 2 < len(set(members)) < number  # some have no leaf

        @jax.jit
        def measured(tree: Any) -> Any:
            each = scaled_leaf_norms(tree)
            return combined(each, members, number), combined(each)

        for seed in range(20):
            tree = tree_of(dtypes, seed)
            leaves = gradients(tree)
            groups, total = measured(tree)
            assert groups.mantissa.shape == (number,)
            for group in range(number):
                of_group = [
                    leaf for leaf, member in zip(leaves, members, strict=True) if member == group
                ]
                with case(seed=seed, group=group):
                    assert_scaled(groups.mantissa[group], groups.scale[group], of_group)
            with case(seed=seed):
                assert_scaled(total.mantissa, total.scale, leaves)


def assert_scaled(mantissa: Any, scale: Any, leaves: list[Any]) -> None:
    """A mantissa and a scale, compared by powers of two: the norm itself may be past float64."""
    expected, power = reference.scaled_norm(leaves)
    shift = power + round(math.log2(float(scale)))
    got = math.ldexp(float(mantissa), -shift) if mantissa else 0.0
    tolerance = FEW_ULP + max((summation_error(leaf.shape) for leaf in leaves), default=0)
    assert got == pytest.approx(
        expected, rel=FEW_ULP_64 if mantissa.dtype == np.float64 else tolerance, abs=0
    )


@pytest.mark.parametrize(
    "leaves", [[1.0], [1.0, 0.0], [1.0, 1e-30], [1.5e19] * 2, [1.8e19] * 40, [1.8e19, 1e30]]
)
def test_leaves_have_together_the_norm_of_one_leaf_with_their_entries(leaves):
    # Those of 1.8e19 have each a sum of squares in the range, and not together.
    each = scaled_leaf_norms([np.full(1, entry, np.float32) for entry in leaves])
    assert float(combined(each).value) == pytest.approx(
        reference.global_norm([np.float32(leaves)]), rel=FEW_ULP
    )
    groups = combined(each, np.zeros(len(leaves), int), 1)
    assert float(groups.value[0]) == float(combined(each).value)


def test_a_group_of_one_leaf_has_the_bits_of_its_norm():
    each = scaled_leaf_norms(tree_of(SHORT, 3))
    order = np.random.default_rng(0).permutation(each.mantissa.size)
    alone = combined(each, order, len(order))
    for part, of_leaf in zip(alone, each, strict=True):
        # A zero has no scale of its own.
        np.testing.assert_array_equal(
            np.where(alone.mantissa == 0, 0, part)[order], np.where(each.mantissa == 0, 0, of_leaf)
        )


def test_a_bad_leaf_makes_the_norm_of_its_group_bad_and_of_no_other():
    parts = ScaledNorm(
        jnp.float32([math.nan, 1, math.inf, 2, 1e18, 0]),
        jnp.float32([2.0**-80, 1, 2.0**-80, 1, 2.0**-80, 2.0**70]),
    )
    groups = combined(parts, np.array([0, 0, 1, 1, 2, 3]), 5)
    np.testing.assert_array_equal(groups.is_finite, [False, False, True, True, True])
    np.testing.assert_array_equal(np.asarray(groups.mantissa)[:2], [math.nan, math.inf])
    np.testing.assert_array_equal(np.asarray(groups.mantissa)[3:], 0)
    assert not bool(combined(parts).is_finite)


# What it costs.


@pytest.mark.parametrize(("platform", "reads"), [("cpu", 1), ("gpu", 1), ("tpu", 1)])
def test_all_norms_read_a_gradient_once(as_on, platform, reads):
    as_on(platform, devices=1)
    tree = {
        name: jnp.ones(shape)
        for name, shape in (("a", (1000, 100)), ("b", (10**6,)), ("c", (64, 3, 3, 64)))
    }
    compiled: Any = jax.jit(lambda tree: scaled_leaf_norms(tree)).lower(tree).compile()
    # The forms of accelerators add three squares of an entry at once, and write none.
    assert temporaries(compiled, tree.values() if platform == "cpu" else ()) < tree["c"].nbytes / 4
    if platform == "cpu":
        for name in tree:
            assert readers(compiled, f"tree[\\'{name}\\']") == ["fusion"] * reads, name


def test_a_leaf_of_zeros_makes_no_other_be_read_again(as_on):
    # Each leaf has a branch of its own, which nothing but its own sum decides.
    as_on("cpu", devices=1)
    tree = [np.zeros((70, 80), np.float32), np.ones((70, 80), np.float32)]
    program = jax.jit(lambda tree: scaled_leaf_norms(tree)).lower(tree).as_text()
    assert program.count("stablehlo.case") == len(tree)


def test_large_leaves_of_one_shape_compile_as_one():
    # What XLA compiles alike it compiles once; slices of a vector would each be a program.
    leaves = [jnp.ones((70, 80))] * 12
    text: Any = jax.jit(wc.leaf_norms).lower(leaves).compile().as_text()
    assert " slice(" not in text[text.index("\nENTRY") :]


def test_a_norm_of_a_leaf_past_the_largest_number_is_inf_and_keeps_its_mantissa():
    tree = [np.full(4, 3e38, np.float32), np.full((70, 80), ml_dtypes.finfo(BF16).max, BF16)]
    each = scaled_leaf_norms(tree)
    assert np.isinf(each.value).all()
    assert np.asarray(each.is_finite).all()
    assert_scaled(each.mantissa[0], each.scale[0], tree[:1])
    assert_scaled(each.mantissa[1], each.scale[1], tree[1:])


def test_a_message_shows_200_characters_of_a_long_value():
    assert shortened("x" * 198) == repr("x" * 198)
    assert shortened("x" * 199) == repr("x" * 199)[:200] + " ..."
