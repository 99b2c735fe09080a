"""Typical user code, never run: it is there for the type checker, which has to accept it and to catch each planted mistake.

An `ignore` that catches nothing is an error itself (`reportUnnecessaryTypeIgnoreComment`), so a
mistake that is no longer found fails the check.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
# Optax is untyped.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import functools
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax

import warmclip_jax as wc

Params = dict[str, jax.Array]


def schedules(rate: jax.Array, counts: jax.Array) -> list[jax.Array]:
    built = [
        wc.constant(value=rate),
        wc.polynomial_warmup(
            peak_value=np.float32(1e-3), warmup_steps=np.int64(100), init_value=0.0, power=2.0
        ),
        wc.warmup_polynomial_decay(
            peak_value=1e-3, total_steps=1000, warmup_fraction=0.1, decay_from="zero"
        ),
        wc.warmup_stable_decay(
            peak_value=1e-3,
            total_steps=1000,
            warmup_steps=100,
            decay_fraction=0.2,
            decay_shape="one_minus_sqrt",
        ),
        wc.with_warmup(optax.cosine_decay_schedule(1e-3, 100), warmup_steps=10),
        wc.join([wc.constant(value=1e-3), optax.constant_schedule(1e-4)], boundaries=[100]),
        wc.piecewise_constant(values=[1e-3, 1e-4], boundaries=np.array([100])),
        wc.product(wc.constant(value=1e-3), optax.constant_schedule(0.1), rate, 2),
        wc.maximum(wc.minimum(wc.constant(value=rate), 1e-3), 1e-5),
        2
        * wc.constant(value=1e-3)
        * np.float32(0.1)
        / 2
        * wc.constant(value=rate)
        * optax.constant_schedule(0.1),
        wc.total(wc.constant(value=rate), optax.constant_schedule(0.1), rate, 2),
        1 - wc.constant(value=rate) + rate - np.float32(0.1) + optax.constant_schedule(0.1),
        -(rate + wc.constant(value=rate)),
    ]
    assert_type(built[-1], wc.Schedule)
    assert_type(wc.cosine_decay(init_value=1e-3, decay_steps=100), wc.Schedule)
    assert_type(built[0], wc.Schedule)
    assert_type(built[0](3), jax.Array)
    as_optax: optax.Schedule = built[1]
    print(as_optax(0), built[0].kind, dict(built[0].arguments))
    return [schedule(counts) for schedule in built]


def units(b2: float) -> int:
    schedule_length = wc.steps(epochs=3, dataset_size=50_000, batch_size=32, drop_remainder=True)
    assert_type(schedule_length, int)
    return schedule_length + int(wc.untuned_warmup_steps(b2))


def clipping(grads: Params, bound: jax.Array) -> tuple[Params, jax.Array]:
    assert_type(wc.global_norm(grads), jax.Array)
    clipped, norm = wc.clip_tree(grads, bound)
    clipped, norm = wc.clip_tree(clipped, 1.0, norm=norm, axis_name="data")
    assert_type(norm, jax.Array)
    return clipped, norm


def transformations(params: Params) -> list[optax.GradientTransformationExtraArgs]:
    schedule = wc.warmup_cosine_decay(peak_value=1e-3, total_steps=1000, warmup_steps=100)
    clip = wc.clip_by_global_norm(schedule, axis_name=("data", "model"), nonfinite="zero")
    chained = optax.chain(clip, optax.adamw(schedule))
    accumulated = wc.skip_nonfinite(optax.MultiSteps(chained, every_k_schedule=4))
    adamw = functools.partial(optax.adamw, weight_decay=0.01)
    built = wc.pipeline(adamw, schedule, max_norm=None, nonfinite="propagate", axis_name=())
    return [
        clip,
        accumulated,
        built,
        wc.pipeline(optax.sgd, 0.1),
        wc.pipeline(optax.lion, optax.constant_schedule(0.1)),
    ]


def train(params: Params, batches: list[jax.Array]) -> Params:
    optimizer = wc.pipeline(
        optax.adamw, wc.linear_warmup(peak_value=1e-3, warmup_steps=10), max_norm=1.0
    )
    opt_state = optimizer.init(params)
    for batch in batches:
        grads = {"w": params["w"] * batch}
        moved, opt_state = wc.apply_gradients(
            optimizer, params, opt_state, grads=grads, value=jnp.sum(batch)
        )
        params = assert_type(moved, Params)
    assert_type(wc.metrics(opt_state), dict[str, Any])
    return params


def states(state: Any) -> list[jax.Array]:
    match state:
        case wc.PipelineState():
            assert_type(state.clip_state, wc.ClipState)
            return [state.last_learning_rate, state.skipped_count, *states(state.clip_state)]
        case wc.SkipState():
            return [state.skipped_count]
        case wc.ClipState():
            return [
                state.clip_calls,
                state.grad_norm,
                state.clip_coef,
                state.clipped_count,
                state.nonfinite_count,
            ]
        case _:
            return []


def drawn(schedule: wc.Schedule) -> None:
    wc.plot(schedule, steps=100)
    wc.plot({"ours": schedule, "optax": optax.constant_schedule(1e-3)}, steps=100, log_scale=True)


def mistakes(grads: Params, schedule: wc.Schedule) -> None:
    wc.linear_warmup(1e-3, 100)  # pyright: ignore[reportCallIssue]
    wc.linear_warmup(peak_value="1e-3", warmup_steps=100)  # pyright: ignore[reportArgumentType]
    wc.warmup_cosine_decay(peak_value=1e-3, total_steps=9, warmup_steps=1, decay_from="start")  # pyright: ignore[reportArgumentType]
    shape: Any = {"total_steps": 9, "warmup_steps": 1, "decay_steps": 1}
    wc.warmup_stable_decay(peak_value=1, decay_shape="sqrt", **shape)  # pyright: ignore[reportArgumentType]
    wc.clip_by_global_norm("1.0")  # pyright: ignore[reportArgumentType]
    wc.clip_by_global_norm(1.0, nonfinite="skip")  # pyright: ignore[reportArgumentType]
    wc.clip_tree(grads, schedule)  # pyright: ignore[reportArgumentType]
    wc.pipeline(optax.adamw(1e-3), 1e-3)  # pyright: ignore[reportArgumentType]
    wc.pipeline(optax.adamw, schedule, 1.0)  # pyright: ignore[reportCallIssue]
    wc.skip_nonfinite(optax.adamw)  # pyright: ignore[reportArgumentType]
    wc.apply_gradients(optax.sgd(0.1), grads, grads)  # pyright: ignore[reportCallIssue]
    wc.join(schedule, boundaries=[1])  # pyright: ignore[reportArgumentType]
    wc.global_norm(grads, axis="data")  # pyright: ignore[reportCallIssue]
    wc.product(schedule, "2")  # pyright: ignore[reportArgumentType]
    schedule**2  # pyright: ignore[reportOperatorIssue, reportUnusedExpression]
    schedule.kind = "constant"  # pyright: ignore[reportAttributeAccessIssue]
    wc.steps(32, 3)  # pyright: ignore[reportCallIssue]
    wc.clip_norm(grads)  # pyright: ignore[reportAttributeAccessIssue]
