"""A run that changes over has the numbers of the run that never did, which plain optax made."""

import functools
import pathlib
from typing import Any

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import warmclip_jax as wc
from tests import quick
from tests.problem import PARAMS
from warmclip_jax._clipping._groups import from_keys

SCHEDULE = optax.linear_schedule(0.1, 0.0, 16)
BEFORE, AFTER = 4, 4
#: How far the rates let a parameter go, of which the differences are shares.
MOVED = 0.1 * (BEFORE + AFTER)
NAN = jax.tree.map(lambda p: p * jnp.nan, PARAMS)


def gradients(step: int) -> Any:
    """Above a norm of 1 and below it in turn."""
    return jax.tree.map(
        lambda p: jnp.sin((p + 1.0) * (step + 1)) * (0.05 if step % 2 else 3.0), PARAMS
    )


def ours(bound: Any) -> dict[str, Any]:
    clip = wc.clip_by_global_norm(bound)
    return {
        "pipeline": wc.pipeline(optax.adamw, SCHEDULE, max_norm=bound),
        "pipeline that propagates": wc.pipeline(
            optax.adamw, SCHEDULE, max_norm=bound, nonfinite="propagate"
        ),
        "pipeline with inject_hyperparams": wc.pipeline(
            optax.inject_hyperparams(optax.adamw), SCHEDULE, max_norm=bound
        ),
        "clip in a chain": optax.chain(clip, optax.adamw(SCHEDULE)),
        "clip in a guard": wc.skip_nonfinite(optax.chain(clip, optax.adamw(SCHEDULE))),
        "clip before a guard": optax.chain(clip, wc.skip_nonfinite(optax.adamw(SCHEDULE))),
    }


def theirs(bound: Any) -> dict[str, Any]:
    clip = optax.identity() if bound is None else optax.clip_by_global_norm(bound)
    adamw, injected = (
        optax.adamw(SCHEDULE),
        optax.inject_hyperparams(optax.adamw)(learning_rate=SCHEDULE),
    )
    links = (
        optax.scale_by_adam(),
        optax.add_decayed_weights(1e-4),
        optax.scale_by_learning_rate(SCHEDULE),
    )
    return {
        "adamw": optax.chain(clip, adamw),
        "one row of links": optax.chain(clip, *links),
        "apply_if_finite": optax.apply_if_finite(optax.chain(clip, adamw), 5),
        "inject_hyperparams": optax.chain(clip, injected),
        "inject_hyperparams inside of apply_if_finite": optax.apply_if_finite(
            optax.chain(clip, injected), 5
        ),
    }


OURS: dict[Any, dict[str, Any]] = {bound: ours(bound) for bound in (None, 1.0)}
THEIRS: dict[Any, dict[str, Any]] = {bound: theirs(bound) for bound in (None, 1.0)}
THEIRS[None]["adamw alone"] = optax.adamw(SCHEDULE)
OURS[None]["a guard alone"] = wc.skip_nonfinite(optax.adamw(SCHEDULE))
GUARDED = ("pipeline", "pipeline with inject_hyperparams", "clip in a guard", "a guard alone")
CASES = [
    (bound, source, target)
    for bound, sources in (
        (None, ("adamw", "adamw alone", "inject_hyperparams", "a guard alone")),
        (1.0, (*THEIRS[1.0], *OURS[1.0])),
    )
    for source in sources
    for target in (*OURS[bound], "apply_if_finite")
]


@functools.cache
def step_of(bound: Any, name: str) -> Any:
    return quick.jit(functools.partial(wc.apply_gradients, {**THEIRS[bound], **OURS[bound]}[name]))


@functools.cache
def run_before(bound: Any, name: str) -> Any:
    """Some steps, one of them bad and skipped where there is a guard."""
    params, state = PARAMS, {**THEIRS[bound], **OURS[bound]}[name].init(PARAMS)
    for index in range(BEFORE):
        params, state = step_of(bound, name)(params, state, grads=gradients(index))
        if index == 1 and name in GUARDED:
            params, state = step_of(bound, name)(params, state, grads=NAN)
    return params, state


@functools.cache
def never_changed(bound: Any) -> Any:
    params, state = PARAMS, THEIRS[bound]["adamw"].init(PARAMS)
    for index in range(BEFORE + AFTER):
        params, state = step_of(bound, "adamw")(params, state, grads=gradients(index))
    return params


