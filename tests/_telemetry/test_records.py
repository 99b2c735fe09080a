"""`records`: the last calls in order of time, each with what is known of it."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import warmclip_jax as wc

COLUMNS = [
    "call",
    "step",
    "value",
    "value_bound",
    "grad_norm",
    "max_norm",
    "skip_bound",
    "clip_coef",
    "learning_rate",
    "skipped",
]
SCHEDULE = wc.linear_warmup(peak_value=1.0, warmup_steps=8)
BOUND = wc.running_bound()
#: By what each keeps and decides; groups are not among them.
SIDE_BY_SIDE: dict[str, Any] = {
    "clip": wc.clip_by_global_norm(BOUND, record_leaves=True),
    "groups": wc.clip_by_group_norm(
        {"one": BOUND, "two": 2.0, "idle": 1.0},
        groups={"a": "two", "b": "one"},
        record_leaves=True,
    ),
    "guard": wc.skip_nonfinite(optax.sgd(0.1, momentum=0.9), above=9.0, record=4),
    "pipeline": wc.pipeline(optax.sgd, 0.1, skip_above=BOUND, skip_value_above=BOUND, record=4),
}


def after(optimizer: Any, norms: list[float], state: Any = None) -> Any:
    update = jax.jit(optimizer.update)
    state = optimizer.init(jnp.zeros(2)) if state is None else state
    for norm in norms:
        _, state = update(jnp.array([norm, 0.0]), state)
    return state


def columns(known: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    return {name: values.tolist() for name, values in known.items()}


def test_each_call_has_a_row_with_what_was_done_at_it():
    state = after(
        wc.pipeline(optax.sgd, SCHEDULE, max_norm=2.0, skip_above=10.0, record=8),
        [1.0, 4.0, np.nan, 1.0, 20.0, 8.0],
    )
    known = wc.records(state)
    assert list(known) == COLUMNS
    np.testing.assert_equal(
        columns(known),
        {
            "call": [0, 1, 2, 3, 4, 5],
            "step": [1, 2, 2, 3, 3, 4],
            "value": [np.nan] * 6,
            "value_bound": [np.inf] * 6,
            "grad_norm": [1.0, 4.0, np.nan, 1.0, 20.0, 8.0],
            "max_norm": [2.0] * 6,
            "skip_bound": [10.0] * 6,
            "clip_coef": [1.0, 0.5, 0.0, 1.0, 0.0, 0.25],
            "learning_rate": [0.0, 0.125, np.nan, 0.25, np.nan, 0.375],
            "skipped": [False, False, True, False, True, False],
        },
    )
    assert {name: values.dtype.name for name, values in known.items()} == {
        **dict.fromkeys(COLUMNS, "float32"),
        "call": "int32",
        "step": "int32",
        "skipped": "bool",
    }


def test_the_last_calls_are_in_order_of_time_and_a_resumed_run_goes_on():
    optimizer = wc.pipeline(optax.sgd, SCHEDULE, max_norm=None, record=3)
    state = after(optimizer, [1.0, 2.0])
    assert wc.records(state)["call"].tolist() == [0, 1]
    state = after(optimizer, [3.0, 4.0, 5.0], jax.tree.map(jnp.asarray, jax.device_get(state)))
    known = wc.records(state)
    assert (known["call"].tolist(), known["grad_norm"].tolist()) == ([2, 3, 4], [3.0, 4.0, 5.0])
    assert known["max_norm"].tolist() == known["skip_bound"].tolist() == [np.inf] * 3
    assert wc.records(optimizer.init(jnp.zeros(2)))["call"].shape == (0,)


def test_a_rate_that_is_not_known_is_nan():
    optimizer = wc.pipeline(
        lambda rate: optax.inject_hyperparams(optax.sgd)(learning_rate=rate), 0.5, record=2
    )
    assert wc.records(after(optimizer, [1.0]))["learning_rate"].tolist() == [0.5]
    unknown = wc.pipeline(lambda rate: optax.identity(), SCHEDULE, record=2)
    np.testing.assert_equal(wc.records(after(unknown, [1.0]))["learning_rate"], [np.nan])


def test_a_recording_guard_stands_for_the_pipeline_inside():
    inner: Any = wc.pipeline(optax.sgd, 0.5, max_norm=2.0, record=8)
    state = after(
        wc.skip_nonfinite(optax.MultiSteps(inner, 2), record=3), [1.0, 3.0, np.nan, 5.0, 5.0]
    )
    known = wc.records(state)
    assert (known["call"].tolist(), known["step"].tolist()) == ([2, 3, 4], [2, 3, 4])
    np.testing.assert_equal(known["grad_norm"], [np.nan, 5.0, 5.0])
    for name in ("max_norm", "clip_coef", "learning_rate"):
        assert np.isnan(known[name]).all()
    inside = wc.records(state.inner_state)
    assert (inside["grad_norm"].tolist(), inside["clip_coef"].tolist()) == (
        [2.0, 5.0],
        [1.0, np.float32(0.4)],
    )
    np.testing.assert_equal(wc.records(after(wc.skip_nonfinite(inner), [2.0, 5.0])), inside)


def test_groups_have_the_global_norm_and_the_smallest_coefficient():
    rules = {"a": 1.5, "b": 1.0}
    optimizer = wc.pipeline(optax.sgd, 0.5, max_norm=rules, groups=wc.label_by_path(), record=2)
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    _, state = jax.jit(optimizer.update)(grads, optimizer.init(grads))
    known = wc.records(state)
    assert (known["grad_norm"].tolist(), known["clip_coef"].tolist()) == ([5.0], [0.25])
    assert np.isnan(known["max_norm"]).all()


def test_vmapped_runs_have_an_axis_in_front_of_time():
    optimizer = wc.pipeline(optax.sgd, SCHEDULE, max_norm=2.0, record=3)
    sizes = jnp.array([1.0, 4.0])
    state = jax.vmap(lambda size: optimizer.init(jnp.full(2, size)))(sizes)
    update = jax.jit(jax.vmap(optimizer.update))
    for call in range(4):
        _, state = update(sizes[:, None] * jnp.array([[1.0 + call, 0.0]]), state)
    known = wc.records(state)
    assert {values.shape for values in known.values()} == {(2, 3)}
    assert known["call"].tolist() == [[1, 2, 3]] * 2
    assert known["grad_norm"].tolist() == [[2.0, 3.0, 4.0], [8.0, 12.0, 16.0]]


def test_a_state_without_a_recorder_or_with_several_is_an_error_in_words():
    with pytest.raises(
        ValueError, match=r"records: opt_state must hold a recorder; got one without\..*record=256"
    ):
        wc.records(wc.pipeline(optax.sgd, 0.1).init(jnp.zeros(2)))
    each: Any = {name: wc.pipeline(optax.sgd, 0.1, record=2) for name in ("old", "new")}
    state: Any = optax.partition(each, {"a": "old", "b": "new"}).init(
        {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    )
    with pytest.raises(
        ValueError, match=r"records: .*got 2, at .*\['new'\].*\['old'\].* Pass one of these parts"
    ):
        wc.records(state)
    assert wc.records(state.inner_states["old"])["call"].size == 0


def test_a_record_may_have_a_million_calls_and_no_negative_number_of_them():
    state: Any = wc.skip_nonfinite(optax.sgd(0.1), record=1_000_000).init(jnp.zeros(2))
    assert wc.records(state)["call"].size == 0
    with pytest.raises(ValueError, match=r"record must be a whole number .*; got -1"):
        wc.skip_nonfinite(optax.sgd(0.1), record=-1)


@pytest.mark.parametrize(
    ("name", "jit"), [*((name, jax.jit) for name in SIDE_BY_SIDE), ("guard", lambda step: step)]
)
def test_runs_side_by_side_that_an_explicit_mesh_has_shared_out_are_those_of_one_device(
    name: str, jit: Any
):
    optimizer = SIDE_BY_SIDE[name]
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))
    grads = {"a": jnp.arange(24.0).reshape(8, 3), "b": jnp.full((8, 2), 0.5).at[3].set(jnp.nan)}

    def step(state: Any, grads: Any) -> Any:
        return optimizer.update(grads, state, grads, value=jnp.sum(grads["a"]))

    update = jit(jax.vmap(step))
    state = jax.vmap(optimizer.init)(grads)
    expected = update(state, grads)
    with jax.set_mesh(mesh):
        found = update(*jax.device_put((state, grads), NamedSharding(mesh, P("d"))))
    chex.assert_trees_all_close(found, expected, rtol=1e-6)


def test_of_skipped_calls_too_the_oldest_make_way_and_of_a_run_the_first_sixteen_are_kept():
    guard = wc.skip_nonfinite(optax.sgd(0.1), above=5.0, record=3)
    assert wc.records(after(guard, [1.0, *[9.0] * 5]))["call"].tolist() == [3, 4, 5]
    assert wc.records(after(guard, [1.0, *[9.0] * 30]))["call"].tolist() == [14, 15, 16]


def test_a_loss_at_its_bound_is_no_reason_to_skip():
    guard = wc.skip_nonfinite(optax.sgd(0.1), value_above=2.0, record=2)
    update, state = jax.jit(guard.update), guard.init(jnp.zeros(2))
    for loss in (2.0, 2.0 + 2**-22):
        _, state = update(jnp.ones(2), state, value=jnp.float32(loss))
    assert wc.records(state)["skipped"].tolist() == [False, True]
