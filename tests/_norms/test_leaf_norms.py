"""The norm of each leaf and of each group: their range, what is no gradient, derivatives, and what
they cost.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests import reference
from tests.cases import case
from tests.compiled import readers, summation_error, temporaries
from tests.trees import BF16, LONG, SHORT, Pair, assert_same_bits, normal
from warmclip_jax._norms._frame import each_alone, scaled_norms
from warmclip_jax._norms._leaves import shortened
from warmclip_jax._norms._range import ScaledNorm

pytestmark = pytest.mark.usefixtures("strict_dtypes")

FEW_ULP = 4 * 2.0**-23
FEW_ULP_64 = 4 * 2.0**-52
FORMS = [("cpu", 1), ("cpu", 8), ("gpu", 1), ("gpu", 8), ("tpu", 1), ("tpu", 8)]
#: Several small ones of one shape, which may be read together; a scalar; an empty one; one that is
#: read by itself.
SHAPES = [(5,), (5,), (2, 3), (), (0, 2), (70, 80)]


def scaled_leaf_norms(tree: Any) -> ScaledNorm:
    return scaled_norms(tree, None, each_alone)[0]


def tree_of(dtypes: list[Any], seed: int) -> dict[str, np.ndarray]:
    """Leaves of all shapes and dtypes whose magnitudes are anywhere in the range of their dtype,
    zeros among them.
    """
    rng = np.random.default_rng(seed)
    tree: dict[str, np.ndarray] = {}
    for dtype in dtypes:
        info = reference.limits(np.zeros((), dtype))
        # No norm of a leaf of 5,600 entries is past the largest number; the largest one is another
        # test's.
        lowest, highest = (
            (info.minexp - info.nmant if dtype is np.float16 else info.minexp),
            info.maxexp - 3,
        )
        for place, shape in enumerate(SHAPES):
            power = rng.integers(lowest, highest - (9 if math.prod(shape) > 10 else 0))
            entries = np.clip(normal(seed * 31 + place, shape, np.complex128), -4, 4) * rng.choice(
                [0, 1, 1, 1, 1]
            )
            parts = entries if np.dtype(dtype).kind == "c" else entries.real
            with np.errstate(over="ignore", under="ignore"):
                tree[f"{np.dtype(dtype).name} {place}"] = np.asarray(
                    np.ldexp(1.0, int(power)) * parts
                ).astype(dtype)
    return tree


def assert_norms(norms: dict[str, Any], tree: dict[str, np.ndarray], tolerance: float) -> None:
    assert list(norms) == sorted(tree)
    for name, leaf in tree.items():
        expected = reference.global_norm([leaf])
        # A norm below the smallest normal number is flushed to zero as an entry is.
        dtype = np.asarray(norms[name]).dtype
        absolute = float(np.finfo(dtype).tiny)
        relative = tolerance + (summation_error(leaf.shape) if dtype == np.float32 else 0)
        with case(name=name):
            assert float(norms[name]) == pytest.approx(
                expected, rel=relative, abs=0 if expected > absolute else absolute
            )


@pytest.mark.parametrize(("platform", "devices"), FORMS)
def test_each_leaf_has_its_norm_over_the_whole_range_in_every_form_and_a_bad_entry_is_of_its_leaf_alone(
    as_on, platform, devices
):
    as_on(platform, devices)
    # Here the CPU adds the three sums of GPUs one entry after the other, and so rounds as often.
    tolerance = 70 * 80 * 2.0**-25 if (platform, devices) == ("gpu", 1) else FEW_ULP
    jitted = jax.jit(scaled_leaf_norms)
    tree = tree_of(SHORT, 0)
    names = sorted(tree)
    for seed in range(25):
        tree = tree_of(SHORT, seed)
        with case(seed=seed):
            assert_norms(dict(zip(names, jitted(tree).value, strict=True)), tree, tolerance)
    # The front door outside of jit, bit for bit.
    eager = wc.leaf_norms(tree)
    assert list(eager) == names
    assert [norm.tobytes() for norm in eager.values()] == [
        norm.tobytes() for norm in jitted(tree).value
    ]

    tree = {name: np.asarray(np.ones(leaf.shape), leaf.dtype) for name, leaf in tree.items()}
    tree["float32 2"] = np.full((2, 3), 3e38, np.float32)
    for bad in (math.nan, math.inf, -math.inf):
        for name in ("float16 0", "bfloat16 5", "float32 1", "complex64 2", "float32 3"):
            broken = dict(tree)
            broken[name] = tree[name].copy()
            broken[name][(0,) * tree[name].ndim] = bad
            with case(bad=bad, name=name):
                norms = jitted(broken)
                assert [n for n, fine in zip(names, norms.is_finite, strict=True) if not fine] == [
                    name
                ]
                assert abs(norms.value[names.index(name)]) != abs(bad) or math.isinf(bad)
                # Finite entries whose norm is not representable are no bad ones.
                assert math.isinf(norms.value[names.index("float32 2")])


def test_one_float64_leaf_makes_all_norms_float64(x64):
    jitted = jax.jit(wc.leaf_norms)
    for seed in range(25):
        tree = tree_of([*LONG, np.float32, BF16], seed)
        with case(seed=seed):
            norms = jitted(tree)
            assert {norm.dtype for norm in norms.values()} == {np.dtype(np.float64)}
            assert_norms(norms, tree, FEW_ULP_64)


def test_what_is_no_gradient_has_no_norm():
    rest = {
        "none": None,
        "int": np.ones(3, np.int32),
        "key": jax.random.key(0),
        "masked": optax.MaskedNode(),
        "name": "w",
    }
    rest["float0"] = np.zeros(3, jax.dtypes.float0)
    assert wc.leaf_norms(rest) == {}
    assert wc.leaf_norms({}) == {}
    none = scaled_leaf_norms({})
    assert none.mantissa.shape == none.scale.shape == (0,)
    assert {
        name: float(norm)
        for name, norm in wc.leaf_norms({**rest, "w": np.array([3.0, 4.0], np.float32)}).items()
    } == {"w": 5}


@jax.tree_util.register_pytree_with_keys_class
class Variable:
    """As a variable of flax.nnx: a node, and an array to whoever asks for one."""

    def __init__(self, value: Any):
        self.value = value

    def __jax_array__(self) -> Any:
        return jnp.asarray(self.value)

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("value"), self.value)], None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any]):
        return cls(*children)


def test_paths_stop_at_variables_and_are_numbered_where_two_leaves_share_one():
    one = np.ones(1, np.float32)
    tree = {
        "block": [Variable(one), {"w": 2 * one}],
        "a/b": 3 * one,
        "a": {"b": 4 * one},
        "pair": Pair(5 * one, 6 * one),
    }
    norms = {path: float(norm) for path, norm in wc.leaf_norms(tree).items()}
    # In leaf order.
    assert list(norms) == ["a/b#0", "a/b#1", "block/0", "block/1/w", "pair/0", "pair/1"]
    assert norms == {"a/b#0": 4, "a/b#1": 3, "block/0": 1, "block/1/w": 2, "pair/0": 5, "pair/1": 6}


def test_every_leaf_has_a_name_of_its_own_that_can_be_written():
    one = np.ones(1, np.float32)
    tree = {"a/b": one, "a": {"b": one, "c d": one, "c\nd": one}, "a/b#0": one, "\udc80": one}
    tree |= {"\\udc80": one, "a/b#2": one, "": one}
    names = list(wc.leaf_norms(tree))
    assert len(set(names)) == len(tree) + 2
    assert {"a/b#0", "a/b#1", "a/b#2", "a/b#3"} <= set(names)
    assert {"a/c d#0", "a/c d#1", "\\udc80#0", "\\udc80#1"} <= set(names)
    clip: Any = wc.clip_by_global_norm(1.0, record_leaves=True)
    state = clip.update(tree, clip.init(tree))[1]
    recorded = [name for name in wc.metrics(state, leaves=True) if name.endswith("/grad_norm")]
    assert set(recorded) == {f"leaf/{name}/grad_norm" for name in names}


def test_vmap_takes_each_tree_in_its_own_range():
    scales = np.array([0, 1e-36, 1e-30, 1, 1e20, 1e37, math.inf], np.float32)
    tree = {
        "small": scales[:, None] * np.array([[1, 2, 2]], np.float32),
        "large": np.broadcast_to(scales[:, None, None], (7, 70, 80)),
    }
    norms = jax.vmap(wc.leaf_norms)(tree)
    np.testing.assert_allclose(norms["small"], 3 * scales.astype(np.float64), rtol=FEW_ULP)
    # The last sum is of 5,600 entries, 70 times the root of them: past float32.
    tolerance = FEW_ULP + summation_error((70, 80))
    np.testing.assert_allclose(
        norms["large"][:-2], math.sqrt(5600) * scales[:-2].astype(np.float64), rtol=tolerance
    )


# Derivatives.


@pytest.mark.parametrize("scale", [1e-35, 1.0, 1e30])
def test_the_derivative_of_each_norm_is_the_unit_vector_of_its_leaf(scale):
    tree = {
        "a": normal(0, (5,)) * np.float32(scale),
        "b": normal(1, (70, 80)),
        "zero": np.zeros(3, np.float32),
    }
    units = {
        name: leaf.astype(np.float64) / (reference.global_norm([leaf]) or 1)
        for name, leaf in tree.items()
    }
    norms, pull = jax.vjp(jax.jit(wc.leaf_norms), tree)
    for name in tree:
        (gradient,) = pull({other: jnp.float32(other == name) for other in norms})
        for other, unit in units.items():
            expected = unit if other == name else np.zeros_like(unit)
            np.testing.assert_allclose(
                np.asarray(gradient[other]), expected, rtol=FEW_ULP, err_msg=f"{name} {other}"
            )


# What it costs.


@pytest.mark.parametrize(("platform", "reads"), [("cpu", 1), ("gpu", 1), ("tpu", 1)])
def test_all_norms_read_a_gradient_once(as_on, platform, reads):
    as_on(platform, devices=1)
    tree = {
        name: jnp.ones(shape)
        for name, shape in (("a", (1000, 100)), ("b", (10**6,)), ("c", (64, 3, 3, 64)))
    }
    compiled: Any = jax.jit(lambda tree: scaled_leaf_norms(tree)).lower(tree).compile()
    # The forms of accelerators add three squares of an entry at once, and write none.
    assert temporaries(compiled, tree.values() if platform == "cpu" else ()) < tree["c"].nbytes / 4
    if platform == "cpu":
        for name in tree:
            assert readers(compiled, f"tree[\\'{name}\\']") == ["fusion"] * reads, name


def test_large_leaves_of_one_shape_compile_as_one():
    # What XLA compiles alike it compiles once; slices of a vector would each be a program.
    leaves = [jnp.ones((70, 80))] * 12
    text: Any = jax.jit(wc.leaf_norms).lower(leaves).compile().as_text()
    assert " slice(" not in text[text.index("\nENTRY") :]


def test_a_norm_of_a_leaf_past_the_largest_number_is_inf_and_keeps_its_mantissa():
    tree = [np.full(4, 3e38, np.float32), np.full((70, 80), ml_dtypes.finfo(BF16).max, BF16)]
    each = scaled_leaf_norms(tree)
    assert np.isinf(each.value).all()
    assert np.asarray(each.is_finite).all()
    expected = [2 * 3e38, math.sqrt(5600) * float(ml_dtypes.finfo(BF16).max)]
    exact = np.asarray(each.mantissa, np.float64) / np.asarray(each.scale, np.float64)
    np.testing.assert_allclose(exact, expected, rtol=FEW_ULP + summation_error((70, 80)))


def test_a_message_shows_200_characters_of_a_long_value():
    assert shortened("x" * 198) == repr("x" * 198)
    assert shortened("x" * 199) == repr("x" * 199)[:200] + " ..."


# In maps.


def in_a_map(kind: str, function: Any) -> Any:
    """`function(shard, axis_name)` on two devices, each with half of an array."""
    if kind == "pmap":
        mapped = jax.pmap(lambda shard: function(shard, "d"), "d", devices=jax.devices()[:2])
        halves = lambda whole: mapped(whole.reshape(2, -1))  # noqa: E731
        return lambda whole: jax.tree.map(lambda each: each[0], halves(whole))
    typed = kind == "typed"
    return jax.jit(
        jax.shard_map(
            lambda shard: function(shard, None if typed else "d"),
            mesh=jax.make_mesh(
                (2,), ("d",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2]
            ),
            in_specs=jax.P("d"),
            out_specs=jax.P(),
            check_vma=typed,
        )
    )


@pytest.mark.parametrize(("kind", "power"), [("typed", 25), ("untyped", 20), ("pmap", 20)])
def test_a_leaf_of_large_shards_has_the_norm_that_the_whole_tree_has(kind, power):
    # Added one entry after the other, 2^20 squares of 0.1 are 0.7 % off, and 2^25 of them 12 %.
    whole = jnp.full(2 * 2**power, 0.1)
    expected = float(np.float32(0.1)) * math.sqrt(whole.size)

    def norms(shard: Any, axis_name: Any) -> Any:
        tree = {"w": shard, "b": shard[:5]}
        clip: Any = wc.clip_by_group_norm(None, {"w": "w", "b": "b"}, axis_name=axis_name)
        grouped = clip.update(tree, clip.init(tree))[1].grad_norm[1]
        leaf = wc.leaf_norms({"w": shard}, axis_name=axis_name)["w"]
        return leaf, grouped, wc.global_norm(shard, axis_name=axis_name)

    for norm in in_a_map(kind, norms)(whole):
        assert float(norm) == pytest.approx(expected, rel=FEW_ULP)


@pytest.mark.parametrize("kind", ["typed", "untyped", "pmap"])
def test_recording_leaves_and_calls_changes_no_bit_of_a_run_in_a_map(kind):
    def run(shard: Any, axis_name: Any) -> Any:
        tree = [shard, *(shard[: 3 + 11 * index].reshape(-1, 1) for index in range(9))]
        found = []
        for options in ({}, {"record_leaves": True, "record": 4}):
            optimizer = wc.pipeline(optax.sgd, 0.1, axis_name=axis_name, **options)
            _, state = optimizer.update(tree, optimizer.init(tree), tree)
            metrics = wc.metrics(state)
            found.append((metrics["grad_norm"], metrics["clip_coef"]))
        return found

    mapped = in_a_map(kind, run)
    # In sizes with a second pass too, which reads leaves in another order than norms of each do.
    for size in (1.0, 1e-25, 1e25):
        alone, recorded = mapped(jnp.asarray(normal(3, (2 * 5000,)) * np.float32(size)))
        with case(size=size):
            assert_same_bits(recorded, alone)