def tolerance(bound: Any, source: str, target: str) -> float:
    if "inject_hyperparams" in source or "inject_hyperparams" in target:
        return 2.0**-25 / 1e-3  # It has 1 - b2 of a b2 that is rounded to float32.
    # What does not skip has the arithmetic of optax alone; a skip lets the compiler round a dozen
    # operations otherwise.
    is_same = (
        bound is None
        and source in THEIRS[None]
        and target in ("pipeline that propagates", "clip in a chain")
    )
    return 0.0 if is_same and source != "apply_if_finite" else 16 * 2.0**-24


@pytest.mark.parametrize(("bound", "source", "target"), CASES)
def test_a_run_that_changes_over_has_the_numbers_of_the_run_that_never_did(
    bound: Any, source: str, target: str
):
    params, old = run_before(bound, source)
    optimizer = {**THEIRS[bound], **OURS[bound]}[target]
    state = wc.adopt_state(optimizer, params, old, step=BEFORE)
    chex.assert_trees_all_equal_structs(state, optimizer.init(params))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, optimizer.init(params))
    for index in range(BEFORE, BEFORE + AFTER):
        params, state = step_of(bound, target)(params, state, grads=gradients(index))
    chex.assert_trees_all_close(
        params, never_changed(bound), rtol=0, atol=MOVED * tolerance(bound, source, target)
    )
    if target in OURS[bound]:
        known = wc.metrics(state)
        skipped = 1 if source in GUARDED else 0
        if "step" in known:
            assert int(known["step"]) == BEFORE + AFTER
            assert int(known["skipped_count"]) == skipped
            assert int(known["calls"]) == BEFORE + AFTER + skipped
            if target in GUARDED:
                assert int(known["nonfinite_count"]) == skipped
        else:
            assert int(known["calls"]) == BEFORE + AFTER
        if "learning_rate" in known:
            assert float(known["learning_rate"]) == pytest.approx(0.1 * (1 - 7 / 16), rel=1e-6)
        if bound is not None:
            assert int(known["clipped_count"]) == BEFORE // 2 * (source in OURS[bound]) + AFTER // 2


def advance(optimizer: Any, params: Any, state: Any, calls: range) -> tuple[Any, Any]:
    step = quick.jit(functools.partial(wc.apply_gradients, optimizer))
    for index in calls:
        params, state = step(params, state, grads=gradients(index))
    return params, state


@pytest.mark.parametrize(
    "target", [*OURS[1.0], "a guard around MultiSteps", "partition", "everything on"]
)
def test_a_state_of_the_same_optimizer_is_kept_as_it_is(target: str):
    more: dict[str, Any] = {
        "a guard around MultiSteps": wc.skip_nonfinite(optax.MultiSteps(OURS[1.0]["pipeline"], 2)),
        "partition": optax.partition(
            {"w": OURS[1.0]["pipeline"], "b": wc.pipeline(optax.sgd, 0.1)}, {"w": "w", "b": "b"}
        ),
        "everything on": everything_on({"w": "w", "b": "b"}),
    }
    optimizer = {**OURS[1.0], **more}[target]
    _, state = advance(optimizer, PARAMS, optimizer.init(PARAMS), range(3))
    chex.assert_trees_all_equal(wc.adopt_state(optimizer, PARAMS, state, step=3), state)


def test_of_two_guards_the_outer_one_goes_on_with_the_skips_and_the_inner_one_has_seen_none():
    params, old = run_before(1.0, "pipeline")
    guard = wc.adopt_state(wc.skip_nonfinite(OURS[1.0]["pipeline"]), params, old, step=BEFORE)
    pipeline = guard.inner_state
    assert (int(guard.skip_calls), int(guard.skipped_count)) == (BEFORE + 1, 1)
    assert (int(pipeline.clip_state.clip_calls), int(pipeline.skipped_count)) == (BEFORE, 0)
    assert int(pipeline.clip_state.clipped_count) == BEFORE // 2


