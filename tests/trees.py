"""Trees of gradients, the ways to clip them, and what has to come of it."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

import warmclip_jax as wc
from tests import reference
from warmclip_jax._clipping._coding import decoded

BF16 = ml_dtypes.bfloat16
SHORT = [np.float16, BF16, np.float32, np.complex64]
LONG = [np.float64, np.complex128]
#: Entries of each leaf of a `mixed` tree.
ENTRIES = 8
#: What a norm may be off by, relatively. The float32 sums are pairwise enough for up to 10^8 entries.
FEW_ULP, FEW_ULP_64 = 4 * 2.0**-23, 4 * 2.0**-52


def normal(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    entries = rng.standard_normal(shape)
    return (
        entries + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else entries
    ).astype(dtype)


def mixed(dtypes: Iterable[Any], entries: Callable[[Any], np.ndarray]) -> dict[str, np.ndarray]:
    """One leaf of each dtype, a scalar, an empty leaf and one that is no gradient: the same shapes
    always, to compile once.
    """
    tree = {np.dtype(dtype).name: entries(dtype).reshape(ENTRIES) for dtype in dtypes}
    return {
        **tree,
        "scalar": np.asarray(0.1, np.float32),
        "empty": np.zeros((0, 2), BF16),
        "count": np.arange(3, dtype=np.int32),
    }


# The ways to clip.


def clipping(max_norm: Any, **options: Any) -> Any:
    """`clip_by_global_norm` without optax's types, which know no fields of a state."""
    return wc.clip_by_global_norm(max_norm, **options)


def through_transformation(tree: Any, max_norm: Any, **options: Any) -> tuple[Any, Any]:
    transformation = clipping(max_norm, **options)
    clipped, state = transformation.update(tree, transformation.init(tree))
    return clipped, decoded(state.grad_norm)


_clipped = jax.jit(wc.clip_tree)
_measured = jax.jit(lambda tree: wc.clip_tree(tree, None))


def jitted(tree: Any, max_norm: Any) -> tuple[Any, Any]:
    return _measured(tree) if max_norm is None else _clipped(tree, max_norm)


#: Every way to clip, so that one test speaks of them all.
WAYS = pytest.mark.parametrize("clip", [wc.clip_tree, jitted, through_transformation])


@functools.cache
def update(nonfinite: str, max_norm: float | None = math.nan) -> Any:
    """A jitted update, with a bound that is traced, or with the one that is given."""

    @jax.jit
    def run(tree: Any, bound: Any) -> Any:
        transformation = clipping(
            bound if max_norm is not None and math.isnan(max_norm) else max_norm,
            nonfinite=nonfinite,
        )
        return transformation.update(tree, transformation.init(tree))

    return run


# What has to come of it.


def gradients(tree: Any) -> list[np.ndarray]:
    return [leaf for leaf in map(np.asarray, jax.tree.leaves(tree)) if leaf.dtype.kind not in "biu"]


def assert_same_bits(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.tobytes() == b.tobytes()


def rounding(leaf: Any) -> float:
    """The largest relative error of one rounding into a leaf."""
    return float(reference.limits(leaf).eps) / 2


def coefficient_error(leaves: list[Any]) -> float:
    """What norm, coefficient and product may be off by, relatively, in the precision that the norm
    is computed in.
    """
    long = any(np.asarray(leaf).dtype in (np.float64, np.complex128) for leaf in leaves)
    return 6 * (2.0**-52 if long else 2.0**-23)


def assert_clipped(clipped: Any, tree: Any, max_norm: float) -> None:
    """Every entry is that of the formula to one rounding of its leaf, and every leaf has its shape
    and dtype.
    """
    assert jax.tree.structure(clipped) == jax.tree.structure(tree)
    leaves = gradients(tree)
    error = coefficient_error(leaves)
    for got, leaf, parts in zip(
        gradients(clipped), leaves, reference.clip(leaves, max_norm), strict=True
    ):
        assert (got.shape, got.dtype) == (leaf.shape, leaf.dtype)
        for got_part, part in zip(reference.real_parts(got), parts, strict=True):
            allowed = (rounding(leaf) + error) * np.abs(part) + reference.floor(leaf)
            assert np.all(np.abs(got_part - part) <= allowed), (got_part, part)


def assert_norm_is(clipped: Any, max_norm: float) -> None:
    """The norm of a clipped tree is the bound, but for the rounding of its leaves."""
    leaves = gradients(clipped)
    lost = math.sqrt(sum(leaf.size * reference.floor(leaf) ** 2 for leaf in leaves))
    allowed = (max(map(rounding, leaves)) + coefficient_error(leaves)) * max_norm + lost
    assert abs(reference.global_norm(leaves) - max_norm) <= allowed


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
