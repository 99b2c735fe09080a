"""The cells of `colabs/frameworks.ipynb`: each entry prints what is committed, and does what its sentence says.

The training entries are held against plain optax without the bad batch, in each library's own
terms.
"""

import functools
import json
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import warmclip_jax as wc
from tests.integrations.notebooks import COLABS, codes, printed, read, says_the_same, texts
from tests.problem import float64_norm

CELLS = {cell.id: cell for cell in codes(read(COLABS / "frameworks.ipynb"))}
Names = dict[str, Any]
#: What other cells build upon.
SHARED = ("first", "package", "imports", "problem", "tree")


@pytest.fixture(autouse=True)
def _their_layers_promote_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def shared() -> Names:
    names: Names = {}
    for name in SHARED:
        printed(CELLS[name], names)
    return names


@pytest.fixture
def after(request: pytest.FixtureRequest) -> Names:
    """The names that an entry's cell leaves behind, and what it printed."""
    cell, names = CELLS[request.param], shared().copy()
    names |= {"entry": request.param, "told": printed(cell, names)}
    assert says_the_same(texts(cell), names["told"])
    return names


def entry(name: str) -> Any:
    return pytest.mark.parametrize("after", [name], indirect=True)


def plain(optimizer: Any = optax.adamw, max_norm: float = 1.0) -> Any:
    return optax.chain(optax.clip_by_global_norm(max_norm), optimizer(shared()["schedule"]))


def trained(params: Any, loss: Any, optimizer: Any = None, updates: int = 2) -> tuple[Any, Any]:
    """Parameters after some updates by plain optax on the good batch, and the gradients of the
    last.
    """
    optimizer = plain() if optimizer is None else optimizer
    state, grads = optimizer.init(params), None

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        grads = jax.grad(loss)(params)
        changes, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, changes), state, grads

    for _ in range(updates):
        params, state, grads = step(params, state)
    return params, grads


def assert_two_updates_and_one_skip(ours: Any, theirs: Any, grads: Any, state: Any) -> None:
    chex.assert_trees_all_close(ours, theirs, rtol=2e-6, atol=2e-7)
    known = jax.device_get(wc.metrics(state))
    assert (known["calls"], known["step"], known["skipped_count"], known["last_skipped_call"]) == (
        3,
        2,
        1,
        1,
    )
    np.testing.assert_allclose(known["grad_norm"], float64_norm(grads), rtol=2e-6)
    np.testing.assert_allclose(known["learning_rate"], shared()["schedule"](1), rtol=1e-6)


def test_every_entry_has_a_test_here_and_says_something():
    tested = {
        name
        for test in list(globals().values())
        for mark in getattr(test, "pytestmark", [])
        if "after" in mark.args
        for name in mark.args[1]
    }
    assert tested == set(CELLS) - set(SHARED)


def in_linen(after: Names) -> Any:
    model, state, x = after["model"], after["state"], after["x"]
    assert int(state.step) == 3
    start = model.init(jax.random.key(0), x)
    return start, lambda params: after["mse"](model.apply(params, x)), state.params, state


def in_nnx(after: Names) -> Any:
    def kernel_and_bias(model: Any) -> Any:
        return {"kernel": model.kernel[...], "bias": model.bias[...]}

    start = kernel_and_bias(nnx.Linear(4, 1, rngs=nnx.Rngs(0)))
    ours = kernel_and_bias(after["model"])
    return start, functools.partial(linear_loss, after), ours, after["trainer"]


def in_equinox(after: Names) -> Any:
    model = eqx.nn.MLP(4, 1, 8, 1, key=jax.random.key(0))
    start, rest = eqx.partition(model, eqx.is_inexact_array)
    assert after["model"].activation is not None

    def loss(arrays: Any) -> Any:
        return after["mse"](jax.vmap(eqx.combine(arrays, rest))(after["x"]))

    return start, loss, eqx.filter(after["model"], eqx.is_inexact_array), after["opt_state"]


def in_haiku(after: Names) -> Any:
    network, x = after["network"], after["x"]
    start = network.init(jax.random.key(0), x)
    params, state = after["params"], after["opt_state"]
    return start, lambda params: after["mse"](network.apply(params, x)), params, state


