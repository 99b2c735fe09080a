import functools
import math
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import warmclip_jax as wc
from tests import reference
from tests.cases import case
from tests.problem import float64_norm
from tests.trees import assert_clipped, assert_same_bits

MESHES = {"1x8": (1, 8), "2x4": (2, 4), "2x2x2": (2, 2, 2)}
AXES = ("data", "model", "expert")


def mesh_of(shape, axis_type=AxisType.Auto):
    return jax.make_mesh(shape, AXES[: len(shape)], axis_types=(axis_type,) * len(shape))


def random_layout(mesh_shape, leaves):
    """The shapes of float32, bfloat16 and float16 leaves, each sharded over random mesh axes."""
    rng = np.random.default_rng(leaves)
    tree, specs = {}, {}
    for index in range(leaves):
        axes = list(rng.permutation(AXES[: len(mesh_shape)]))
        parts = []
        for _ in range(rng.integers(0, 4)):
            take = rng.integers(0, 3)
            chosen, axes = tuple(map(str, axes[:take])), axes[take:]
            parts.append(chosen or None)
        dtype = [np.float32, jnp.bfloat16, np.float16][rng.integers(0, 3)]
        tree[f"leaf{index}"] = jax.ShapeDtypeStruct((8,) * len(parts), dtype)
        specs[f"leaf{index}"] = P(*parts)
    return tree, specs


def drawn(seed, tree, size=1.0):
    """Numbers for the shapes of a tree: of each leaf another size, and some leaves of zeros."""
    rng = np.random.default_rng(seed)

    def entries(leaf):
        sizes = size * 10.0 ** rng.uniform(-3, 2) * rng.choice([0, 1, 1, 1, 1])
        return jnp.asarray(rng.standard_normal(leaf.shape) * sizes, leaf.dtype)

    return jax.tree.map(entries, tree)


#: Of a tree that is clipped by one norm, and of one that is clipped in groups.
BOUNDS = {"whole": {"": 1.5}, "groups": {"a": 1.5, "b": 0.3, "c": math.inf}}


def label_of(name):
    """Replicated and sharded leaves, of other axes, are in one group."""
    return "abc"[int(name.removeprefix("leaf")) % 3]


def clip(trees, axis_name=None):
    said = {kind: axis_name and axis_name[kind] for kind in trees}
    rules = {**BOUNDS["groups"], "b": wc.running_bound(ceiling=BOUNDS["groups"]["b"])}
    clips: dict[str, Any] = {
        "whole": wc.clip_by_global_norm(BOUNDS["whole"][""], axis_name=said["whole"]),
        "groups": wc.clip_by_group_norm(
            rules,
            lambda params: {name: label_of(name) for name in params},
            axis_name=said["groups"],
            record_leaves=True,
        ),
    }
    updates = {
        kind: clips[kind].update(trees[kind], clips[kind].init(trees[kind])) for kind in trees
    }
    known = {kind: wc.metrics(state) for kind, (_, state) in updates.items()}
    known["leaves"] = updates["groups"][1].leaves.leaf_norms
    return {kind: clipped for kind, (clipped, _) in updates.items()}, known


def under_jit(tree, specs, mesh_shape, axis_type):
    mesh = mesh_of(mesh_shape, axis_type)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    compiled = jax.jit(clip).lower(jax.device_put(tree, shardings)).compile()
    assert not re.search(r"all-gather|all-to-all|collective-permute", compiled.as_text() or "")

    def run(tree):
        placed = jax.device_put(tree, shardings)
        clipped, known = compiled(placed)
        for before, after in zip(jax.tree.leaves(placed), jax.tree.leaves(clipped), strict=True):
            assert after.sharding.is_equivalent_to(before.sharding, after.ndim)
        return {"jit": (clipped, known)}

    return run


def under_shard_map(specs, mesh_shape, ways, **options):
    """One program for all `ways` to say how a tree is sharded."""
    mapped = jax.shard_map(
        lambda tree: {way: clip(tree, axis_name) for way, axis_name in ways.items()},
        mesh=mesh_of(mesh_shape),
        in_specs=(specs,),
        out_specs=dict.fromkeys(ways, (specs, P())),
        **options,
    )
    return jax.jit(mapped)


#: Each makes a compiled program, which gives the clipped tree and its metrics for every way to say
#: how the tree is sharded.
ENTRIES = {
    "automatic": lambda tree, specs, shape: under_jit(tree, specs, shape, AxisType.Auto),
    "explicit": lambda tree, specs, shape: under_jit(tree, specs, shape, AxisType.Explicit),
    "typed": lambda tree, specs, shape: under_shard_map(
        specs, shape, {"unsaid": None, "said": specs}
    ),
    "untyped": lambda tree, specs, shape: under_shard_map(
        specs, shape, {"said": specs}, check_vma=False
    ),
}


