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
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import warmclip_jax as wc
from tests import reference

pytestmark = pytest.mark.usefixtures("strict_dtypes")

BF16 = ml_dtypes.bfloat16
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

    clipped, state = clip("propagate")
    again, _ = wc.clip_tree(clipped, bound)
    return wc.global_norm(tree), clipped, state, again, wc.clip_tree(tree, bound), clip("zero")


def run(tree: Tree, bound: float, leaves: list[Any] | None = None) -> Any:
    with tree.precision:
        return jax.tree.map(
            np.asarray, program(tree.grow(leaves or tree.leaves), tree.dtype(bound))
        )


def gradients(tree: Any) -> list[np.ndarray]:
    return [leaf for leaf in map(np.asarray, jax.tree.leaves(tree)) if leaf.dtype.kind not in "biu"]


def others(tree: Any) -> list[np.ndarray]:
    return [leaf for leaf in map(np.asarray, jax.tree.leaves(tree)) if leaf.dtype.kind in "biu"]


def kept(dtype: Any) -> float:
    """The largest number in a state: the few above it stand for inf, NaN and what is not known."""
    return float(np.ldexp(1 - 2.0**-6, np.finfo(dtype).maxexp))


def assert_same_bits(left: Any, right: Any) -> None:
    for a, b in zip(left, right, strict=True):
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


def rounding(leaf: np.ndarray) -> float:
    return float(reference.limits(leaf).eps) / 2


@settings(max_examples=1000)
@given(st.data())
def test_the_norm_and_the_clip_are_right_for_every_finite_tree(data):
    tree = data.draw(trees())
    bound = data.draw(bounds(tree))
    norm, clipped, state, again, (by_function, norm_by_function), zeroed = run(tree, bound)
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

    # The same tree, whichever function clips and under whichever policy; the same structure, shapes
    # and dtypes; what is no gradient untouched.
    assert jax.tree.structure(clipped) == jax.tree.structure(tree.tree)
    assert_same_bits(gradients(by_function), gradients(clipped))
    assert_same_bits(gradients(zeroed), gradients((clipped, state)))
    assert_same_bits(others(clipped), others(tree.tree))
    over = reference.is_over(tree.leaves, bound)
    assert [int(state.clip_calls), int(state.clipped_count), int(state.nonfinite_count)] == [
        1,
        int(over),
        0,
    ]

    if not over:
        # Below the bound: every bit.
        assert_same_bits(gradients(clipped), tree.leaves)
        assert state.clip_coef == 1
        return
    assert 0 <= state.clip_coef < 1

    # Above: each entry is the formula's, to one rounding of its leaf. So it has its direction.
    lost = 0.0
    for got, leaf, parts in zip(
        gradients(clipped), tree.leaves, reference.clip(tree.leaves, bound), strict=True
    ):
        assert (got.shape, got.dtype) == (leaf.shape, leaf.dtype)
        lost += math.sqrt(2 * leaf.size) * 2 * reference.floor(leaf)
        for got_part, part in zip(reference.real_parts(got), parts, strict=True):
            allowed = (rounding(leaf) + tree.error) * np.abs(part) + reference.floor(leaf)
            assert np.all(np.abs(got_part - part) <= allowed)

    # So the norm is the bound, to the rounding of the leaves.
    worst = max(map(rounding, tree.leaves))
    assert (
        abs(reference.global_norm(gradients(clipped)) - bound)
        <= (worst + tree.error) * bound + lost
    )

    # And once is enough: a second time the norm is over by no more than that, and what corrects it
    # is rounded.
    over_by = worst + tree.error + lost / bound if bound else 0.0
    for first, second in zip(gradients(clipped), gradients(again), strict=True):
        for a, b in zip(reference.real_parts(first), reference.real_parts(second), strict=True):
            allowed = (rounding(first) + over_by + tree.error) * np.abs(a) + reference.floor(first)
            assert np.all(np.abs(a - b) <= allowed)


@settings(max_examples=200)
@given(st.data())
def test_one_bad_entry_anywhere_is_always_seen_and_handled(data):
    tree = data.draw(trees())
    bound = data.draw(bounds(tree))
    leaves = [leaf.copy() for leaf in tree.leaves]
    with_entries = [leaf for leaf in leaves if leaf.size]
    leaf = with_entries[data.draw(st.integers(0, len(with_entries) - 1))]
    bad = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    position = data.draw(st.integers(0, leaf.size - 1))
    leaf.reshape(-1)[position : position + 1] = complex(1, bad) if leaf.dtype.kind == "c" else bad

    norm, clipped, state, _, _, (zeroed, state_zeroed) = run(tree, bound, leaves)
    assert not np.isfinite(norm)
    assert [int(state.clipped_count), int(state.nonfinite_count)] == [0, 1]
    if bound == math.inf:
        # Measuring only: nothing is touched, not even this.
        assert_same_bits(gradients(clipped), leaves)
    else:
        assert all(
            np.all(np.isnan(part))
            for leaf in gradients(clipped)
            for part in reference.real_parts(leaf)
        )
    assert_same_bits(others(clipped), others(tree.tree))

    assert [int(state_zeroed.clipped_count), int(state_zeroed.nonfinite_count)] == [0, 1]
    assert all(
        np.all(part == 0) for leaf in gradients(zeroed) for part in reference.real_parts(leaf)
    )
    assert_same_bits(others(zeroed), others(tree.tree))


