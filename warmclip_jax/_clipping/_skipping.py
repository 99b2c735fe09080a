"""Skip steps whose gradient or loss is not finite or too large."""

import functools
from typing import Any, NamedTuple

import jax
import optax

from warmclip_jax._clipping._applying import as_transformation
from warmclip_jax._clipping._bounds import Bound
from warmclip_jax._clipping._coding import coded, quietly, unknown
from warmclip_jax._clipping._coefficient import coefficient
from warmclip_jax._clipping._guard import Guard
from warmclip_jax._clipping._history import History
from warmclip_jax._clipping._leaf_record import LeafRecord, init_leaf_record, with_leaves
from warmclip_jax._clipping._loss import loss_of
from warmclip_jax._clipping._loss_history import LossHistory
from warmclip_jax._clipping._measuring import measured
from warmclip_jax._clipping._ring import Ring
from warmclip_jax._clipping._scaling import scale_tree
from warmclip_jax._clipping._selecting import choose
from warmclip_jax._clipping._states import as_number, counter, increment_if, own
from warmclip_jax._norms import AxisName, accumulation_dtype, check_axis_name, is_gradient
from warmclip_jax._values import FLAG, named, naming


class SkipState(NamedTuple):
    """What `skip_nonfinite` keeps: scalars, and the state that it guards.

    Counters stop at int32's largest value. Numbers are coded: see `metrics` for what they mean.
    """

    skip_calls: jax.Array  # int32: calls seen
    grad_norm: jax.Array  # float32 (float64 with float64 parameters): at the last call
    nonfinite_count: jax.Array  # int32: calls with a NaN or inf entry
    skipped_count: jax.Array  # int32: calls skipped
    consecutive_skips: jax.Array  # int32: calls skipped since the last that was not
    last_skipped_call: jax.Array  # int32: its number, from 0; -1 before there is one
    above_bound: jax.Array  # as grad_norm: the bound on the norm in force at the last call
    last_loss: jax.Array  # as grad_norm: the loss of the last call
    loss_bound: jax.Array  # as grad_norm: the bound on the loss in force at the last call
    nonfinite_loss_count: jax.Array  # int32: calls with a loss that is not finite
    counts_from: jax.Array  # int32: the call since which there are counts; 0 but by `adopt_state`
    inner_state: optax.OptState
    skip_history: History | tuple[()] = ()  # of a running bound on the norm
    loss_history: LossHistory | tuple[()] = ()  # of a running bound on the loss
    ring: Ring | tuple[()] = ()
    leaves: LeafRecord | tuple[()] = ()


@named
def skip_nonfinite(
    inner: optax.GradientTransformation | optax.MultiSteps,
    *,
    above: Bound = None,
    value_above: Bound = None,
    record: int = 0,
    record_leaves: bool = False,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that skips steps whose gradient or loss is not finite, or above a bound.

    A skipped step returns zero updates, leaves the state of `inner` (moments, step counts,
    accumulated gradients) exactly as it was, and is counted. The run continues as if the step had
    not happened.

    Args:
      inner: the transformation to guard, or an `optax.MultiSteps`. Put the guard outside of
        `MultiSteps`: inside, the NaN has already been added to what is accumulated. Put it outside
        of a clip too: after one, every norm is small.
      above: the norm above which a finite gradient is skipped: a number; a schedule, which is given
        the number of earlier calls; or a `running_bound`. `running_bound(deviations=6.0)` is
        recommended: it needs no units, and without a ceiling it never locks up. A number, a
        schedule or a ceiling can skip for ever: stop on `consecutive_skips`. None: no finite one.
      value_above: the loss above which a call is skipped, where `update` is given `value=loss`:
        the same kinds, of losses, which may be negative. A `running_bound` then follows the losses
        themselves: `mean + deviations * max(deviation, 0.01 * |mean|)`.
      record: how many of the last calls the state keeps, for `records`, `report` and
        `plot_records`; 0 for none.
      record_leaves: whether the state keeps the norm of each leaf, for `report`: no further read of
        the gradients.
      axis_name: how gradients are sharded, where their types do not tell: see `global_norm`.

    Returns:
      A transformation with a `SkipState`. `update(..., value=loss)` records the loss, skips a call
      whose loss is not finite, and hands it on to `inner`. It is a real scalar, the same on all
      devices; in a map without types, where nothing can be checked, pass `pmean` of it.
      In a compiled step with donated state the guard costs one read of the gradients and no copy
      (one if `inner` is jitted by itself). `inner` also runs in a skipped step, on the gradient as
      it is; its results are dropped, its prints and callbacks happen and may see a NaN.

    Raises:
      TypeError, ValueError: when `inner` is no transformation; for a concrete argument that breaks
        its rule; when used, as `global_norm`, and for a `value` that is no real scalar or varies
        over devices, and for a state that is not its own. A traced `above` is not checked: a
        negative one acts as 0.

    >>> import jax.numpy as jnp, optax
    >>> import warmclip_jax as wc
    >>> optimizer = wc.skip_nonfinite(optax.adam(0.1))
    >>> params = jnp.ones(2)
    >>> updates, state = optimizer.update(jnp.array([1.0, jnp.nan]), optimizer.init(params), params)
    >>> updates.tolist(), int(state.skipped_count), int(optax.tree.get(state.inner_state, "count"))
    ([0.0, 0.0], 1, 0)

    Source: the skipped step of mixed-precision training, Micikevicius et al. 2018, section 3.2.
    """
    check_axis_name(axis_name)
    guard = Guard("", above, value_above, record)
    FLAG.check("record_leaves", record_leaves)
    guarded = as_transformation("inner", inner)

    @naming("skip_nonfinite")
    def init(params: optax.Params) -> SkipState:
        dtype = accumulation_dtype(params)
        return SkipState(
            skip_calls=counter(),
            grad_norm=unknown((), dtype),
            nonfinite_count=counter(),
            **guard.init(dtype),
            leaves=init_leaf_record(params) if record_leaves else (),
            inner_state=guarded.init(params),
        )

    @naming("skip_nonfinite")
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, SkipState]:
        with quietly():
            loss, extra = loss_of(extra)
            has_record = record_leaves and any(map(is_gradient, jax.tree.leaves(updates)))
            state = own(SkipState, state, updates, **guard.filled, leaves=record_leaves)
            norms = measured(updates, axis_name=axis_name, leaves=has_record)
            call = guard.call(state, norms.total, loss, state.skip_calls)
            # Nothing is scaled; the optimizer only waits for the norm.
            waiting = scale_tree(updates, coefficient(norms, None, "propagate"))
        take = functools.partial(guarded.update, **extra)
        updates, inner_state = choose(
            call.taken, take, (waiting, state.inner_state, params), before=(state.inner_state,)
        )
        with quietly():
            return updates, SkipState(
                skip_calls=increment_if(True, state.skip_calls),
                grad_norm=coded(as_number(norms.total), state.grad_norm),
                nonfinite_count=increment_if(~norms.total.is_finite, state.nonfinite_count),
                **call.after(),
                leaves=with_leaves(
                    state.leaves,
                    norms,
                    state.skip_calls,
                    is_bad=call.is_bad,
                    is_skipped=~call.taken,
                ),
                inner_state=inner_state,
            )

    return optax.GradientTransformationExtraArgs(init, update)