@pytest.mark.parametrize("inject", [False, True])
def test_a_schedule_in_the_place_of_a_number_goes_on_from_step(inject: bool):
    adamw: Any = optax.inject_hyperparams(optax.adamw) if inject else optax.adamw
    old = optax.adamw(0.1)
    params, state = advance(old, PARAMS, old.init(PARAMS), range(BEFORE))
    optimizer = wc.pipeline(adamw, SCHEDULE)
    state = wc.adopt_state(optimizer, params, state, step=BEFORE)
    assert {int(count) for _, count in optax.tree.get_all_with_path(state, "count")} == {BEFORE}
    for index in range(2):
        params, state = wc.apply_gradients(optimizer, params, state, grads=gradients(index))
        assert float(wc.metrics(state)["learning_rate"]) == pytest.approx(
            0.1 * (1 - (BEFORE + index) / 16), rel=1e-6
        )


def test_clocks_that_are_not_those_of_the_state_all_go_on_from_step():
    params, old = run_before(None, "adamw alone")
    optimizer = wc.pipeline(
        lambda rate: optax.chain(optax.adamw(rate), optax.scale_by_schedule(SCHEDULE)), SCHEDULE
    )
    inner = wc.adopt_state(optimizer, params, old, step=BEFORE + 3).inner_state
    assert (int(inner[0][0].count), int(inner[0][2].count), int(inner[1].count)) == (
        BEFORE,
        BEFORE + 3,
        BEFORE + 3,
    )


def test_a_number_in_the_place_of_a_schedule_keeps_the_moments():
    params, old = run_before(None, "adamw alone")
    state = wc.adopt_state(wc.pipeline(optax.adamw, 0.1), params, old, step=BEFORE)
    chex.assert_trees_all_equal(state.inner_state[0], old[0])


def test_a_rate_that_was_set_by_hand_stays():
    old = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    state = optax.tree.set(old.init(PARAMS), learning_rate=jnp.float32(0.03125))
    optimizer = wc.pipeline(optax.inject_hyperparams(optax.sgd), 0.1)
    _, state = optimizer.update(
        gradients(1), wc.adopt_state(optimizer, PARAMS, state, step=3), PARAMS
    )
    assert float(wc.metrics(state)["learning_rate"]) == 0.03125


@pytest.mark.parametrize("skips", [False, True])
def test_multi_steps_go_on_in_the_middle_of_what_they_accumulate(skips: bool):
    kwargs: Any = {"should_skip_update_fn": optax.skip_not_finite} if skips else {}
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(SCHEDULE))
    old = optax.MultiSteps(inner, 2, **kwargs).gradient_transformation()
    params, halfway = advance(old, PARAMS, old.init(PARAMS), range(5))
    expected, _ = advance(old, params, halfway, range(5, 10))
    new = wc.skip_nonfinite(optax.MultiSteps(wc.pipeline(optax.adamw, SCHEDULE, max_norm=1.0), 2))
    resumed, state = advance(
        new, params, wc.adopt_state(new, params, halfway, step=5), range(5, 10)
    )
    chex.assert_trees_all_close(resumed, expected, rtol=0, atol=MOVED * 16 * 2.0**-24)
    known = wc.metrics(state)
    assert (int(known["step"]), int(known["calls"])) == (5, 10)
    assert float(known["learning_rate"]) == pytest.approx(0.1 * (1 - 4 / 16), rel=1e-6)


def test_what_multi_steps_say_of_a_micro_step_that_they_skipped_is_kept():
    optimizer = optax.MultiSteps(
        OURS[1.0]["pipeline"], 2, should_skip_update_fn=optax.skip_not_finite
    )
    state = optimizer.init(PARAMS)
    state = state._replace(
        skip_state={"should_skip": jnp.array(True), "num_not_finite": jnp.int32(7)}
    )
    chex.assert_trees_all_equal(
        wc.adopt_state(optimizer, PARAMS, state, step=0).skip_state, state.skip_state
    )


def test_multi_steps_that_are_new_count_from_step_and_those_that_go_leave_their_optimizer():
    params, old = run_before(1.0, "adamw")
    new = wc.skip_nonfinite(
        optax.MultiSteps(wc.pipeline(optax.adamw, SCHEDULE, max_norm=1.0), 2), record=4
    )
    state = wc.adopt_state(new, params, old, step=BEFORE)
    assert (
        int(state.inner_state.gradient_step)
        == int(wc.metrics(state)["step"])
        == int(wc.metrics(state)["calls"])
        == BEFORE
    )
    chex.assert_trees_all_equal(state.inner_state.inner_opt_state.inner_state, old[1])
    back = wc.adopt_state(optax.adamw(SCHEDULE), params, state, step=BEFORE)
    chex.assert_trees_all_equal(back, old[1])


