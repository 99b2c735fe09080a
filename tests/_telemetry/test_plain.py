"""Metrics for loggers: the norms of leaves by name, plain numbers, prefixes; rows since a call."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc

PARAMS = {"a": {"w": jnp.ones(2)}, "b": jnp.ones(3)}
PIPELINE: Any = wc.pipeline(optax.sgd, 0.1, max_norm=None, record=4, record_leaves=True)


@functools.cache
def step(optimizer: Any) -> Any:
    def of(state: Any, scale: Any) -> Any:
        grads = jax.tree.map(lambda leaf: scale * leaf, PARAMS)
        return optimizer.update(grads, state, PARAMS, value=scale)[1]

    return jax.jit(of)


def after(optimizer: Any, scales: Any) -> Any:
    state = optimizer.init(PARAMS)
    for scale in scales:
        state = step(optimizer)(state, jnp.float32(scale))
    return state


def test_leaves_have_their_last_and_their_usual_norm_by_path():
    told = wc.metrics(after(PIPELINE, [2.0, 2.0]), leaves=True)
    for path, leaf in {"a/w": 8.0, "b": 12.0}.items():
        for kind in ("grad_norm", "typical_norm"):
            np.testing.assert_allclose(told[f"leaf/{path}/{kind}"], np.sqrt(leaf), rtol=1e-6)
    fresh = wc.metrics(PIPELINE.init(PARAMS), leaves=True)
    assert np.isnan([fresh["leaf/b/grad_norm"], fresh["leaf/b/typical_norm"]]).all()
    plain = set(wc.metrics(PIPELINE.init(PARAMS)))
    assert {name for name in told if name not in plain} == {
        *("leaf/a/w/grad_norm", "leaf/a/w/typical_norm", "leaf/b/grad_norm", "leaf/b/typical_norm"),
    }


def test_a_guard_with_a_record_speaks_for_the_leaves_of_the_clip_inside():
    optimizer: Any = wc.skip_nonfinite(
        wc.clip_by_global_norm(1.0, record_leaves=True), record_leaves=True, above=10.0
    )
    told = wc.metrics(after(optimizer, [1.0, 100.0]), leaves=True)
    np.testing.assert_allclose(told["leaf/b/grad_norm"], 100 * np.sqrt(3), rtol=1e-6)


@pytest.mark.parametrize("scales", [[], [1.0, np.nan], [np.inf]])
def test_plain_numbers_are_what_json_takes(scales: Any):
    state = after(PIPELINE, scales)
    told = wc.metrics(state, plain=True, leaves=True, prefix="train/")
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    arrays = wc.metrics(state, leaves=True)
    assert list(told) == [f"train/{name}" for name in arrays]
    for name, value in arrays.items():
        number = told[f"train/{name}"]
        assert number == (float(value) if np.isfinite(value) else None)
        assert isinstance(number, int) == (np.isfinite(value) and value.dtype == jnp.int32)


def test_of_vmapped_runs_plain_numbers_are_lists():
    params = jnp.ones((2, 3))
    optimizer: Any = wc.pipeline(optax.sgd, 0.1, record_leaves=True, record=4)
    update, state = jax.jit(jax.vmap(optimizer.update)), jax.vmap(optimizer.init)(params)
    _, state = update(params.at[1, 0].set(jnp.nan), state, params)
    told = wc.metrics(state, plain=True, leaves=True)
    assert told["skipped_count"] == [0, 1]
    assert told["leaf//grad_norm"] == [pytest.approx(np.sqrt(3)), None]
    _, state = update(params, state, params)
    assert wc.records(state, since=1)["call"].tolist() == [[1], [1]]


def test_in_a_trace_names_have_their_prefix_and_the_rest_is_refused():
    state = PIPELINE.init(PARAMS)
    assert "x/calls" in jax.jit(lambda state: wc.metrics(state, prefix="x/"))(state)
    for option in ({"leaves": True}, {"plain": True}):
        with pytest.raises(TypeError, match=r"^metrics: leaves and plain need numbers, and here"):
            jax.jit(lambda state, option=option: wc.metrics(state, **option))(state)


def test_rows_since_a_call_are_those_that_a_logger_has_not_seen():
    state = after(PIPELINE, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert wc.records(state, since=3)["value"].tolist() == [4.0, 5.0]
    assert wc.records(state, since=0)["call"].tolist() == [1, 2, 3, 4]
    assert wc.records(state, since=9)["call"].size == 0
    with pytest.raises(
        ValueError, match=r"^records: since must be a whole number, 0 or more; got -1"
    ):
        wc.records(state, since=-1)
