"""Clip, then an optimizer, with a schedule as its learning rate."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from warmclip_jax._checks import Choice, Number, Scalar, default_float
from warmclip_jax._gradients import _clipping as clipping
from warmclip_jax._gradients._applying import as_transformation
from warmclip_jax._gradients._axes import AxisName, check_axis_name
from warmclip_jax._gradients._coefficient import coefficient, scale_tree
from warmclip_jax._gradients._norm import scaled_norm
from warmclip_jax._gradients._selecting import choose
from warmclip_jax._gradients._skipping import counted, no_skips
from warmclip_jax._gradients._states import like, own
from warmclip_jax._rates import UNKNOWN, Rate

_LEARNING_RATE = Number(
    "a schedule or a finite number", "Pass warmclip_jax.linear_warmup(...), any optax schedule, or 1e-3.", np.isfinite
)
_NONFINITE = Choice(("skip", "propagate", "zero"))


class PipelineState(NamedTuple):
    """What `pipeline` keeps. The clip's record stands outside of what a skipped step leaves alone, so it knows of that step."""

    clip_state: clipping.ClipState
    skipped_count: jax.Array  # int32: calls skipped
    consecutive_skips: jax.Array  # int32: calls skipped since the last that was not
    last_skipped_call: jax.Array  # int32: its number, from 0; -1 before there is one
    last_learning_rate: jax.Array  # default float: what the optimizer used in the last update; past 1e38: not known
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
    ...     params, opt_state = wc.apply_gradients(optimizer, params, opt_state, grads=jnp.array([3.0, 4.0]))
    >>> [round(float(p), 4) for p in params], round(float(wc.metrics(opt_state)["learning_rate"]), 4)
    ([-0.09, -0.12], 0.1)

    Source: the recipe of Devlin et al. 2018, "BERT", appendix A.2.
    """
    _NONFINITE.check("nonfinite", nonfinite)
    bound = clipping.check_max_norm(max_norm)
    check_axis_name(axis_name)
    if isinstance(optimizer, optax.GradientTransformation) or not callable(optimizer):
        raise TypeError(
            f"optimizer must be a function from a learning rate to a GradientTransformation; got {optimizer!r} "
            f"({type(optimizer).__name__}). Pass optax.adamw, or functools.partial(optax.adamw, weight_decay=0.01), not "
            "optax.adamw(1e-3)."
        )
    asked = Rate(schedule if callable(schedule) else _LEARNING_RATE.check("schedule", schedule))
    inner = as_transformation("what optimizer returns", optimizer(asked.handed()))
    becomes = "propagate" if nonfinite == "propagate" else "zero"

    def init(params: optax.Params) -> PipelineState:
        inner_state = inner.init(params)
        _check_no_multi_steps(inner_state)
        return PipelineState(
            clip_state=clipping.init_clip_state(params),
            **no_skips(),
            last_learning_rate=jnp.full((), UNKNOWN, default_float()),
            inner_state=inner_state,
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, PipelineState]:
        state = own(PipelineState, state, updates)
        call, updates_made = state.clip_state.clip_calls, state.clip_state.clip_calls - state.skipped_count
        norm, limit = scaled_norm(updates, axis_name=axis_name), clipping.at_step(bound, updates_made)
        coef = coefficient(norm, limit, becomes)

        def take(updates: Any, inner_state: Any, params: Any) -> tuple[Any, Any, jax.Array]:
            with asked.listening() as used_by:
                updates, inner_state = inner.update(updates, inner_state, params, **extra)
                return updates, inner_state, like(state.last_learning_rate, used_by(inner_state))

        arguments = (scale_tree(updates, coef, becomes), state.inner_state, params)
        if nonfinite == "skip":
            before = (state.inner_state, state.last_learning_rate)
            updates, inner_state, learning_rate = choose(norm.is_finite, take, arguments, before)
            is_skipped = ~norm.is_finite
        else:
            updates, inner_state, learning_rate = take(*arguments)
            is_skipped = False
        return updates, PipelineState(
            clip_state=clipping.advance(state.clip_state, norm, limit, coef),
            **counted(state, call, is_skipped),
            last_learning_rate=learning_rate,
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _check_no_multi_steps(inner_state: optax.OptState) -> None:
    def is_multi_steps(node: Any) -> bool:
        return isinstance(node, optax.MultiStepsState)

    if any(map(is_multi_steps, jax.tree.leaves(inner_state, is_leaf=is_multi_steps))):
        raise TypeError(
            "optimizer must not hold an optax.MultiSteps: each micro-batch would be clipped, and the learning rate would not "
            "be known. Put it outside: skip_nonfinite(optax.MultiSteps(pipeline(...), every_k_schedule=k))."
        )
