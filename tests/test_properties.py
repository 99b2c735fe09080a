"""What holds for every tree: hypothesis draws structure, dtypes, magnitudes and bound, NumPy fills in the numbers.

The structures are few, so that each compiles once; what fills them is not. A failing example
shrinks over the kinds of leaves, the bound and the seed.
"""

import contextlib
import dataclasses
import functools
import math
from typing import Any

import jax
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import warmclip_jax as wc
from tests import reference
from tests.trees import BF16, assert_clipped, assert_same_bits, gradients

pytestmark = pytest.mark.usefixtures("strict_dtypes")

MASKED, COUNT = optax.MaskedNode(), np.arange(3, dtype=np.int32)

#: Shape and dtype of the gradients in each structure, and how they hang in it.
STRUCTURES: list[tuple[list[tuple[tuple[int, ...], Any]], Any]] = [
    ([((), np.float32)], lambda a: a),
    ([((1,), np.float16)], lambda a: [a]),
    ([((3,), BF16), ((2, 2), BF16)], lambda a, b: {"a": a, "b": b}),
    (
        [((5, 4), np.float32), ((4,), np.float32), ((0, 3), np.float32)],
        lambda a, b, c: {"a": a, "b": b, "empty": c},
    ),
    (
        [((40,), np.float32), ((7,), BF16), ((6,), np.float16)],
        lambda a, b, c: [a, {"n": None, "b": b}, (c, COUNT)],
    ),
    (
        [((2, 3), np.complex64), ((), np.float32), ((3,), BF16)],
        lambda a, b, c: (a, [b, MASKED], c, True),
    ),
    ([((300,), np.float16), ((200,), BF16), ((2, 50), np.float32)], lambda *leaves: list(leaves)),
    ([((2,), np.float32)] * 12, lambda *leaves: dict(enumerate(leaves))),
    ([((5,), np.float64), ((2, 2), np.float64)], lambda a, b: {"a": a, "b": b}),
    (
        [((3,), np.float64), ((4,), np.float32), ((4,), BF16), ((2,), np.complex128)],
        lambda *leaves: leaves,
    ),
]

#: Where the magnitudes of a leaf lie. "spread" mixes them within it.
KINDS = ["zeros", "subnormal", "tiny", "small", "ordinary", "large", "huge", "spread", "edges"]


@dataclasses.dataclass(frozen=True)
class Tree:
    """A tree of gradients and everything about it that hypothesis drew."""

    structure: int
    kinds: tuple[str, ...]
    seed: int

    @property
    def shapes(self) -> list[tuple[tuple[int, ...], Any]]:
        return STRUCTURES[self.structure][0]

    @functools.cached_property
    def leaves(self) -> list[np.ndarray]:
        rng = np.random.default_rng(self.seed)
        return [
            np.array(filled(rng, kind, shape, dtype))
            for kind, (shape, dtype) in zip(self.kinds, self.shapes, strict=True)
        ]

    def grow(self, leaves: list[Any]) -> Any:
        return STRUCTURES[self.structure][1](*leaves)

    @property
    def tree(self) -> Any:
        return self.grow(self.leaves)

    @property
    def precision(self) -> contextlib.AbstractContextManager[Any]:
        return jax.enable_x64(True) if self.dtype is np.float64 else contextlib.nullcontext()

    @property
    def dtype(self) -> Any:
        """What the norm is computed in."""
        return (
            np.float64
            if any(dtype in (np.float64, np.complex128) for _, dtype in self.shapes)
            else np.float32
        )

    @property
    def error(self) -> float:
        """What a norm, a coefficient or a product may be off by."""
        return 6 * float(np.finfo(self.dtype).eps)


