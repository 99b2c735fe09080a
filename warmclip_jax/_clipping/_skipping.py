"""Skip steps whose gradient is not finite or too large."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from warmclip_jax._clipping._applying import as_transformation
from warmclip_jax._clipping._bounds import Bound, Limit, check_bound
from warmclip_jax._clipping._coefficient import coefficient, is_over, scale_tree
from warmclip_jax._clipping._history import History
from warmclip_jax._clipping._leaf_record import LeafRecord, init_leaf_record, with_leaves
from warmclip_jax._clipping._measuring import measured
from warmclip_jax._clipping._ring import LENGTH, Ring, init_ring, with_row
from warmclip_jax._clipping._selecting import choose
from warmclip_jax._clipping._states import counter, increment_if, like, own, stored
from warmclip_jax._norms import AxisName, ScaledNorm, accumulation_dtype, check_axis_name
from warmclip_jax._values import Choice


class SkipState(NamedTuple):
    """What `skip_nonfinite` keeps. Scalars, whose counters stop at int32's largest value, and the state it guards."""

    skip_calls: jax.Array  # int32: calls seen
    grad_norm: jax.Array  # float32 (float64 with float64 parameters): norm at the last call
    nonfinite_count: jax.Array  # int32: calls with a NaN or inf entry
    skipped_count: jax.Array  # int32: calls skipped
    consecutive_skips: jax.Array  # int32: calls skipped since the last that was not
    last_skipped_call: jax.Array  # int32: its number, from 0; -1 before there is one
    above_bound: (
        jax.Array
    )  # as grad_norm: the bound in force at the last call; -1 for one that is never reached
    skip_history: History | tuple[()]  # of a running bound
    ring: Ring | tuple[()]
    leaves: LeafRecord | tuple[()]
    inner_state: optax.OptState


def skip_nonfinite(
    inner: optax.GradientTransformation | optax.MultiSteps,
    *,
    above: Bound = None,
    record: int = 0,
    record_leaves: bool = False,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that skips every step whose gradient has a NaN or inf entry, or a norm above a bound.

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
      record: how many of the last calls the state keeps, for `records`, `report` and
        `plot_records`; 0 for none.
      record_leaves: whether the state keeps the norm of each leaf, for `report`: no further read of
        the gradients.
      axis_name: how gradients are sharded, where their types do not tell: see `global_norm`.

    Returns:
      A transformation with a `SkipState`. In a compiled step with donated state the guard costs one
      read of the gradients and no copy (one if `inner` is jitted by itself). `inner` also runs in a
      skipped step, on zeros; its results are dropped, its prints and callbacks happen.

    Raises:
      TypeError, ValueError: when `inner` is no transformation; for a concrete argument that breaks
        its rule; when used, as `global_norm`, and for a state that is not its own. A traced `above`
        is not checked: a negative one acts as 0.

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
    guard = Guard("skip_nonfinite", "above", above, record)
    Choice((False, True)).check("skip_nonfinite: record_leaves", record_leaves)
    guarded = as_transformation("skip_nonfinite: inner", inner)

    def init(params: optax.Params) -> SkipState:
        dtype = accumulation_dtype(params)
        return SkipState(
            skip_calls=counter(),
            grad_norm=jnp.zeros((), dtype),
            nonfinite_count=counter(),
            **guard.init(dtype),
            leaves=init_leaf_record(params) if record_leaves else (),
            inner_state=guarded.init(params),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, SkipState]:
        state = own(SkipState, state, updates, **guard.keeps, leaves=record_leaves)
        norms, call = measured(updates, axis_name=axis_name, leaves=record_leaves), state.skip_calls
        taken, limit = guard.decided(state, norms.total, call)
        zeroed = scale_tree(updates, coefficient(norms, None, "zero"))
        take = functools.partial(guarded.update, **extra)
        updates, inner_state = choose(
            taken, take, (zeroed, state.inner_state, params), before=(state.inner_state,)
        )
        return updates, SkipState(
            skip_calls=increment_if(True, call),
            grad_norm=like(state.grad_norm, norms.total.value),
            nonfinite_count=increment_if(~norms.total.is_finite, state.nonfinite_count),
            **guard.after(state, norms.total, call, taken, limit),
            leaves=with_leaves(state.leaves, norms, call, ~taken),
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


class Guard:
    """What decides that a call is skipped, and the fields of a state that count skips and keep the last calls."""

    def __init__(self, function: str, argument: str, above: Any, record: int) -> None:
        self._limit = Limit(check_bound(f"{function}: {argument}", above))
        self._length = int(LENGTH.check(f"{function}: record", record))
        #: Whether the fields that may be empty are filled.
        self.keeps = {"skip_history": self._limit.learns, "ring": self._length > 0}

    def init(self, dtype: np.dtype) -> dict[str, Any]:
        """The fields before the first call."""
        return {
            "skipped_count": counter(),
            "consecutive_skips": counter(),
            "last_skipped_call": counter(-1),
            "above_bound": jnp.zeros((), dtype),
            "skip_history": self._limit.init((), dtype),
            "ring": init_ring(self._length),
        }

    def decided(self, state: Any, norm: ScaledNorm, call: jax.Array) -> tuple[jax.Array, Any]:
        """Whether this call is an update, and the bound."""
        limit = self._limit.at(state.skip_history, call)
        is_spike = False if limit is None else is_over(norm, jnp.maximum(limit, 0))
        return norm.is_finite & ~jnp.asarray(is_spike), limit

    def after(
        self, state: Any, norm: ScaledNorm, call: jax.Array, taken: Any, limit: Any, **numbers: Any
    ) -> dict[str, Any]:
        """The fields after this call. A skipped call teaches a running bound too. `numbers` go into the row of the ring."""
        skipped, bound = ~jnp.asarray(taken), stored(limit)
        in_a_row = jnp.where(taken, 0, increment_if(True, state.consecutive_skips))
        skipped_count = increment_if(skipped, state.skipped_count)
        row = {
            "step": call + 1 - skipped_count,
            "skipped": skipped,
            "grad_norm": norm.value,
            "skip_bound": bound,
            **numbers,
        }
        return {
            "skipped_count": skipped_count,
            "consecutive_skips": like(state.consecutive_skips, in_a_row),
            "last_skipped_call": jnp.where(
                taken, state.last_skipped_call, like(state.last_skipped_call, call)
            ),
            "above_bound": like(state.above_bound, bound),
            "skip_history": self._limit.after(state.skip_history, norm),
            "ring": with_row(state.ring, call=call, **row),
        }
