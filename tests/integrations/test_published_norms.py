"""Layouts for which another system was reported to compute a wrong norm: here it is that of the dense gradient in float64.

Most of the reports come with a reproduction in two processes. Each is a layout of eight devices
here, with the published numbers where there are some: pipeline stages, or replicas, along "data",
tensor parallelism along "model", experts along "expert".
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import warmclip_jax as wc
from tests import reference
from tests._norms.test_axes import ENTRIES, mesh_of

MESH = (2, 2, 2)


class Report(NamedTuple):
    """A gradient, how it lies, and what it was said to have as its norm."""

    tree: dict[str, Any]
    specs: dict[str, P]
    wrong: float


def ones(size: int, square: float) -> np.ndarray:
    """So many equal entries, of which the squares add up to `square`."""
    return np.full(size, math.sqrt(square / size))


REPORTS = {
    # modelscope/twinkle, pull request 290: complete gradients of replicas, summed over them again.
    "replicas": Report({"w": np.array([0.8])}, {"w": P()}, 1.131371),
    # ByteDance-Seed/VeOmni, issue 184: HSDP, summed over the replicas of each shard too.
    "replicas of shards": Report({"w": ones(8, 9.0)}, {"w": P("model")}, math.sqrt(2 * 9.0)),
    # NVIDIA-NeMo/RL, pull request 3788: what tensor parallelism leaves whole, once for each rank.
    "whole beside tensor parallel": Report(
        {"kernel": ones(8, 16.0), "norm": ones(4, 9.0)},
        {"kernel": P("model"), "norm": P()},
        math.sqrt(16.0 + 2 * 9.0),
    ),
    # pytorch/torchtitan, issue 596: each pipeline stage clipped by the norm of its own layers.
    "pipeline stages": Report(
        {"layers": np.array([[3.0, 0.0], [0.0, 4.0]])}, {"layers": P("data")}, 3.0
    ),
    # NVIDIA-NeMo/Automodel, issue 3816: experts of the own rank alone; 4.019950 on the other.
    "experts beside sharded dense": Report(
        {"experts": np.array([[10.0] * 16, [0.1] * 16]), "dense": ones(16, 16.0)},
        {"experts": P("expert"), "dense": P("expert")},
        40.199502,
    ),
    # deepspeedai/DeepSpeed, pull request 8478: the mean of the norms of the ranks.
    "experts": Report({"w": np.array([2.0, 4.0, 6.0, 8.0])}, {"w": P("expert")}, 7.236068),
    # NVIDIA/Megatron-LM, pull requests 5916 and 6470: experts on the four ranks of tensor
    # parallelism, of which the first alone was counted.
    "experts on tensor parallel ranks": Report(
        {"experts": np.array([1.0, 2.0, 3.0, 4.0]), "dense": ones(8, 4.0)},
        {"experts": P(("model", "expert")), "dense": P()},
        math.sqrt(4.0 + 1.0),
    ),
}
TREES = {
    name: {leaf: jnp.asarray(entries, jnp.float32) for leaf, entries in report.tree.items()}
    for name, report in REPORTS.items()
}
SPECS = {name: report.specs for name, report in REPORTS.items()}


def clip_each(trees: Any, axis_name: Any = None) -> Any:
    """Takes the place of the clip in the programs of `test_axes`, for all reports in one."""
    clipped, known = {}, {}
    for name, tree in trees.items():
        clip: Any = wc.clip_by_global_norm(
            1.0, axis_name=axis_name and axis_name[name], record_leaves=True
        )
        clipped[name], state = clip.update(tree, clip.init(tree))
        known[name] = {**wc.metrics(state), "leaves": state.leaves.leaf_norms}
    return clipped, known


@pytest.fixture(scope="module", params=ENTRIES)
def ways(request: pytest.FixtureRequest) -> Any:
    """What came of all reports, by each way to say how gradients lie: under `jit` and in maps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests._norms.test_axes.clip", clip_each)
        return ENTRIES[request.param](TREES, SPECS, MESH)(TREES)


@pytest.mark.parametrize("name", REPORTS)
def test_a_layout_that_was_reported_has_the_norm_of_the_dense_gradient(name: str, ways: Any):
    report = REPORTS[name]
    right = reference.global_norm([*report.tree.values()])
    assert abs(report.wrong / right - 1) > 4e-5  # else nothing would be seen here
    for clipped, known in ways.values():
        np.testing.assert_allclose(known[name]["grad_norm"], right, rtol=1e-6)
        each = [reference.global_norm([report.tree[leaf]]) for leaf in sorted(report.tree)]
        np.testing.assert_allclose(known[name]["leaves"], each, rtol=1e-6)
        for leaf, entries in report.tree.items():
            want = entries / max(right, 1.0)
            np.testing.assert_allclose(clipped[name][leaf], want, rtol=1e-6, err_msg=leaf)


@pytest.mark.parametrize("by", ["jit", "shard_map"])
def test_a_gradient_that_is_a_sum_over_devices_has_the_norm_of_the_sum(by: str):
    # pytorch/pytorch, pull request 159856: [1, 3] on one rank and [2, 1] on the other were said to
    # have the sum of their norms, 5.398. In NVIDIA/Megatron-LM, issue 7452, finding 11, each rank
    # kept its own summand.
    mesh = mesh_of(MESH, AxisType.Auto)
    inputs = jax.device_put(jnp.array([[1.0, 3.0], [2.0, 1.0]]), NamedSharding(mesh, P("data")))

    def norm(weight: Any, inputs: Any) -> Any:
        def loss(weight: Any) -> Any:
            own = jnp.sum(inputs @ weight)
            return jax.lax.psum(own, "data") if by == "shard_map" else own

        return wc.global_norm(jax.grad(loss)(weight))

    if by == "shard_map":
        norm = jax.shard_map(norm, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    assert float(jax.jit(norm)(jnp.ones(2), inputs)) == 5.0