def assert_right_on_every_draw(entry, mesh_shape, leaves, sizes):
    shapes, specs = random_layout(mesh_shape, leaves)
    trees = [drawn(seed, shapes, size) for seed, size in enumerate(sizes)]
    run = ENTRIES[entry](dict.fromkeys(BOUNDS, trees[0]), dict.fromkeys(BOUNDS, specs), mesh_shape)
    for seed, tree in enumerate(trees):
        for way, (clipped, known) in run(dict.fromkeys(BOUNDS, tree)).items():
            with case(seed=seed, way=way):
                assert_right(clipped, known, tree)


def assert_right(clipped, known, tree):
    each = [float64_norm(leaf) for _, leaf in sorted(tree.items())]
    np.testing.assert_allclose(known["leaves"], each, rtol=1e-6)
    for kind, bounds in BOUNDS.items():
        for label, bound in bounds.items():
            names = [name for name in sorted(tree) if label in ("", label_of(name))]
            before, after = (
                [np.asarray(of[name]) for name in names] for of in (tree, clipped[kind])
            )
            norm, prefix = reference.global_norm(before), f"{label}/" if label else ""
            coef = min(1.0, bound / norm) if norm else 1.0
            np.testing.assert_allclose(known[kind][f"{prefix}grad_norm"], norm, rtol=1e-6)
            np.testing.assert_allclose(known[kind][f"{prefix}clip_coef"], coef, rtol=1e-6)
            if norm > bound:
                assert_clipped(after, before, bound)
            else:
                assert_same_bits(after, before)
    assert int(known["whole"]["clipped_count"]) == (float64_norm(tree) > BOUNDS["whole"][""])


@pytest.mark.parametrize("entry", ENTRIES)
# A mesh of two axes has the same layouts in both its shapes.
@pytest.mark.parametrize(("mesh", "leaves"), [("1x8", 5), ("2x4", 9), ("2x2x2", 10)])
def test_every_layout_gives_the_result_of_one_device(mesh, leaves, entry):
    assert_right_on_every_draw(entry, MESHES[mesh], leaves, sizes=[1, 1, 1, 1, 1e-3])


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_every_layout_gives_it_in_the_form_for_accelerators_too(as_on, platform):
    as_on(platform, devices=8)
    for entry in ENTRIES:
        with case(entry=entry):
            assert_right_on_every_draw(entry, MESHES["2x2x2"], 6, sizes=[1])


MESH = (2, 4)
TREE = {"kernel": jnp.arange(32.0).reshape(8, 4), "bias": jnp.arange(3.0)}
SPECS = {"kernel": P(("data", "model")), "bias": P()}
NORM = float64_norm(TREE)


def in_map(function, specs=SPECS, **options):
    options = {"mesh": mesh_of(MESH), "out_specs": P(), **options}
    return jax.jit(jax.shard_map(function, in_specs=(specs,), **options))


def norm_in_map(axis_name=None, *, tree=TREE, **options):
    return in_map(functools.partial(wc.global_norm, axis_name=axis_name), **options)(tree)


@pytest.mark.parametrize("in_a_map", [True, False])
def test_a_gradient_whose_sum_is_still_to_come_is_an_error(in_a_map):
    mesh, unreduced = mesh_of((8,), AxisType.Explicit), P(unreduced=frozenset({"data"}))
    left, right = (
        jax.device_put(jnp.ones((8, 8)), NamedSharding(mesh, spec))
        for spec in (P(None, "data"), P("data"))
    )
    norm = (
        jax.shard_map(wc.global_norm, in_specs=unreduced, out_specs=P())
        if in_a_map
        else wc.global_norm
    )
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match=r"must be summed before .* got .*'data' is still"),
    ):
        jax.jit(
            lambda left, right: norm(jnp.einsum("ij,jk->ik", left, right, out_sharding=unreduced))
        )(left, right)


def test_leaves_that_have_no_mesh_go_with_those_on_explicit_axes():
    sharded = jax.device_put(
        jnp.ones((8, 8)), NamedSharding(mesh_of(MESH, AxisType.Explicit), P("data", "model"))
    )
    assert float(wc.global_norm([sharded, jnp.ones(8), np.ones(9, np.float32)])) == 9.0


def test_what_is_sharded_in_one_way_is_read_again_with_nothing_that_is_sharded_in_another():
    # Each sort in several parts, one after the other.
    specs = {"a": P("data"), "b": P("model"), "c": P("data")}
    tree = {name: [jnp.full(4 * 4800, 2.0**-100)] * 12 for name in specs}
    tree["c"] = [leaf.astype(jnp.bfloat16) for leaf in tree["c"]]
    norm = norm_in_map(tree=tree, specs=specs, mesh=mesh_of((4, 2)))
    np.testing.assert_allclose(norm, 2.0**-100 * math.sqrt(36 * 4 * 4800), rtol=1e-6)