@pytest.mark.parametrize("source", ["adamw", "pipeline"])
@pytest.mark.parametrize(
    "target", ["pipeline", "clip in a chain", "clip in a guard", "clip before a guard"]
)
def test_a_scheduled_bound_goes_on_from_step(source: str, target: str):
    bounds = wc.polynomial_decay(init_value=2.0, end_value=1.0, decay_steps=10)
    chain: Any = optax.chain(wc.clip_by_global_norm(bounds), optax.adamw(SCHEDULE))
    optimizer: Any = {
        "pipeline": wc.pipeline(optax.adamw, SCHEDULE, max_norm=bounds),
        "clip in a chain": chain,
        "clip in a guard": wc.skip_nonfinite(chain),
        "clip before a guard": optax.chain(
            wc.clip_by_global_norm(bounds), wc.skip_nonfinite(optax.adamw(SCHEDULE))
        ),
    }[target]
    params, old = run_before(1.0, source)
    _, state = optimizer.update(
        gradients(0), wc.adopt_state(optimizer, params, old, step=BEFORE), params
    )
    known, earlier_calls = (
        wc.metrics(state),
        BEFORE + (target == "clip before a guard" and source == "pipeline"),
    )
    bound = known["update/max_norm"] if "update/max_norm" in known else known["max_norm"]
    assert float(bound) == pytest.approx(2.0 - earlier_calls / 10, rel=1e-6)


def everything_on(groups: Any, length: int = 4) -> Any:
    above = wc.running_bound(deviations=50.0)
    options: Any = {"groups": groups, "skip_above": above, "record": length, "record_leaves": True}
    return wc.pipeline(optax.adamw, SCHEDULE, max_norm=wc.running_bound(), **options)


def test_what_two_builds_of_a_pipeline_share_is_kept_and_what_is_new_starts_fresh():
    plain, full = OURS[1.0]["pipeline"], everything_on({"w": "w", "b": "b"})
    params, old = run_before(1.0, "pipeline")
    grown = wc.adopt_state(full, params, old, step=BEFORE)
    fresh = full.init(params)
    chex.assert_trees_all_equal(grown.inner_state, old.inner_state)
    for name in ("ring", "skip_history"):
        chex.assert_trees_all_equal(getattr(grown, name), getattr(fresh, name))
    chex.assert_trees_all_equal(grown.clip_state.clip_history, fresh.clip_state.clip_history)
    chex.assert_trees_all_equal(grown.clip_state.leaves, fresh.clip_state.leaves)
    for name in ("skipped_count", "last_skipped_call", "last_learning_rate"):
        assert float(getattr(grown, name)) == float(getattr(old, name))
    assert int(grown.clip_state.clipped_count) == int(old.clip_state.clipped_count) == BEFORE // 2

    params, state = advance(full, params, grown, range(BEFORE, BEFORE + AFTER))
    shrunk = wc.adopt_state(plain, params, state, step=BEFORE + AFTER)
    chex.assert_trees_all_equal(shrunk.inner_state, state.inner_state)
    assert int(wc.metrics(shrunk)["step"]) == BEFORE + AFTER
    longer = wc.adopt_state(
        everything_on({"w": "w", "b": "b"}, length=6), params, state, step=BEFORE + AFTER
    )
    chex.assert_trees_all_equal(
        longer.ring, everything_on({"w": "w", "b": "b"}, length=6).init(params).ring
    )
    chex.assert_trees_all_equal(longer.skip_history, state.skip_history)
    chex.assert_trees_all_equal(longer.clip_state, state.clip_state)


def test_the_record_of_leaves_goes_from_a_clip_in_a_guard_to_a_pipeline():
    clip = wc.clip_by_global_norm(1.0, record_leaves=True)
    old = wc.skip_nonfinite(optax.chain(clip, optax.adamw(SCHEDULE)))
    state: Any = old.update(gradients(0), old.init(PARAMS), PARAMS)[1]
    new = wc.pipeline(optax.adamw, SCHEDULE, record_leaves=True)
    adopted = wc.adopt_state(new, PARAMS, state, step=1)
    chex.assert_trees_all_equal(adopted.clip_state.leaves, state.inner_state[0].leaves)


