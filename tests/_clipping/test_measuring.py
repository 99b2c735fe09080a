"""The norms of one call: whatever else is asked for, the global one is the same."""

from typing import Any

import jax
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests.cases import case
from tests.trees import BF16, assert_same_bits, normal
from warmclip_jax._clipping._measuring import measured
from warmclip_jax._norms import Grouping


@pytest.mark.parametrize(
    ("devices", "groups"), [(1, wc.label_by_path({"even": r".*[02468]"})), (8, None)]
)
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


def test_one_group_is_a_vector_of_the_global_norm():
    found = measured([normal(0, (3,))], axis_name=None, leaves=False, members=Grouping((0,), 1))
    assert_same_bits(jax.tree.map(lambda part: part[0], found.groups), found.total)
