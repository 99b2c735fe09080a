"""States on disk that an earlier version of this package wrote.

`fixtures/states-<version>.json` holds the states of `EXACT` after `exact_run(optimizer, 3)`, leaf
by leaf under its key path. In these every number is a sum of few powers of two, so that they are
the same on every machine. A release adds its own.
"""

import functools
import json
import pathlib
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import warmclip_jax as wc

FIXTURES = sorted((pathlib.Path(__file__).parent / "fixtures").glob("states-*.json"))


EXACT_SCHEDULE = wc.linear_warmup(peak_value=0.5, warmup_steps=4)
MOMENTUM = functools.partial(optax.sgd, momentum=0.5)
EXACT: dict[str, Any] = {
    "clip": optax.chain(wc.clip_by_global_norm(2.5), MOMENTUM(EXACT_SCHEDULE)),
    "skip": wc.skip_nonfinite(MOMENTUM(EXACT_SCHEDULE)),
    "pipeline": wc.pipeline(MOMENTUM, EXACT_SCHEDULE, max_norm=2.5),
    "pipeline that propagates": wc.pipeline(
        MOMENTUM, EXACT_SCHEDULE, max_norm=2.5, nonfinite="propagate"
    ),
    "skip around MultiSteps": wc.skip_nonfinite(
        optax.MultiSteps(wc.pipeline(MOMENTUM, EXACT_SCHEDULE, max_norm=2.5), 2)
    ),
    "partition": optax.partition(
        {"all": wc.pipeline(MOMENTUM, EXACT_SCHEDULE, max_norm=2.5)}, {"x": "all", "y": "all"}
    ),
}
EXACT_PARAMS = {"x": jnp.array([8.0]), "y": jnp.array([4.0])}
EXACT_GRADS = {"x": jnp.array([3.0]), "y": jnp.array([4.0])}


@functools.cache
def jitted_step(optimizer: Any) -> Any:
    return jax.jit(
        lambda params, state, grads: wc.apply_gradients(optimizer, params, state, grads=grads)
    )


def exact_run(optimizer: Any, steps: int, params: Any = None, state: Any = None) -> tuple[Any, Any]:
    if params is None:
        params, state = EXACT_PARAMS, optimizer.init(EXACT_PARAMS)
    for _ in range(steps):
        params, state = jitted_step(optimizer)(params, state, EXACT_GRADS)
    return params, state


def as_json(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): [leaf.dtype.name, leaf.tolist()] for path, leaf in leaves}


def from_json(saved: dict[str, Any], like: Any) -> Any:
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    assert sorted(names) == sorted(saved), (
        "a state has another structure: its checkpoints can no longer be read"
    )
    return structure.unflatten(jnp.asarray(saved[name][1], saved[name][0]) for name in names)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("path", FIXTURES, ids=[path.stem for path in FIXTURES])
def test_a_state_that_an_earlier_version_wrote_continues_to_the_last_bit(
    path: pathlib.Path, name: str
):
    saved = json.loads(path.read_text(encoding="utf-8"))[name]
    params, state = from_json(saved, (EXACT_PARAMS, EXACT[name].init(EXACT_PARAMS)))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, EXACT[name].init(EXACT_PARAMS))
    resumed, expected = exact_run(EXACT[name], 3, params, state), exact_run(EXACT[name], 6)
    chex.assert_trees_all_equal(resumed, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(resumed, expected)


def test_the_fixtures_numbers_are_those_of_arithmetic_by_hand():
    saved = json.loads(FIXTURES[0].read_text(encoding="utf-8"))["pipeline"]
    velocity, x = 0.0, 8.0
    for rate in (0.0, 0.125, 0.25):  # half of the gradient 3 is left by the clip
        velocity = 1.5 + 0.5 * velocity
        x -= rate * velocity
    assert saved["[0]['x']"] == ["float32", [x]]
    assert saved["[1].clip_state.grad_norm"] == ["float32", 5.0]
    assert saved["[1].last_learning_rate"] == ["float32", 0.25]
    assert saved["[1].clip_state.clipped_count"] == ["int32", 3]
