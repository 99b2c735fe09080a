"""Temporaries of a donated step, as multiples of its gradients: `python -m tests.benchmarks.memory`.

AdamW over leaves of 400 x 400, compiled for this machine and not run; less the optimizer's own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import warmclip_jax as wc

SPIKES = wc.running_bound(deviations=6.0)
RECORDED: dict[str, Any] = {"record": 256, "record_leaves": True}
BY_OPTAX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
OURS = optax.chain(wc.clip_by_global_norm(1.0), optax.adamw(0.1))
OPTIMIZERS: dict[str, Any] = {
    "`optax.clip_by_global_norm`": BY_OPTAX,
    "`optax.apply_if_finite` around it": optax.apply_if_finite(BY_OPTAX, 5),
    "`wc.clip_by_global_norm`": OURS,
    "`wc.skip_nonfinite` around it, with a record": wc.skip_nonfinite(
        OURS, above=SPIKES, **RECORDED
    ),
    "`wc.pipeline`": wc.pipeline(optax.adamw, 0.1),
    "`wc.pipeline`, everything on": wc.pipeline(
        optax.adamw,
        0.1,
        max_norm=SPIKES,
        skip_above=SPIKES,
        skip_value_above=SPIKES,
        groups=wc.label_by_path(),
        **RECORDED,
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
        return wc.apply_gradients(optimizer, params, state, grads=grads)

    state = jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    memory: Any = compiled.memory_analysis()
    return memory.temp_size_in_bytes / sum(leaf.size * leaf.dtype.itemsize for leaf in params)


def main() -> None:
    print(f"| | {' | '.join(DTYPES)} |\n|---{'|---:' * len(DTYPES)}|")
    alone = {name: copies(optax.adamw(0.1), dtypes) for name, dtypes in DTYPES.items()}
    for title, optimizer in OPTIMIZERS.items():
        more = [copies(optimizer, dtypes) - alone[name] for name, dtypes in DTYPES.items()]
        print(f"| {title} | {' | '.join(f'{max(each, 0):.1f}' for each in more)} |")


if __name__ == "__main__":
    main()
