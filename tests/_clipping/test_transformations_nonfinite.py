"""What a clip makes of a tree with a NaN or inf entry, under either policy."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from tests import reference
from tests.cases import case
from tests.trees import (
    ENTRIES,
    SHORT,
    WAYS,
    assert_clipped,
    assert_same_bits,
    clipping,
    gradients,
    mixed,
    normal,
    update,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def trees_with_one_bad_entry() -> Any:
    for dtype, bad in itertools.product(SHORT, [math.nan, math.inf, -math.inf]):
        tree = mixed(SHORT, lambda dtype: np.full(ENTRIES, 2, dtype))
        tree[np.dtype(dtype).name][1] = bad
        yield f"{bad} in {np.dtype(dtype).name}", tree


@WAYS
def test_one_bad_entry_makes_every_entry_nan(clip):
    for (what, tree), max_norm in itertools.product(trees_with_one_bad_entry(), [0.0, 1.0, 3e38]):
        clipped, norm = clip(tree, max_norm)
        with case(what=what, max_norm=max_norm):
            for got, leaf in zip(gradients(clipped), gradients(tree), strict=True):
                assert got.dtype == leaf.dtype
                assert np.all(np.isnan(reference.real_parts(got)))
            np.testing.assert_array_equal(clipped["count"], np.arange(3))
            assert not np.isfinite(norm)


@pytest.mark.parametrize("way", ["eager", "jitted"])
def test_zero_turns_an_update_with_one_bad_entry_into_zeros(way):
    for (what, tree), max_norm in itertools.product(
        trees_with_one_bad_entry(), [0.0, 1.0, 3e38, None, math.inf]
    ):
        transformation = clipping(max_norm, nonfinite="zero")
        if way == "eager":
            clipped, state = transformation.update(tree, transformation.init(tree))
        else:
            clipped, state = update("zero", None if max_norm is None else math.nan)(tree, max_norm)
        with case(what=what, max_norm=max_norm):
            for got, leaf in zip(gradients(clipped), gradients(tree), strict=True):
                assert got.dtype == leaf.dtype
                assert np.all(got == 0)
            np.testing.assert_array_equal(clipped["count"], np.arange(3))
            assert (int(state.nonfinite_count), int(state.clipped_count)) == (1, 0)


def test_zero_changes_no_finite_update():
    tree = mixed(SHORT, lambda dtype: normal(0, (ENTRIES,), dtype))
    for max_norm in (0.0, 0.5, 100.0, None):
        propagates, zero = clipping(max_norm), clipping(max_norm, nonfinite="zero")
        with case(max_norm=max_norm):
            expected = propagates.update(tree, propagates.init(tree))
            assert_same_bits(zero.update(tree, zero.init(tree)), expected)


def test_a_finite_tree_whose_norm_is_not_representable_is_not_bad():
    tree = [np.full(4, 3e38, np.float32)]
    transformation = clipping(1.0, nonfinite="zero")
    clipped, state = transformation.update(tree, transformation.init(tree))
    assert_clipped(clipped, tree, 1.0)
    assert (int(state.clipped_count), int(state.nonfinite_count)) == (1, 0)
