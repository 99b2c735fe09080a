"""A state is read under `jax_debug_nans` and `jax_debug_infs` as without them, whatever it met."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax
import pytest

import warmclip_jax as wc

PARAMS = {"a": jnp.ones(2), "b": jnp.ones(3)}
FOLLOWING = wc.running_bound(deviations=6.0)
RECORDED: dict[str, Any] = {"record": 4, "record_leaves": True}
OPTIMIZERS: dict[str, Any] = {
    "clip": optax.chain(wc.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "no bound": wc.pipeline(optax.sgd, 0.1, max_norm=None, record=4),
    "running bounds": wc.pipeline(
        optax.sgd,
        0.1,
        max_norm=FOLLOWING,
        skip_above=FOLLOWING,
        skip_value_above=FOLLOWING,
        **RECORDED,
    ),
    "groups": wc.pipeline(
        optax.sgd, 0.1, max_norm={"a": FOLLOWING, "b": None}, groups=wc.label_by_path(), **RECORDED
    ),
    "propagate": wc.pipeline(optax.sgd, 0.1, nonfinite="propagate", **RECORDED),
    "guard": wc.skip_nonfinite(
        optax.MultiSteps(wc.pipeline(optax.sgd, 0.1), 2), above=FOLLOWING, **RECORDED
    ),
}
#: What multiplies the gradients of each call, and its loss.
STREAMS: dict[str, list[tuple[float, float]]] = {
    "fresh": [],
    "good": [(1.0, 2.0)] * 3,
    "zero": [(0.0, 0.0)],
    "bad": [(1.0, 2.0), (math.nan, 2.0), (math.inf, math.inf), (1.0, math.nan)],
}


def drawn(figure: matplotlib.figure.Figure) -> list[Any]:
    lines = [line for ax in figure.axes for line in ax.get_lines()]
    return [(line.get_label(), np.asarray(line.get_xydata()).tolist()) for line in lines]


def read(state: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"report": wc.report(state)}
    told["metrics"] = {name: value.tolist() for name, value in wc.metrics(state).items()}
    if "Record" in told["report"]:
        told["records"] = {name: column.tolist() for name, column in wc.records(state).items()}
        told["picture"] = drawn(wc.plot_records(state))
    return told


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reading_under_the_flags_is_reading_without_them(name: str):
    optimizer = optax.with_extra_args_support(OPTIMIZERS[name])
    step = jax.jit(
        lambda state, scale, value: optimizer.update(
            jax.tree.map(lambda leaf: scale * leaf, PARAMS), state, PARAMS, value=value
        )[1]
    )
    for kind, stream in STREAMS.items():
        state = optimizer.init(PARAMS)
        for scale, value in stream:
            state = step(state, scale, value)
        expected = read(state)
        with jax.debug_nans(True), jax.debug_infs(True):
            np.testing.assert_equal(read(state), expected)
            np.testing.assert_equal(read(jax.device_get(state)), expected)
            after = step(state, 1.0, 1.0)
            assert int(wc.metrics(after)["calls"]) == len(stream) + 1
            # Primitive by primitive it takes long: here the others do as one of them does.
            if kind == "bad" or name == "running bounds":
                eagerly = optimizer.update(PARAMS, state, PARAMS, value=1.0)[1]
                assert wc.metrics(eagerly).keys() == wc.metrics(after).keys()
