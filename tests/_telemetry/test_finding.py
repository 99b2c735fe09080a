"""Finding our states: in raw checkpoint trees too, and with words for those that another version
wrote.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization

import warmclip_jax as wc
from warmclip_jax._telemetry._finding import found

PARAMS = {"a": jnp.ones(2), "b": jnp.ones(3)}
GROUPED = wc.pipeline(optax.adam, 0.1, groups=wc.label_by_path(), record=2, record_leaves=True)
OPTIMIZERS: dict[str, Any] = {
    "clip": optax.chain(wc.clip_by_global_norm(1.0), optax.adam(0.1)),
    "guard": wc.skip_nonfinite(
        optax.MultiSteps(wc.pipeline(optax.sgd, 0.1), 2), above=wc.running_bound(), record=2
    ),
    "groups": GROUPED,
}


def raw(state: Any) -> Any:
    """What is left of a state on disk: dicts, with None for what was empty."""
    if isinstance(state, tuple):
        fields: Any = getattr(state, "_asdict", lambda: dict(enumerate(state)))()
        return {name: raw(value) for name, value in fields.items()} or None
    return {name: raw(value) for name, value in state.items()} if isinstance(state, dict) else state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_raw_tree_holds_the_states_that_it_was_made_of(name: str):
    optimizer = OPTIMIZERS[name]
    state = jax.jit(optimizer.update)(PARAMS, optimizer.init(PARAMS), PARAMS)[1]
    trees = {
        "None for empty ones": raw(state),
        "msgpack": serialization.msgpack_restore(serialization.to_bytes(state)),
        "in a larger tree": [{"params": PARAMS, "optimizer": raw(state)}],
    }
    for kind, tree in trees.items():
        got, expected = found(tree), found(state)
        assert [type(each.state) for each in got] == [type(each.state) for each in expected], kind
        assert [each.guard for each in got] == [each.guard for each in expected], kind
        for left, right in zip(got, expected, strict=True):
            chex.assert_trees_all_equal(left.state, right.state)


def test_groups_whose_labels_were_lost_are_known_by_their_numbers():
    model: Any = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    tree = nnx.state(nnx.Optimizer(model, GROUPED, wrt=nnx.Param))
    assert "group_labels" not in tree["opt_state"]["clip_state"]
    known = wc.metrics(tree)
    assert {name for name in known if name.endswith("/max_norm")} == {
        "group 0/max_norm",
        "group 1/max_norm",
    }
    assert np.shape(known["clip_coef"]) == ()


def without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


PIPELINE = raw(wc.pipeline(optax.sgd, 0.1).init(PARAMS))
OLDER = {
    "ClipState without norm_bound": {
        "clip_calls": 3,
        "grad_norm": 5.0,
        "clip_coef": 0.5,
        "clipped_count": 3,
        "nonfinite_count": 0,
        "counts_from": 0,
    },
    "PipelineState without above_bound, consecutive_skips, counts_from, last_loss, last_skipped_call, "
    "loss_bound, nonfinite_loss_count": {
        "clip_state": {
            "clip_calls": 3,
            "grad_norm": 5.0,
            "clip_coef": 0.5,
            "clipped_count": 3,
            "nonfinite_count": 0,
        },
        "skipped_count": 0,
        "last_learning_rate": 0.25,
        "inner_state": [{"trace": 1.0}],
    },
    "SkipState without above_bound, consecutive_skips, counts_from, grad_norm, last_loss, last_skipped_call, "
    "loss_bound, nonfinite_count, nonfinite_loss_count, skip_calls": {
        "skipped_count": 0,
        "inner_state": {},
    },
    "ClipState without clipped_count": PIPELINE
    | {"clip_state": without(PIPELINE["clip_state"], "clipped_count")},
    "ClipState with new": raw(wc.clip_by_global_norm(1.0).init(PARAMS)) | {"new": 1},
}


@pytest.mark.parametrize("difference", OLDER)
def test_a_state_that_another_version_wrote_is_an_error_that_says_where_and_how_it_differs(
    difference: str,
):
    for read in (wc.metrics, wc.records, wc.report, wc.plot_records):
        with pytest.raises(
            ValueError,
            match=r"states that this version .* wrote; got one of another version at \['opt'\]\[1\]",
        ) as told:
            read({"opt": [{"count": 3}, OLDER[difference]]})
        assert f": a {difference}. Read it with the version that wrote it." in str(told.value)


def test_a_tree_without_our_states_is_an_error_in_words():
    state = OPTIMIZERS["clip"].init(PARAMS)
    # Numbers that were logged into a checkpoint are no state.
    trees: Any = (
        optax.apply_if_finite(optax.adam(0.1), 3).init(PARAMS),
        {"logged": dict(wc.metrics(state))},
        {},
        None,
    )
    for tree in trees:
        for read in (wc.metrics, wc.records, wc.report, wc.plot_records):
            with pytest.raises(
                ValueError,
                match="opt_state must hold a state of clip_by_global_norm, skip_nonfinite or pipeline; got",
            ):
                read(tree)
