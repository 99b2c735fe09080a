"""Every float16 and every bfloat16 number: what norm, clip and skip make of all 65,536 bit patterns, alone and beside others.

One compiled program for each function and dtype takes them all. On CPU, XLA reads subnormals of
bfloat16 and float32 as zero; `reference.visible_parts` says so. Those of float16 count.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests import reference
from tests.cases import case
from tests.trees import BF16
from warmclip_jax._clipping._coding import decoded

pytestmark = pytest.mark.usefixtures("strict_dtypes")

DTYPES = pytest.mark.parametrize("dtype", [np.float16, BF16])
#: Half an ulp of float32, relatively.
HALF_ULP = 2.0**-24
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
#: The largest norm in a state: the few numbers above it stand for inf, NaN and what is not known.
KEPT = np.float32((1 - 2.0**-6) * 2.0**128)
#: Beside each number, in a leaf of float32.
SINGLES = [0.0, SMALLEST, -1.0, 3e38]


def every(dtype: Any) -> np.ndarray:
    """The number of each of the 65,536 bit patterns."""
    return np.arange(2**16, dtype=np.uint16).view(dtype)


def bits(leaf: np.ndarray) -> np.ndarray:
    return leaf.view(f"uint{8 * leaf.itemsize}")


class Trees(NamedTuple):
    """Many trees of one structure, one in each row."""

    leaves: list[np.ndarray]  # [trees, entries]
    visible: list[np.ndarray]  # as XLA on CPU sees them, in float64; rows that are not finite are 0
    is_finite: np.ndarray  # [trees]: whether every entry is
    norms: np.ndarray  # [trees]: of `visible`

    @classmethod
    def of(cls, *leaves: np.ndarray) -> "Trees":
        with np.errstate(invalid="ignore"):  # NumPy warns of signalling NaNs
            is_finite = np.all(
                [np.isfinite(leaf.astype(np.float32)).all(axis=1) for leaf in leaves], axis=0
            )
        finite = [np.where(is_finite[:, None], leaf, np.zeros_like(leaf)) for leaf in leaves]
        visible = [
            np.copysign(reference.visible_parts(leaf)[0], leaf.astype(np.float64))
            for leaf in finite
        ]
        return cls(
            list(leaves),
            visible,
            is_finite,
            reference.norms_of_rows(np.concatenate(visible, axis=1)),
        )


@functools.cache
def trees(dtype: Any, form: str) -> Trees:
    entries, info = every(dtype), ml_dtypes.finfo(dtype)
    if form == "alone":
        return Trees.of(entries[:, None])
    if form == "in pairs":
        others = np.array([info.smallest_subnormal, -info.tiny, 1, info.max], dtype)
        return Trees.of(
            np.stack([np.tile(entries, len(others)), np.repeat(others, len(entries))], axis=1)
        )
    singles = np.array(SINGLES, np.float32)
    return Trees.of(
        np.tile(entries, len(singles))[:, None], np.repeat(singles, len(entries))[:, None]
    )


class Measured(NamedTuple):
    """What is made of one tree without a bound."""

    norm: Any
    leaf_norms: Any
    untouched: list[Any]
    zeroed: list[Any]  # where an entry is not finite


class Clipped(NamedTuple):
    """What is made of one tree with a bound."""

    leaves: list[Any]
    by_function: list[Any]
    zeroed: list[Any]  # where an entry is not finite
    state: Any


class Skipped(NamedTuple):
    """What a guard makes of one tree, and what an inner count of steps is after it."""

    updates: list[Any]
    state: Any


def clip_with(nonfinite: Any, tree: Any, bound: Any) -> Any:
    transformation: Any = wc.clip_by_global_norm(bound, nonfinite=nonfinite)
    return transformation.update(tree, transformation.init(tree))


def measure(tree: Any) -> Measured:
    norm, norms = wc.global_norm(tree), jnp.stack(list(wc.leaf_norms(tree).values()))
    return Measured(
        norm, norms, clip_with("propagate", tree, None)[0], clip_with("zero", tree, None)[0]
    )


def clip(tree: Any, bound: Any) -> Clipped:
    clipped, state = clip_with("propagate", tree, bound)
    return Clipped(clipped, wc.clip_tree(tree, bound)[0], clip_with("zero", tree, bound)[0], state)


def skip(tree: Any) -> Skipped:
    guard: Any = wc.skip_nonfinite(optax.scale_by_schedule(optax.constant_schedule(1.0)))
    return Skipped(*guard.update(tree, guard.init(tree)))


def one_by_one(function: Any) -> Any:
    """In a loop, where a branch is a branch: under `vmap` it is a select. As bits: a loop converts
    all of its bfloat16.
    """

    def loop(*arguments: Any) -> Any:
        dtypes = jax.tree.map(lambda leaf: leaf.dtype, arguments)

        def body(each: Any) -> Any:
            made = function(*jax.tree.map(jax.lax.bitcast_convert_type, each, dtypes))
            return jax.tree.map(
                lambda leaf: as_bits(leaf) if leaf.dtype == jnp.bfloat16 else leaf, made
            )

        return jax.lax.map(body, jax.tree.map(as_bits, arguments))

    return loop


def as_bits(leaf: Any) -> Any:
    return jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")


WAYS: Any = {"mapped": jax.vmap, "one by one": one_by_one}
PROGRAMS = {
    (function, way): jax.jit(WAYS[way](function))
    for function in (measure, clip, skip)
    for way in WAYS
}
#: Pairs and neighbours only under `vmap`: a loop takes a microsecond for each.
CASES = pytest.mark.parametrize(
    ("form", "way"),
    [
        ("alone", "mapped"),
        ("alone", "one by one"),
        ("in pairs", "mapped"),
        ("beside float32", "mapped"),
    ],
)


def run(function: Any, way: str, many: Trees, *arguments: Any) -> Any:
    made = jax.tree.map(np.asarray, PROGRAMS[function, way](many.leaves, *arguments))

    def as_leaf(got: np.ndarray, leaf: np.ndarray) -> np.ndarray:
        got = got.view(leaf.dtype) if got.dtype == np.uint16 else got
        assert (got.shape, got.dtype) == (leaf.shape, leaf.dtype)
        return got

    # Fields that are lists are leaves of the tree.
    return made._replace(
        **{
            name: list(map(as_leaf, field, many.leaves))
            for name, field in made._asdict().items()
            if isinstance(field, list)
        }
    )


@functools.cache
def measured(dtype: Any, form: str, way: str) -> Measured:
    return run(measure, way, trees(dtype, form))


def assert_same_bits(got: list[np.ndarray], expected: list[np.ndarray], where: np.ndarray) -> None:
    for left, right in zip(got, expected, strict=True):
        assert np.all((bits(left) == bits(right)) | ~where[:, None])


def assert_all(condition: Any, got: list[np.ndarray], where: np.ndarray) -> None:
    for leaf in got:
        assert np.all(condition(leaf[where].astype(np.float64)))


# Norms.


@DTYPES
@CASES
def test_the_norm_is_that_of_the_formula_and_finite_exactly_where_the_entries_are(dtype, form, way):
    many, got = trees(dtype, form), measured(dtype, form, way)
    assert got.norm.dtype == got.leaf_norms.dtype == np.float32
    is_held = many.is_finite & (many.norms <= LARGEST)
    np.testing.assert_array_equal(np.isfinite(got.norm), is_held)
    # Two squares are exact in float32; their sum, and the root, are rounded.
    error = 0 if form == "alone" else 2 * HALF_ULP
    assert np.all(np.abs(got.norm - many.norms)[is_held] <= error * many.norms[is_held])
    for leaf, norms in zip(many.leaves, got.leaf_norms.T, strict=True):
        alone = Trees.of(leaf)
        is_held = alone.is_finite & (alone.norms <= LARGEST)
        np.testing.assert_array_equal(np.isfinite(norms), is_held)
        assert np.all(np.abs(norms - alone.norms)[is_held] <= 2 * HALF_ULP * alone.norms[is_held])


@DTYPES
@CASES
def test_measuring_changes_nothing_and_the_zero_policy_makes_zeros_of_trees_that_are_not_finite(
    dtype, form, way
):
    many, got = trees(dtype, form), measured(dtype, form, way)
    assert_same_bits(got.untouched, many.leaves, np.full(len(got.norm), True))
    assert_same_bits(got.zeroed, many.leaves, many.is_finite)
    assert_all(lambda numbers: numbers == 0, got.zeroed, ~many.is_finite)


# Clips.

BOUNDS: Any = {
    "0": np.zeros_like,
    "the smallest": lambda norms: np.full_like(norms, SMALLEST),
    "1e-30": lambda norms: np.full_like(norms, 1e-30),
    "a millionth": lambda norms: 1e-6 * norms,
    "half": lambda norms: 0.5 * norms,
    "an ulp below": lambda norms: np.nextafter(norms, np.float32(0)),
    "equal": lambda norms: norms,
    "an ulp above": lambda norms: np.nextafter(norms, np.float32(np.inf)),
    "twice": lambda norms: norms + norms,
    "1": np.ones_like,
    "the largest": lambda norms: np.full_like(norms, LARGEST),
    "inf": lambda norms: np.full_like(norms, np.inf),
}


@DTYPES
@CASES
def test_a_clip_is_right_at_every_bound(dtype, form, way):
    many, norms = trees(dtype, form), measured(dtype, form, way).norm
    for name, bound_of in BOUNDS.items():
        with case(bound=name), np.errstate(over="ignore"):
            bounds = bound_of(np.where(np.isnan(norms), 1, norms)).astype(np.float32)
            assert_clipped_right(run(clip, way, many, bounds), many, norms, bounds)


def assert_clipped_right(got: Clipped, many: Trees, norms: np.ndarray, bounds: np.ndarray) -> None:
    good = many.is_finite
    # XLA on CPU reads a bound below the smallest normal number as 0.
    bounds = np.where(bounds < SMALLEST, 0, bounds)
    over, within = good & (norms > bounds), good & ~(norms > bounds)
    np.testing.assert_array_equal(got.state.clipped_count, over)
    np.testing.assert_array_equal(got.state.nonfinite_count, ~good)
    np.testing.assert_array_equal(got.state.clip_coef[within], 1)
    assert np.all((got.state.clip_coef[over] >= 0) & (got.state.clip_coef[over] < 1))
    held = np.minimum(norms, KEPT)
    np.testing.assert_array_equal(bits(got.state.grad_norm)[good], bits(held)[good])

    assert_same_bits(got.leaves, many.leaves, within)
    assert_same_bits(got.by_function, got.leaves, good)
    assert_same_bits(got.zeroed, got.leaves, good)
    assert_all(lambda numbers: numbers == 0, got.zeroed, ~good)
    for leaves in (got.leaves, got.by_function):
        # What is not bounded is measured only.
        assert_all(np.isnan, leaves, ~good & (bounds < np.inf))
        assert_same_bits(leaves, many.leaves, ~good & (bounds == np.inf))

    visible = [leaf[over] for leaf in many.visible]
    formula = reference.clipped_rows(
        np.concatenate(visible, axis=1), bounds[over].astype(np.float64)
    )
    coef = got.state.clip_coef[over].astype(np.float64)[:, None]
    columns = np.cumsum([leaf.shape[1] for leaf in visible])[:-1]
    for seen, leaf, expected in zip(
        visible, got.leaves, np.split(formula, columns, axis=1), strict=True
    ):
        made = leaf[over].astype(np.float64)
        np.testing.assert_array_equal(np.signbit(made), np.signbit(seen))
        assert np.all(np.abs(made) <= np.abs(seen))
        # The norm, the quotient and the product each are rounded in float32, then the product to
        # its dtype. XLA on CPU writes numbers below the smallest normal one of bfloat16 as 0.
        floor = reference.floor(leaf)
        rounding = np.maximum(
            reference.ulp(expected, leaf) / 2,
            np.where(np.abs(expected) < floor * (1 + 2**-20), floor, 0),
        )
        np.testing.assert_array_less(
            np.abs(made - expected), rounding + 4 * HALF_ULP * np.abs(expected) + 1e-300
        )
        # Given the coefficient, every bit is known, where neither it nor the product is too small
        # for float32.
        product = seen * coef
        known = (coef >= SMALLEST) & ((np.abs(product) >= SMALLEST) | (product == 0))
        rounded = product.astype(np.float32).astype(leaf.dtype).astype(np.float64)
        np.testing.assert_array_equal(np.where(known, made, 0), np.where(known, rounded, 0))


# Skips.


@DTYPES
@CASES
def test_a_step_is_skipped_exactly_where_an_entry_is_not_finite(dtype, form, way):
    many = trees(dtype, form)
    got = run(skip, way, many)
    np.testing.assert_array_equal(got.state.skipped_count, ~many.is_finite)
    np.testing.assert_array_equal(got.state.nonfinite_count, ~many.is_finite)
    np.testing.assert_array_equal(got.state.inner_state.count, many.is_finite)
    np.testing.assert_array_equal(np.isfinite(decoded(got.state.grad_norm)), many.is_finite)
    assert_all(lambda numbers: numbers == 0, got.updates, ~many.is_finite)
    for update, seen in zip(got.updates, many.visible, strict=True):
        made = update.astype(np.float64)[many.is_finite]
        np.testing.assert_array_equal(
            np.where(np.abs(made) < reference.floor(update), 0, made), seen[many.is_finite]
        )
