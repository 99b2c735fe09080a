"""Derivatives through a clip: those of the formula, to second order, for gradients of every size."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import warmclip_jax as wc
from tests import reference
from tests.cases import case
from tests.trees import BF16, SHORT, assert_same_bits, normal, rounding

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def updated(transformation: Any) -> Any:
    return lambda tree: transformation.update(tree, transformation.init(tree))[0]


#: Every clip as a function of a bound, and which of the leaves of a tree of three it clips together.
CLIPS = {
    "clip_tree": (lambda bound: lambda tree: wc.clip_tree(tree, bound)[0], [[0, 1, 2]]),
    "plain": (lambda bound: updated(wc.clip_by_global_norm(bound)), [[0, 1, 2]]),
    "recorded": (
        lambda bound: updated(wc.clip_by_global_norm(bound, record_leaves=True)),
        [[0, 1, 2]],
    ),
    "one group": (lambda bound: updated(wc.clip_by_group_norm(bound, "all")), [[0, 1, 2]]),
    "two groups": (
        lambda bound: updated(wc.clip_by_group_norm(bound, ["a", "b", "a"], record_leaves=True)),
        [[0, 2], [1]],
    ),
    "a group a leaf": (
        lambda bound: updated(wc.clip_by_group_norm(bound, wc.label_by_path())),
        [[0], [1], [2]],
    ),
}
EVERY_CLIP = pytest.mark.parametrize("clip", CLIPS)
TREE = [normal(0, (3,)), normal(1, ()), normal(2, (2,), np.complex64)]
ALONG = [normal(3, (3,)), normal(4, ()), normal(5, (2,), np.complex64)]


@functools.cache
def derivatives(clip: str = "clip_tree") -> Any:
    """The derivative of a clip along a direction, and that direction pulled back."""

    @jax.jit
    def of(tree: Any, along: Any, max_norm: Any) -> tuple[Any, Any]:
        clipped = CLIPS[clip][0](max_norm)
        return jax.jvp(clipped, (tree,), (along,))[1], jax.vjp(clipped, tree)[1](along)[0]

    return of


def times(tree: Any, number: float) -> Any:
    return [leaf * np.float32(number) for leaf in tree]


def assert_derivatives_are_the_formula(clip: str, tree: Any, max_norm: float, along: Any) -> None:
    expected: list[Any] = [None] * len(tree)
    for group in CLIPS[clip][1]:
        own, directions = ([leaves[index] for index in group] for leaves in (tree, along))
        for index, parts in zip(
            group, reference.clip_derivative(own, max_norm, directions), strict=True
        ):
            expected[index] = parts
    largest = max(np.abs(part).max(initial=0) for parts in expected for part in parts)
    # JAX pulls back without the conjugate.
    pushed, _ = derivatives(clip)(tree, along, max_norm)
    _, pulled = derivatives(clip)(tree, [np.conj(leaf) for leaf in along], max_norm)
    for got in (pushed, [np.conj(leaf) for leaf in pulled]):
        for leaf, parts in zip(got, expected, strict=True):
            for got_part, part in zip(reference.real_parts(leaf), parts, strict=True):
                np.testing.assert_allclose(got_part, part, rtol=0, atol=8 * 2.0**-23 * largest)


@EVERY_CLIP
def test_jvp_and_vjp_are_those_of_the_formula_at_every_size_of_gradients_and_directions(clip):
    # The norm of the tree is about 2.9, of the leaf in the middle 0.3.
    for max_norm in (0.0, 0.1, 100.0):
        with case(max_norm=max_norm):
            assert_derivatives_are_the_formula(clip, TREE, max_norm, ALONG)
    for size in (1e-35, 1e-20, 1.0, 1e20, 1e36):
        for step in (1e-30, 1e-10, 1e10, 1e30):
            tree, along = times(TREE, size), times(ALONG, step)
            for max_norm in (size / 10, size * 10):
                with case(size=size, step=step, max_norm=max_norm):
                    assert_derivatives_are_the_formula(clip, tree, max_norm, along)
    # Here the coefficient is no float32.
    assert_derivatives_are_the_formula(clip, times(TREE, 1e30), 1e-12, times(ALONG, 1e30))


@EVERY_CLIP
def test_forward_over_reverse_is_right_at_every_size(clip):
    """It is as large as the cotangent, where bound and tangent have the size of the gradient."""

    def pulled(tree: Any, cotangent: Any, along: Any, max_norm: Any) -> Any:
        def pull(tree: Any) -> Any:
            return jax.vjp(CLIPS[clip][0](max_norm), tree)[1](cotangent)[0]

        return jax.jvp(pull, (tree,), (along,))[1]

    tree, cotangent, along = ([normal(seed + i, (3 + i,)) for i in range(3)] for seed in (0, 3, 6))
    with jax.enable_x64(True):
        # Right there to second order, by the differences of the next test.
        long = ([leaf.astype(np.float64) for leaf in leaves] for leaves in (tree, cotangent, along))
        expected = [np.asarray(leaf) for leaf in jax.jit(pulled)(*long, np.float64(0.1))]
    largest = max(np.abs(leaf).max() for leaf in expected)
    program = jax.jit(pulled)
    for size in (1e-30, 1.0, 1e30):
        for step in (1e-25, 1.0, 1e25):
            found = program(
                times(tree, size), times(cotangent, step), times(along, size), np.float32(size / 10)
            )
            with case(size=size, step=step):
                for got, right in zip(found, expected, strict=True):
                    exact = np.asarray(got, np.float64) / step
                    np.testing.assert_allclose(exact, right, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_the_formula_agrees_with_the_differences_of_the_reference(max_norm):
    leaf, along, step = normal(0, (6,), np.float64), normal(1, (6,), np.float64), 1e-5
    ahead, behind = (
        reference.clip([leaf + sign * step * along], max_norm)[0][0] for sign in (1, -1)
    )
    (rate,) = reference.clip_derivative([leaf], max_norm, [along])[0]
    np.testing.assert_allclose(rate, (ahead - behind) / (2 * step), rtol=0, atol=1e-9)


@EVERY_CLIP
def test_derivatives_agree_with_finite_differences_to_second_order(clip, x64):
    tree = [normal(0, (3,), np.float64), normal(1, (), np.float64)]
    tree.append(normal(2, (2,), np.complex128))
    clipped = jax.jit(lambda tree, max_norm: CLIPS[clip][0](max_norm)(tree))
    for max_norm in (0.1, 100.0):
        with case(max_norm=max_norm):
            at = functools.partial(clipped, max_norm=max_norm)
            check_grads(at, (tree,), order=1, modes=("fwd", "rev"))
            check_grads(at, (tree,), order=2, modes=("rev",))


def test_the_derivative_at_zero_is_the_identity():
    # The norm, 0, is not over any bound.
    zero = [np.zeros(4, dtype) for dtype in SHORT]
    along = [np.array([1, -2, 3, 0.5], dtype) for dtype in SHORT]
    measured = jax.jit(
        lambda tree, along: jax.jvp(lambda tree: wc.clip_tree(tree, None)[0], (tree,), (along,))[1]
    )
    assert_same_bits(measured(zero, along), along)
    for max_norm in (0.0, 1e-37, 1.0, math.inf):
        with case(max_norm=max_norm):
            for got in derivatives()(zero, along, max_norm):
                assert_same_bits(got, along)


def test_the_derivative_is_right_through_a_norm_that_is_given():
    @jax.jit
    def rate_of(leaf: Any, along: Any, max_norm: Any) -> Any:
        return jax.jvp(
            lambda leaf: wc.clip_tree(leaf, max_norm, norm=wc.global_norm(leaf))[0],
            (leaf,),
            (along,),
        )[1]

    for scale in (1e-30, 1e-10, 1.0, 1e10, 1e30, 1e38):
        leaf, along = normal(0, (5,)) * np.float32(scale), normal(1, (5,)) * np.float32(scale)
        (expected,) = reference.clip_derivative([leaf], scale / 10, [along])[0]
        rate = rate_of(leaf, along, scale / 10)
        np.testing.assert_allclose(
            rate, expected, rtol=0, atol=8 * 2.0**-23 * np.abs(expected).max(), err_msg=str(scale)
        )


def test_the_derivative_by_the_bound_is_the_unit_vector():
    tree = normal(0, (5,))
    rate_at = jax.jit(
        lambda bound: jax.jvp(
            lambda bound: wc.clip_tree(tree, bound)[0], (bound,), (jnp.float32(1),)
        )[1]
    )
    np.testing.assert_allclose(
        rate_at(jnp.float32(0.5)), tree / reference.global_norm([tree]), rtol=4 * 2.0**-23
    )
    np.testing.assert_array_equal(rate_at(jnp.float32(50)), np.zeros(5))


#: By a bound and the rest.
WITH_POLICY: dict[str, Any] = {
    "global": lambda bound, **rest: wc.clip_by_global_norm(bound, **rest),
    "measuring": lambda bound, **rest: wc.clip_by_global_norm(None, **rest),
    "groups": lambda bound, **rest: wc.clip_by_group_norm(bound, ["a", "b"], **rest),
    "pipeline": lambda bound, **rest: wc.pipeline(optax.sgd, 1.0, max_norm=bound, **rest),
}


@pytest.mark.parametrize("build", WITH_POLICY.values(), ids=WITH_POLICY)
def test_the_derivative_through_a_bad_gradient_is_0_where_zeros_replace_it_and_else_nan(build: Any):
    bad = np.array([[np.nan, 1], [2, np.inf]], np.float32)
    tree, along = list(bad), [np.ones(2, np.float32)] * 2

    @functools.partial(jax.jit, static_argnums=1)
    def rates(bound: Any, nonfinite: Any) -> Any:
        def clipped(tree: Any, bound: Any) -> Any:
            return updated(build(bound, nonfinite=nonfinite))(tree)

        pushed = jax.jvp(clipped, (tree, bound), (along, jnp.float32(1)))[1]
        pulled, by_bound = jax.vjp(clipped, tree, bound)[1](along)
        return [*pushed, *pulled], by_bound

    of_leaves, by_bound = rates(jnp.float32(0.5), "zero")
    np.testing.assert_array_equal(of_leaves, np.zeros((4, 2)))
    assert by_bound == 0
    if build is not WITH_POLICY["measuring"]:  # which lets everything pass
        of_leaves, by_bound = rates(jnp.float32(0.5), "propagate")
        assert np.isnan(of_leaves).all()
        assert by_bound == 0  # a bad gradient tells the bound nothing


@pytest.mark.parametrize("dtype", [np.float16, BF16])
def test_the_gradient_through_short_leaves_keeps_their_dtype(dtype):
    tree = np.array([3, 4], dtype)
    gradient = derivatives()(tree, np.array([1, 0], dtype), 1.0)[1]
    assert gradient.dtype == dtype
    expected = reference.clip_derivative([tree], 1.0, [np.array([1.0, 0.0])])[0][0]
    np.testing.assert_allclose(
        np.asarray(gradient).astype(np.float64), expected, atol=4 * rounding(tree) * 0.2
    )


def test_a_derivative_passes_through_a_training_that_clips(x64):
    optimizer: Any = optax.chain(wc.clip_by_global_norm(0.5), optax.sgd(0.1))
    target = normal(0, (4,), np.float64)

    @jax.jit
    def loss_after(params):
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(params - target, state)
            params = optax.apply_updates(params, updates)
        return jnp.sum((params - target) ** 2)

    check_grads(loss_after, (3 * normal(1, (4,), np.float64),), order=1, modes=("rev",))
    assert np.all(np.isfinite(jax.grad(loss_after)(target)))
