"""Clip, then an optimizer, with a schedule as its learning rate."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from warmclip_jax._clipping import (
    UNKNOWN,
    Bound,
    Clip,
    ClipState,
    Groups,
    Guard,
    History,
    Ring,
    as_transformation,
    choose,
    like,
    own,
    stored,
)
from warmclip_jax._norms import AxisName, accumulation_dtype
from warmclip_jax._pipeline._rates import Rate
from warmclip_jax._schedules import Schedule
from warmclip_jax._values import Choice, Function, Scalar, default_float

_LEARNING_RATE = Function.or_number(
    "a schedule or a finite number",
    "Pass warmclip_jax.linear_warmup(...), any optax schedule, or 1e-3.",
    np.isfinite,
)
_NONFINITE = Choice(("skip", "propagate", "zero"))


class PipelineState(NamedTuple):
    """What `pipeline` keeps. The clip's record stands outside of what a skipped step leaves alone, so it knows of that step."""

    clip_state: ClipState
    skipped_count: jax.Array  # int32: calls skipped
    consecutive_skips: jax.Array  # int32: calls skipped since the last that was not
    last_skipped_call: jax.Array  # int32: its number, from 0; -1 before there is one
    # Float scalar: the bound of skipping in force at the last call; -1 for one that is never
    # reached.
    above_bound: jax.Array
    skip_history: History | tuple[()]  # of a running bound of skipping
    last_learning_rate: (
        jax.Array
    )  # default float: what the optimizer used in the last update; past 1e38: not known
    ring: Ring | tuple[()]
    inner_state: optax.OptState


