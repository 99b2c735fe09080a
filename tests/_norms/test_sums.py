"""The forms that sums of squares take: for accelerators, for one device and for several."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import warmclip_jax as wc
from tests import reference
from tests._norms.test_axes import mesh_of
from tests.cases import case
from tests.trees import FEW_ULP, FEW_ULP_64, normal
from warmclip_jax._norms._axes import Reduction
from warmclip_jax._norms._sums import MIDDLE, SMALL, Summand, gathered, together

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.mark.parametrize(
    ("platform", "devices"),
    [("cpu", 1), ("cpu", 8), ("gpu", 1), ("gpu", 8), ("tpu", 1), ("tpu", 8)],
)
def test_every_form_is_right_over_the_whole_range(as_on, x64, platform, devices):
    as_on(platform, devices)
    for dtype in (np.float32, np.complex64, np.float64):
        info, norm = np.finfo(dtype), jax.jit(wc.global_norm)

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
                assert float(norm(tree)) == pytest.approx(
                    reference.global_norm(tree), rel=tolerance, abs=0
                )
        with case(dtype=dtype):
            assert math.isnan(norm(tree_of([1, 1, math.nan, 1, 1], 1)))
            assert float(norm(tree_of(1, math.inf))) == math.inf
            assert float(norm(tree_of(info.max, info.max))) == math.inf


def summand(norm: int, entries: int) -> Summand:
    return Summand(Reduction((), ()), (norm,), jnp.ones(entries))


def test_leaves_of_one_norm_or_one_shape_are_read_together_up_to_a_size(as_on):
    as_on("cpu", devices=1)
    assert [len(parts) for parts in together([summand(i, 3) for i in range(3)], SMALL)] == [3]
    for size, most in ((SMALL, 2**12), (MIDDLE, 2**16)):
        leaves = [summand(0, entries) for entries in (most, most, most + 1, most + 1)]
        assert [found.entries for found in gathered(leaves, size)] == [most + 1, most + 1, 2 * most]


def placed(mesh: Any) -> Any:
    return [
        jax.ShapeDtypeStruct((8 * size,), np.float32, sharding=NamedSharding(mesh, P("data")))
        for size in (1, 2)
    ]


def in_a_map(*axes: str) -> Any:
    mesh = mesh_of((2, 4))
    return jax.shard_map(
        wc.global_norm, mesh=mesh, in_specs=P("data"), out_specs=P(), axis_names=set(axes)
    )


def one_device(kind: AxisType) -> Any:
    return jax.make_mesh((1,), ("data",), axis_types=(kind,), devices=jax.devices()[:1])


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_small_leaves_are_put_together_exactly_where_the_compiler_shards_none(as_on, platform):
    plain = [jax.ShapeDtypeStruct((8 * size,), np.float32) for size in (1, 2)]
    for devices, norm, tree, expected in [
        (1, wc.global_norm, plain, True),
        (1, wc.global_norm, placed(one_device(AxisType.Auto)), True),
        (1, wc.global_norm, placed(one_device(AxisType.Explicit)), True),
        (8, in_a_map("data", "model"), plain, True),
        (8, in_a_map("data"), plain, False),
        (8, wc.global_norm, plain, False),
        (8, wc.global_norm, placed(mesh_of((2, 4), AxisType.Explicit)), False),
        # For devices that are elsewhere.
        (1, wc.global_norm, placed(mesh_of((2, 4))), False),
    ]:
        as_on(platform, devices)
        text = jax.jit(norm).lower(tree).as_text()
        # Of entries, not of the sums at three scales.
        found = re.findall(r"stablehlo\.concatenate.* -> tensor<(\d+)x", text)
        with case(devices=devices, tree=tree, expected=expected):
            assert any(int(size) >= 8 for size in found) == expected
