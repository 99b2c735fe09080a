"""One of several processes that train together, in shards and with everything switched on.

Run: `python -m tests.integrations.process_worker ADDRESS PROCESS FOLDER WHAT` for PROCESS, "0/2" or
"1/2", of two. They go on from the checkpoints in FOLDER/run by the program of `layouts.py`. WHAT is
"die": the last process does, by SIGKILL, when it writes a file of their first checkpoint. Or it is
"live": they go on to the end, then train by the program of this module, and leave what they know of
it in FOLDER. `train` is also what the test runs in its own, single process.
"""

import functools
import os
import pathlib
import signal
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import warmclip_jax as wc
from tests.integrations import layouts
from tests.integrations.real_processes import DEVICES, join

CALLS = 12
#: The calls at which something is wrong, and the one device that has it in its part of the batch.
NAN, SPIKE, LOSS = (4, DEVICES - 1), (7, 0), (10, 3)
DIES = layouts.CALLS // 2 + layouts.EVERY
SPECS = {
    "embed": P("data"),
    "kernel": P(None, ("data", "model")),
    "bias": P(),
    "head": P("model", "data"),
}
SHAPES = {"embed": (8, 16), "kernel": (16, 32), "bias": (1, 32), "head": (32, 4)}
BATCH = {"inputs": P(("data", "model")), "added_loss": P(("data", "model"))}
SPIKES = wc.running_bound(deviations=6.0)
OPTIMIZER = wc.pipeline(
    optax.adamw,
    wc.shift(wc.linear_warmup(peak_value=0.05, warmup_steps=3), by=1),
    max_norm={"table": wc.running_bound(ceiling=0.2), "rest": 0.5},
    groups=wc.label_by_path({"table": "embed"}),
    skip_above=SPIKES,
    skip_value_above=SPIKES,
    record=CALLS,
    record_leaves=True,
)


def gathered(leaf: Any, spec: P) -> Any:
    """The whole leaf, as FSDP wants it for the length of one use. Its derivative goes back to the
    shards.
    """
    for dimension, part in enumerate(spec):
        if part is not None:
            leaf = lax.all_gather(leaf, part, axis=dimension, tiled=True)
    return leaf


def loss(params: Any, batch: Any) -> jax.Array:
    whole = {name: gathered(leaf, SPECS[name]) for name, leaf in params.items()}
    inputs = batch["inputs"]
    hidden = jnp.tanh(inputs @ whole["embed"] @ whole["kernel"] + whole["bias"])
    error = hidden @ whole["head"] - jnp.sum(inputs, axis=1, keepdims=True)
    own = jnp.mean(jnp.square(error)) + jnp.sum(batch["added_loss"])
    return lax.pmean(own, ("data", "model"))


def batch_of(call: int) -> Any:
    inputs = np.random.default_rng(call).standard_normal((DEVICES, 2, 8))
    for (wrong, device), factor in ((NAN, np.nan), (SPIKE, 1e4)):
        inputs[device] *= factor if call == wrong else 1
    added = np.zeros(DEVICES)
    added[LOSS[1]] = 1e4 if call == LOSS[0] else 0
    return {"inputs": inputs.reshape(-1, 8), "added_loss": added}


def die_in_checkpoint(number: int) -> None:
    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and f"/{number}.orbax-checkpoint-tmp" in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


# What is everywhere alike: parameters and state before the first call, and how they lie. The moments
# lie as the parameters do, and every number that the pipeline keeps is everywhere.


@functools.cache
def start() -> Any:
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(SHAPES[name]).astype(np.float32) / 4 for name in SHAPES}
    return params, OPTIMIZER.init(params)


def specs() -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: SPECS.get(getattr(path[-1], "key", ""), P()), start()
    )


@functools.cache
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def spread(tree: Any, specs: Any) -> Any:
    """The same arrays over all devices."""

    def spread_leaf(leaf: Any, spec: P) -> jax.Array:
        leaf = np.asarray(leaf, np.float32 if leaf.dtype == np.float64 else None)
        sharding = NamedSharding(mesh(), spec)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(spread_leaf, tree, specs)


def train() -> dict[str, Any]:
    """What this process knows at the end: metrics of each call, records, report, and its shards of
    parameters and state.
    """

    def step(now: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(now[0], batch)
        now = wc.apply_gradients(OPTIMIZER, *now, grads=grads, value=value)
        return now, wc.metrics(now[1])

    in_map = jax.shard_map(step, mesh=mesh(), in_specs=(specs(), BATCH), out_specs=(specs(), P()))
    jitted = jax.jit(in_map, donate_argnums=0)
    now, history = spread(start(), specs()), []
    for call in range(CALLS):
        now, known = jitted(now, spread(batch_of(call), BATCH))
        history.append({name: np.asarray(value) for name, value in known.items()})
    return {
        **{f"metrics {name}": np.stack([each[name] for each in history]) for name in history[0]},
        **{f"records {name}": column for name, column in wc.records(now[1]).items()},
        "report": np.array(wc.report(now[1])),
        **shards(now),
    }


def shards(tree: Any) -> dict[str, Any]:
    """The shards that lie in this process, by name. Those that should be copies of each other are."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        for shard in leaf.addressable_shards:
            place = [part.start or 0 for part in shard.index]
            data, name = np.asarray(shard.data), f"shard {jax.tree_util.keystr(path)} {place}"
            assert found.setdefault(name, data).tobytes() == data.tobytes(), name
    return found


def main(address: str, process: str, out: str, what: str) -> None:
    folder, dies = pathlib.Path(out), what == "die"
    join(address, process, **({"patience": 8} if dies else {}))
    if dies and jax.process_index() == jax.process_count() - 1:
        die_in_checkpoint(DIES)
    layouts.trained(layouts.mesh_of(4, 2), folder / "run")
    np.savez(folder / f"{jax.process_index()}.npz", **train())
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