def in_shard_map(after: Names) -> Any:
    ours = after["params"]
    assert ours["kernel"].addressable_shards[0].data.shape == (2, 1)
    start = {"kernel": jnp.zeros((4, 1)), "bias": jnp.zeros(1)}
    return start, functools.partial(linear_loss, after), ours, after["opt_state"]


def in_a_tree(after: Names) -> Any:
    loss = functools.partial(after["loss_of"], x=after["x"])
    return after["start"], loss, after["params"], after["opt_state"]


def linear_loss(after: Names, params: Any) -> Any:
    return after["mse"](after["x"] @ params["kernel"] + params["bias"])


def decaying_kernels(rate: Any) -> Any:
    mask = {name: {"kernel": True, "bias": False} for name in ("backbone", "head")}
    return optax.adamw(rate, weight_decay=0.5, mask=mask)


def two_rates(rate: Any) -> Any:
    parts: Any = {"a": optax.sgd(rate), "b": optax.sgd(lambda count: 0.1 * rate(count))}
    return optax.partition(parts, {"head": "a", "backbone": "b"})


#: What an entry trains: start, loss, what it ended at and its state; and by which optimizer.
TRAINED: dict[str, tuple[Any, Any]] = {
    "linen": (in_linen, optax.adamw),
    "nnx": (in_nnx, optax.adamw),
    "equinox": (in_equinox, optax.adamw),
    "haiku": (in_haiku, optax.adamw),
    "shard_map": (in_shard_map, optax.adamw),
    "mask": (in_a_tree, decaying_kernels),
    "rates": (in_a_tree, two_rates),
}


@pytest.mark.parametrize("after", TRAINED, indirect=True)
def test_an_entry_trains_as_plain_optax_on_one_device_without_the_bad_batch(after: Names):
    of_entry, optimizer = TRAINED[after["entry"]]
    start, loss, ours, state = of_entry(after)
    params, grads = trained(start, loss, plain(optimizer))
    assert_two_updates_and_one_skip(ours, params, grads, state)


@entry("pmap")
def test_pmap_trains_as_one_device_does_on_the_whole_batch(after: Names):
    x, y = after["x"], after["y"]
    params, grads = trained(jnp.zeros((4, 1)), lambda params: jnp.mean((x @ params - y) ** 2))
    assert jax.device_count() > 1
    for device in range(jax.device_count()):
        ours, state = jax.tree.map(
            lambda leaf, device=device: leaf[device], (after["params"], after["opt_state"])
        )
        assert_two_updates_and_one_skip(ours, params, grads, state)


@entry("frozen")
def test_frozen_parameters_stay_and_do_not_count_in_the_norm(after: Names):
    start, x = after["start"], after["x"]
    head, grads = trained(
        start["head"],
        lambda head: after["loss_of"]({"backbone": start["backbone"], "head": head}, x),
        updates=1,
    )
    chex.assert_trees_all_equal(after["params"]["backbone"], start["backbone"])
    chex.assert_trees_all_close(after["params"]["head"], head, rtol=2e-6)
    known = wc.metrics(after["opt_state"])
    np.testing.assert_allclose(known["grad_norm"], float64_norm(grads), rtol=1e-6)
    # With the others' gradients among them the norm would be another one.
    assert float(known["grad_norm"]) < 0.95 * float64_norm(after["grads"])
    assert f"{float64_norm(after['grads']):.2f}" in after["told"]
    # Stopped gradients are zeros: the norm is right, and weights decay all the same.
    stopped = after["grads"] | {"backbone": jax.tree.map(jnp.zeros_like, start["backbone"])}
    step = jax.jit(functools.partial(wc.apply_gradients, after["optimizer"]))
    moved, state = step(start, after["optimizer"].init(start), grads=stopped)
    np.testing.assert_allclose(wc.metrics(state)["grad_norm"], float64_norm(grads), rtol=1e-6)
    assert not np.array_equal(moved["backbone"]["kernel"], start["backbone"]["kernel"])


