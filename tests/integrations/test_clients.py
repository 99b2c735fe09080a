"""Every client in every situation: good and bad steps run, leave what they should, and are told as they were.

Each cell trains on `STREAM`, whose bad calls hold a NaN. What it is compared with: the same run
without those calls, to the last bit where the same program runs; and for its metrics a count of our
own, NumPy's float64 and the schedule's formula.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import warmclip_jax as wc
from tests.integrations.clients import CLIENTS, STREAM, Client, gradients
from tests.problem import float64_norm

#: Outside of jit optax compiles a branch anew in each call.
every_client = pytest.mark.parametrize("name", CLIENTS)


@pytest.fixture(autouse=True)
def _their_layers_promote_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def stepper(name: str, donate: bool | None) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The client's step: as it is for None, else compiled; one program for all cells that can share
    it.
    """
    client = CLIENTS[name]
    step = functools.partial(client.host.step, client.optimizer)
    return step if donate is None else client.host.jit(step, donate=donate)


def stream_like(params: Any, sizes: Any = STREAM) -> list[Any]:
    arrays = eqx.filter(params, eqx.is_inexact_array)
    return [gradients(arrays, call, size) for call, size in enumerate(sizes)]


def train(name: str, start: Any, stream: list[Any], donate: bool | None) -> Any:
    """The last carry, and after each call what metrics said and the updates, where the host shows
    them.
    """
    host, step = CLIENTS[name].host, stepper(name, donate)
    carry, told, made = start, [], []
    for grads in stream:
        carry, updates = step(carry, grads)
        told.append(wc.metrics(host.state(carry)))
        made.append(updates)
    return carry, told, made


def expected_metrics(client: Client, calls: list[Any]) -> dict[str, float]:
    """What metrics should say after some calls, each given by its gradients."""
    norms = [float64_norm(client.measured(grads)) for grads in calls]
    bad = [call for call, norm in enumerate(norms) if np.isnan(norm)]
    good = [norm for norm in norms if not np.isnan(norm)]
    if not client.sees_bad_steps:
        norms, bad = good, []
    updates = len(good) // client.calls_per_update
    last_good = max((call for call, norm in enumerate(norms) if not np.isnan(norm)), default=-1)
    expected = {
        "calls": len(norms),
        "grad_norm": norms[-1],
        "nonfinite_count": len(bad),
        "skipped_count": len(bad),
        "consecutive_skips": len(norms) - 1 - last_good,
        "last_skipped_call": bad[-1] if bad else -1,
        "step": updates,
    }
    if client.rate is not None:
        expected["learning_rate"] = client.rate(updates - 1) if updates else np.nan
    if client.max_norm is not None:
        expected["max_norm"] = (
            client.max_norm if updates or client.calls_per_update == 1 else np.nan
        )
    return expected


def assert_metrics(client: Client, known: Any, calls: list[Any], rtol: float = 1e-6) -> None:
    for name, value in expected_metrics(client, calls).items():
        np.testing.assert_allclose(
            np.float64(known[name]), value, rtol=rtol, err_msg=f"{name} after {len(calls)} calls"
        )
    assert ("learning_rate" in known) == (client.rate is not None)
    assert ("max_norm" in known) == (client.max_norm is not None)


def described(tree: Any) -> list[Any]:
    return [(leaf.shape, leaf.dtype, leaf.sharding) for leaf in jax.tree.leaves(tree)]


def on_mesh(kind: AxisType) -> NamedSharding:
    return NamedSharding(
        jax.make_mesh((2,), ("d",), axis_types=(kind,), devices=jax.devices()[:2]), P("d")
    )