@functools.cache
def training(structure: int) -> Any:
    """Three steps in which the middle one may be bad, by `update` and by `apply_gradients`, and two
    steps without it.
    """
    optimizer: Any = wc.pipeline(
        optax.adam, wc.linear_warmup(peak_value=1e-3, warmup_steps=4), max_norm=1.0
    )

    def by_update(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def by_apply(params, state, grads):
        return wc.apply_gradients(optimizer, params, state, grads=grads)

    def steps(step, params, *grads):
        state = optimizer.init(params)
        for each in grads:
            params, state = step(params, state, each)
        return params, state

    step = {name: jax.jit(step) for name, step in (("update", by_update), ("apply", by_apply))}
    return {name: functools.partial(steps, each) for name, each in step.items()}


@settings(max_examples=60)
@given(st.data())
def test_one_bad_step_costs_exactly_one_step(data):
    structure = data.draw(st.sampled_from([3, 6]))
    leaves = len(STRUCTURES[structure][0])
    first, bad, last = (
        Tree(
            structure,
            tuple(data.draw(st.sampled_from(KINDS)) for _ in range(leaves)),
            data.draw(st.integers(0, 2**32 - 1)),
        )
        for _ in range(3)
    )
    bad_leaves = [leaf.copy() for leaf in bad.leaves]
    bad_leaves[0].reshape(-1)[0] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), first.tree)
    with jax.numpy_dtype_promotion("standard"):
        for steps in training(structure).values():
            without, state_without = steps(params, first.tree, last.tree)
            with_bad, state = steps(params, first.tree, bad.grow(bad_leaves), last.tree)
            assert_same_bits(gradients(with_bad), gradients(without))
            assert_same_bits(
                map(np.asarray, jax.tree.leaves(state.inner_state)),
                map(np.asarray, jax.tree.leaves(state_without.inner_state)),
            )
            assert int(state.skipped_count) == 1
            assert int(state_without.skipped_count) == 0
            assert state.last_learning_rate == state_without.last_learning_rate


@functools.cache
def derivatives(structure: int) -> Any:
    @jax.jit
    def run(tree: Any, along: Any, bound: Any) -> Any:
        def clip(leaves):
            return gradient_leaves(wc.clip_tree(STRUCTURES[structure][1](*leaves), bound)[0])

        _, pushed = jax.jvp(clip, (tree,), (along,))
        _, pullback = jax.vjp(clip, tree)
        return pushed, pullback(along)[0]

    return run


def gradient_leaves(tree: Any) -> list[Any]:
    return [
        leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    ]


@settings(max_examples=100)
@given(st.data())
def test_derivatives_are_those_of_the_formula_on_both_sides_of_the_bound(data):
    structure = data.draw(st.sampled_from([0, 3, 7, 8]))
    leaves = len(STRUCTURES[structure][0])
    kinds = tuple(data.draw(st.sampled_from(["zeros", "ordinary"])) for _ in range(leaves))
    tree = Tree(structure, kinds, data.draw(st.integers(0, 2**32 - 1)))
    along = Tree(structure, ("ordinary",) * leaves, data.draw(st.integers(0, 2**32 - 1)))
    bound = data.draw(bounds(tree).filter(lambda bound: bound == 0 or 1e-6 < bound < 1e6))
    expected = reference.clip_derivative(tree.leaves, bound, along.leaves)
    scale = max(
        (
            np.max(np.abs(part), initial=0)
            for leaf in along.leaves
            for part in reference.real_parts(leaf)
        ),
        default=0,
    )
    coef = (
        min(1.0, bound / reference.global_norm(tree.leaves))
        if reference.global_norm(tree.leaves)
        else 1.0
    )
    with tree.precision:
        for results in derivatives(structure)(tree.leaves, along.leaves, tree.dtype(bound)):
            for got, parts in zip(results, expected, strict=True):
                for got_part, part in zip(reference.real_parts(got), parts, strict=True):
                    assert np.all(
                        np.abs(got_part - part)
                        <= 8 * tree.error * coef * scale + reference.floor(got)
                    )
