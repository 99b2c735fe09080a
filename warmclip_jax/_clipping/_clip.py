"""One call of a clip, by the global norm or by groups: what it measures, multiplies and remembers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from warmclip_jax._clipping._bounds import Limit, check_bound
from warmclip_jax._clipping._coefficient import Coefficient, coefficient, scale_tree
from warmclip_jax._clipping._groups import Groups, as_keys, from_keys, labels_of
from warmclip_jax._clipping._history import History
from warmclip_jax._clipping._leaf_record import LeafRecord, init_leaf_record, with_leaves
from warmclip_jax._clipping._measuring import Measured, Members, measured
from warmclip_jax._clipping._states import counter, increment_if, like, own, stored
from warmclip_jax._norms import AxisName, accumulation_dtype, check_axis_name, shortened
from warmclip_jax._values import Choice, naming


class ClipState(NamedTuple):
    """What a clip counts and remembers. Counters stop at int32's largest value.

    Scalars; where leaves are in groups, norms, bounds and coefficients are arrays over their labels
    in sorted order.
    """

    clip_calls: jax.Array  # int32: calls seen
    grad_norm: (
        jax.Array
    )  # float32 (float64 with float64 parameters): norm at the last call, before clipping
    norm_bound: (
        jax.Array
    )  # same dtype: the bound in force at the last call; -1 for one that is never reached
    clip_coef: (
        jax.Array
    )  # same dtype: what the last call multiplied by, in [0, 1]; NaN where it made everything NaN
    clipped_count: jax.Array  # int32 scalar: finite calls that were over a bound, and not skipped
    nonfinite_count: jax.Array  # int32 scalar: calls with a NaN or inf entry
    clip_history: History | tuple[()]  # of a running bound
    group_labels: dict[str, tuple[()]]  # `as_keys` of the labels: a dict without leaves
    group_clipped_count: jax.Array | tuple[()]  # int32: the same for each group
    leaves: LeafRecord | tuple[()]


class Clip:
    """A clip with checked arguments. What it remembers stands in a `ClipState`."""

    def __init__(
        self,
        function: str,
        max_norm: Any,
        groups: Groups,
        *,
        axis_name: AxisName,
        record_leaves: bool,
    ) -> None:
        name = f"{function}: max_norm"
        if not isinstance(max_norm, Mapping):
            self._bounds: Any = check_bound(name, max_norm)
        elif groups is not None:
            self._bounds = {
                label: check_bound(f"{name}[{label!r}]", bound) for label, bound in max_norm.items()
            }
        else:
            raise TypeError(
                f"{name} may be a dict of rules only with groups; got {shortened(dict(max_norm))}. "
                "Pass groups, or one rule."
            )
        self._function, self._groups = function, groups
        self._axis_name = check_axis_name(axis_name)
        self._record_leaves = Choice((False, True)).check(
            f"{function}: record_leaves", record_leaves
        )

    def init(self, params: optax.Params) -> ClipState:
        """The state before the first call: no norm measured, nothing clipped."""
        dtype = accumulation_dtype(params)
        labels = [] if self._groups is None else sorted(set(self._labels(params, params)))
        shape = () if self._groups is None else (len(labels),)
        return ClipState(
            clip_calls=counter(),
            grad_norm=jnp.zeros(shape, dtype),
            norm_bound=jnp.zeros(shape, dtype),
            clip_coef=jnp.ones(shape, dtype),
            clipped_count=counter(),
            nonfinite_count=counter(),
            clip_history=self._limit(labels).init(shape, dtype),
            group_labels=as_keys(labels),
            group_clipped_count=() if self._groups is None else jnp.zeros(shape, jnp.int32),
            leaves=init_leaf_record(params) if self._record_leaves else (),
        )

    def call(self, updates: Any, state: Any, params: Any) -> "Call":
        """One more call, with its norms measured. Raises TypeError when `state` is not this clip's."""
        state = own(
            ClipState,
            state,
            updates,
            group_clipped_count=self._groups is not None,
            leaves=self._record_leaves,
        )
        labels = from_keys(state.group_labels)
        limit = self._limit(labels)
        own(ClipState, state, updates, clip_history=limit.learns)
        members = (
            None if self._groups is None else self._members(self._labels(updates, params), labels)
        )
        return Call(
            state,
            limit,
            measured(
                updates, axis_name=self._axis_name, members=members, leaves=self._record_leaves
            ),
        )

    def _labels(self, tree: Any, params: Any) -> list[str]:
        return naming(self._function)(labels_of)(self._groups, tree, params)

    def _members(self, labels: list[str], known: list[str]) -> Members:
        places = {label: place for place, label in enumerate(known)}
        for label in labels:
            if label not in places:
                raise ValueError(
                    f"{self._function}: groups must give the labels that init saw, "
                    f"{shortened(known)}; got {label!r}. For other groups call init again, or "
                    "adopt_state."
                )
        return Members(np.array([places[label] for label in labels], np.int32), len(places))

    def _limit(self, labels: list[str]) -> Limit:
        if not isinstance(self._bounds, dict):
            return Limit(self._bounds if self._groups is None else [self._bounds] * len(labels))
        for label in labels:
            if label not in self._bounds:
                raise ValueError(
                    f"{self._function}: max_norm must have a rule for each group; there is none "
                    f"for {label!r}. There are rules for {shortened(sorted(self._bounds))} and "
                    f"groups {shortened(labels)}. None as a rule measures only."
                )
        return Limit([self._bounds[label] for label in labels])


class Call(NamedTuple):
    """One call of a clip, measured: it clips the updates, then makes the next state."""

    state: ClipState  # before the call
    limit: Limit
    norms: Measured

    def clipped(self, updates: Any, count: jax.Array, nonfinite: str) -> tuple[Any, Coefficient]:
        """The updates clipped at the bound of `count`, and the coefficient."""
        coef = coefficient(self.norms, self.limit.at(self.state.clip_history, count), nonfinite)
        return scale_tree(updates, coef), coef

    def after(self, coef: Coefficient, taken: jax.Array | bool = True) -> ClipState:
        """The state after the call. A call that is bad, or skipped (not `taken`), clips nothing."""
        state, norms, is_finite = self.state, self.norms, self.norms.total.is_finite
        value = jnp.where(taken, coef.value, 0)
        clipped = is_finite & (value != 1) & taken
        is_large = jnp.any(clipped) | ~jnp.asarray(taken)
        return ClipState(
            clip_calls=increment_if(True, state.clip_calls),
            grad_norm=like(state.grad_norm, norms.groups.value),
            norm_bound=jnp.broadcast_to(
                like(state.norm_bound, stored(coef.bound)), state.norm_bound.shape
            ),
            clip_coef=like(state.clip_coef, value),
            clipped_count=increment_if(jnp.any(clipped), state.clipped_count),
            nonfinite_count=increment_if(~is_finite, state.nonfinite_count),
            clip_history=self.limit.after(state.clip_history, norms.groups),
            group_labels=state.group_labels,
            group_clipped_count=()
            if norms.members is None
            else increment_if(clipped, state.group_clipped_count),
            leaves=with_leaves(state.leaves, norms, state.clip_calls, is_large),
        )
