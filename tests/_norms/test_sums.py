"""The forms that sums of squares take: for accelerators, for one device and for several; and what
each costs.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import warmclip_jax as wc
from tests import reference
from tests.cases import case
from tests.compiled import readers, temporaries
from tests.trees import SHORT, normal
from warmclip_jax._norms._axes import Reduction
from warmclip_jax._norms._sums import MIDDLE, SMALL, Summand, gathered, together

pytestmark = pytest.mark.usefixtures("strict_dtypes")

FEW_ULP = 4 * 2.0**-23
FEW_ULP_64 = 4 * 2.0**-52


def lowered(tree: Any) -> Any:
    return jax.jit(wc.global_norm).lower(tree)


@pytest.mark.parametrize(
    ("platform", "devices"), [("cpu", 1), ("gpu", 1), ("gpu", 8), ("tpu", 1), ("tpu", 8)]
)
def test_every_form_is_right_over_the_whole_range(as_on, x64, platform, devices):
    as_on(platform, devices)
    for dtype in (np.float32, np.complex64, np.float64):
        info = np.finfo(dtype)

        def tree_of(entries: Any, scalar: Any, dtype: Any = dtype) -> list[np.ndarray]:
            # A leaf of one entry is where a compiler may square the scale instead of the entry.
            return [
                np.broadcast_to(np.asarray(entries, dtype), 5),
                np.zeros(1, dtype),
                np.asarray(scalar, dtype),
            ]

        for power in [
            *range(info.minexp, info.maxexp - 2, 67 if dtype is np.float64 else 9),
            -61,
            -60,
            -30,
            63,
            64,
            info.maxexp - 3,
        ]:
            size = np.ldexp(np.asarray(1, info.dtype), power)
            tree = tree_of((normal(0, (5,)) * 0.1 + 1).astype(dtype) * size, 1.5 * size)
            with case(dtype=dtype, power=power):
                tolerance = FEW_ULP_64 if dtype is np.float64 else FEW_ULP
                assert float(wc.global_norm(tree)) == pytest.approx(
                    reference.global_norm(tree), rel=tolerance, abs=0
                )
        with case(dtype=dtype):
            assert math.isnan(wc.global_norm(tree_of([1, 1, math.nan, 1, 1], 1)))
            assert float(wc.global_norm(tree_of(1, math.inf))) == math.inf
            assert float(wc.global_norm(tree_of(info.max, info.max))) == math.inf


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_small_leaves_of_every_sort_are_packed_on_one_device(as_on, platform):
    as_on(platform, devices=1)
    tree = [normal(seed, (1 + seed % 3, seed % 5), SHORT[seed % 4]) for seed in range(24)]
    tree += [
        normal(50, (2**17,)),
        normal(51, (400, 200)),
        normal(52, ()),
        np.array([3e4], np.float16),
    ]
    assert float(wc.global_norm(tree)) == pytest.approx(reference.global_norm(tree), rel=FEW_ULP)
    assert lowered(tree).as_text().count("stablehlo.concatenate") >= 4


def test_leaves_of_one_shape_that_have_norms_of_their_own_are_read_together(as_on):
    as_on("cpu", devices=1)
    alone = [Summand(Reduction((), ()), (index,), jnp.ones(3)) for index in range(3)]
    assert [len(parts) for parts in together(alone, SMALL)] == [3]


def test_a_second_pass_counts_each_leaf_once(as_on):
    as_on("cpu", devices=1)
    for size in (1e-30, 1e30):
        tree = [normal(seed, (5000,)) * np.float32(size) for seed in range(70)]
        assert float(wc.global_norm(tree)) == pytest.approx(
            reference.global_norm(tree), rel=FEW_ULP
        )


@pytest.mark.parametrize(("size", "most"), [(SMALL, 2**12), (MIDDLE, 2**16)])
def test_leaves_up_to_a_size_are_packed_and_larger_ones_are_not(as_on, size, most):
    as_on("cpu", devices=1)
    leaves = [
        Summand(Reduction((), ()), (0,), jnp.ones(entries))
        for entries in (most, most, most + 1, most + 1)
    ]
    assert [found.entries for found in gathered(leaves, size)] == [most + 1, most + 1, 2 * most]


# In the second pass, which puts together a sixteenth of all entries: a leaf and a quarter, twelve
# leaves, and leaves that are too large.
@pytest.mark.parametrize(
    ("entries", "leaves", "parts"), [(10_000, 20, 0), (10_000, 200, 17), (70_000, 40, 0)]
)
def test_what_is_put_together_is_a_small_part_at_a_time(as_on, entries, leaves, parts):
    as_on("cpu", devices=1)
    tree = [np.zeros(entries, np.float32)] * leaves
    assert len(re.findall(rf"concatenate.*tensor<{entries}xf32>", lowered(tree).as_text())) == parts
    assert temporaries(lowered(tree).compile(), tree) < sum(leaf.nbytes for leaf in tree) / 10


def test_one_gpu_takes_all_three_sums_in_one_pass_and_those_of_small_leaves_together(as_on):
    as_on("gpu", devices=1)
    tree = [np.ones(shape, np.float32) for shape in ((4, 5), 7, 2**16, 2**16 + 1)]
    # Three more reductions add those of what is read.
    assert lowered(tree).as_text().count("stablehlo.reduce(") == 2 + 3


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_nothing_is_put_together_for_devices_that_are_elsewhere(as_on, platform):
    as_on(platform, devices=1)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    tree = [jax.ShapeDtypeStruct((8 * size,), np.float32, sharding=sharding) for size in (1, 2)]
    assert "concatenate" not in lowered(tree).as_text()
    assert "all-gather" not in lowered(tree).compile().as_text()


@pytest.mark.parametrize("axis_type", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_on_a_mesh_of_one_device_small_leaves_are_packed(as_on, axis_type):
    as_on("cpu", devices=1)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:1])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    tree = [jax.ShapeDtypeStruct((size,), np.float32, sharding=sharding) for size in (11, 12)]
    assert re.search(r"concatenate.*tensor<11xf32>, tensor<12xf32>", lowered(tree).as_text())


def test_where_leaves_are_packed_those_without_entries_add_nothing(as_on):
    as_on("cpu", devices=1)
    empty = [np.zeros((0, 3), dtype) for dtype in (*SHORT, *SHORT)]
    assert float(wc.global_norm(empty)) == 0.0
    assert float(wc.global_norm([*empty, np.full(1, 1e30, np.float32)])) == np.float32(1e30)


# What it costs: the structure of the compiled program, not its time.


def test_the_norm_reads_a_gradient_once_and_makes_no_temporary_of_its_size():
    shapes = [(1000, 1000), (10**6,), (2, 5 * 10**5), (256, 3, 3, 400)]
    tree = {
        f"{shape} {dtype}": jnp.ones(shape, dtype)
        for shape in shapes
        for dtype in ("bfloat16", "float32")
    }
    program = lowered(tree).compile()
    for name in tree:
        assert readers(program, f"tree[\\'{name}\\']") == ["fusion"], name
    assert temporaries(program, tree.values()) < min(leaf.nbytes for leaf in tree.values()) / 4
