"""`metrics`: what happened in the last call and the last update, by name, from any optimizer state."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests.runs import NAN, PARAMS, SCHEDULE, counts, gradients, run


def test_metrics_tell_what_the_last_update_did():
    optimizer: Any = wc.pipeline(functools.partial(optax.sgd), SCHEDULE, max_norm=1.0)
    grads = {"w": jnp.zeros((3, 4)).at[0, 0].set(3.0), "b": jnp.array([0.0, 4.0])}
    _, state = run(optimizer, [grads, grads])
    known = wc.metrics(state)
    assert counts(state) == {
        "step": 2,
        "clipped_count": 2,
        "nonfinite_count": 0,
        "skipped_count": 0,
    }
    assert float(known["grad_norm"]) == 5.0
    np.testing.assert_allclose(known["clip_coef"], 0.2, rtol=2e-7)
    np.testing.assert_allclose(known["learning_rate"], 0.1 * 1 / 4, rtol=2e-7)


def test_a_bad_step_is_recorded_but_moves_no_step_and_no_learning_rate():
    good = gradients(0)
    _, before = run(wc.pipeline(optax.adamw, SCHEDULE), [good, good])
    _, after = run(wc.pipeline(optax.adamw, SCHEDULE), [good, good, NAN])
    known = wc.metrics(after)
    assert np.isnan(known["grad_norm"])
    assert float(known["learning_rate"]) == float(wc.metrics(before)["learning_rate"])
    assert counts(after) == {
        "step": 2,
        "clipped_count": 2,
        "nonfinite_count": 1,
        "skipped_count": 1,
    }
    assert float(wc.metrics(after)["clip_coef"]) == 0.0
    chex.assert_trees_all_equal(before.inner_state, after.inner_state)


NESTED = {
    "chain": lambda clip: optax.chain(clip, optax.adamw(0.1)),
    "named_chain": lambda clip: optax.named_chain(("clip", clip), ("adamw", optax.adamw(0.1))),
    "masked": lambda clip: optax.masked(clip, {"w": True, "b": True}),
    "multi_steps": lambda clip: optax.MultiSteps(
        optax.chain(clip, optax.sgd(0.1)), 1
    ).gradient_transformation(),
    "inject_hyperparams": lambda clip: optax.inject_hyperparams(
        lambda rate: optax.chain(clip, optax.sgd(rate))
    )(rate=0.1),
    "apply_if_finite": lambda clip: optax.apply_if_finite(optax.chain(clip, optax.sgd(0.1)), 3),
    "partition": lambda clip: optax.partition(
        {"all": optax.chain(clip, optax.sgd(0.1))}, {"w": "all", "b": "all"}
    ),
    "skip_nonfinite": lambda clip: wc.skip_nonfinite(optax.chain(clip, optax.sgd(0.1))),
}


@pytest.mark.parametrize("nest", NESTED)
def test_metrics_finds_the_clip_in_any_state(nest):
    _, state = run(NESTED[nest](wc.clip_by_global_norm(1.0)), [gradients(0), gradients(1)])
    known = wc.metrics(state)
    expected = np.sqrt(
        sum(np.sum(np.square(np.asarray(g, np.float64))) for g in gradients(1).values())
    )
    np.testing.assert_allclose(known["grad_norm"], expected, rtol=1e-6)
    assert int(known["calls"]) == 2
    assert "learning_rate" not in known
    assert {"skipped_count" in known, "step" in known} == {nest == "skip_nonfinite"}


def test_several_clips_appear_under_their_paths():
    labels = {"w": "encoder", "b": "decoder"}
    optimizer: Any = optax.partition(
        {
            "encoder": wc.pipeline(optax.sgd, 0.1),
            "decoder": optax.chain(wc.clip_by_global_norm(1.0), optax.sgd(0.1)),
        },
        labels,
    )
    _, state = run(optimizer, [gradients(0)])
    known = wc.metrics(state)
    np.testing.assert_allclose(
        known["encoder/grad_norm"], wc.global_norm(gradients(0)["w"]), rtol=1e-6
    )
    np.testing.assert_allclose(
        known["decoder/grad_norm"], wc.global_norm(gradients(0)["b"]), rtol=1e-6
    )
    assert {name for name in known if "/" not in name} == set()
    assert "decoder/learning_rate" not in known


def test_two_clips_in_a_chain_are_told_apart_by_their_place():
    _, state = run(
        optax.chain(wc.clip_by_global_norm(2.0), wc.clip_by_global_norm(1.0), optax.sgd(0.1)),
        [gradients(0)],
    )
    known = wc.metrics(state)
    assert float(known["0/grad_norm"]) > 2.0
    np.testing.assert_allclose(known["1/grad_norm"], 2.0, rtol=1e-6)


def test_a_skip_around_a_partition_counts_under_its_own_name():
    groups: Any = {
        name: optax.chain(wc.clip_by_global_norm(1.0), optax.sgd(0.1))
        for name in ("encoder", "decoder")
    }
    optimizer: Any = wc.skip_nonfinite(optax.partition(groups, {"w": "encoder", "b": "decoder"}))
    _, state = run(optimizer, [gradients(0), NAN])
    known = wc.metrics(state)
    assert int(known["skipped_count"]) == 1
    assert int(known["step"]) == int(known["encoder/calls"]) == int(known["decoder/calls"]) == 1


def test_accumulated_micro_steps_are_no_steps():
    optimizer: Any = wc.skip_nonfinite(optax.MultiSteps(wc.pipeline(optax.sgd, SCHEDULE), 2))
    _, state = run(optimizer, [gradients(0), NAN, gradients(1), gradients(2), gradients(3)])
    assert counts(state) == {
        "step": 2,
        "clipped_count": 2,
        "nonfinite_count": 1,
        "skipped_count": 1,
    }
    assert int(wc.metrics(state)["calls"]) == 5
    np.testing.assert_allclose(wc.metrics(state)["learning_rate"], SCHEDULE(1), rtol=2e-7)


def test_two_clips_in_a_guard_are_told_apart_by_their_place_alone():
    clips = optax.chain(wc.clip_by_global_norm(2.0), wc.clip_by_global_norm(1.0), optax.sgd(0.1))
    known = wc.metrics(wc.skip_nonfinite(clips).init(PARAMS))
    assert {"0/max_norm", "1/max_norm", "skip_bound"} <= set(known)
    assert not any("inner_state" in name for name in known)


def test_what_any_guard_around_skips_is_clipped_to_zero_in_every_group():
    groups = wc.clip_by_group_norm(0.1, wc.label_by_path())
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    guards: Any = (
        wc.skip_nonfinite(groups, above=9.0),
        wc.skip_nonfinite(wc.skip_nonfinite(groups), above=9.0),
    )
    for guard in guards:
        update = jax.jit(guard.update)
        _, state = update(params, guard.init(params))
        assert float(wc.metrics(state)["a/clip_coef"]) > 0
        _, state = update(jax.tree.map(lambda leaf: 100 * leaf, params), state)
        told = wc.metrics(state)
        assert not any(told[name] for name in ("clip_coef", "a/clip_coef", "b/clip_coef"))


def test_the_rate_is_what_the_gradient_was_multiplied_by_also_where_a_plateau_halves_it():
    optimizer: Any = wc.pipeline(
        lambda rate: optax.chain(
            optax.sgd(rate), optax.contrib.reduce_on_plateau(factor=0.5, patience=2)
        ),
        wc.linear_warmup(peak_value=0.5, warmup_steps=4),
        max_norm=None,
    )
    update, state = jax.jit(optimizer.update), optimizer.init(jnp.zeros(2))
    rates = []
    for _ in range(8):
        updates, state = update(jnp.array([1.0, 2.0]), state, jnp.zeros(2), value=jnp.float32(3.0))
        rates.append(-float(updates[0]))
        assert float(wc.metrics(state)["learning_rate"]) == rates[-1]
    assert rates[-1] <= 0.25  # the plateau did act


def test_the_rate_is_not_known_where_another_schedule_stands_behind_the_optimizer():
    optimizer = wc.pipeline(
        lambda rate: optax.chain(optax.sgd(rate), optax.scale_by_schedule(lambda count: 0.5)),
        0.1,
    )
    _, state = run(optimizer, [PARAMS])
    assert np.isnan(wc.metrics(state)["learning_rate"])
