import functools
import math
import re

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

MESHES = {"1x8": (1, 8), "2x4": (2, 4), "2x2x2": (2, 2, 2)}
AXES = ("data", "model", "expert")


def mesh_of(shape, axis_type=AxisType.Auto):
    return jax.make_mesh(shape, AXES[: len(shape)], axis_types=(axis_type,) * len(shape))


def random_case(seed, mesh_shape, leaves):
    """A tree of float32, bfloat16 and float16 leaves, each sharded over random mesh axes."""
    rng = np.random.default_rng(seed)
    tree, specs = {}, {}
    for index in range(leaves):
        rank = rng.integers(0, 4)
        axes = list(rng.permutation(AXES[: len(mesh_shape)]))
        parts = []
        for _ in range(rank):
            take = rng.integers(0, 3)
            chosen, axes = tuple(map(str, axes[:take])), axes[take:]
            parts.append(None if not chosen else chosen[0] if take == 1 else chosen)
        dtype = [np.float32, jnp.bfloat16, np.float16][rng.integers(0, 3)]
        values = rng.standard_normal((8,) * rank) * 10.0 ** rng.integers(-3, 2)
        tree[f"leaf{index}"] = jnp.asarray(values, dtype)
        specs[f"leaf{index}"] = P(*parts)
    return tree, specs


def truth(tree, max_norm):
    norm = math.sqrt(
        sum(float(np.sum(np.square(np.asarray(leaf, np.float64)))) for leaf in tree.values())
    )
    coef = min(1.0, max_norm / norm)
    return norm, coef, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) * coef, tree)


def clip(tree, axis_name=None):
    transformation = wc.clip_by_global_norm(1.5, axis_name=axis_name)
    clipped, state = transformation.update(tree, transformation.init(tree))
    return clipped, wc.metrics(state)


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


@pytest.mark.parametrize("entry", ENTRIES)
# A mesh of two axes has the same layouts in both its shapes.
@pytest.mark.parametrize(("mesh", "leaves"), [("1x8", 7), ("2x4", 14), ("2x2x2", 3), ("2x2x2", 14)])
def test_every_layout_gives_the_result_of_one_device(mesh, leaves, entry):
    mesh_shape = MESHES[mesh]
    tree, specs = random_case(leaves, mesh_shape, leaves)
    run = ENTRIES[entry](tree, specs, mesh_shape)
    norm, coef, expected = truth(tree, 1.5)
    assert norm > 1.5
    for way, (clipped, known) in run(tree).items():
        np.testing.assert_allclose(known["grad_norm"], norm, rtol=1e-6, err_msg=way)
        np.testing.assert_allclose(known["clip_coef"], coef, rtol=1e-6, err_msg=way)
        assert int(known["clipped_count"]) == 1
        for name, leaf in clipped.items():
            chex.assert_equal_shape([leaf, tree[name]])
            assert leaf.dtype == tree[name].dtype
            # Half an ulp of the leaf's dtype, and a float32 rounding of the coefficient; the second
            # term is for float16 subnormals.
            finfo = jnp.finfo(leaf.dtype)
            rtol, atol = (
                float(finfo.eps) / 2 + 1e-6,
                float(finfo.smallest_subnormal) if leaf.dtype == jnp.float16 else 0.0,
            )
            np.testing.assert_allclose(
                np.asarray(leaf, np.float64), expected[name], rtol=rtol, atol=atol, err_msg=way
            )
    below = {name: np.asarray(leaf) / np.asarray(1024, leaf.dtype) for name, leaf in tree.items()}
    norm = truth(below, 1.5)[0]
    assert norm < 1.5
    for way, (clipped, known) in run(below).items():
        np.testing.assert_allclose(known["grad_norm"], norm, rtol=1e-6, err_msg=way)
        assert int(known["clipped_count"]) == 0
        for name, leaf in clipped.items():
            assert np.asarray(leaf).tobytes() == below[name].tobytes(), way


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_every_layout_gives_it_in_the_form_for_accelerators_too(as_on, platform):
    as_on(platform, devices=8)
    tree, specs = random_case(2, MESHES["2x2x2"], leaves=6)
    norm = truth(tree, 1.5)[0]
    for entry, program in ENTRIES.items():
        for way, (_, known) in program(tree, specs, MESHES["2x2x2"])(tree).items():
            np.testing.assert_allclose(
                known["grad_norm"], norm, rtol=1e-6, err_msg=f"{entry}, {way}"
            )


