"""Nights that went wrong: small runs with one fault each, and what the report makes of it.

    python colabs/nights.py                               # prints every report
    python colabs/nights.py --only resumed --plot runs    # one of them, with its picture

The guide has the table of causes.
"""

import argparse
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import warmclip_jax as wc

STEPS, BATCH = 200, 32
SPIKES = wc.running_bound(deviations=6.0)
Batch = tuple[np.ndarray, np.ndarray]


def guarded(optimizer: Any = optax.adam, learning_rate: Any = 1e-2, **options: Any) -> Any:
    kept: dict[str, Any] = {"record": 256, "record_leaves": True}
    return wc.pipeline(optimizer, learning_rate, **kept, **options)


def batches() -> Iterable[Batch]:
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        inputs = rng.standard_normal((BATCH, 4)).astype(np.float32)
        yield inputs, inputs[:, 0] + 0.5 * inputs[:, 1] * inputs[:, 2]


def parameters(dtype: Any = jnp.float32) -> Any:
    rng = np.random.default_rng(1)
    return {
        "hidden": {
            "kernel": jnp.asarray(rng.standard_normal((4, 16)) / 2, dtype),
            "bias": jnp.zeros(16, dtype),
        },
        "head": {"kernel": jnp.asarray(rng.standard_normal(16) / 4, dtype)},
        "gate": {"scale": jnp.full(16, 0.5, dtype)},
    }


def hidden(params: Any, inputs: Any) -> jax.Array:
    layer = params["hidden"]
    return jnp.tanh(inputs @ layer["kernel"] + layer["bias"])


def loss_of(params: Any, batch: Any) -> jax.Array:
    inputs, targets = batch
    gated = hidden(params, inputs) * params["gate"]["scale"]
    return jnp.mean((gated @ params["head"]["kernel"] - targets) ** 2)


def trained(
    optimizer: Any,
    params: Any,
    stream: Iterable[Batch],
    loss: Callable[[Any, Any], jax.Array] = loss_of,
    opt_state: Any = None,
) -> tuple[Any, Any]:
    @jax.jit
    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, batch)
        return wc.apply_gradients(optimizer, params, opt_state, grads=grads, value=value)

    opt_state = optimizer.init(params) if opt_state is None else opt_state
    for batch in stream:
        params, opt_state = step(params, opt_state, batch)
    return params, opt_state


def log_of_zero() -> Any:
    """At call 77 an input is 0, and so is the energy whose logarithm is taken: the loss looks well."""

    def loss(params: Any, batch: Any) -> jax.Array:
        energy = batch[0] ** 2 @ jnp.abs(params["gate"]["scale"][:4])
        # The derivative of the branch that is not taken is inf, and 0 times inf is NaN.
        penalty = jnp.where(energy > 0, jnp.log(energy), 0)
        return loss_of(params, batch) + 1e-3 * jnp.mean(penalty)

    stream = list(batches())
    stream[77][0][5] = 0
    return trained(guarded(), parameters(), stream, loss)[1]


def slow_growth() -> Any:
    """A rate just over what the loss bears: it grows a little with every step, as far as inf."""

    def loss(params: Any, batch: Any) -> jax.Array:
        inputs, targets = batch
        return jnp.mean((inputs @ params["kernel"] - targets) ** 2)

    return trained(
        guarded(optax.sgd, 1.2, max_norm=None), {"kernel": jnp.zeros(4)}, batches(), loss
    )[1]


def poisoned_inputs() -> Any:
    """One batch in 50 comes in another unit."""
    stream = [
        (inputs * (1e3 if call % 50 == 49 else 1), targets)
        for call, (inputs, targets) in enumerate(batches())
    ]
    bound = wc.running_bound(deviations=4.0)
    return trained(guarded(max_norm=1.0, skip_above=bound), parameters(), stream)[1]


def poisoned_labels() -> Any:
    """One batch in 50 has labels in another unit."""
    stream = [
        (inputs, targets * (1e2 if call % 50 == 49 else 1))
        for call, (inputs, targets) in enumerate(batches())
    ]
    return trained(guarded(max_norm=1.0, skip_value_above=SPIKES), parameters(), stream)[1]


def resumed() -> Any:
    """After a restart at call 100 somebody's rate is ten times as high."""
    first, second = guarded(learning_rate=2e-2), guarded(learning_rate=2e-1)
    stream = list(batches())
    params, opt_state = trained(first, parameters(), stream[:100])
    opt_state = wc.adopt_state(second, params, opt_state, step=100)
    return trained(second, params, stream[100:], opt_state=opt_state)[1]


def float16_updates() -> Any:
    """The epsilon of Adam is 0 in float16: a unit without a gradient is updated by 0 / 0."""
    stream = [
        (inputs.astype(np.float16), targets.astype(np.float16)) for inputs, targets in batches()
    ]
    params = parameters(jnp.float16)
    # A unit that nothing reads has a gradient of 0.
    params["gate"]["scale"] = params["gate"]["scale"].at[3].set(0)
    params["head"]["kernel"] = params["head"]["kernel"].at[3].set(0)
    return trained(guarded(), params, stream)[1]


def outside() -> Any:
    """A batch with a NaN is skipped, but not by the running mean that the model is normalised by."""
    optimizer, params = guarded(), parameters()

    @jax.jit
    def step(params: Any, mean: Any, opt_state: Any, batch: Any) -> Any:
        inputs, targets = batch
        mean = 0.9 * mean + 0.1 * jnp.mean(inputs, axis=0)  # without wc.unless_skipped
        value, grads = jax.value_and_grad(loss_of)(params, (inputs - mean, targets))
        params, opt_state = wc.apply_gradients(
            optimizer, params, opt_state, grads=grads, value=value
        )
        return params, mean, opt_state

    mean, opt_state = jnp.zeros(4), optimizer.init(params)
    for call, (inputs, targets) in enumerate(batches()):
        inputs[0, 0] = np.nan if call == 120 else inputs[0, 0]
        params, mean, opt_state = step(params, mean, opt_state, (inputs, targets))
    return opt_state


NIGHTS: dict[str, Callable[[], Any]] = {
    night.__name__: night
    for night in (
        log_of_zero,
        slow_growth,
        poisoned_inputs,
        poisoned_labels,
        resumed,
        float16_updates,
        outside,
    )
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=NIGHTS, default=NIGHTS, metavar="NAME")
    parser.add_argument("--plot", type=pathlib.Path, help="a folder for the pictures")
    options = parser.parse_args(argv)
    for name in options.only:
        opt_state = NIGHTS[name]()
        print(f"== {name}: {NIGHTS[name].__doc__}\n{wc.report(opt_state)}\n")
        if options.plot:
            options.plot.mkdir(parents=True, exist_ok=True)
            wc.plot_records(opt_state).savefig(options.plot / f"{name}.png")


if __name__ == "__main__":
    main()