def updated(transformation):
    return lambda tree: transformation.update(tree, transformation.init(tree), tree)[0]


@pytest.mark.parametrize(
    "function",
    [
        wc.global_norm,
        wc.leaf_norms,
        updated(wc.clip_by_global_norm(1.0)),
        updated(wc.clip_by_group_norm(1.0, wc.label_by_path())),
        updated(wc.pipeline(optax.sgd, 0.1)),
        updated(wc.skip_nonfinite(optax.sgd(0.1))),
    ],
)
def test_a_map_without_types_asks_for_axis_name_and_names_the_axes_in_scope(function):
    for axes in (("data", "model"), ("data",)):
        asked = rf"axis_name must be given .* the axes {re.escape(repr(axes))} .*axis_name=\(\)"
        with pytest.raises(ValueError, match=asked):
            in_map(function, P(), axis_names=set(axes), check_vma=False)(TREE)


def test_in_a_map_without_types_axis_name_may_be_a_name_names_or_a_prefix_of_specs():
    tree = {"a": jnp.arange(8.0), "b": jnp.arange(16.0), "c": jnp.arange(3.0)}
    specs = {"a": P("data"), "b": P(("data", "model")), "c": P()}
    ways = {
        "a name": ("data", ["a", "a"]),  # a tied leaf counts as often as it stands there
        "one of names": (("data",), ["a"]),
        "names": (("data", "model"), ["b"]),
        "the same everywhere": ((), ["c"]),
        "a prefix": ([P("data"), P()], [["a", "a"], ["c", "c"]]),
    }

    def chosen(names, tree):
        return jax.tree.map(tree.get, names)

    norms = in_map(
        lambda tree: {
            way: wc.global_norm(chosen(names, tree), axis_name=axis_name)
            for way, (axis_name, names) in ways.items()
        },
        specs,
        check_vma=False,
    )(tree)
    for way, (_, names) in ways.items():
        np.testing.assert_allclose(
            norms[way], float64_norm(chosen(names, tree)), rtol=1e-6, err_msg=way
        )


#: `vmap` of a sum over devices, which JAX has from 0.9 on.
WAYS = ["untyped", "vmap"] if jax.__version_info__ >= (0, 9) else ["untyped"]


@pytest.mark.parametrize("way", WAYS)
def test_models_that_lie_along_an_axis_have_a_norm_each(way):
    models = jnp.arange(32.0).reshape(2, 4, 4)
    if way == "untyped":
        norms = in_map(
            lambda shard: wc.global_norm(shard, axis_name="model")[None],
            P("data", "model"),
            out_specs=P("data"),
            check_vma=False,
        )(models)
    else:
        norms = in_map(jax.vmap(wc.global_norm), P(None, "model"), out_specs=P(None))(models)
    np.testing.assert_allclose(norms, [np.linalg.norm(model) for model in models], rtol=1e-6)


def test_what_is_said_overrides_the_type():
    def update(tree):
        gathered = {**tree, "kernel": lax.all_gather(tree["kernel"], ("data", "model"), tiled=True)}
        return (
            wc.global_norm(gathered),
            wc.global_norm(gathered, axis_name=P()),
            wc.leaf_norms(gathered, axis_name=P()),
        )

    by_type, said, by_leaf = in_map(update)(TREE)
    np.testing.assert_allclose(said, NORM, rtol=1e-6)
    np.testing.assert_allclose(by_leaf["kernel"], float64_norm(TREE["kernel"]), rtol=1e-6)
    assert by_type > 2 * NORM  # eight equal copies, each typed as a shard


def test_saying_an_axis_that_a_typed_leaf_does_not_vary_over_is_an_error():
    with pytest.raises(
        ValueError,
        match=r"axis_name must name axes that the gradient varies over; got \('data',\).*'data'",
    ):
        norm_in_map("data")


def test_an_axis_that_is_not_in_scope_is_an_error_that_names_those_that_are():
    with pytest.raises(
        ValueError, match=r"axis_name must name axes in scope; got 'rows'.*\('data', 'model'\)"
    ):
        norm_in_map("rows", check_vma=False)


