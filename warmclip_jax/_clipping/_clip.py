"""One call of a clip: what it measures, multiplies by, and remembers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from warmclip_jax._clipping._bounds import check_bound
from warmclip_jax._clipping._coding import coded, unknown
from warmclip_jax._clipping._coefficient import Coefficient, coefficient
from warmclip_jax._clipping._groups import Groups, as_keys, check_labels, from_keys, labels_of
from warmclip_jax._clipping._history import History, log_of
from warmclip_jax._clipping._leaf_record import LeafRecord, init_leaf_record, with_leaves
from warmclip_jax._clipping._limit import Limit
from warmclip_jax._clipping._measuring import Measured, measured
from warmclip_jax._clipping._states import as_number, counter, increment_if, own
from warmclip_jax._norms import (
    AxisName,
    Grouping,
    accumulation_dtype,
    check_axis_name,
    is_gradient,
)
from warmclip_jax._values import FLAG, ArgumentValueError, broken_rule, shortened


class ClipState(NamedTuple):
    """What a clip counts and remembers. Counters stop at int32's largest value.

    Scalars; where leaves are in groups, norms, bounds and coefficients are arrays over their labels
    in sorted order. Numbers are coded: see `metrics` for what they mean.
    """

    clip_calls: jax.Array  # int32: calls seen
    grad_norm: jax.Array  # float32 (float64 with float64 parameters): at the last call, unclipped
    norm_bound: jax.Array  # same dtype: the bound in force at the last call
    clip_coef: jax.Array  # same dtype: what the last call multiplied by, in [0, 1]; or NaN
    clipped_count: jax.Array  # int32 scalar: finite calls that were over a bound, and not skipped
    nonfinite_count: jax.Array  # int32 scalar: calls with a NaN or inf entry
    counts_from: jax.Array  # int32: the call since which there are counts; 0 but by `adopt_state`
    clip_history: History | tuple[()] = ()  # of a running bound
    group_labels: Mapping[str, tuple[()]] = {}  # `as_keys` of the labels: a dict without leaves
    group_clipped_count: jax.Array | tuple[()] = ()  # int32: the same for each group
    group_counts_from: jax.Array | tuple[()] = ()  # int32: the call since which that is counted
    leaves: LeafRecord | tuple[()] = ()


class Clip:
    """A clip with checked arguments. What it remembers stands in a `ClipState`."""

    def __init__(
        self,
        max_norm: Any,
        groups: Groups,
        *,
        axis_name: AxisName,
        record_leaves: bool,
    ) -> None:
        self._groups = check_labels(groups)
        if not isinstance(max_norm, Mapping):
            self._bounds: Any = check_bound("max_norm", max_norm)
        elif groups is not None:
            self._bounds = {
                label: check_bound(f"max_norm[{label!r}]", bound)
                for label, bound in max_norm.items()
            }
        else:
            rule = "one rule where there are no groups"
            raise broken_rule("max_norm", rule, dict(max_norm), "Pass groups too.", TypeError)
        self._axis_name = check_axis_name(axis_name)
        self._record_leaves = FLAG.check("record_leaves", record_leaves)

    def init(self, params: optax.Params) -> ClipState:
        """The state before the first call: no norm measured, nothing clipped."""
        dtype = accumulation_dtype(params)
        labels = sorted(set(self._labels(params, params)))
        shape = (len(labels),) if labels else ()
        return ClipState(
            clip_calls=counter(),
            grad_norm=unknown(shape, dtype),
            norm_bound=unknown(shape, dtype),
            clip_coef=unknown(shape, dtype),
            clipped_count=counter(),
            nonfinite_count=counter(),
            counts_from=counter(),
            clip_history=self._limit(labels).init(shape, dtype),
            group_labels=as_keys(labels),
            group_clipped_count=jnp.zeros(shape, jnp.int32) if labels else (),
            group_counts_from=jnp.zeros(shape, jnp.int32) if labels else (),
            leaves=init_leaf_record(params) if self._record_leaves else (),
        )

    def call(self, updates: Any, state: Any, params: Any) -> "Call":
        """One more call, with its norms measured. Raises TypeError when `state` is not its own."""
        has_leaves = any(map(is_gradient, jax.tree.leaves(updates)))
        is_grouped = has_leaves and self._groups is not None
        has_record = self._record_leaves
        state = own(ClipState, state, updates, group_clipped_count=is_grouped, leaves=has_record)
        labels = from_keys(state.group_labels)
        limit = self._limit(labels)
        own(ClipState, state, updates, clip_history=limit.learns)
        members = self._members(self._labels(updates, params), labels) if is_grouped else None
        by_leaf = has_record and has_leaves
        norms = measured(updates, axis_name=self._axis_name, members=members, leaves=by_leaf)
        return Call(state, limit, norms)

    def _labels(self, tree: Any, params: Any) -> list[str]:
        if self._groups is None:
            return []
        return labels_of(self._groups, tree, params)

    def _members(self, labels: list[str], labels_at_init: list[str]) -> Grouping:
        group_of = {label: group for group, label in enumerate(labels_at_init)}
        for label in labels:
            if label not in group_of:
                raise ArgumentValueError(
                    "groups must give the labels that init saw, "
                    f"{shortened(labels_at_init)}; got {label!r}. For other groups call init "
                    "again, or adopt_state."
                )
        return Grouping(tuple(group_of[label] for label in labels), len(group_of))

    def _limit(self, labels: list[str]) -> Limit:
        if not isinstance(self._bounds, dict):
            return Limit([self._bounds] * len(labels) if labels else self._bounds)
        for label in labels:
            if label not in self._bounds:
                raise ArgumentValueError(
                    "max_norm must have a rule for each group; there is none "
                    f"for {label!r}. There are rules for {shortened(sorted(self._bounds))} and "
                    f"groups {shortened(labels)}. None as a rule measures only."
                )
        return Limit([self._bounds[label] for label in labels] or None)


class Call(NamedTuple):
    """One call of a clip, measured: it clips the updates, then makes the next state."""

    state: ClipState  # before the call
    limit: Limit
    norms: Measured

    def coefficient(self, count: jax.Array, nonfinite: str) -> Coefficient:
        """What clips the updates at the bound of `count`."""
        return coefficient(self.norms, self.limit.at(self.state.clip_history, count), nonfinite)

    def after(
        self, coef: Coefficient, taken: Any = True, is_bad: jax.Array | None = None
    ) -> ClipState:
        """The state after the call. A call that is bad, or skipped (not `taken`), clips nothing."""
        state, norms = self.state, self.norms
        is_finite, taken = norms.total.is_finite, jnp.asarray(taken)
        factor = jnp.where(taken, coef.value, 0)
        clipped = is_finite & (factor != 1) & taken
        counts = state.group_clipped_count
        return state._replace(
            clip_calls=increment_if(True, state.clip_calls),
            grad_norm=coded(as_number(norms.groups), state.grad_norm),
            norm_bound=coded(coef.shown_bound, state.norm_bound),
            clip_coef=coded(factor, state.clip_coef),
            clipped_count=increment_if(jnp.any(clipped), state.clipped_count),
            nonfinite_count=increment_if(~is_finite, state.nonfinite_count),
            clip_history=self.limit.after(state.clip_history, *log_of(norms.groups)),
            group_clipped_count=increment_if(clipped, counts) if norms.members else counts,
            leaves=with_leaves(
                state.leaves,
                norms,
                state.clip_calls,
                is_bad=~is_finite if is_bad is None else is_bad,
                is_skipped=~taken,
            ),
        )
