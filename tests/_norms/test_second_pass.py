"""Second passes: each norm right where many share one, and little memory for all of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from tests.compiled import temporaries
from tests.trees import FEW_ULP, normal
from warmclip_jax._norms._axes import Reduction
from warmclip_jax._norms._frame import Grouping, all_together, each_alone, scaled_norms
from warmclip_jax._norms._second_pass import _read_again
from warmclip_jax._norms._sums import Summand


def many_leaves() -> list[np.ndarray]:
    """So many that are read one by one that second passes are shared, of two shapes, at every
    magnitude.
    """
    rng = np.random.default_rng(0)
    powers = rng.choice([-100, -60, 0, 0, 0, 60, 100], 96)
    leaves = [
        np.float32(2.0**power) * normal(index, (4100 + 100 * (index % 2),))
        for index, power in enumerate(powers)
    ]
    leaves[7] = np.zeros_like(leaves[7])
    return leaves


def test_norms_that_share_second_passes_are_those_that_each_has_alone_bad_ones_too(as_on):
    as_on("cpu", 1)
    tree = many_leaves()
    pairs = Grouping(tuple(range(48)) * 2, 48)
    groupings: dict[Any, Any] = {each_alone: [[index] for index in range(96)]}
    groupings[all_together] = [range(96)]
    groupings[lambda _: pairs] = [[index, index + 48] for index in range(48)]
    measured = jax.jit(lambda tree: [norm.value for norm in scaled_norms(tree, None, *groupings)])
    for bad in (None, np.nan, np.inf):
        if bad is not None:
            tree[50][5] = bad
        for norms, members in zip(measured(tree), groupings.values(), strict=True):
            expected = [
                bad if bad and 50 in own else reference.global_norm([tree[index] for index in own])
                for own in members
            ]
            np.testing.assert_allclose(np.ravel(norms), expected, rtol=FEW_ULP)


def test_norms_that_are_stacked_a_few_at_a_time_stay_apart(as_on):
    as_on("cpu", 1)
    leaves = [jnp.full(2, 1e-25 * (index + 1)) for index in range(10)]
    alone = [Summand(Reduction((), ()), (index,), leaf) for index, leaf in enumerate(leaves)]
    sums = _read_again(alone, jnp.full(10, 1e25), 8, np.dtype("float32"))  # four leaves at a time
    np.testing.assert_allclose(sums, 2.0 * np.arange(1, 11) ** 2, rtol=1e-6)


def test_a_norm_of_zero_makes_no_other_be_read_again(as_on):
    # Each has a branch of its own, which nothing but its own sum decides.
    as_on("cpu", devices=1)
    tree = [np.zeros((70, 80), np.float32), np.ones((70, 80), np.float32)]
    program = jax.jit(lambda tree: scaled_norms(tree, None, each_alone)).lower(tree)
    assert program.as_text().count("stablehlo.case") == len(tree)


# It puts together a sixteenth of all entries: a leaf and a quarter, twelve leaves, and leaves that
# are too large.
@pytest.mark.parametrize(
    ("entries", "leaves", "grouping"),
    [
        (6_000, 96, each_alone),
        (70_000, 96, each_alone),
        (10_000, 20, all_together),
        (10_000, 200, all_together),
        (70_000, 40, all_together),
    ],
)
def test_a_second_pass_takes_little_memory(as_on, entries, leaves, grouping):
    as_on("cpu", devices=1)
    tree = [np.zeros(entries, np.float32)] * leaves
    program = jax.jit(lambda tree: scaled_norms(tree, None, grouping)).lower(tree).compile()
    assert temporaries(program, tree) < leaves * 4 * entries / 10
