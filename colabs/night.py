"""A night at 3 a.m. in two hundred and fifty steps: a NaN and two spikes between the lines of the log.

    python colabs/night.py                  # prints the report
    python colabs/night.py --out night.png  # and draws the figure of README

The notebook `diagnosis.ipynb` goes through such a night step by step.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import warmclip_jax as wc

STEPS, BATCH = 250, 128


def batches() -> list[tuple[np.ndarray, ...]]:
    """Readings, temperatures and targets, with three faults that the training code does not see."""
    rng = np.random.default_rng(0)
    readings = rng.standard_normal((STEPS, BATCH, 8)).astype(np.float32)
    temperatures = rng.uniform(0.5, 1.5, (STEPS, BATCH)).astype(np.float32)
    targets = np.sin(readings[..., 0]) + readings[..., 1] * readings[..., 2] + 0.5 * temperatures
    readings[37, 5] = 0.0  # a sensor was off: the derivative of a root at 0
    temperatures[[121, 164]] *= 15  # in another unit
    return list(zip(readings, temperatures, targets, strict=True))


def parameters() -> dict[str, Any]:
    rng = np.random.default_rng(1)

    def layer(size: int, out: int) -> dict[str, jax.Array]:
        kernel = rng.standard_normal((size, out)) / np.sqrt(size)
        return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(out)}

    return {
        "sensor": {"gain": jnp.ones(8)},
        "layers": [layer(8, 32), layer(32, 32)],
        "head": layer(32, 1)["kernel"][:, 0],
        "climate": {"weight": jnp.array(0.1)},
    }


def loss_of(params: Any, batch: Any) -> jax.Array:
    readings, temperature, target = batch
    loudness = jnp.sqrt(jnp.mean(params["sensor"]["gain"] * readings**2, axis=-1, keepdims=True))
    hidden = readings * loudness
    for layer in params["layers"]:
        hidden = jnp.tanh(hidden @ layer["kernel"] + layer["bias"])
    prediction = hidden @ params["head"] + params["climate"]["weight"] * temperature
    return jnp.mean((prediction - target) ** 2)


def trained() -> Any:
    """The optimizer's state after the night."""
    optimizer = wc.pipeline(
        optax.adamw,
        wc.warmup_cosine_decay(peak_value=1e-2, total_steps=STEPS, warmup_steps=25),
        max_norm=2.0,
        skip_above=wc.running_bound(deviations=6.0),
        record=256,
        record_leaves=True,
    )

    @jax.jit
    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, batch)
        return wc.apply_gradients(optimizer, params, opt_state, grads=grads, value=loss)

    params = parameters()
    opt_state = optimizer.init(params)
    for batch in batches():
        params, opt_state = step(params, opt_state, batch)
    return opt_state


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=pathlib.Path, help="draw the record there")
    out, opt_state = parser.parse_args(argv).out, trained()
    print(wc.report(opt_state))
    if out:
        figure = wc.plot_records(opt_state)
        figure.set_size_inches(8, 5.8)
        figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