def test_hyperparams_may_be_arrays_and_parameters_masked():
    params = {**PARAMS, "frozen": optax.MaskedNode()}

    def factory(learning_rate: Any, scales: Any) -> Any:
        return optax.chain(
            optax.trace(0.9), optax.scale_by_learning_rate(learning_rate * jnp.mean(scales))
        )

    old = optax.inject_hyperparams(factory)(learning_rate=0.1, scales=jnp.ones(3))
    state: Any = old.update(
        {**gradients(0), "frozen": optax.MaskedNode()}, old.init(params), params
    )[1]
    new = wc.pipeline(functools.partial(optax.sgd, momentum=0.9), SCHEDULE)
    adopted = wc.adopt_state(new, params, state, step=1)
    chex.assert_trees_all_equal(adopted.inner_state[0], state.inner_state[0])


def test_groups_are_matched_by_label():
    old = everything_on({"w": "matrix", "b": "rest"})
    params, state = advance(old, PARAMS, old.init(PARAMS), range(3))
    new = everything_on({"w": "matrix", "b": "bias"})
    clip, before = wc.adopt_state(new, params, state, step=3).clip_state, state.clip_state
    fresh = new.init(params).clip_state
    assert from_keys(clip.group_labels) == ["bias", "matrix"]
    for name in ("grad_norm", "norm_bound", "clip_coef"):
        bias, matrix = np.asarray(getattr(clip, name))
        assert np.isnan(bias)
        assert matrix == np.asarray(getattr(before, name))[0]
    for had, has, init in zip(
        before.clip_history, clip.clip_history, fresh.clip_history, strict=True
    ):
        np.testing.assert_array_equal(has, [init[0], had[0]])
    np.testing.assert_array_equal(clip.group_clipped_count, [0, before.group_clipped_count[0]])


MASK = {"w": True, "b": False}
OPTIMIZERS: dict[str, Any] = {
    "sgd": optax.sgd,
    "sgd with momentum": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "rmsprop": functools.partial(optax.rmsprop, centered=True, momentum=0.9),
    "lion": optax.lion,
    "adafactor": functools.partial(optax.adafactor, min_dim_size_to_factor=2),
    "adamw without decay of biases": functools.partial(optax.adamw, mask=MASK),
    "adam with scheduled decay": lambda rate: optax.chain(
        optax.scale_by_adam(),
        optax.inject_hyperparams(optax.add_decayed_weights)(weight_decay=SCHEDULE),
        optax.scale_by_learning_rate(rate),
    ),
    "masked": lambda rate: optax.masked(optax.adamw(rate), MASK),
    "partition": lambda rate: optax.partition(
        {True: optax.adamw(rate), False: optax.sgd(rate)}, MASK
    ),
    "named_chain": lambda rate: optax.named_chain(
        ("moments", optax.scale_by_adam()), ("rate", optax.sgd(rate))
    ),
    "muon": optax.contrib.muon,
    "noise": functools.partial(optax.noisy_sgd, key=0),
    "schedule_free": lambda rate: optax.contrib.schedule_free(optax.sgd(rate), rate),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_optax_is_found_in_a_chain(name: str):
    old, new = (
        optax.apply_if_finite(
            optax.chain(optax.clip_by_global_norm(1.0), OPTIMIZERS[name](SCHEDULE)), 5
        ),
        wc.pipeline(OPTIMIZERS[name], SCHEDULE),
    )
    state: Any = old.update(gradients(1), old.init(PARAMS), PARAMS)[1]
    adopted = wc.adopt_state(new, PARAMS, state, step=1)
    chex.assert_trees_all_equal_structs(adopted, new.init(PARAMS))
    chex.assert_trees_all_equal(adopted.inner_state, state.inner_state[1])


def test_a_pipeline_in_each_part_of_a_partition_finds_its_own_moments():
    parts: Any = {
        True: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(SCHEDULE)),
        False: optax.adamw(SCHEDULE),
    }
    old = optax.apply_if_finite(optax.partition(parts, MASK), 5)
    state: Any = old.update(gradients(1), old.init(PARAMS), PARAMS)[1]
    pipelines: Any = dict.fromkeys(parts, OURS[1.0]["pipeline"])
    new = optax.partition(pipelines, MASK)
    adopted = wc.adopt_state(new, PARAMS, state, step=1).inner_states
    given = state.inner_state.inner_states
    chex.assert_trees_all_equal(adopted[True].inner_state.inner_state, given[True].inner_state[1])
    chex.assert_trees_all_equal(adopted[False].inner_state.inner_state, given[False].inner_state)


