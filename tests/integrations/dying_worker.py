"""A training process that dies by SIGKILL at a given moment, and when started again goes on from its last complete checkpoint.

Run: `python -m tests.integrations.dying_worker FOLDER MOMENT NUMBER`. It dies

- `call 6`: within call 6, in the middle of its gradient;
- `commit 8`: when the checkpoint after 8 calls is written, and its folder is about to get the name
  that says so;
- `never 0`.
"""

import os
import pathlib
import signal
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import warmclip_jax as wc

CALLS, EVERY = 24, 4
NAN, SPIKE = (2, 5, 13, 14, 22), 10
OPTIMIZER = wc.pipeline(
    optax.adamw,
    wc.warmup_cosine_decay(peak_value=0.05, total_steps=CALLS, warmup_steps=3),
    max_norm=wc.running_bound(ceiling=2.0),
    skip_above=wc.running_bound(deviations=6.0),
    record=8,
    record_leaves=True,
)


def batch_of(call: int) -> np.ndarray:
    batch = np.random.default_rng(call).standard_normal((8, 4)).astype(np.float32)
    return batch * np.float32(np.nan if call in NAN else 1e4 if call == SPIKE else 1)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_checkpoint(number: int) -> None:
    """From now on, die when orbax renames the folder of a checkpoint."""

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and pathlib.Path(str(arguments[1])).name == str(number):
            die()

    sys.addaudithook(hear)


def trained(folder: pathlib.Path, fatal: int = -1) -> tuple[Any, int]:
    """Parameters and state after all calls, and the call that this process began with. It dies in
    call `fatal`.
    """

    def in_call(call: np.ndarray) -> np.ndarray:
        if call == fatal:
            die()
        return np.ones((), np.float32)

    def loss(params: Any, batch: jax.Array, call: jax.Array) -> jax.Array:
        alive = jax.pure_callback(in_call, jax.ShapeDtypeStruct((), jnp.float32), call)
        return alive * jnp.mean(
            jnp.square(jnp.tanh(batch @ params["kernel"]) @ params["head"] - jnp.sum(batch, axis=1))
        )

    @jax.jit
    def step(params: Any, state: Any, batch: jax.Array, call: jax.Array) -> Any:
        return wc.apply_gradients(
            OPTIMIZER, params, state, grads=jax.grad(loss)(params, batch, call)
        )

    params = {"kernel": jnp.full((4, 3), 0.1), "head": jnp.ones(3)}
    now: Any = params, jax.jit(OPTIMIZER.init)(params)
    options = ocp.CheckpointManagerOptions(save_interval_steps=EVERY, max_to_keep=2)
    with ocp.CheckpointManager(folder, options=options) as manager:
        first = manager.latest_step() or 0
        if first:
            now = manager.restore(first, args=ocp.args.StandardRestore(now))
        for call in range(first, CALLS):
            now = step(*now, batch_of(call), np.int32(call))
            manager.save(call + 1, args=ocp.args.StandardSave(now))
            manager.wait_until_finished()
    return now, first


if __name__ == "__main__":
    _, folder, moment, number = sys.argv
    if moment == "commit":
        die_in_checkpoint(int(number))
    print("began with", trained(pathlib.Path(folder), int(number) if moment == "call" else -1)[1])
