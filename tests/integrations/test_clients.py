"""Every client in every situation: good and bad steps run, leave what they should, and are told as they were.

Each cell trains on `STREAM`, whose bad calls hold a NaN. What it is compared with: the same run without those calls, to the
last bit where the same program runs; and for its metrics a count of our own, NumPy's float64 and the schedule's formula.
"""

import dataclasses
import functools
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
from tests.integrations.clients import CLIENTS, STREAM, WIDTH, Client, gradients
from tests.problem import float64_norm

every_client = pytest.mark.parametrize("name", CLIENTS)


@pytest.fixture(autouse=True)
def _their_layers_promote_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def stepper(name: str, donate: bool | None) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The client's step: as it is for None, else compiled; one program for all cells that can share it."""
    client = CLIENTS[name]
    step = functools.partial(client.host.step, client.optimizer)
    return step if donate is None else client.host.jit(step, donate=donate)


def stream_like(params: Any, sizes: Any = STREAM) -> list[Any]:
    arrays = eqx.filter(params, eqx.is_inexact_array)
    return [gradients(arrays, call, size) for call, size in enumerate(sizes)]


def train(name: str, start: Any, stream: list[Any], donate: bool | None) -> Any:
    """The last carry, and after each call what metrics said and the updates, where the host shows them."""
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
        expected["max_norm"] = client.max_norm if updates or client.calls_per_update == 1 else np.nan
    return expected


def assert_metrics(client: Client, known: dict[str, jax.Array], calls: list[Any], rtol: float = 1e-6) -> None:
    for name, value in expected_metrics(client, calls).items():
        np.testing.assert_allclose(np.float64(known[name]), value, rtol=rtol, err_msg=f"{name} after {len(calls)} calls")
    assert ("learning_rate" in known) == (client.rate is not None)
    assert ("max_norm" in known) == (client.max_norm is not None)


def described(tree: Any) -> list[Any]:
    return [(leaf.shape, leaf.dtype, leaf.sharding) for leaf in jax.tree.leaves(tree)]


def on_mesh(kind: AxisType) -> NamedSharding:
    return NamedSharding(jax.make_mesh((WIDTH,), ("d",), axis_types=(kind,)), P("d"))


def spread(tree: Any, sharding: NamedSharding | None) -> Any:
    """A copy with every array over all devices by its first dimension, scalars on each; or where it is, without a sharding."""

    def place(leaf: Any) -> Any:
        if not eqx.is_array(leaf) or sharding is None:
            return jnp.copy(leaf) if eqx.is_array(leaf) else leaf
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


SITUATIONS = {
    "eager": Situation(None),
    "jit": Situation(donate=False),
    "jit with donation": Situation(donate=True),
    "explicit mesh, eager": Situation(None, AxisType.Explicit),
    "explicit mesh, jit": Situation(donate=False, mesh=AxisType.Explicit),
    "automatic mesh, eager": Situation(None, AxisType.Auto),
    "automatic mesh, jit with donation": Situation(donate=True, mesh=AxisType.Auto),
}


@every_client
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_bad_step_never_came_looks_like_a_good_one_and_is_told(name: str, situation: str):
    client, donate, mesh = CLIENTS[name], SITUATIONS[situation].donate, SITUATIONS[situation].mesh
    sizes = SITUATIONS[situation].sizes
    sharding = None if mesh is None else on_mesh(mesh)

    def start() -> Any:
        params = spread(client.host.make_params(), sharding)
        carry = client.host.start(params, client.optimizer)
        # Outside of jit the state stays as `init` makes it, its counts on one device. A compiled step would be compiled twice.
        return carry if donate is None else spread(carry, sharding)

    stream = stream_like(client.host.params(start()), sizes)
    carry, told, made = train(name, start(), stream, donate)
    without, _, _ = train(name, start(), [grads for grads, size in zip(stream, sizes, strict=True) if size], donate)
    chex.assert_trees_all_equal(*(eqx.filter(client.host.params(each), eqx.is_array) for each in (carry, without)))
    for call, known in enumerate(told):
        assert_metrics(client, known, stream[: call + 1])
    for call, size in enumerate(sizes):
        assert described(made[call]) == described(made[0])
        if size is None:
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(made[call]))
