"""Second passes: each norm right where many share one, and few of them to compile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import warmclip_jax as wc
from tests._norms.test_leaf_norms import FEW_ULP, assert_norms
from tests.compiled import temporaries
from tests.trees import gradients, normal
from warmclip_jax._clipping._coding import decoded
from warmclip_jax._norms._axes import Reduction
from warmclip_jax._norms._frame import Grouping, each_alone, scaled_norms
from warmclip_jax._norms._second_pass import _branches, _read_again
from warmclip_jax._norms._sums import Summand


def many_leaves() -> dict[str, np.ndarray]:
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
    return {f"{index:02}": leaf for index, leaf in enumerate(leaves)}


def test_norms_that_share_second_passes_are_those_that_each_has_alone(as_on):
    as_on("cpu", 1)
    tree = many_leaves()
    pairs = {
        f"{index:02}": np.concatenate([tree[f"{index:02}"], tree[f"{index + 48:02}"]])
        for index in range(48)
    }
    in_pairs = Grouping(tuple(range(48)) * 2, 48)
    each, groups = jax.jit(lambda tree: scaled_norms(tree, None, each_alone, lambda _: in_pairs))(
        tree
    )
    assert_norms(dict(zip(sorted(tree), each.value, strict=True)), tree, FEW_ULP)
    assert_norms(dict(zip(sorted(pairs), groups.value, strict=True)), pairs, FEW_ULP)


def test_norms_that_are_stacked_a_few_at_a_time_stay_apart(as_on):
    as_on("cpu", 1)
    leaves = [jnp.full(2, 1e-25 * (index + 1)) for index in range(10)]
    alone = [Summand(Reduction((), ()), (index,), leaf) for index, leaf in enumerate(leaves)]
    sums = _read_again(alone, jnp.full(10, 1e25), 8, np.dtype("float32"))  # four leaves at a time
    np.testing.assert_allclose(sums, 2.0 * np.arange(1, 11) ** 2, rtol=1e-6)


def summands(norms: list[int]) -> list[Summand]:
    leaves = gradients(many_leaves())
    return [
        Summand(Reduction((), ()), (norm,), jnp.asarray(leaf))
        for norm, leaf in zip(norms, leaves, strict=True)
    ]


@pytest.mark.parametrize(
    "norms", [[*range(96)], [*range(48)] * 2, [index // 12 for index in range(96)], [0] * 96]
)
def test_a_branch_has_all_of_a_norm_and_norms_of_one_shape(norms):
    found = _branches(summands(norms))
    assert sorted(norm for branch in found for s in branch for norm in s.norms) == sorted(norms)
    number = len(set(norms))
    assert min(number, 32) <= len(found) < min(number, 32) + 20
    of_branches = [{norm for s in branch for norm in s.norms} for branch in found]
    assert sum(map(len, of_branches)) == number
    for branch, of_branch in zip(found, of_branches, strict=True):
        firsts = {min(of for of in range(96) if norms[of] == norm) for norm in of_branch}
        assert len({first % 2 for first in firsts}) == 1
        assert len(branch) == sum(norms.count(norm) for norm in of_branch)


def test_a_norm_of_zero_makes_no_other_be_read_again(as_on):
    # Each has a branch of its own, which nothing but its own sum decides.
    as_on("cpu", devices=1)
    tree = [np.zeros((70, 80), np.float32), np.ones((70, 80), np.float32)]
    program = jax.jit(lambda tree: scaled_norms(tree, None, each_alone)).lower(tree)
    assert program.as_text().count("stablehlo.case") == len(tree)


def test_a_second_pass_of_many_leaves_takes_little_memory(as_on):
    as_on("cpu", devices=1)
    for size in (6_000, 70_000):
        tree = [jnp.ones(size)] * 96
        program = jax.jit(lambda tree: scaled_norms(tree, None, each_alone)).lower(tree).compile()
        assert temporaries(program, tree) < 96 * 4 * size / 10


def test_what_is_not_finite_stays_in_the_norm_that_it_is_of(as_on):
    as_on("cpu", devices=1)
    tree = {f"{group:02}": [jnp.ones(8192), jnp.ones(8192)] for group in range(64)}
    for bad in (jnp.nan, jnp.inf):
        tree["00"][0] = tree["00"][0].at[5].set(bad)
        clip = wc.clip_by_group_norm(None, wc.label_by_path({k: f"{k}/.*" for k in tree}))
        _, state = jax.jit(clip.update)(tree, clip.init(tree))
        norms = decoded(np.asarray(state.grad_norm))
        assert np.isfinite(norms).tolist() == [False] + [True] * 63
        np.testing.assert_allclose(norms[1:], 128.0, rtol=1e-6)