MESH = (2, 4)
TREE = {"kernel": jnp.arange(32.0).reshape(8, 4), "bias": jnp.arange(3.0)}
SPECS = {"kernel": P(("data", "model")), "bias": P()}
NORM = truth(TREE, 1.0)[0]


def norm_in_map(axis_name=None, *, tree=TREE, specs=SPECS, **options):
    return jax.jit(
        jax.shard_map(
            functools.partial(wc.global_norm, axis_name=axis_name),
            mesh=mesh_of(MESH),
            in_specs=(specs,),
            out_specs=P(),
            **options,
        )
    )(tree)


def test_the_sum_of_every_distinct_axis_set_is_one_psum():
    specs = {"a": P("data"), "b": P("data"), "c": P("model"), "d": P(("data", "model")), "e": P()}
    tree = {name: jnp.ones((8, 8)) for name in specs}
    mapped = jax.shard_map(wc.global_norm, mesh=mesh_of(MESH), in_specs=(specs,), out_specs=P())
    lowered = jax.jit(mapped).lower(tree)
    # One in the ordinary pass and one in the branch that is taken only where the plain sum is out
    # of range.
    assert lowered.as_text().count("stablehlo.all_reduce") == 3 * 2
    np.testing.assert_allclose(mapped(tree), math.sqrt(5 * 64), rtol=1e-6)


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


def test_small_leaves_are_put_together_where_all_axes_are_mapped_by_hand_and_only_there(as_on):
    tree = {"a": jnp.ones(8), "b": jnp.ones((8, 3))}

    explicit = jax.device_put(tree, NamedSharding(mesh_of(MESH, AxisType.Explicit), P("data")))

    def together(function, tree=tree):
        text = jax.jit(function).lower(tree).as_text()
        sizes = re.findall(r"stablehlo\.concatenate.* -> tensor<(\d+)x", text)
        return any(int(size) >= 8 for size in sizes)  # of entries, not of the sums at three scales

    def mapped(axes):
        return jax.shard_map(
            wc.global_norm, mesh=mesh_of(MESH), in_specs=P("data"), out_specs=P(), axis_names=axes
        )

    for platform in ("cpu", "gpu"):
        as_on(platform, devices=8)
        assert together(mapped({"data", "model"}))
        assert not together(wc.global_norm, explicit)
        assert not together(mapped({"data"}))
        assert not together(wc.global_norm)


def test_what_is_sharded_in_one_way_is_read_again_with_nothing_that_is_sharded_in_another():
    # Each sort in several parts, one after the other.
    specs = {"a": P("data"), "b": P("model"), "c": P("data")}
    tree = {name: [jnp.full(4 * 4800, 2.0**-100)] * 12 for name in specs}
    tree["c"] = [leaf.astype(jnp.bfloat16) for leaf in tree["c"]]
    norm = jax.shard_map(wc.global_norm, mesh=mesh_of((4, 2)), in_specs=(specs,), out_specs=P())
    np.testing.assert_allclose(jax.jit(norm)(tree), 2.0**-100 * math.sqrt(36 * 4 * 4800), rtol=1e-6)


def test_a_map_without_types_asks_for_axis_name_and_names_the_axes_in_scope():
    with pytest.raises(
        ValueError, match=r"axis_name must be given .*\('data', 'model'\).*axis_name=\(\)"
    ):
        norm_in_map(check_vma=False)


@pytest.mark.parametrize(
    "build", [wc.clip_by_global_norm, lambda bound: wc.pipeline(optax.sgd, 0.1, max_norm=bound)]
)
def test_transformations_ask_for_axis_name_too(build):
    def update(tree):
        transformation = build(1.0)
        return transformation.update(tree, transformation.init(tree), tree)[0]

    with pytest.raises(ValueError, match="axis_name must be given"):
        jax.shard_map(
            update, mesh=mesh_of(MESH), in_specs=(SPECS,), out_specs=SPECS, check_vma=False
        )(TREE)


