"""Who uses the package, and how: the rows of `test_clients.py`. A new client is one more line of `CLIENTS`.

A host is a library's own way to hold parameters and optimizer. It has the same few functions for
each, on a carry: a pytree with all that a training loop hands from step to step.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import flax.serialization
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState

import warmclip_jax as wc

# Of every leaf, so that it can be spread over devices, and operations compiled for one client serve
# the next.
WIDTH = 8
ONLY_B, ONLY_W = {"w": False, "b": True}, {"w": True, "b": False}

PEAK, WARMUP = 0.1, 4


def rate_at(update: int) -> float:
    """The formula of `SCHEDULE`, which never comes to its end here."""
    return PEAK * (update + 1) / WARMUP


SCHEDULE = wc.shift(wc.linear_warmup(peak_value=PEAK, warmup_steps=WARMUP), by=1)


class Optax:
    """Parameters and state side by side, as optax's own documentation has them."""

    def jit(self, step: Any, *, donate: bool) -> Any:
        return jax.jit(step, donate_argnums=(0,) if donate else ())

    def make_params(self) -> Any:
        return {
            "w": jnp.linspace(-1.0, 1.0, WIDTH**2).reshape(WIDTH, WIDTH),
            "b": jnp.linspace(0.5, -2.0, WIDTH),
        }

    def start(self, params: Any, optimizer: Any) -> Any:
        return params, optimizer.init(params)

    def step(self, optimizer: Any, carry: Any, grads: Any) -> tuple[Any, Any]:
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), updates

    def params(self, carry: Any) -> Any:
        return carry[0]

    def state(self, carry: Any) -> Any:
        """What `metrics` is given."""
        return carry[1]

    def on_flax_disk_and_back(self, carry: Any) -> Any:
        return flax.serialization.from_bytes(
            jax.tree.map(jnp.zeros_like, carry), flax.serialization.to_bytes(carry)
        )


OPTAX = Optax()


class Ours(Optax):
    """The same, with `apply_gradients`."""

    def step(self, optimizer: Any, carry: Any, grads: Any) -> tuple[Any, Any]:
        return wc.apply_gradients(optimizer, *carry, grads=grads), None


class Linen(Optax):
    def make_params(self) -> Any:
        return nn.Dense(WIDTH).init(jax.random.key(0), jnp.ones(WIDTH))

    def start(self, params: Any, optimizer: Any) -> Any:
        state = TrainState.create(apply_fn=nn.Dense(WIDTH).apply, params=params, tx=optimizer)
        return state.replace(
            step=jnp.int32(state.step)
        )  # a Python number would become an array, and a second trace

    def step(self, optimizer: Any, carry: Any, grads: Any) -> tuple[Any, Any]:
        del optimizer
        return carry.apply_gradients(grads=grads), None

    def params(self, carry: Any) -> Any:
        return carry.params

    def state(self, carry: Any) -> Any:
        return carry


class Nnx(Optax):
    """A module and its `nnx.Optimizer`, split into a graph and its arrays between steps."""

    def make_params(self) -> Any:
        return nnx.state(nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0)), nnx.Param)

    def start(self, params: Any, optimizer: Any) -> Any:
        model = nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0))
        nnx.update(model, params)
        return nnx.split((model, nnx.Optimizer(model, optimizer, wrt=nnx.Param)))

    def step(self, optimizer: Any, carry: Any, grads: Any) -> tuple[Any, Any]:
        del optimizer
        model, trainer = nnx.merge(*carry)
        trainer.update(model, grads)
        return nnx.split((model, trainer)), None

    def params(self, carry: Any) -> Any:
        return nnx.state(nnx.merge(*carry)[0], nnx.Param)

    def state(self, carry: Any) -> Any:
        return nnx.merge(*carry)[1]

    def on_flax_disk_and_back(self, carry: Any) -> Any:
        graph, state = carry
        saved = flax.serialization.to_bytes(nnx.to_pure_dict(state))
        state = jax.tree.map(jnp.zeros_like, state)  # which is replaced in place
        nnx.replace_by_pure_dict(
            state, flax.serialization.from_bytes(nnx.to_pure_dict(state), saved)
        )
        return graph, state


