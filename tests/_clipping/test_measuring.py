"""Which norms one call measures: none that were not asked for, and the global one always the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests import reference
from tests.cases import case
from tests.trees import BF16, assert_same_bits, normal
from warmclip_jax._clipping._measuring import measured
from warmclip_jax._norms import Grouping

TREE = [normal(0, (70, 80)), normal(1, (3,)), normal(2, ()), normal(3, (5,))]
TOGETHER = Grouping((0, 0, 0, 0), 1)
APART = Grouping((0, 1, 0, 2), 4)


def program(members: Grouping | None, *, leaves: bool) -> str:
    return (
        jax.jit(lambda tree: measured(tree, axis_name=None, members=members, leaves=leaves)[:3])
        .lower(TREE)
        .as_text()
    )


def test_without_groups_and_leaves_the_program_is_that_of_the_global_norm():
    alone = jax.jit(wc.global_norm).lower(TREE).as_text()
    for members in (None, TOGETHER):
        for operation in ("stablehlo.case", "stablehlo.reduce(", "stablehlo.concatenate"):
            assert program(members, leaves=False).count(operation) == alone.count(operation)


@pytest.mark.parametrize("leaves", [False, True])
def test_one_group_has_the_global_norm_to_the_bit(leaves):
    alone, grouped = (
        measured(TREE, axis_name=None, members=members, leaves=leaves)
        for members in (None, TOGETHER)
    )
    assert_same_bits(grouped.total, alone.total)
    assert_same_bits(jax.tree.map(lambda part: part[0], grouped.groups), alone.groups)
    assert grouped.groups.mantissa.shape == (1,)


def test_all_norms_come_from_one_read_and_agree():
    found = measured(TREE, axis_name=None, members=APART, leaves=True)
    groups = [
        reference.global_norm([TREE[0], TREE[2]]),
        reference.global_norm(TREE[1:2]),
        reference.global_norm(TREE[3:]),
        0,
    ]
    np.testing.assert_allclose(found.total.value, reference.global_norm(TREE), rtol=1e-6)
    np.testing.assert_allclose(found.groups.value, groups, rtol=1e-6)
    assert found.leaves is not None
    np.testing.assert_allclose(
        found.leaves.value, [reference.global_norm([leaf]) for leaf in TREE], rtol=1e-6
    )


@pytest.mark.parametrize("leaves", [False, True])
def test_a_tree_without_gradients_has_norms_of_zero(leaves):
    found = measured(
        {"count": jnp.int32(3)},
        axis_name=None,
        members=Grouping((), 2),
        leaves=leaves,
    )
    assert float(found.total.value) == 0
    np.testing.assert_array_equal(found.groups.value, [0, 0])
    assert found.leaves is None or found.leaves.value.shape == (0,)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("groups", [None, wc.label_by_path({"even": r".*[02468]"})])
def test_recording_leaves_and_calls_changes_no_bit_of_a_run(as_on, devices, groups):
    as_on("cpu", devices)

    def steps(**options: Any) -> Any:
        optimizer = wc.pipeline(
            optax.adam, 0.1, groups=groups, skip_above=wc.running_bound(), **options
        )

        @jax.jit
        def step(tree: Any, state: Any) -> Any:
            updates, state = optimizer.update(tree, state, tree)
            metrics = wc.metrics(state)
            return state, (
                updates,
                metrics["grad_norm"] if groups is None else metrics["even/grad_norm"],
            )

        return optimizer, step

    shapes = [(3,), (7, 5), (), (64,), (70, 80), (3, 4, 5), (64,), (4097,), (300, 300), (5,), (9,)]
    tree = [normal(seed, shape, [np.float32, BF16][seed % 2]) for seed, shape in enumerate(shapes)]
    alone, recorded = steps(), steps(record=4, record_leaves=True)
    states = [optimizer.init(tree) for optimizer, _ in (alone, recorded)]
    # In sizes that need a second pass too, which reads leaves in another order than one by one.
    for size in (1.0, 1e-25, 1e25, 1.0):
        found = []
        for index, (_, step) in enumerate((alone, recorded)):
            scaled = [(leaf * leaf.dtype.type(size)).astype(leaf.dtype) for leaf in tree]
            states[index], result = step(scaled, states[index])
            found.append(result)
        with case(size=size):
            assert_same_bits(*found)