def test_skip_nonfinite_asks_for_axis_name_too():
    def update(tree):
        transformation = wc.skip_nonfinite(optax.sgd(0.1))
        return transformation.update(tree, transformation.init(tree), tree)[0]

    with pytest.raises(ValueError, match="axis_name must be given"):
        jax.shard_map(
            update, mesh=mesh_of(MESH), in_specs=(SPECS,), out_specs=SPECS, check_vma=False
        )(TREE)


def test_a_name_or_a_tuple_of_names_holds_for_every_leaf():
    sharded = {"kernel": P("data"), "bias": P("data")}
    tree = {"kernel": jnp.arange(8.0), "bias": jnp.arange(4.0)}
    expected = truth(tree, 1.0)[0]
    for axis_name in ("data", ("data",)):
        np.testing.assert_allclose(
            norm_in_map(axis_name, tree=tree, specs=sharded, check_vma=False), expected, rtol=1e-6
        )
    both = {"kernel": P(("data", "model"))}
    tree = {"kernel": jnp.arange(16.0)}
    norm = norm_in_map(("data", "model"), tree=tree, specs=both, check_vma=False)
    np.testing.assert_allclose(norm, truth(tree, 1.0)[0], rtol=1e-6)


def test_an_empty_tuple_says_that_gradients_are_the_same_on_every_device():
    tree = {"w": jnp.arange(4.0)}
    norm = norm_in_map((), tree=tree, specs={"w": P()}, check_vma=False)
    np.testing.assert_allclose(norm, truth(tree, 1.0)[0], rtol=1e-6)


#: `vmap` of a sum over devices, which JAX has from 0.9 on.
WAYS = ["untyped", "vmap"] if jax.__version_info__ >= (0, 9) else ["untyped"]


@pytest.mark.parametrize("way", WAYS)
def test_models_that_lie_along_an_axis_have_a_norm_each(way):
    models = jnp.arange(32.0).reshape(2, 4, 4)
    mesh = jax.make_mesh((2, 4), ("member", "data"), axis_types=(AxisType.Auto,) * 2)
    if way == "untyped":
        mapped = jax.shard_map(
            lambda shard: wc.global_norm(shard, axis_name="data")[None],
            mesh=mesh,
            in_specs=P("member", "data"),
            out_specs=P("member"),
            check_vma=False,
        )
    else:
        mapped = jax.shard_map(
            jax.vmap(wc.global_norm), mesh=mesh, in_specs=P(None, "data"), out_specs=P(None)
        )
    norms = jax.jit(mapped)(models)
    np.testing.assert_allclose(norms, [np.linalg.norm(model) for model in models], rtol=1e-6)


def test_a_prefix_of_partition_specs_says_it_for_whole_subtrees():
    tree = {"experts": {"a": jnp.arange(8.0), "b": jnp.arange(16.0)}, "shared": jnp.arange(3.0)}
    specs = {"experts": {"a": P("model"), "b": P("model")}, "shared": P()}
    flat = {"a": tree["experts"]["a"], "b": tree["experts"]["b"], "c": tree["shared"]}
    norm = norm_in_map(
        {"experts": P("model"), "shared": P()}, tree=tree, specs=specs, check_vma=False
    )
    np.testing.assert_allclose(norm, truth(flat, 1.0)[0], rtol=1e-6)


def test_what_is_said_overrides_the_type():
    def update(tree):
        gathered = {**tree, "kernel": lax.all_gather(tree["kernel"], ("data", "model"), tiled=True)}
        return (
            wc.global_norm(gathered),
            wc.global_norm(gathered, axis_name=P()),
            wc.leaf_norms(gathered, axis_name=P()),
        )

    mapped = jax.shard_map(update, mesh=mesh_of(MESH), in_specs=(SPECS,), out_specs=P())
    by_type, said, by_leaf = jax.jit(mapped)(TREE)
    np.testing.assert_allclose(said, NORM, rtol=1e-6)
    np.testing.assert_allclose(
        by_leaf["kernel"], truth({"kernel": TREE["kernel"]}, 1.0)[0], rtol=1e-6
    )
    assert by_type > 2 * NORM  # eight equal copies, each typed as a shard


def test_saying_an_axis_that_a_typed_leaf_does_not_vary_over_is_an_error():
    with pytest.raises(
        ValueError,
        match=r"axis_name must name axes that the gradient varies over; got \('data',\).*'data'",
    ):
        norm_in_map("data")