class Equinox(Optax):
    """The whole module as parameters, functions and all; gradients and state of its arrays alone."""

    def jit(self, step: Any, *, donate: bool) -> Any:
        jitted = eqx.filter_jit(
            lambda grads, carry: step(carry, grads), donate="all-except-first" if donate else "none"
        )
        return lambda carry, grads: jitted(grads, carry)

    def make_params(self) -> Any:
        return eqx.nn.MLP(WIDTH, WIDTH, WIDTH, 1, key=jax.random.key(0))

    def start(self, params: Any, optimizer: Any) -> Any:
        return params, optimizer.init(eqx.filter(params, eqx.is_inexact_array))

    def step(self, optimizer: Any, carry: Any, grads: Any) -> tuple[Any, Any]:
        model, state = carry
        updates, state = optimizer.update(grads, state, model)
        return (eqx.apply_updates(model, updates), state), updates

    def on_flax_disk_and_back(self, carry: Any) -> Any:
        """Flax knows no modules of equinox: its arrays alone go through the file."""
        arrays, rest = eqx.partition(carry, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)
        leaves = flax.serialization.from_bytes(
            [jnp.zeros_like(leaf) for leaf in leaves], flax.serialization.to_bytes(leaves)
        )
        return eqx.combine(structure.unflatten(map(jnp.asarray, leaves)), rest)


class Haiku(Optax):
    def make_params(self) -> Any:
        network = hk.transform(lambda x: hk.nets.MLP([WIDTH, WIDTH])(x))
        return network.init(jax.random.key(0), jnp.ones((1, WIDTH)))


@dataclasses.dataclass(frozen=True)
class Client:
    """An optimizer in a host, and what is to be expected of its metrics."""

    optimizer: Any
    host: Any = OPTAX
    rate: Callable[[int], float] | None = (
        rate_at  # of an update, numbered from 0; None where no pipeline knows it
    )
    max_norm: float | None = 1.0
    calls_per_update: int = 1
    sees_bad_steps: bool = True  # not where someone outside keeps them from it
    measured: Callable[[Any], Any] = lambda grads: grads


#: What most rows train by: quicker to compile than Adam.
momentum = functools.partial(optax.sgd, momentum=0.9)


def injected(learning_rate: Any) -> Any:
    return optax.inject_hyperparams(momentum)(learning_rate=learning_rate)


def partitioned(learning_rate: Any) -> Any:
    return optax.partition(
        {"w": momentum(learning_rate), "b": optax.adamw(learning_rate)}, {"w": "w", "b": "b"}
    )


PIPELINE = wc.pipeline(momentum, SCHEDULE)
RECORDED = wc.pipeline(momentum, SCHEDULE, record=8)
#: The bad entry is the first of the first leaf in the order of a pytree: of "b", not of "w".
CLIENTS = {
    "chain": Client(
        optax.chain(wc.clip_by_global_norm(1.0), wc.skip_nonfinite(optax.adam(0.1))), rate=None
    ),
    "skip_nonfinite": Client(wc.skip_nonfinite(optax.adam(0.1)), rate=None, max_norm=None),
    "pipeline": Client(wc.pipeline(optax.adamw, SCHEDULE)),
    "apply_gradients": Client(RECORDED, host=Ours()),
    "MultiSteps": Client(wc.skip_nonfinite(optax.MultiSteps(PIPELINE, 2)), calls_per_update=2),
    "inject_hyperparams inside": Client(wc.pipeline(injected, SCHEDULE)),
    "inject_hyperparams outside": Client(
        optax.inject_hyperparams(lambda learning_rate: wc.pipeline(momentum, learning_rate))(
            learning_rate=0.1
        ),
        rate=lambda update: 0.1,
    ),
    "partition": Client(wc.pipeline(partitioned, SCHEDULE)),
    "masked": Client(
        optax.chain(optax.masked(RECORDED, ONLY_B), optax.masked(optax.set_to_zero(), ONLY_W)),
        measured=lambda grads: grads["b"],
    ),
    "apply_if_finite": Client(optax.apply_if_finite(RECORDED, 5), sees_bad_steps=False),
    "flax linen": Client(RECORDED, host=Linen()),
    "flax nnx": Client(PIPELINE, host=Nnx()),
    "equinox": Client(PIPELINE, host=Equinox()),
    "haiku": Client(RECORDED, host=Haiku()),
}

#: Calls of `update`, each told by the size of its gradients' entries; None is a bad one.
STREAM = (0.3, None, None, 0.02, 0.1)


def gradients(like: Any, call: int, size: float | None) -> Any:
    """Gradients like some parameters, and lying as they do; other ones in each call. A bad call's
    first entry is NaN.
    """
    leaves, structure = jax.tree.flatten(like)
    grads = []
    for place, leaf in enumerate(leaves):
        values = np.cos(np.arange(leaf.size) + 3 * place + call).astype(np.float32) * np.float32(
            size or 1.0
        )
        if size is None and place == 0:
            values[0] = np.nan
        values = jnp.asarray(values.reshape(leaf.shape))
        # What is put somewhere explicitly would make the next state another input of the compiled
        # program.
        grads.append(jax.device_put(values, leaf.sharding) if leaf.committed else values)
    return structure.unflatten(grads)