@pytest.mark.parametrize("check_vma", [True, False])
def test_axes_that_are_left_to_the_compiler_may_be_said_and_leaves_lie_on_several(check_vma):
    mesh, specs = mesh_of(MESH), {"kernel": P("data", "model"), "bias": P("model")}
    placed = {
        **TREE,
        "kernel": jax.device_put(TREE["kernel"], NamedSharding(mesh, P("data", "model"))),
    }

    def norms(tree):
        of_groups: Any = wc.clip_by_group_norm(
            None, {"kernel": "k", "bias": "b"}, axis_name=None if check_vma else specs
        )
        state = of_groups.update(tree, of_groups.init(tree))[1]
        said = wc.global_norm(tree, axis_name=specs)
        return said, wc.global_norm(tree) if check_vma else said, state.grad_norm

    whole, unsaid, groups = in_map(
        norms, {"kernel": P("data"), "bias": P()}, axis_names={"data"}, check_vma=check_vma
    )(placed)
    np.testing.assert_allclose([whole, unsaid], NORM, rtol=1e-6)
    expected = [float64_norm(TREE["bias"]), float64_norm(TREE["kernel"])]
    np.testing.assert_allclose(groups, expected, rtol=1e-6)


def test_a_nested_shard_map_sums_over_the_axes_of_both():
    inner = jax.shard_map(
        wc.global_norm,
        in_specs=({"kernel": P(None, "model"), "bias": P()},),
        out_specs=P(),
        axis_names={"model"},
    )
    mapped = in_map(inner, {"kernel": P("data"), "bias": P()}, axis_names={"data"})
    np.testing.assert_allclose(mapped(TREE), NORM, rtol=1e-6)


def test_pmap_follows_the_rule_of_a_map_without_types():
    stacked = jnp.arange(32.0).reshape(8, 4)
    with pytest.raises(ValueError, match="axis_name must be given"):
        jax.pmap(wc.global_norm, axis_name="devices")(stacked)

    def norms(shard):
        summed = wc.global_norm(shard, axis_name="devices")
        return summed, wc.global_norm(lax.pmean(shard, "devices"), axis_name=())

    found = jax.pmap(norms, axis_name="devices")(stacked)
    for norm, whole in zip(found, (stacked, stacked.mean(0)), strict=True):
        np.testing.assert_allclose(norm, np.full(8, float64_norm(whole)), rtol=1e-6)


def test_the_axis_of_a_vmap_is_reduced_over_only_when_it_is_said():
    stacked = jnp.arange(32.0).reshape(8, 4)

    def norms(row):
        return wc.global_norm(row), wc.global_norm(row, axis_name="rows")

    each, together = jax.vmap(norms, axis_name="rows")(stacked)
    np.testing.assert_allclose(each, [float64_norm(row) for row in stacked], rtol=1e-6)
    np.testing.assert_allclose(together, np.full(8, float64_norm(stacked)), rtol=1e-6)


def test_the_pipeline_in_shard_map_is_the_pipeline_under_jit_also_where_one_shard_is_bad():
    optimizer = wc.pipeline(
        optax.adamw,
        wc.linear_warmup(peak_value=0.1, warmup_steps=2),
        max_norm=wc.running_bound(),
        skip_above=wc.running_bound(deviations=6.0),
        groups={"kernel": "k", "bias": "b"},
    )
    bad = {**TREE, "kernel": TREE["kernel"].at[0, 0].set(jnp.nan)}

    def train(params, bad):
        def step(carry, size):
            good = jax.tree.map(lambda p: jnp.cos(p) * size, carry[0])
            grads = jax.tree.map(lambda g, b: jnp.where(size == 0, b, g), good, bad)
            return wc.apply_gradients(optimizer, *carry, grads=grads), None

        sizes = jnp.array([1.0, 0.0, 2.0, 3.0, 40.0, 1.0])
        (params, state), _ = lax.scan(step, (params, optimizer.init(params)), sizes)
        return params, wc.metrics(state)

    mapped = jax.shard_map(
        train, mesh=mesh_of(MESH), in_specs=(SPECS, SPECS), out_specs=(SPECS, P())
    )
    (params, known), expected = jax.jit(mapped)(TREE, bad), jax.jit(train)(TREE, bad)
    chex.assert_trees_all_close((params, known), expected, rtol=2e-6)
    assert [int(known[name]) for name in ("nonfinite_count", "skipped_count")] == [1, 2]
    assert np.isfinite(params["kernel"]).all()


def test_the_derivative_of_a_sharded_norm_is_that_of_the_whole():
    gradient = jax.jit(jax.grad(in_map(wc.global_norm)))(TREE)
    chex.assert_trees_all_close(gradient, jax.tree.map(lambda leaf: leaf / NORM, TREE), rtol=1e-6)


def test_a_tree_without_gradients_has_norm_0_in_every_map():
    tree = {"step": jnp.int32(3), "none": None}
    assert float(norm_in_map(tree=tree, specs=P(), check_vma=False)) == 0.0
