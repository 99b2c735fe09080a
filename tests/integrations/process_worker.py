"""One of two processes that train together in shards.

Run: `python -m tests.integrations.process_worker ADDRESS PROCESS OUT`. `train` is also what the
test runs in its own, single process.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import warmclip_jax as wc
from tests.integrations.two_processes import join

STEPS = 4
BAD_STEP = 2
PEAK = 0.05
SPECS = {
    "embed": P("data"),
    "kernel": P(None, ("data", "model")),
    "bias": P(),
    "head": P("model", "data"),
}
SHAPES = {"embed": (8, 16), "kernel": (16, 32), "bias": (1, 32), "head": (32, 4)}


def gathered(leaf, spec):
    """The whole leaf, as FSDP wants it for the length of one use. Its derivative goes back to the
    shards.
    """
    for dimension, part in enumerate(spec):
        if part is not None:
            leaf = lax.all_gather(leaf, part, axis=dimension, tiled=True)
    return leaf


def loss(params, batch):
    whole = {name: gathered(leaf, SPECS[name]) for name, leaf in params.items()}
    hidden = jnp.tanh(batch @ whole["embed"] @ whole["kernel"] + whole["bias"])
    error = hidden @ whole["head"] - jnp.sum(batch, axis=1, keepdims=True)
    return lax.pmean(jnp.mean(jnp.square(error)), ("data", "model"))


def train():
    """What every step measured, and the parameters at the end, as NumPy arrays: the same in all
    processes.
    """
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rng = np.random.default_rng(0)

    def placed(value, spec):
        value = np.asarray(value, np.float32)
        return jax.make_array_from_callback(
            value.shape, NamedSharding(mesh, spec), lambda index: value[index]
        )

    params = {
        name: placed(rng.standard_normal(shape) / 4, SPECS[name]) for name, shape in SHAPES.items()
    }
    schedule = wc.shift(wc.linear_warmup(peak_value=PEAK, warmup_steps=3), by=1)
    optimizer = wc.pipeline(optax.adamw, schedule, max_norm=0.5, record=STEPS, record_leaves=True)

    # The moments lie as the parameters do, and every number that the pipeline keeps is everywhere.
    state_specs: Any = optax.tree.map_params(
        optimizer,
        lambda _, spec: spec,
        jax.eval_shape(optimizer.init, params),
        SPECS,
        transform_non_params=lambda _: P(),
    )
    batch_spec = P(("data", "model"))
    specs = (SPECS, state_specs, P())
    shardings: Any = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings[1])(params)

    def step(params, opt_state, batch):
        params, opt_state = wc.apply_gradients(
            optimizer, params, opt_state, grads=jax.grad(loss)(params, batch)
        )
        return params, opt_state, wc.metrics(opt_state)

    in_map = jax.shard_map(
        step, mesh=mesh, in_specs=(SPECS, state_specs, batch_spec), out_specs=specs
    )
    whole_step = jax.jit(in_map, donate_argnums=(0, 1), out_shardings=shardings)

    history = []
    for index in range(STEPS):
        batch = rng.standard_normal((16, 8))
        if index == BAD_STEP:
            batch[-1] = np.nan  # seen by the last device alone
        params, opt_state, known = whole_step(params, opt_state, placed(batch, batch_spec))
        history.append({name: np.asarray(value) for name, value in known.items()})
    if jax.process_index() == 0:  # It asks alone: the others would not answer.
        assert (
            f"call {BAD_STEP}, step {BAD_STEP}, skipped.\n  Leaves with NaN, {len(SHAPES)} of"
            in wc.report(opt_state)
        )
        assert np.flatnonzero(wc.records(opt_state)["skipped"]).tolist() == [BAD_STEP]
        alone = wc.metrics(opt_state)
        assert set(alone) == set(history[-1])
        for name, value in alone.items():
            np.testing.assert_array_equal(value, history[-1][name], err_msg=name)
            assert value.is_fully_addressable, (
                name
            )  # nothing that a later line has to ask the others for
    metrics = {name: np.stack([known[name] for known in history]) for name in history[0]}
    return {**metrics, **multihost_utils.process_allgather(params, tiled=True)}


if __name__ == "__main__":
    _, address, process, out = sys.argv
    join(address, process)
    np.savez(out, **train())
    jax.distributed.shutdown()
