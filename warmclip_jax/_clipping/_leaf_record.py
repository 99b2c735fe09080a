"""The norms of leaves: of the last call, the first bad one of a run, and the last spike."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from warmclip_jax._clipping._bounds import running_bound
from warmclip_jax._clipping._coding import coded, unknown
from warmclip_jax._clipping._history import (
    History,
    deviations_above,
    init_history,
    log_of,
    taught,
)
from warmclip_jax._clipping._measuring import Measured, of_gradients
from warmclip_jax._clipping._states import as_number, counter, like
from warmclip_jax._norms import leaf_names
from warmclip_jax._values import ArgumentValueError

#: A leaf whose norm is this many of its own deviations above what is usual for it stands out.
STANDS_OUT = 6.0
#: A call with such a leaf is a spike where the norm of all leaves is so many times the usual one.
_TIMES_USUAL = 2.0


class LeafRecord(NamedTuple):
    """The norms of leaves, in leaf order, coded; of some calls, and the usual ones.

    A bad call is one with a gradient or loss that is not finite. A spike is a finite call that was
    skipped, or one of more than twice the usual norm in which a leaf stood out.
    """

    leaf_names: jax.Array  # uint8: their paths, a line feed after each
    leaf_norms: jax.Array  # float32 [leaves]: of the last call
    bad_leaf_norms: jax.Array  # float32 [leaves]: of the first call of the latest run of bad ones
    bad_call: jax.Array  # int32: its number; -1 before there is one
    last_bad_call: jax.Array  # int32: the number of the last call of that run
    spike_leaf_norms: jax.Array  # float32 [leaves]: of the last spike
    spike_call: jax.Array  # int32: its number; -1 before there is one
    spike_deviations: jax.Array  # float32: how far above its usual norm a leaf was then, at most
    leaf_history: History  # [leaves]: what is usual for each leaf


def init_leaf_record(params: optax.Params) -> LeafRecord:
    """The record before the first call; of one nameless leaf for a tree without gradients.

    Checkpoints hold no array of size 0, and `optax.tree.map_params` needs a state of one form.
    """
    names = leaf_names(of_gradients(params)) or [""]
    lines = "".join(name + "\n" for name in names)
    shape = (len(names),)
    return LeafRecord(
        leaf_names=jnp.asarray(np.frombuffer(lines.encode(), np.uint8)),
        leaf_norms=unknown(shape, jnp.float32),
        bad_leaf_norms=unknown(shape, jnp.float32),
        bad_call=counter(-1),
        last_bad_call=counter(-1),
        spike_leaf_norms=unknown(shape, jnp.float32),
        spike_call=counter(-1),
        spike_deviations=jnp.zeros((), jnp.float32),
        leaf_history=init_history(shape, jnp.float32),
    )


def names_of(record: LeafRecord) -> list[str]:
    """The paths of the leaves, from a record on the host."""
    # Of vmapped runs all have the same.
    one = np.asarray(record.leaf_names).reshape(-1, record.leaf_names.shape[-1])[0]
    return bytes(one).decode().split("\n")[:-1]


def with_leaves(
    record: LeafRecord | tuple[()],
    norms: Measured,
    call: jax.Array,
    *,
    is_bad: jax.Array,
    is_skipped: jax.Array,
) -> LeafRecord | tuple[()]:
    """The record after one more call. Raises for norms of other leaves than at `init`."""
    leaves = norms.leaves
    if not record or leaves is None:
        return record
    if leaves.mantissa.shape != record.leaf_norms.shape:
        raise ArgumentValueError(
            f"updates must have the gradients that init saw, {record.leaf_norms.shape[-1]} leaves; "
            f"got {leaves.mantissa.shape[-1]}. For other parameters call init again, or "
            "adopt_state."
        )
    values = coded(as_number(leaves), record.leaf_norms)
    logarithms = log_of(leaves)
    deviations = jnp.max(deviations_above(record.leaf_history, *logarithms))
    stands_out = (deviations >= STANDS_OUT) & _is_over_usual(record.leaf_history, norms)
    is_first = is_bad & ((record.last_bad_call != call - 1) | (record.bad_call < 0))
    is_spike = ~is_bad & (is_skipped | stands_out)

    def kept(old: jax.Array, new: Any, condition: jax.Array) -> jax.Array:
        return jnp.where(condition, like(old, new), old)

    return LeafRecord(
        leaf_names=record.leaf_names,
        leaf_norms=values,
        bad_leaf_norms=kept(record.bad_leaf_norms, values, is_first),
        bad_call=kept(record.bad_call, call, is_first),
        last_bad_call=kept(record.last_bad_call, call, is_bad),
        spike_leaf_norms=kept(record.spike_leaf_norms, values, is_spike),
        spike_call=kept(record.spike_call, call, is_spike),
        spike_deviations=kept(record.spike_deviations, deviations, is_spike),
        leaf_history=taught(record.leaf_history, *logarithms, running_bound().rule),
    )


def _is_over_usual(history: History, norms: Measured) -> jax.Array:
    """Whether the norm of all leaves is more than twice that of their usual norms together."""
    is_usual = history.norms_taught > 0
    # In logarithms: the square of a norm may be past the range.
    logs = jnp.where(is_usual, history.log_mean.astype(jnp.float32), -jnp.inf)
    usual = jax.nn.logsumexp(2 * logs) / 2
    log_norm, usable = log_of(norms.total)
    over_usual = log_norm.astype(jnp.float32) - usual > math.log(_TIMES_USUAL)
    return usable & jnp.any(is_usual) & over_usual