@entry("accumulation")
def test_a_bad_micro_batch_is_left_out_of_the_accumulated_update(after: Names):
    start, x = after["start"], after["x"]
    # The mean of two equal gradients is that gradient.
    params, grads = trained(start, lambda params: after["loss_of"](params, x), updates=1)
    chex.assert_trees_all_close(after["params"], params, rtol=2e-6)
    known = wc.metrics(after["opt_state"])
    assert [int(known[name]) for name in ("calls", "step", "skipped_count")] == [3, 1, 1]
    np.testing.assert_allclose(known["grad_norm"], float64_norm(grads), rtol=1e-6)


@entry("scaling")
def test_an_overflow_halves_the_scale_is_skipped_once_and_the_norm_is_the_unscaled_one(
    after: Names,
):
    scale, known = float(after["scale"].scale), wc.metrics(after["opt_state"])
    skipped = int(known["skipped_count"])
    assert 0 < skipped < 6
    assert scale == 2.0 ** (18 - skipped)
    assert int(known["step"]) == 6 - skipped
    # In half precision the gradients are right to some 2**-11.
    params, grads = trained(
        after["start"], lambda params: after["loss_of"](params, after["x"]), updates=6 - skipped
    )
    np.testing.assert_allclose(known["grad_norm"], float64_norm(grads), rtol=2**-8)
    chex.assert_trees_all_close(after["params"], params, atol=2**-8)


@entry("norms")
def test_norms_of_updates_and_parameters_are_those_of_float64(after: Names):
    start, known = after["start"], after["known"]
    grads = jax.grad(after["loss_of"])(start, after["x"])
    moved = jax.tree.map(
        lambda new, old: np.asarray(new, np.float64) - np.asarray(old, np.float64),
        after["params"],
        start,
    )
    np.testing.assert_allclose(known["param_norm"], float64_norm(start), rtol=1e-6)
    # The parameters have been rounded.
    np.testing.assert_allclose(known["update_norm"], float64_norm(moved), rtol=1e-5)
    np.testing.assert_allclose(known["grad_norm"], float64_norm(grads), rtol=1e-6)


@entry("logging")
def test_a_line_of_the_log_is_strict_json_with_every_metric(after: Names):
    def never(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    logged = json.loads(after["line"], parse_constant=never)
    known = wc.metrics(after["opt_state"])
    assert set(logged) == set(known)
    assert (logged["step"], logged["skip_bound"], type(logged["step"])) == (2, None, int)
    np.testing.assert_allclose(logged["grad_norm"], known["grad_norm"], atol=5e-5)


@entry("stopping")
def test_the_run_stops_at_the_fifth_bad_step_in_a_row(after: Names):
    assert after["call"] == 3 + 5 - 1
    known = wc.metrics(after["opt_state"])
    assert [int(known[name]) for name in ("step", "consecutive_skips", "last_skipped_call")] == [
        3,
        5,
        7,
    ]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after["params"]))


@entry("statistics")
def test_averages_and_batch_statistics_are_those_of_two_good_batches(after: Names):
    x, state = after["x"], after["state"]
    # flax: a tenth of nothing, twice, and momentum 0.99.
    mean = np.mean(np.asarray(x, np.float64), axis=0)
    np.testing.assert_allclose(
        state.batch_stats["BatchNorm_0"]["mean"], mean * (1 - 0.99**2), rtol=1e-5, atol=1e-7
    )
    start = after["variables"]["params"]
    once, twice = (
        trained(
            start,
            functools.partial(normalized_loss, after["model"], after["variables"], x, after["y"]),
            updates=n,
        )[0]
        for n in (1, 2)
    )
    ema = jax.tree.map(lambda a, b, c: 0.9 * (0.9 * a + 0.1 * b) + 0.1 * c, start, once, twice)
    chex.assert_trees_all_close(state.params, twice, rtol=2e-6, atol=2e-7)
    chex.assert_trees_all_close(state.ema, ema, rtol=2e-6, atol=2e-7)


def normalized_loss(model: Any, variables: Any, x: Any, y: Any, params: Any) -> Any:
    prediction, _ = model.apply({**variables, "params": params}, x, mutable=["batch_stats"])
    return jnp.mean((prediction - y) ** 2)