def filled(rng: np.random.Generator, kind: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if np.dtype(dtype).kind == "c":
        real = np.finfo(dtype).dtype
        return (filled(rng, kind, shape, real) + 1j * filled(rng, kind, shape, real)).astype(dtype)
    info = ml_dtypes.finfo(dtype)
    low, high = math.log2(float(info.tiny)), math.log2(float(info.max))
    if kind == "zeros":
        return np.where(rng.random(shape) < 0.5, 0.0, -0.0).astype(dtype)
    if kind == "ordinary":
        return rng.standard_normal(shape).astype(dtype)
    if kind == "edges":
        values = np.array(
            [0.0, info.tiny, info.max, info.eps, 1.0, info.smallest_subnormal, float(info.tiny) / 2]
        ).astype(dtype)
        return (
            rng.choice(values, shape) * rng.choice(np.array([-1, 1]), shape).astype(dtype)
        ).astype(dtype)
    ranges = {
        "subnormal": (math.log2(float(info.smallest_subnormal)), low),
        "tiny": (low, low + 8),
        "small": (low, low / 2),
        "large": (high / 2, high),
        "huge": (high - 3, high),
        "spread": (math.log2(float(info.smallest_subnormal)), high),
    }
    exponents = rng.uniform(*ranges[kind], size=shape)
    # Beside them a few from anywhere, lest a leaf be all of one size.
    return (
        (np.exp2(exponents) * rng.choice([-1.0, 1.0], shape))
        .clip(-float(info.max), float(info.max))
        .astype(dtype)
    )


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    structure = draw(st.integers(0, len(STRUCTURES) - 1))
    leaves = len(STRUCTURES[structure][0])
    one_kind = draw(st.booleans())
    kinds = (
        [draw(st.sampled_from(KINDS))] * leaves
        if one_kind
        else [draw(st.sampled_from(KINDS)) for _ in range(leaves)]
    )
    return Tree(structure, tuple(kinds), draw(st.integers(0, 2**32 - 1)))


@st.composite
def bounds(draw: st.DrawFn, tree: Tree) -> float:
    """A bound that the dtype of the norm can hold: one near the norm more often than not."""
    info = np.finfo(tree.dtype)
    norm = reference.global_norm(tree.leaves)
    kind = draw(st.sampled_from(["zero", "anywhere", "below", "just below", "above", "inf"]))
    if kind == "zero":
        return 0.0
    if kind == "inf":
        return math.inf
    if kind == "anywhere" or not float(info.tiny) < norm < float(info.max) / 4:
        bound = math.ldexp(
            draw(st.floats(1, 2, exclude_max=True)), draw(st.integers(info.minexp, info.maxexp - 1))
        )
    elif kind == "above":
        bound = norm * draw(st.floats(1.0001, 4))
    else:
        bound = norm * draw(
            st.floats(0.99, 0.9999) if kind == "just below" else st.floats(1e-6, 0.99)
        )
    bound = float(tree.dtype(min(bound, float(info.max))))
    # A bound within the rounding of the norm may count as either side of it; that edge has its own
    # tests.
    assume(
        not reference.is_over(tree.leaves, bound * (1 - 2 * tree.error))
        or reference.is_over(tree.leaves, bound * (1 + 2 * tree.error))
    )
    return bound if bound == 0 or bound >= float(info.tiny) else 0.0


@jax.jit
def program(tree: Any, bound: Any) -> Any:
    """Everything that is asked of a tree, compiled once for each structure."""

    def clip(nonfinite: Any) -> Any:
        transformation = wc.clip_by_global_norm(bound, nonfinite=nonfinite)
        return transformation.update(tree, transformation.init(tree))

    return wc.global_norm(tree), wc.clip_tree(tree, bound), clip("propagate"), clip("zero")


def run(tree: Tree, bound: float, leaves: list[Any]) -> Any:
    with tree.precision:
        return jax.tree.map(np.asarray, program(tree.grow(leaves), tree.dtype(bound)))


def others(tree: Any) -> list[np.ndarray]:
    return [leaf for leaf in map(np.asarray, jax.tree.leaves(tree)) if leaf.dtype.kind in "biu"]


def kept(dtype: Any) -> float:
    """The largest number in a state: the few above it stand for inf, NaN and what is not known."""
    return float(np.ldexp(1 - 2.0**-6, np.finfo(dtype).maxexp))


def counts(state: Any) -> list[int]:
    return [int(state.clip_calls), int(state.clipped_count), int(state.nonfinite_count)]


@settings(max_examples=1000)
@given(st.data())
def test_the_norm_and_the_clip_are_right_for_every_finite_tree(data):
    tree = data.draw(trees())
    bound = data.draw(bounds(tree))
    norm, (by_function, norm_by_function), (clipped, state), zeroed = run(tree, bound, tree.leaves)
    expected_norm = reference.global_norm(tree.leaves)
    largest = float(np.finfo(tree.dtype).max)

    # The norm: right to a few ulp, finite where it can be held, the same from every function.
    assert norm.dtype == tree.dtype
    assert norm == norm_by_function
    assert state.grad_norm == min(norm, kept(tree.dtype))
    if expected_norm <= largest * (1 - tree.error):
        assert abs(float(norm) - expected_norm) <= tree.error * expected_norm
    if expected_norm * (1 - tree.error) > largest:
        assert norm == math.inf

    # The same tree, whichever function clips and under whichever policy; what is no gradient
    # untouched.
    assert_same_bits(by_function, clipped)
    assert_same_bits(zeroed, (clipped, state))
    assert_same_bits(others(clipped), others(tree.tree))
    over = reference.is_over(tree.leaves, bound)
    assert counts(state) == [1, int(over), 0]

    # Below the bound every bit; above it each entry is the formula's, to one rounding of its leaf.
    # So the tree has its direction, its norm is the bound, and to clip it again changes nothing.
    if over:
        assert 0 <= state.clip_coef < 1
        assert_clipped(clipped, tree.tree, bound)
    else:
        assert state.clip_coef == 1
        assert_same_bits(clipped, tree.tree)


@settings(max_examples=200)
@given(st.data())
def test_one_bad_entry_anywhere_is_always_seen_and_handled(data):
    tree = data.draw(trees())
    leaves = [leaf.copy() for leaf in tree.leaves]
    leaf = data.draw(st.sampled_from([leaf for leaf in leaves if leaf.size]))
    bad = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    position = data.draw(st.integers(0, leaf.size - 1))
    leaf.reshape(-1)[position] = complex(1, bad) if leaf.dtype.kind == "c" else bad

    norm, _, (clipped, state), (zeroed, state_zeroed) = run(tree, 1.0, leaves)
    assert not np.isfinite(norm)
    assert counts(state) == counts(state_zeroed) == [1, 0, 1]
    for got, one in zip(gradients(clipped), gradients(zeroed), strict=True):
        assert np.all(np.isnan(reference.real_parts(got)))
        assert not np.any(one)
    assert_same_bits(others(clipped), others(tree.tree))
    assert_same_bits(others(zeroed), others(tree.tree))