def pipeline(
    optimizer: Callable[[Any], optax.GradientTransformation],
    schedule: Scalar | Callable[[Any], Any],
    *,
    max_norm: Bound | Mapping[str, Bound] = 1.0,
    skip_above: Bound = None,
    groups: Groups | None = None,
    nonfinite: Literal["skip", "propagate", "zero"] = "skip",
    record: int = 0,
    record_leaves: bool = False,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Global-norm clipping, then an optimizer with a learning-rate schedule, as one optax transformation.

    The same numbers as `optax.chain(clip_by_global_norm(max_norm), optimizer(schedule))`; with one
    computation of the norm for clip, skip and metrics.

    Args:
      optimizer: a function from a learning rate to a transformation: `optax.sgd`, `optax.adamw`, or
        `functools.partial(optax.adamw, weight_decay=0.01)`. It is handed a `Schedule`, or the
        number where `schedule` is one: `lambda lr: optax.partition({"new": optax.adamw(lr), "old":
        optax.adamw(0.1 * lr)}, labels)`.
      schedule: the learning rate: a `Schedule`, any optax schedule, or a number.
      max_norm: the bound, as in `clip_by_global_norm`; with `groups`, as in `clip_by_group_norm`. A
        schedule is given the number of updates made so far. None clips nothing.
      skip_above: the norm above which a step is skipped, as `above` in `skip_nonfinite`. It is
        decided first, by the global norm. `running_bound(deviations=6.0)` is recommended.
      groups: groups with bounds of their own, as in `clip_by_group_norm`; None for one bound on the
        global norm.
      nonfinite: what happens at a gradient with a NaN or inf entry. `"skip"`: the step is skipped,
        as by `skip_nonfinite`. `"propagate"` and `"zero"` as in `clip_by_global_norm`. It is
        counted in each case.
      record: how many of the last calls the state keeps, for `records`, `report` and
        `plot_records`; 0 for none.
      record_leaves: whether the state keeps the norm of each leaf, for `report`: no further read of
        the gradients.
      axis_name: how gradients are sharded, where their types do not tell: see `global_norm`.

    Returns:
      A transformation with a `PipelineState`, which `metrics` reads. Use it with `apply_gradients`,
      or as any other. Gradients that `optax.MultiSteps` accumulates are guarded from outside:
      `skip_nonfinite(optax.MultiSteps(pipeline(...), ...))`.

    Raises:
      TypeError, ValueError: for an `optimizer` that is already built, or that holds an
        `optax.MultiSteps` (at `init`); for a concrete argument that breaks its rule; when used, as
        `global_norm`, and for a state that is not its own. Traced arguments are not checked.

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
    _NONFINITE.check("pipeline: nonfinite", nonfinite)
    if skip_above is not None and nonfinite != "skip":
        raise ValueError(
            f"pipeline: skip_above needs nonfinite='skip'; got skip_above={skip_above!r} with "
            f"nonfinite={nonfinite!r}. A run that skips large gradients should skip those that are "
            "not finite."
        )
    if groups is not None and max_norm is None:
        raise ValueError(
            "pipeline: groups need a max_norm, one rule for all or a dict of them by label; got groups with max_norm=None. To "
            "measure groups only, pass {label: None} for each."
        )
    clip = Clip("pipeline", max_norm, groups, axis_name=axis_name, record_leaves=record_leaves)
    guard = Guard("pipeline", "skip_above", skip_above, record)
    is_built = isinstance(optimizer, optax.GradientTransformation)
    if is_built or isinstance(optimizer, Schedule) or not callable(optimizer):
        raise TypeError(
            "pipeline: optimizer must be a function from a learning rate to a "
            "GradientTransformation; got "
            f"{'one that is built already' if is_built else repr(optimizer)} "
            f"({type(optimizer).__name__}). Pass optax.adamw, or functools.partial(optax.adamw, "
            "weight_decay=0.01), not optax.adamw(1e-3); the schedule comes second."
        )
    asked = Rate(_LEARNING_RATE.check("pipeline: schedule", schedule))
    inner = as_transformation("pipeline: what optimizer returns", optimizer(asked.handed()))
    becomes = "propagate" if nonfinite == "propagate" else "zero"

    def init(params: optax.Params) -> PipelineState:
        inner_state = inner.init(params)
        if any(map(_is_multi_steps, jax.tree.leaves(inner_state, is_leaf=_is_multi_steps))):
            raise TypeError(
                "pipeline: optimizer must not hold an optax.MultiSteps: each micro-batch would be "
                "clipped, and the learning rate would not be known. Put it outside: "
                "skip_nonfinite(optax.MultiSteps(pipeline(...), every_k_schedule=k))."
            )
        return PipelineState(
            clip_state=clip.init(params),
            **guard.init(accumulation_dtype(params)),
            last_learning_rate=jnp.full((), UNKNOWN, default_float()),
            inner_state=inner_state,
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, PipelineState]:
        state = own(PipelineState, state, updates, **guard.keeps)
        clipping = clip.call(updates, state.clip_state, params)
        norm, call = clipping.norms.total, state.clip_state.clip_calls
        taken, above = guard.decided(state, norm, call) if nonfinite == "skip" else (True, None)
        updates, coef = clipping.clipped(updates, call - state.skipped_count, becomes)

        def take(updates: Any, inner_state: Any, params: Any) -> tuple[Any, Any, jax.Array]:
            with asked.listening() as used_by:
                updates, inner_state = inner.update(updates, inner_state, params, **extra)
                return updates, inner_state, like(state.last_learning_rate, used_by(inner_state))

        if nonfinite == "skip":
            before = (state.inner_state, state.last_learning_rate)
            updates, inner_state, learning_rate = choose(
                taken, take, (updates, state.inner_state, params), before
            )
        else:
            updates, inner_state, learning_rate = take(updates, state.inner_state, params)
            # Not the very buffer that the caller, or the inner state, holds: it could not be
            # donated twice.
            learning_rate = jnp.copy(learning_rate)
        row = {
            "max_norm": stored(coef.bound) if groups is None else UNKNOWN,
            "clip_coef": jnp.where(taken, jnp.min(coef.value, initial=1), 0),
            "learning_rate": jnp.where(taken, learning_rate, UNKNOWN),
        }
        return updates, PipelineState(
            clip_state=clipping.after(coef, taken),
            **guard.after(state, norm, call, taken, above, **row),
            last_learning_rate=learning_rate,
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _is_multi_steps(node: Any) -> bool:
    return isinstance(node, optax.MultiStepsState)
