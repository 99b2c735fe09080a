"""Clip, then an optimizer, with a schedule as its learning rate; and what they know, read back out of any state."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from warmclip_jax._checks import Choice, Number, Scalar, default_float
from warmclip_jax._gradients import _clipping as clipping
from warmclip_jax._gradients._axes import AxisName, check_axis_name
from warmclip_jax._gradients._norm import scaled_norm
from warmclip_jax._gradients._skipping import as_transformation, update_if

_LEARNING_RATE = Number(
    "a schedule or a finite number", "Pass warmclip_jax.linear_warmup(...), any optax schedule, or 1e-3.", np.isfinite
)
_NONFINITE = Choice(("skip", "propagate", "zero"))


class PipelineState(NamedTuple):
    """What `pipeline` keeps. The clip's record stands beside what a skipped step leaves alone, so it knows of that step."""

    clip_state: clipping.ClipState
    skipped_count: jax.Array  # int32 scalar
    last_learning_rate: jax.Array  # default float scalar: that of the last update made; before one, of the first to come
    inner_state: optax.OptState


def pipeline(
    optimizer: Callable[[Any], optax.GradientTransformation],
    schedule: Scalar | Callable[[Any], Any],
    *,
    max_norm: clipping.MaxNorm = 1.0,
    nonfinite: Literal["skip", "propagate", "zero"] = "skip",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Global-norm clipping, then an optimizer with a learning-rate schedule, as one optax transformation.

    The same numbers as `optax.chain(clip_by_global_norm(max_norm), optimizer(schedule))`; with one computation of the norm for
    clip, skip and metrics.

    Args:
      optimizer: a function from a learning rate to a transformation: `optax.sgd`, `optax.adamw`, or
        `functools.partial(optax.adamw, weight_decay=0.01)`.
      schedule: the learning rate: a `Schedule`, any optax schedule, or a number.
      max_norm: the bound, as in `clip_by_global_norm`. A schedule is given the number of steps taken so far.
      nonfinite: what happens at a gradient with a NaN or inf entry. `"skip"`: the step is left out, as by `skip_nonfinite`.
        `"propagate"` and `"zero"` as in `clip_by_global_norm`. It is counted in each case.
      axis_name: how gradients are sharded, where their types do not tell: see `global_norm`.

    Returns:
      A transformation with a `PipelineState`, which `metrics` reads. Use it with `apply_gradients`, or as any other. Inside of
      `optax.MultiSteps` a NaN has been added to what is accumulated before it is seen here: there, use
      `skip_nonfinite(optax.MultiSteps(pipeline(...), ...))`.

    Raises:
      TypeError, ValueError: for an `optimizer` that is already built, a concrete argument that breaks its rule, and (when
        used) as `global_norm`. Traced arguments are not checked.

    >>> import jax.numpy as jnp, optax
    >>> import warmclip_jax as wc
    >>> optimizer = wc.pipeline(optax.sgd, wc.linear_warmup(peak_value=0.1, warmup_steps=2), max_norm=1.0)
    >>> params = jnp.zeros(2)
    >>> opt_state = optimizer.init(params)
    >>> for _ in range(3):
    ...     params, opt_state = wc.apply_gradients(optimizer, params, opt_state, jnp.array([3.0, 4.0]))
    >>> [round(float(p), 4) for p in params], round(float(wc.metrics(opt_state)["learning_rate"]), 4)
    ([-0.09, -0.12], 0.1)

    Source: the recipe of Devlin et al. 2018, "BERT", appendix A.2.
    """
    _NONFINITE.check("nonfinite", nonfinite)
    bound = clipping.check_max_norm(max_norm)
    check_axis_name(axis_name)
    rate = schedule if callable(schedule) else _LEARNING_RATE.check("schedule", schedule)
    if isinstance(optimizer, optax.GradientTransformation) or not callable(optimizer):
        raise TypeError(
            f"optimizer must be a function from a learning rate to a GradientTransformation; got {optimizer!r} "
            f"({type(optimizer).__name__}). Pass optax.adamw, or functools.partial(optax.adamw, weight_decay=0.01), not "
            "optax.adamw(1e-3)."
        )
    inner = as_transformation("what optimizer returns", optimizer(rate))
    becomes = "propagate" if nonfinite == "propagate" else "zero"

    def rate_at(step: jax.Array) -> jax.Array:
        return jnp.asarray(rate(step) if callable(rate) else rate).astype(default_float())

    def init(params: optax.Params) -> PipelineState:
        skipped_count = jnp.zeros((), jnp.int32)
        return PipelineState(clipping.init_clip_state(params), skipped_count, rate_at(skipped_count), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, PipelineState]:
        steps_taken = state.clip_state.clip_calls - state.skipped_count
        norm = scaled_norm(updates, axis_name=axis_name)
        coef = clipping.coefficient(norm, clipping.at_step(bound, steps_taken), becomes)
        updates, take = clipping.scale_tree(updates, coef, becomes), functools.partial(inner.update, **extra)
        learning_rate, skipped_count = rate_at(steps_taken), state.skipped_count
        if nonfinite == "skip":
            updates, inner_state = update_if(norm.is_finite, take, updates, state.inner_state, params)
            learning_rate = jnp.where(norm.is_finite, learning_rate, state.last_learning_rate)
            skipped_count = clipping.increment_if(~norm.is_finite, skipped_count)
        else:
            updates, inner_state = take(updates, state.inner_state, params)
        return updates, PipelineState(clipping.record(state.clip_state, norm, coef), skipped_count, learning_rate, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