def test_metrics_of_a_last_call_that_nobody_measured_are_nan_until_the_next():
    params, old = run_before(1.0, "adamw")
    optimizer = OURS[1.0]["pipeline"]
    with jax.debug_nans(True):  # Which stops at a NaN that is computed.
        state = wc.adopt_state(optimizer, params, old, step=BEFORE)
    unknown = {name for name, value in wc.metrics(state).items() if np.isnan(value)}
    assert unknown == {"grad_norm", "max_norm", "skip_bound", "clip_coef", "learning_rate"}
    _, state = optimizer.update(gradients(0), state, params)
    assert not any(np.isnan(value) for value in wc.metrics(state).values())


@pytest.mark.parametrize("donated", [0, 1])
@pytest.mark.parametrize("jitted", [False, True])
def test_either_state_can_be_donated_and_the_other_lives(donated: int, jitted: bool):
    adopt = functools.partial(wc.adopt_state, OURS[1.0]["pipeline"])
    params, old = run_before(1.0, "pipeline")
    given = jax.tree.map(jnp.copy, old)
    states = [given, (jax.jit(adopt) if jitted else adopt)(params, given, step=jnp.int32(BEFORE))]
    jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)(
        states[donated]
    )
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states[donated]))
    chex.assert_trees_all_equal(states[1 - donated], old)


def test_numpy_leaves_and_other_dtypes_become_arrays_in_the_dtypes_of_init():
    params, old = run_before(1.0, "adamw")
    optimizer = OURS[1.0]["pipeline"]
    expected = wc.adopt_state(optimizer, params, old, step=BEFORE)
    for dtype, rtol in ((np.float64, 0.0), (jnp.bfloat16, 2.0**-8)):
        restored = jax.tree.map(
            lambda leaf, dtype=dtype: np.asarray(leaf, dtype if leaf.ndim else np.int64), old
        )
        state = wc.adopt_state(optimizer, params, restored, step=np.int64(BEFORE))
        chex.assert_trees_all_close(state, expected, rtol=rtol)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, optimizer.init(params))
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_states_of_a_stack_of_runs_are_adopted_by_vmap():
    optimizer = OURS[1.0]["pipeline"]
    runs = [run_before(1.0, "adamw"), run_before(1.0, "one row of links")]
    params, old = jax.tree.map(lambda *leaves: jnp.stack(leaves), runs[0], (runs[1][0], runs[0][1]))
    state = jax.vmap(functools.partial(wc.adopt_state, optimizer, step=BEFORE))(params, old)
    assert wc.metrics(state)["step"].tolist() == [BEFORE, BEFORE]


def test_a_state_keeps_its_sharding():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    params = jax.device_put(jnp.ones(16), sharding)
    old = optax.adamw(SCHEDULE)
    state = wc.adopt_state(wc.pipeline(optax.adamw, SCHEDULE), params, old.init(params), step=0)
    assert state.inner_state[0].mu.sharding == sharding


ADAMW, PIPELINE = optax.adamw(SCHEDULE), OURS[1.0]["pipeline"]
OTHER_MODEL = {"w": jnp.ones((6, 8)), "b": jnp.ones(4)}
ADAM_STATE = ADAMW.init(PARAMS)
FITS_NOT = r"opt_state must hold what optimizer.init\(params\) does, ScaleByAdamState, ScaleByScheduleState; got "