def copied(tree: Any) -> Any:
    """The same where it lies."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if eqx.is_array(leaf) else leaf, tree)


def as_made_here(tree: Any) -> Any:
    """The same without a device: what a file put somewhere would be compiled for anew."""
    return jax.tree.map(
        lambda leaf: jnp.array(np.asarray(leaf)) if eqx.is_array(leaf) else leaf, tree
    )


def spread(tree: Any, sharding: NamedSharding | None) -> Any:
    """Every array over all devices by its first dimension, scalars on each; all where it is without
    a sharding.
    """

    def place(leaf: Any) -> Any:
        if not eqx.is_array(leaf) or sharding is None:
            return leaf
        return jax.device_put(leaf, sharding if leaf.ndim else NamedSharding(sharding.mesh, P()))

    return jax.tree.map(place, tree)


@dataclasses.dataclass(frozen=True)
class Situation:
    donate: bool | None  # None: not compiled
    mesh: AxisType | None = None

    @property
    def sizes(self) -> Any:
        """Outside of jit optax compiles a branch anew in each call: fewer of them."""
        return (STREAM[0], None, STREAM[-1]) if self.donate is None else STREAM


#: Outside of jit, on a mesh and under x64, the rest does as one of these does.
SOME = ("chain", "pipeline", "MultiSteps", "partition", "inject_hyperparams outside")
SOME += ("flax nnx", "equinox")
#: Each with the clients that are in it.
SITUATIONS = {
    "jit with donation": (Situation(donate=True), tuple(CLIENTS)),
    "eager": (Situation(None), SOME),
    "explicit mesh, eager": (Situation(None, AxisType.Explicit), ("chain", "pipeline", "equinox")),
    "explicit mesh, jit": (Situation(donate=False, mesh=AxisType.Explicit), SOME),
    "automatic mesh, jit with donation": (Situation(donate=True, mesh=AxisType.Auto), SOME),
}


@pytest.mark.parametrize(
    ("name", "situation"),
    [(name, situation) for situation, (_, names) in SITUATIONS.items() for name in names],
)
def test_a_bad_step_never_came_looks_like_a_good_one_and_is_told(name: str, situation: str):
    client, (where, _) = CLIENTS[name], SITUATIONS[situation]
    donate, sizes = where.donate, where.sizes
    sharding = None if where.mesh is None else on_mesh(where.mesh)

    start = client.host.start(spread(client.host.make_params(), sharding), client.optimizer)
    if donate is not None:
        # Outside of jit the state stays as `init` makes it, its counts on one device. A compiled
        # step would be compiled twice.
        start = spread(start, sharding)
    stream = stream_like(client.host.params(start), sizes)
    good = [grads for grads, size in zip(stream, sizes, strict=True) if size]
    without, _, _ = train(name, copied(start), good, donate)
    carry, told, made = train(name, start, stream, donate)
    chex.assert_trees_all_equal(
        *(eqx.filter(client.host.params(each), eqx.is_array) for each in (carry, without))
    )
    for call, known in enumerate(told):
        assert_metrics(client, known, stream[: call + 1])
    for call, size in enumerate(sizes):
        assert described(made[call]) == described(made[0])
        if size is None:
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(made[call]))


def scanned(name: str, start: Any, stream: list[Any]) -> tuple[Any, list[dict[str, np.ndarray]]]:
    """The last carry of one compiled loop over the stream, and what metrics said in each call."""
    client = CLIENTS[name]
    arrays, rest = eqx.partition(start, eqx.is_array)

    def step(arrays: Any, grads: Any) -> Any:
        carry, _ = client.host.step(client.optimizer, eqx.combine(arrays, rest), grads)
        return eqx.filter(carry, eqx.is_array), wc.metrics(client.host.state(carry))

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stream)
    arrays, told = jax.jit(functools.partial(jax.lax.scan, step))(arrays, stacked)
    return eqx.combine(arrays, rest), [
        {key: values[call] for key, values in told.items()} for call in range(len(stream))
    ]


@functools.cache
def as_jitted(name: str) -> tuple[Any, list[Any], Any]:
    """A start, the stream for it, and the parameters after the compiled steps without the bad
    calls.
    """
    client = CLIENTS[name]
    start = client.host.start(client.host.make_params(), client.optimizer)
    stream = stream_like(client.host.params(start))
    good = [grads for grads, size in zip(stream, STREAM, strict=True) if size]
    carry, _, _ = train(name, copied(start), good, donate=True)
    return start, stream, eqx.filter(client.host.params(carry), eqx.is_array)


@functools.cache
def halfway(name: str) -> Any:
    """The carry of the compiled steps after a good call and a bad one."""
    start, stream, _ = as_jitted(name)
    return train(name, copied(start), stream[:2], donate=True)[0]


def assert_params(name: str, carry: Any, rtol: float, atol: float) -> None:
    params = eqx.filter(CLIENTS[name].host.params(carry), eqx.is_array)
    chex.assert_trees_all_close(params, as_jitted(name)[2], rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", SOME)
def test_a_float32_run_goes_on_under_x64_in_a_scan(name: str):
    start, stream, _ = as_jitted(name)
    before = halfway(name)
    with jax.enable_x64(True):
        carry, told = scanned(name, before, stream[2:])
    chex.assert_trees_all_equal_shapes_and_dtypes(
        *(eqx.filter(each, eqx.is_array) for each in (carry, start))
    )
    # In float32 Adam's 1 - 0.999**t is off by up to 2**-24 / 0.001, and an update is a tenth.
    assert_params(name, carry, rtol=2e-6, atol=0.1 * 2**-24 / 1e-3)
    for call, known in enumerate(told):
        assert_metrics(CLIENTS[name], known, stream[: call + 3])


@every_client
def test_a_scan_gives_the_numbers_of_single_steps_also_when_the_scalars_of_our_state_were_cast(
    name: str,
):
    def cast(path: Any, leaf: Any) -> Any:
        is_scalar = (
            eqx.is_array(leaf) and leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.floating)
        )
        # The hyper-parameters that optax injects are its own: it casts them back.
        return (
            leaf.astype(jnp.bfloat16)
            if is_scalar and "hyperparams" not in jax.tree_util.keystr(path)
            else leaf
        )

    start, stream, _ = as_jitted(name)
    start = jax.tree_util.tree_map_with_path(cast, start)
    carry, told = scanned(name, start, stream)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        *(eqx.filter(each, eqx.is_array) for each in (carry, start))
    )
    assert_params(name, carry, rtol=2e-6, atol=2e-7)
    for call, known in enumerate(told):
        assert_metrics(CLIENTS[name], known, stream[: call + 1], rtol=2**-8)


#: test_disks.py has those whose parameters and state are plain trees.
@pytest.mark.parametrize("name", ["flax linen", "flax nnx", "equinox"])
def test_a_run_that_was_saved_after_a_bad_step_goes_on_as_one_that_saw_none(
    name: str, tmp_path: pathlib.Path
):
    arrays, rest = eqx.partition(halfway(name), eqx.is_array)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", arrays)
        checkpointer.wait_until_finished()
        by_orbax = checkpointer.restore(tmp_path / "state", jax.tree.map(jnp.zeros_like, arrays))
    by_flax = CLIENTS[name].host.on_flax_disk_and_back(halfway(name))
    _, stream, expected = as_jitted(name)
    for restored in (eqx.combine(by_orbax, rest), by_flax):
        carry, told, _ = train(name, as_made_here(restored), stream[2:], donate=True)
        chex.assert_trees_all_equal(
            eqx.filter(CLIENTS[name].host.params(carry), eqx.is_array), expected
        )
        for call, known in enumerate(told):
            assert_metrics(CLIENTS[name], known, stream[: call + 3])


def read(state: Any) -> dict[str, Any]:
    """All that can be read of a state."""
    told: dict[str, Any] = {"report": wc.report(state)}
    told["metrics"] = {name: value.tolist() for name, value in wc.metrics(state).items()}
    if "Record" in told["report"]:
        told["records"] = {name: column.tolist() for name, column in wc.records(state).items()}
    return told


#: test_under_flags.py has streams of other calls, steps outside of jit and pictures.
@every_client
def test_each_client_is_read_and_goes_on_under_the_debug_flags_as_without_them(name: str):
    host, good = CLIENTS[name].host, as_jitted(name)[1][0]
    step, before = stepper(name, True), halfway(name)
    expected, (after, _) = read(host.state(before)), step(copied(before), good)
    with jax.debug_nans(True), jax.debug_infs(True):
        np.testing.assert_equal(read(host.state(before)), expected)
        under, _ = step(copied(before), good)
        told = read(host.state(under))
    chex.assert_trees_all_equal(*(eqx.filter(each, eqx.is_array) for each in (under, after)))
    np.testing.assert_equal(told, read(host.state(after)))
