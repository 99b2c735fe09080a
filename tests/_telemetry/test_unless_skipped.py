"""What a skipped step should not have changed stays as it was: in every kind of state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc

NEW: Any = {"mean": jnp.array([1.0, 2.0]), "count": np.int32(7), "name": "norm", "none": None}
OLD: Any = {"mean": jnp.array([3.0, jnp.nan]), "count": np.int32(6), "name": "norm", "none": None}
OPTIMIZERS: dict[str, Any] = {
    "pipeline": wc.pipeline(optax.adam, 0.1),
    "guard": wc.skip_nonfinite(optax.adam(0.1)),
    "in a chain": optax.chain(optax.identity(), wc.skip_nonfinite(optax.adam(0.1))),
    "outside of a pipeline": wc.skip_nonfinite(
        optax.MultiSteps(wc.pipeline(optax.adam, 0.1, skip_above=0.1), 2)
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_new_after_an_update_and_old_after_a_skip(name: str):
    optimizer, params = OPTIMIZERS[name], jnp.ones(2)

    @jax.jit
    def step(state: Any, value: Any) -> tuple[Any, Any]:
        _, state = optimizer.update(jnp.array([value, 1.0]), state, params)
        arrays = [{key: tree[key] for key in ("mean", "count")} for tree in (NEW, OLD)]
        return state, wc.unless_skipped(state, *arrays)

    for value, expected in ((1.0, NEW), (jnp.nan, OLD)):
        state, inside = step(optimizer.init(params), value)
        outside = wc.unless_skipped(state, NEW, OLD)
        for chosen in (inside, outside):
            np.testing.assert_array_equal(chosen["mean"], expected["mean"])
            assert int(chosen["count"]) == expected["count"]
            assert chosen["count"].dtype == np.int32
        assert outside["name"] == "norm"


def test_vmapped_runs_decide_each_for_itself():
    optimizer = OPTIMIZERS["pipeline"]
    params = jnp.ones((3, 2))
    state = jax.vmap(optimizer.init)(params)
    _, state = jax.jit(jax.vmap(optimizer.update))(params.at[1, 0].set(jnp.inf), state, params)
    chosen = wc.unless_skipped(state, jnp.zeros((3, 2)), jnp.ones((3, 2)))
    assert chosen.tolist() == [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("optimizer", "number"),
    [
        (wc.clip_by_global_norm(1.0), 0),
        (optax.chain(*[wc.skip_nonfinite(optax.identity())] * 2), 2),
    ],
)
def test_a_state_without_one_that_decides_is_an_error_in_words(optimizer: Any, number: int):
    with pytest.raises(ValueError, match=f"^unless_skipped: opt_state must hold .*; got {number}"):
        wc.unless_skipped(optimizer.init(jnp.ones(2)), NEW, OLD)