@pytest.mark.parametrize(
    ("optimizer", "params", "opt_state", "message"),
    [
        (PIPELINE, PARAMS, None, FITS_NOT + r"no moments\. Pass the params"),
        (PIPELINE, PARAMS, (), FITS_NOT + r"no moments\. Pass the params"),
        (PIPELINE, PARAMS, PARAMS, FITS_NOT + r"dict\. Pass the params"),
        (
            PIPELINE,
            PARAMS,
            optax.rmsprop(SCHEDULE).init(PARAMS),
            FITS_NOT + r"ScaleByRmsState, ScaleByScheduleState\. Pass",
        ),
        (
            PIPELINE,
            PARAMS,
            ADAMW.init(OTHER_MODEL),
            FITS_NOT
            + r"Scale.*State \(ScaleByAdamState\.mu\['w'\] is float32\[6, 8\], not float32\[6, 4\]\)\. Pass",
        ),
        (
            PIPELINE,
            PARAMS,
            ADAMW.init({"w": PARAMS["w"]}),
            FITS_NOT
            + r".*\(ScaleByAdamState\.mu is a dict of \['w'\], not a dict of \['b'\], \['w'\]\)\. Pass",
        ),
        (
            PIPELINE,
            ADAM_STATE,
            PARAMS,
            "params must be parameters; got an optimizer's state. The order is ",
        ),
        (
            PIPELINE,
            PARAMS,
            (ADAM_STATE, ADAM_STATE),
            r"got opt_state\[0\] and opt_state\[1\] \(ambiguous\)\. Pass the one",
        ),
        (
            PIPELINE,
            PARAMS,
            {"a": ADAM_STATE, "b": ADAM_STATE},
            r"got opt_state\['a'\] and opt_state\['b'\] \(ambiguous\)",
        ),
        (
            PIPELINE,
            PARAMS,
            optax.chain(ADAMW, optax.ema(0.9)).init(PARAMS),
            r"nothing that optimizer has no place for, beside ScaleByAdamState.*; got opt_state\[1\]\.ema\['b'\]\. Pass only",
        ),
        (
            wc.pipeline(optax.sgd, 0.1),
            PARAMS,
            ADAM_STATE,
            r"beside no moments; got opt_state\[0\]\.mu\['b'\]",
        ),
        (
            wc.pipeline(optax.sgd, SCHEDULE),
            PARAMS,
            ADAM_STATE,
            r"beside ScaleByScheduleState; got opt_state\[0\]\.mu\['b'\]",
        ),
        (
            optax.adamw,
            PARAMS,
            ADAM_STATE,
            "optimizer must be an optax.GradientTransformation; got <function adamw",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_message_with_both_states(
    optimizer: Any, params: Any, opt_state: Any, message: str
):
    with pytest.raises(TypeError, match=f"^adopt_state: .*{message}") as raised:
        wc.adopt_state(optimizer, params, opt_state, step=3)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("step", "error", "got"),
    [
        (-1, ValueError, "-1"),
        (1.5, ValueError, "1.5"),
        (2**31, ValueError, "2147483648"),
        (None, TypeError, "None"),
    ],
)
def test_a_step_that_is_no_count_is_an_error(step: Any, error: type[Exception], got: str):
    with pytest.raises(
        error, match=rf"^adopt_state: step must be a whole number, 0 or more; got {got}"
    ):
        wc.adopt_state(PIPELINE, PARAMS, ADAM_STATE, step=step)


@pytest.mark.parametrize("library", ["orbax", "flax"])
def test_a_checkpoint_is_restored_with_the_optimizer_that_wrote_it_and_then_adopted(
    library: str, tmp_path: pathlib.Path
):
    old, optimizer = THEIRS[1.0]["adamw"], OURS[1.0]["pipeline"]
    saved = run_before(1.0, "adamw")
    like: Any = (PARAMS, old.init(PARAMS))
    params: Any
    opt_state: Any
    if library == "orbax":
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "saved", saved)
            checkpointer.wait_until_finished()
            params, opt_state = checkpointer.restore(tmp_path / "saved", like)
    else:
        params, opt_state = flax.serialization.from_bytes(like, flax.serialization.to_bytes(saved))
    opt_state = wc.adopt_state(optimizer, params, opt_state, step=BEFORE)
    for index in range(BEFORE, BEFORE + AFTER):
        params, opt_state = step_of(1.0, "pipeline")(params, opt_state, grads=gradients(index))
    chex.assert_trees_all_close(
        params, never_changed(1.0), rtol=0, atol=MOVED * tolerance(1.0, "adamw", "pipeline")
    )