def test_an_axis_that_is_not_in_scope_is_an_error():
    with pytest.raises(
        ValueError, match=r"axis_name must name axes in scope; got 'rows'.*\('data', 'model'\)"
    ):
        norm_in_map("rows", check_vma=False)
    with pytest.raises(
        ValueError, match=r"axis_name must name axes in scope; got 'data'.* under jit the compiler"
    ):
        jax.jit(functools.partial(wc.global_norm, axis_name="data"))(TREE)


@pytest.mark.parametrize("axis_name", [3, {"kernel": "data", "bias": P()}, ["data"], ("data", 1)])
def test_an_axis_name_of_another_form_is_a_type_error(axis_name):
    with pytest.raises(
        TypeError, match=rf"axis_name must be a name.*got {re.escape(repr(axis_name))}"
    ):
        wc.global_norm(TREE, axis_name=axis_name)


def test_a_prefix_that_does_not_match_the_gradients_is_an_error():
    with pytest.raises(
        ValueError, match=r"axis_name must be .* got .*kernels.* does not match the gradients"
    ):
        norm_in_map({"kernels": P("data"), "bias": P()}, check_vma=False)


def test_a_partially_manual_map_with_types_is_right():
    def norm(tree):
        return wc.global_norm(tree)

    mesh = mesh_of(MESH)
    tree = jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, P())), TREE)
    tree["kernel"] = jax.device_put(TREE["kernel"], NamedSharding(mesh, P("data", "model")))
    specs = {"kernel": P("data"), "bias": P()}
    mapped = jax.shard_map(norm, mesh=mesh, in_specs=(specs,), out_specs=P(), axis_names={"data"})
    np.testing.assert_allclose(jax.jit(mapped)(tree), NORM, rtol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
def test_partition_specs_may_name_the_automatic_axes_of_a_partially_manual_map(check_vma):
    mesh = mesh_of(MESH)
    tree = {
        "kernel": jax.device_put(TREE["kernel"], NamedSharding(mesh, P("data", "model"))),
        "bias": TREE["bias"],
    }
    whole = {"kernel": P("data", "model"), "bias": P("model")}
    mapped = jax.shard_map(
        functools.partial(wc.global_norm, axis_name=whole),
        mesh=mesh,
        in_specs=({"kernel": P("data"), "bias": P()},),
        out_specs=P(),
        axis_names={"data"},
        check_vma=check_vma,
    )
    np.testing.assert_allclose(jax.jit(mapped)(tree), NORM, rtol=1e-6)


def test_a_partially_manual_map_without_types_asks_for_axis_name():
    mapped = jax.shard_map(
        wc.global_norm,
        mesh=mesh_of(MESH),
        in_specs=P(),
        out_specs=P(),
        axis_names={"data"},
        check_vma=False,
    )
    with pytest.raises(
        ValueError, match=r"axis_name must be given inside a map over the axes \('data',\)"
    ):
        jax.jit(mapped)(TREE)


def test_a_nested_shard_map_sums_over_the_axes_of_both():
    mesh = mesh_of(MESH)

    def outer(tree):
        inner = jax.shard_map(
            wc.global_norm,
            in_specs=({"kernel": P(None, "model"), "bias": P()},),
            out_specs=P(),
            axis_names={"model"},
        )
        return inner(tree)

    specs = {"kernel": P("data"), "bias": P()}
    mapped = jax.shard_map(outer, mesh=mesh, in_specs=(specs,), out_specs=P(), axis_names={"data"})
    np.testing.assert_allclose(jax.jit(mapped)(TREE), NORM, rtol=1e-6)


def test_a_tied_leaf_counts_as_often_as_it_stands_in_the_tree():
    def norm(leaf):
        return wc.global_norm({"embed": leaf, "head": leaf})

    mapped = jax.shard_map(norm, mesh=mesh_of(MESH), in_specs=P("data"), out_specs=P())
    np.testing.assert_allclose(
        mapped(jnp.arange(8.0)), math.sqrt(2) * truth({"w": np.arange(8.0)}, 1.0)[0], rtol=1e-6
    )


def test_pmap_follows_the_rule_of_a_map_without_types():
    stacked = jnp.arange(32.0).reshape(8, 4)
    with pytest.raises(ValueError, match="axis_name must be given"):
        jax.pmap(wc.global_norm, axis_name="devices")(stacked)
    summed = jax.pmap(functools.partial(wc.global_norm, axis_name="devices"), axis_name="devices")(
        stacked
    )
    np.testing.assert_allclose(summed, np.full(8, truth({"w": stacked}, 1.0)[0]), rtol=1e-6)
    averaged = jax.pmap(
        lambda g: wc.global_norm(lax.pmean(g, "devices"), axis_name=()), axis_name="devices"
    )(stacked)
    np.testing.assert_allclose(
        averaged, np.full(8, truth({"w": stacked.mean(0)}, 1.0)[0]), rtol=1e-6
    )


def test_the_axis_of_a_vmap_is_reduced_over_only_when_it_is_said():
    stacked = jnp.arange(32.0).reshape(8, 4)
    each = [truth({"w": row}, 1.0)[0] for row in stacked]
    np.testing.assert_allclose(jax.vmap(wc.global_norm, axis_name="rows")(stacked), each, rtol=1e-6)
    together = jax.vmap(functools.partial(wc.global_norm, axis_name="rows"), axis_name="rows")(
        stacked
    )
    np.testing.assert_allclose(together, np.full(8, truth({"w": stacked}, 1.0)[0]), rtol=1e-6)


@pytest.mark.parametrize("magnitude", [1e-30, 1e30])
def test_shards_of_every_magnitude_share_one_scale(magnitude):
    tree = {"kernel": TREE["kernel"].at[0].set(0.0) * magnitude, "bias": TREE["bias"] * magnitude}
    np.testing.assert_allclose(norm_in_map(tree=tree), truth(tree, 1.0)[0], rtol=1e-6)


def test_one_bad_shard_makes_the_whole_update_bad():
    tree = {**TREE, "kernel": TREE["kernel"].at[0, 0].set(jnp.nan)}

    def update(tree):
        optimizer = wc.pipeline(optax.adam, 0.1)
        ones = jax.tree.map(jnp.ones_like, tree)
        params, state = wc.apply_gradients(optimizer, ones, optimizer.init(tree), grads=tree)
        return params, wc.metrics(state)

    mapped = jax.shard_map(update, mesh=mesh_of(MESH), in_specs=(SPECS,), out_specs=(SPECS, P()))
    params, known = jax.jit(mapped)(tree)
    assert int(known["skipped_count"]) == 1
    chex.assert_trees_all_equal(params, jax.tree.map(jnp.ones_like, TREE))


def test_the_pipeline_in_shard_map_is_the_pipeline_under_jit():
    optimizer = wc.pipeline(optax.adamw, wc.linear_warmup(peak_value=0.1, warmup_steps=2))

    def step(carry, size):
        params, state = carry
        grads = jax.tree.map(lambda p: jnp.cos(p) * size, params)
        return wc.apply_gradients(optimizer, params, state, grads=grads), None

    def train(params):
        (params, state), _ = lax.scan(step, (params, optimizer.init(params)), jnp.arange(1.0, 4.0))
        return params, wc.metrics(state)

    mapped = jax.shard_map(train, mesh=mesh_of(MESH), in_specs=(SPECS,), out_specs=(SPECS, P()))
    chex.assert_trees_all_close(jax.jit(mapped)(TREE), jax.jit(train)(TREE), rtol=2e-6)


def test_the_derivative_of_a_sharded_norm_is_that_of_the_whole():
    mapped = jax.shard_map(wc.global_norm, mesh=mesh_of(MESH), in_specs=(SPECS,), out_specs=P())
    gradient = jax.jit(jax.grad(mapped))(TREE)
    chex.assert_trees_all_close(gradient, jax.tree.map(lambda leaf: leaf / NORM, TREE), rtol=1e-6)


def test_a_tree_without_gradients_has_norm_0_in_every_map():
    def norm(count):
        return wc.global_norm({"step": count, "none": None})

    mapped = jax.shard_map(norm, mesh=mesh_of(MESH), in_specs=P(), out_specs=P(), check_vma=False)
    assert float(mapped(jnp.int32(3))) == 0.0
