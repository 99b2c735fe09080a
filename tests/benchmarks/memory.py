"""Temporaries of a donated step, as multiples of its gradients: `python -m tests.benchmarks.memory`.

AdamW over leaves of 400 x 400, compiled for this machine and not run; less the optimizer's own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import warmclip_jax as wc

SPIKES = wc.running_bound(deviations=6.0)


def _with(clip: Any) -> Any:
    return optax.chain(clip, optax.adamw(0.1))


OPTIMIZERS: dict[str, Any] = {
    "`optax.clip_by_global_norm`": _with(optax.clip_by_global_norm(1.0)),
    "`optax.apply_if_finite` around it": optax.apply_if_finite(
        _with(optax.clip_by_global_norm(1.0)), 5
    ),
    "`wc.clip_by_global_norm`": _with(wc.clip_by_global_norm(1.0)),
    "`wc.clip_by_group_norm`, a group a leaf": _with(
        wc.clip_by_group_norm(1.0, wc.label_by_path())
    ),
    "`wc.clip_by_global_norm`, record_leaves": _with(
        wc.clip_by_global_norm(1.0, record_leaves=True)
    ),
    "`wc.skip_nonfinite` around optax's": wc.skip_nonfinite(optax.adamw(0.1)),
    "`wc.skip_nonfinite` around a chain with our clip": wc.skip_nonfinite(
        _with(wc.clip_by_global_norm(1.0)), above=SPIKES, record=256, record_leaves=True
    ),
    "`wc.pipeline`": wc.pipeline(optax.adamw, 0.1),
    "`wc.pipeline`, everything on": wc.pipeline(
        optax.adamw,
        0.1,
        max_norm=SPIKES,
        skip_above=SPIKES,
        skip_value_above=SPIKES,
        groups=wc.label_by_path(),
        record=256,
        record_leaves=True,
    ),
}
#: Of the leaves, parameters as gradients.
DTYPES: dict[str, list[Any]] = {
    "float32": [jnp.float32] * 6,
    "bfloat16": [jnp.bfloat16] * 6,
    "both": [jnp.float32, jnp.bfloat16] * 3,
}


def copies(optimizer: Any, dtypes: list[Any]) -> float:
    params = [jax.ShapeDtypeStruct((400, 400), dtype) for dtype in dtypes]

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    memory: Any = compiled.memory_analysis()
    return memory.temp_size_in_bytes / sum(leaf.size * leaf.dtype.itemsize for leaf in params)


def table() -> str:
    lines = [f"| | {' | '.join(DTYPES)} |", f"|---{'|---:' * len(DTYPES)}|"]
    alone = {name: copies(optax.adamw(0.1), dtypes) for name, dtypes in DTYPES.items()}
    for title, optimizer in OPTIMIZERS.items():
        more = [copies(optimizer, dtypes) - alone[name] for name, dtypes in DTYPES.items()]
        lines.append(f"| {title} | {' | '.join(f'{max(each, 0):.1f}' for each in more)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
