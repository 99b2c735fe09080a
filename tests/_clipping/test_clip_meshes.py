"""Groups on meshes: what shards share, and what is communicated; `_norms/test_axes.py` has their
numbers in every layout.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import warmclip_jax as wc
from tests._norms.test_axes import mesh_of
from tests.cases import case
from tests.problem import float64_norm


def test_shards_of_one_leaf_share_their_scale():
    def norms(tree: Any) -> Any:
        clip: Any = wc.clip_by_group_norm(1.0, {"dense": "a", "expert": "b", "bias": "a"})
        return clip.update(tree, clip.init(tree))[1].grad_norm, wc.global_norm(tree)

    specs = {"dense": P("data"), "expert": P("model"), "bias": P()}
    mapped = jax.shard_map(norms, mesh=mesh_of((2, 4)), in_specs=(specs,), out_specs=P())
    program = jax.jit(mapped)
    # Some shards are zero, or would fit as they are: the scale follows from the sum over all of
    # them.
    for some, others in ((1, 0), (1, 1e-30), (1, 1e30), (1e-30, 1e-30), (1e30, 1e30)):
        dense = jnp.float32([0, 0, 0, 0, some, 0, others, others])
        tree = {"dense": dense, "expert": jnp.full(8, float(others)), "bias": jnp.zeros(3)}
        groups, whole = program(tree)
        with case(some=some, others=others):
            expected = [float64_norm(tree["dense"]), float64_norm(tree["expert"])]
            np.testing.assert_allclose(groups, expected, rtol=1e-6)
            np.testing.assert_allclose(whole, float64_norm(tree), rtol=1e-6)


@pytest.mark.parametrize(("first", "last"), [("model", "data"), ("data", "model")])
def test_the_last_leaf_alone_may_lie_on_other_axes(first, last):
    tree = {"a": jnp.arange(8.0), "b": jnp.ones(8), "c": jnp.full(8, 5.0)}
    specs = {"a": P(first), "b": P(first), "c": P(last)}
    mapped = jax.shard_map(wc.leaf_norms, mesh=mesh_of((2, 4)), in_specs=(specs,), out_specs=P())
    for name, norm in jax.jit(mapped)(tree).items():
        np.testing.assert_allclose(norm, float64_norm(tree[name]), rtol=1e-6)


# What is communicated.


COLLECTIVES = r" (all-gather|all-to-all|collective-permute|all-reduce)(?:-start)?\("


@pytest.mark.parametrize(
    ("platform", "axis_type"),
    [
        ("cpu", AxisType.Explicit),
        ("gpu", AxisType.Auto),
        ("gpu", AxisType.Explicit),
        ("tpu", AxisType.Auto),
    ],
)
def test_groups_and_leaf_norms_need_no_more_all_reduces_than_the_global_clip(
    as_on, platform, axis_type
):
    as_on(platform, devices=8)
    mesh = mesh_of((2, 4), axis_type)
    specs = [P("data"), P("model"), P(("data", "model")), P(None, "model"), P()]
    tree = {
        f"leaf{index}": jax.ShapeDtypeStruct(
            (8 * (1 + index % 3), 8 * (1 + index % 2)),
            np.float32,
            sharding=NamedSharding(mesh, specs[index % 5]),
        )
        for index in range(6)
    }
    # Each group lies on two sets of axes.
    groups = {name: "abc"[index % 3] for index, name in enumerate(tree)}
    plain, grouped = (
        re.findall(
            COLLECTIVES,
            jax.jit(lambda tree, clip=clip: clip.update(tree, clip.init(tree)))
            .lower(tree)
            .compile()
            .as_text()
            or "",
        )
        for clip in (
            wc.clip_by_global_norm(1.0),
            wc.clip_by_group_norm(wc.running_bound(), groups, record_leaves=True),
        )
    )
    assert set(grouped) <= {"all-reduce"}
    assert 0 < len(grouped) <= len(plain)


def test_in_a_map_there_is_one_psum_for_each_set_of_axes():
    specs = {"a": P("data"), "b": P("data"), "c": P("model"), "d": P(("data", "model")), "e": P()}
    tree = {name: jnp.ones((8, 8)) for name in specs}
    found = []
    for clip in (
        wc.clip_by_global_norm(1.0),
        wc.clip_by_group_norm(1.0, wc.label_by_path(), record_leaves=True),
    ):
        mapped = jax.shard_map(
            lambda tree, clip=clip: clip.update(tree, clip.init(tree)),
            mesh=mesh_of((2, 4)),
            in_specs=(specs,),
            out_specs=(specs, P()),
        )
        found.append(jax.jit(mapped).lower(tree).as_text().count("stablehlo.all_reduce"))
    # The global norm has one more in the branch of its second pass; all others share one.
    assert found == [3 + 3, 3 + 3 + 3]
