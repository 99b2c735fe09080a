"""Clip, then an optimizer, with a schedule as its learning rate."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from warmclip_jax._clipping import (
    Bound,
    Clip,
    ClipState,
    Groups,
    Guard,
    History,
    LossHistory,
    Ring,
    as_transformation,
    choose,
    decoded,
    gated,
    loss_of,
    own,
    quietly,
    scale_tree,
    unknown,
)
from warmclip_jax._norms import AxisName, accumulation_dtype
from warmclip_jax._pipeline._rates import WatchedRate
from warmclip_jax._schedules import Schedule
from warmclip_jax._values import (
    ArgumentTypeError,
    ArgumentValueError,
    Choice,
    Function,
    Scalar,
    default_float,
    named,
    naming,
)

_LEARNING_RATE = Function.or_number(
    "a schedule or a finite number",
    "Pass warmclip_jax.linear_warmup(...), any optax schedule, or 1e-3.",
    np.isfinite,
)
_NONFINITE = Choice(("skip", "propagate", "zero"))


class PipelineState(NamedTuple):
    """What `pipeline` keeps. Numbers are coded: see `metrics` for what they mean."""

    clip_state: ClipState  # not among what a skipped step leaves alone: it knows of that step
    skipped_count: jax.Array  # int32: calls skipped
    consecutive_skips: jax.Array  # int32: calls skipped since the last that was not
    last_skipped_call: jax.Array  # int32: its number, from 0; -1 before there is one
    above_bound: jax.Array  # float scalar: the bound of skipping in force at the last call
    last_loss: jax.Array  # same dtype: the loss of the last call
    loss_bound: jax.Array  # same dtype: the bound on the loss in force at the last call
    nonfinite_loss_count: jax.Array  # int32: calls with a loss that is not finite
    counts_from: jax.Array  # int32: the call since which there are counts; 0 but by `adopt_state`
    last_learning_rate: jax.Array  # default float: what the optimizer used in the last update
    inner_state: optax.OptState
    skip_history: History | tuple[()] = ()  # of a running bound of skipping
    loss_history: LossHistory | tuple[()] = ()  # of a running bound on the loss
    ring: Ring | tuple[()] = ()


@named
def pipeline(
    optimizer: Callable[[Any], optax.GradientTransformation],
    schedule: Scalar | Callable[[Any], Any],
    *,
    max_norm: Bound | Mapping[str, Bound] = 1.0,
    skip_above: Bound = None,
    skip_value_above: Bound = None,
    groups: Groups | None = None,
    nonfinite: Literal["skip", "propagate", "zero"] = "skip",
    record: int = 0,
    record_leaves: bool = False,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Clipping, then an optimizer with a learning-rate schedule, as one optax transformation.

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
      skip_value_above: the loss above which a step is skipped, as `value_above` in
        `skip_nonfinite`, where `update` is given `value=loss`.
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
      or as any other. `update(..., value=loss)` records the loss, as in `skip_nonfinite`. Gradients
      that `optax.MultiSteps` accumulates are guarded from outside:
      `skip_nonfinite(optax.MultiSteps(pipeline(...), ...))`.

    Raises:
      TypeError, ValueError: for an `optimizer` that is already built, or that holds an
        `optax.MultiSteps` (at `init`); for a concrete argument that breaks its rule; when used, as
        `global_norm`, and for a state that is not its own. Traced arguments are not checked.

    >>> import jax.numpy as jnp, optax
    >>> import warmclip_jax as wc
    >>> schedule = wc.linear_warmup(peak_value=0.1, warmup_steps=2)
    >>> optimizer = wc.pipeline(optax.sgd, schedule, max_norm=1.0)
    >>> params, grads = jnp.zeros(2), jnp.array([3.0, 4.0])
    >>> opt_state = optimizer.init(params)
    >>> for _ in range(3):
    ...     params, opt_state = wc.apply_gradients(optimizer, params, opt_state, grads=grads)
    >>> rate = wc.metrics(opt_state)["learning_rate"]
    >>> [round(float(p), 4) for p in params], round(float(rate), 4)
    ([-0.09, -0.12], 0.1)

    Source: the recipe of Devlin et al. 2018, "BERT", appendix A.2.
    """
    _NONFINITE.check("nonfinite", nonfinite)
    for name, bound in {"skip_above": skip_above, "skip_value_above": skip_value_above}.items():
        if bound is not None and nonfinite != "skip":
            raise ArgumentValueError(
                f"{name} needs nonfinite='skip'; got {name}={bound!r} with "
                f"nonfinite={nonfinite!r}. A run that skips what is large should skip what is not "
                "finite."
            )
    if groups is not None and max_norm is None:
        raise ArgumentValueError(
            "groups need a max_norm, one rule for all or a dict of them by label; got "
            "groups with max_norm=None. To measure groups only, pass {label: None} for each."
        )
    clip = Clip(max_norm, groups, axis_name=axis_name, record_leaves=record_leaves)
    skips = nonfinite == "skip"
    guard = Guard("skip_", skip_above, skip_value_above, record, skips=skips)
    is_built = isinstance(optimizer, optax.GradientTransformation)
    if is_built or isinstance(optimizer, Schedule) or not callable(optimizer):
        raise ArgumentTypeError(
            "optimizer must be a function from a learning rate to a "
            "GradientTransformation; got "
            f"{'one that is built already' if is_built else repr(optimizer)} "
            f"({type(optimizer).__name__}). Pass optax.adamw, or functools.partial(optax.adamw, "
            "weight_decay=0.01), not optax.adamw(1e-3); the schedule comes second."
        )
    # What is skipped is zeroed in the product with the coefficient; without one, by `choose`.
    is_zeroed = nonfinite == "zero" or (skips and max_norm is not None)
    becomes = "zero" if is_zeroed else "propagate"
    rate = WatchedRate(_LEARNING_RATE.check("schedule", schedule))
    inner = as_transformation("what optimizer returns", optimizer(rate.for_optimizer()))

    @naming("pipeline")
    def init(params: optax.Params) -> PipelineState:
        inner_state = inner.init(params)
        if any(map(_is_multi_steps, jax.tree.leaves(inner_state, is_leaf=_is_multi_steps))):
            raise ArgumentTypeError(
                "optimizer must not hold an optax.MultiSteps: each micro-batch would be "
                "clipped, and the learning rate would not be known. Put it outside: "
                "skip_nonfinite(optax.MultiSteps(pipeline(...), every_k_schedule=k))."
            )
        return PipelineState(
            clip_state=clip.init(params),
            **guard.init(accumulation_dtype(params)),
            last_learning_rate=unknown((), default_float()),
            inner_state=inner_state,
        )

    @naming("pipeline")
    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, PipelineState]:
        with quietly():
            loss, extra = loss_of(extra)
            state = own(PipelineState, state, updates, **guard.filled)
            updates = updates if nonfinite == "propagate" else gated(updates)
            clipping = clip.call(updates, state.clip_state, params)
            call = guard.call(state, clipping.norms.total, loss, state.clip_state.clip_calls)
            coef = clipping.coefficient(call.number - state.skipped_count, becomes)
            clipped = scale_tree(updates, coef)

        def take(updates: Any, inner_state: Any, params: Any) -> tuple[Any, Any, jax.Array]:
            with rate.watched() as rate_used:
                updates, inner_state = inner.update(updates, inner_state, params, **extra)
                return updates, inner_state, rate_used(inner_state, state.last_learning_rate)

        arguments = (clipped, state.inner_state, params)
        if skips:
            before = (state.inner_state, state.last_learning_rate)
            updates, inner_state, learning_rate = choose(call.taken, take, arguments, before)
        else:
            updates, inner_state, learning_rate = take(*arguments)
        with quietly():
            row = {
                "max_norm": coef.shown_bound if groups is None else None,
                "clip_coef": jnp.where(call.taken, jnp.min(coef.value, initial=1), 0),
                "learning_rate": jnp.where(call.taken, decoded(learning_rate), jnp.nan),
            }
            return updates, PipelineState(
                clip_state=clipping.after(coef, call.taken, call.is_bad),
                **call.after(**row),
                last_learning_rate=learning_rate,
                inner_state=inner_state,
            )

    return optax.GradientTransformationExtraArgs(init, update)


def _is_multi_steps(node: Any) -> bool:
    return isinstance(node, optax.MultiStepsState)
