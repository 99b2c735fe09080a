"""Groups on meshes: every layout gives the result of one device, and communicates as the global
clip does.
"""

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
from tests._norms.test_axes import ENTRIES, MESHES, mesh_of, random_case
from tests.cases import case

#: As above its bound as below it, and one that is measured only.
RULES = {"a": 1.5, "b": wc.running_bound(ceiling=0.3), "c": None}
DRAWS = 8


def labels_for(seed: int, tree: dict[str, Any]) -> dict[str, str]:
    """Replicated and sharded leaves, of other axes, in one group."""
    rng = np.random.default_rng(seed)
    return {name: "abc"[rng.integers(3)] for name in tree}


def drawn(seed: int, tree: dict[str, Any]) -> dict[str, Any]:
    """Other numbers for the same shapes; of each leaf another size, and some leaves idle."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(
            rng.standard_normal(leaf.shape)
            * 10.0 ** rng.uniform(-3, 2)
            * rng.choice([0, 1, 1, 1, 1]),
            leaf.dtype,
        )
        for name, leaf in tree.items()
    }


def expected(tree: dict[str, Any], labels: dict[str, str]) -> dict[str, tuple[float, float]]:
    """Norm and coefficient of each group at its first call."""
    found = {}
    for label in sorted(set(labels.values())):
        norm = reference.global_norm(
            [np.asarray(tree[name]) for name in tree if labels[name] == label]
        )
        bound = {"a": 1.5, "b": 0.3, "c": math.inf}[label]
        found[label] = norm, min(1.0, bound / norm) if norm else 1.0
    return found


def clip_of(labels: dict[str, str]) -> Any:
    """A clip that takes the place of the global one in the programs of `test_axes`."""

    def clip(tree: Any, axis_name: Any = None) -> Any:
        transformation: Any = wc.clip_by_group_norm(
            RULES, labels, axis_name=axis_name, record_leaves=True
        )
        clipped, state = transformation.update(tree, transformation.init(tree))
        return clipped, {**wc.metrics(state), "leaves": state.leaves.leaf_norms}

    return clip


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("mesh_shape", MESHES.values(), ids=MESHES)
def test_every_layout_gives_groups_the_result_of_one_device(monkeypatch, mesh_shape, entry):
    tree, specs = random_case(108, mesh_shape, 8)
    labels = labels_for(8, tree)
    monkeypatch.setattr("tests._norms.test_axes.clip", clip_of(labels))
    run = ENTRIES[entry](tree, specs, mesh_shape)
    for seed in range(DRAWS):
        tree = drawn(seed, tree)
        groups = expected(tree, labels)
        each = [reference.global_norm([np.asarray(leaf)]) for _, leaf in sorted(tree.items())]
        for way, (clipped, known) in run(tree).items():
            with case(seed=seed, way=way):
                np.testing.assert_allclose(known["leaves"], each, rtol=1e-6)
                for label, (norm, coef) in groups.items():
                    np.testing.assert_allclose(known[f"{label}/grad_norm"], norm, rtol=1e-6)
                    np.testing.assert_allclose(known[f"{label}/clip_coef"], coef, rtol=1e-6)
                for name, leaf in clipped.items():
                    coef = groups[labels[name]][1]
                    assert leaf.dtype == tree[name].dtype
                    if coef == 1:
                        assert np.asarray(leaf).tobytes() == np.asarray(tree[name]).tobytes(), name
                        continue
                    info = jnp.finfo(leaf.dtype)
                    atol = float(info.smallest_subnormal) if leaf.dtype == jnp.float16 else 0.0
                    want = np.asarray(tree[name], np.float64) * coef
                    got = np.asarray(leaf, np.float64)
                    np.testing.assert_allclose(
                        got, want, rtol=float(info.eps) / 2 + 1e-6, atol=atol, err_msg=name
                    )


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_every_layout_gives_it_in_the_form_for_accelerators_too(monkeypatch, as_on, platform):
    as_on(platform, devices=8)
    tree, specs = random_case(7, MESHES["2x2x2"], leaves=4)
    labels = labels_for(0, tree)
    monkeypatch.setattr("tests._norms.test_axes.clip", clip_of(labels))
    for entry, program in ENTRIES.items():
        for way, (_, known) in program(tree, specs, MESHES["2x2x2"])(tree).items():
            for label, (norm, coef) in expected(tree, labels).items():
                with case(entry=entry, way=way, label=label):
                    np.testing.assert_allclose(known[f"{label}/grad_norm"], norm, rtol=1e-6)
                    np.testing.assert_allclose(known[f"{label}/clip_coef"], coef, rtol=1e-6)


MOE = {
    "experts": {"up": jnp.arange(64.0).reshape(8, 8), "down": jnp.ones((8, 2))},
    "dense": jnp.arange(8.0),
    "bias": jnp.ones(3),
}
SPECS = {"experts": P("expert", "model"), "dense": P("data"), "bias": P()}
LABELS = {"experts": "experts", "dense": "dense", "bias": "dense"}


def norms_of(tree: Any, axis_name: Any = None) -> Any:
    clip: Any = wc.clip_by_group_norm(1.0, LABELS, axis_name=axis_name)
    return clip.update(tree, clip.init(tree))[1].grad_norm  # dense, experts


MOE_NORMS = [
    reference.global_norm([MOE["dense"], MOE["bias"]]),
    reference.global_norm([*MOE["experts"].values()]),
]


@pytest.mark.parametrize("check_vma", [True, False])
def test_experts_may_lie_on_other_axes_than_dense_leaves(check_vma):
    specs = {**SPECS, "experts": P("expert")}
    options: dict[str, Any] = {"axis_name": None if check_vma else specs}
    mapped = jax.shard_map(
        lambda tree: norms_of(tree, **options),
        mesh=mesh_of((2, 2, 2)),
        in_specs=(specs,),
        out_specs=P(),
        check_vma=check_vma,
    )
    np.testing.assert_allclose(jax.jit(mapped)(MOE), MOE_NORMS, rtol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_group_may_lie_on_axes_that_are_left_to_the_compiler(check_vma):
    mesh = mesh_of((2, 2, 2))
    placed = jax.device_put(MOE, jax.tree.map(lambda _: NamedSharding(mesh, P()), MOE))
    placed["experts"] = jax.device_put(MOE["experts"], NamedSharding(mesh, P("expert", "model")))
    outside = {"experts": P(None), "dense": P("data"), "bias": P()}
    mapped = jax.shard_map(
        lambda tree: norms_of(tree, None if check_vma else SPECS),
        mesh=mesh,
        in_specs=(outside,),
        out_specs=P(),
        axis_names={"data"},
        check_vma=check_vma,
    )
    np.testing.assert_allclose(jax.jit(mapped)(placed), MOE_NORMS, rtol=1e-6)


def test_a_map_without_types_asks_for_axis_name():
    mapped = jax.shard_map(
        norms_of, mesh=mesh_of((2, 2, 2)), in_specs=P(), out_specs=P(), check_vma=False
    )
    with pytest.raises(ValueError, match="axis_name must be given"):
        mapped(MOE)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_shards_of_one_leaf_share_their_scale(scale):
    # Some shards are zero, or would fit as they are: the scale follows from the sum over all of
    # them.
    tree = {**MOE, "dense": jnp.float32([0, 0, 0, 0, 1, 0, scale, scale])}
    specs = {**SPECS, "experts": P("expert")}
    mapped = jax.shard_map(norms_of, mesh=mesh_of((2, 2, 2)), in_specs=(specs,), out_specs=P())
    dense = reference.global_norm([np.asarray(tree["dense"]), MOE["bias"]])
    np.testing.assert_allclose(jax.jit(mapped)(tree), [dense, MOE_NORMS[1]], rtol=1e-6)


@pytest.mark.parametrize("last", ["data", "model"])
def test_the_last_leaf_alone_may_lie_on_other_axes(last):
    first = "model" if last == "data" else "data"
    tree, specs = (
        {"a": jnp.arange(8.0), "b": jnp.ones(8), "c": jnp.full(8, 5.0)},
        {"a": P(first), "b": P(first), "c": P(last)},
    )
    mapped = jax.shard_map(wc.leaf_norms, mesh=mesh_of((2, 4)), in_specs=(specs,), out_specs=P())
    for name, norm in jax.jit(mapped)(tree).items():
        np.testing.assert_allclose(norm, reference.global_norm([np.asarray(tree[name])]), rtol=1e-6)


# What is communicated.


COLLECTIVES = r" (all-gather|all-to-all|collective-permute|all-reduce)(?:-start)?\("


def collectives(clip: Any, tree: Any, shardings: Any) -> list[str]:
    """What moves data between devices in the compiled update."""
    arguments = jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), tree, shardings
    )
    compiled: Any = (
        jax.jit(lambda tree: clip.update(tree, clip.init(tree))).lower(arguments).compile()
    )
    return re.findall(COLLECTIVES, compiled.as_text())


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
        f"leaf{index}": jnp.ones((8 * (1 + index % 3), 8 * (1 + index % 2))) for index in range(6)
    }
    # Each group lies on two sets of axes.
    shardings = {name: NamedSharding(mesh, specs[index % 5]) for index, name in enumerate(tree)}
    plain = collectives(wc.clip_by_global_norm(1.0), tree, shardings)
    for name, clip in {
        "groups": wc.clip_by_group_norm(
            1.0, {name: "abc"[index % 3] for index, name in enumerate(tree)}
        ),
        "each": wc.clip_by_group_norm(wc.running_bound(), wc.label_by_path()),
        "leaves": wc.clip_by_global_norm(1.0, record_leaves=True),
    }.items():
        found = collectives(clip, tree, shardings)
        with case(name=name):
            assert set(found) <= {"all-reduce"}
            assert len(found) <= len(plain)


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
