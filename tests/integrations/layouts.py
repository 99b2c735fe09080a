"""A run that goes on from its checkpoints, on whatever devices there are then."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import warmclip_jax as wc

CALLS, EVERY = 16, 4
NAN, SPIKE = 5, 13
SPECS = {"kernel": P(None, "model"), "bias": P(), "head": P(None, "model")}
SHAPES = {"kernel": (6, 8), "bias": (1, 8), "head": (1, 8)}
OPTIMIZER = wc.pipeline(
    optax.adamw,
    wc.warmup_cosine_decay(peak_value=0.05, total_steps=CALLS, warmup_steps=3),
    max_norm=wc.running_bound(ceiling=2.0),
    skip_above=wc.running_bound(deviations=6.0),
    record=CALLS,
    record_leaves=True,
)


def mesh_of(data: int, model: int, kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    devices = jax.devices()[: data * model]
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(kind,) * 2, devices=devices)


def batch_of(call: int) -> np.ndarray:
    batch = np.random.default_rng(call).standard_normal((8, 6)).astype(np.float32)
    return batch * np.float32(np.nan if call == NAN else 1e4 if call == SPIKE else 1)


def loss(params: Any, batch: jax.Array) -> jax.Array:
    hidden = jnp.tanh(batch @ params["kernel"] + params["bias"])
    return jnp.mean(jnp.square(jnp.sum(hidden * params["head"], axis=1) - jnp.sum(batch, axis=1)))


@jax.jit
def step(params: Any, state: Any, batch: jax.Array) -> Any:
    grads = jax.grad(loss)(params, batch)
    return wc.apply_gradients(OPTIMIZER, params, state, grads=grads)


def trained(mesh: jax.sharding.Mesh, folder: pathlib.Path, calls: int = CALLS) -> Any:
    """Parameters and state after all calls, from the newest checkpoint in `folder` on."""

    def spread(value: Any, spec: P) -> jax.Array:
        value = np.asarray(value)
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    with jax.set_mesh(mesh):
        rng = np.random.default_rng(0)
        start = {name: rng.standard_normal(SHAPES[name]).astype(np.float32) / 3 for name in SHAPES}
        params = {name: spread(start[name], SPECS[name]) for name in SHAPES}
        # The moments lie as the parameters do, and every number that the pipeline keeps is everywhere.
        state = jax.tree_util.tree_map_with_path(
            lambda path, leaf: spread(leaf, SPECS.get(getattr(path[-1], "key", ""), P())),
            OPTIMIZER.init(start),
        )
        now: Any = params, state
        options = ocp.CheckpointManagerOptions(save_interval_steps=EVERY)
        with ocp.CheckpointManager(folder, options=options) as manager:
            if first := manager.latest_step() or 0:
                now = manager.restore(first, args=ocp.args.StandardRestore(now))
            for call in range(first, calls):
                now = step(*now, spread(batch_of(call), P("data")))
                if (call + 1) % EVERY == 0:
                    manager.save(call + 1, args=ocp.args.StandardSave(now))
                    manager.wait_until_finished()
    return now
