"""The norms of leaves: of the last call, the last that was not finite, and the last spike."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from warmclip_jax._clipping._bounds import running_bound
from warmclip_jax._clipping._history import History, deviations_above, init_history, log_of, taught
from warmclip_jax._clipping._measuring import Measured
from warmclip_jax._clipping._states import counter, like
from warmclip_jax._norms import paths

#: A leaf whose norm is this many of its own deviations above what is usual for it stands out.
STANDS_OUT = 6.0


class LeafRecord(NamedTuple):
    """The norms of leaves, in leaf order: of the last call, of the last bad one, of the last large one, and the usual ones.

    A large call is a finite one that was clipped or skipped. One in which a leaf stood out is kept
    until the next of its kind: under a bound that clips often, the last clipped call would
    otherwise soon take the place of a spike.
    """

    leaf_names: jax.Array  # uint8: their paths, joined by line feeds
    leaf_norms: jax.Array  # float32 [leaves]: of the last call
    bad_leaf_norms: jax.Array  # float32 [leaves]: of the last call with a NaN or inf entry
    bad_call: jax.Array  # int32: its number; -1 before there is one
    spike_leaf_norms: jax.Array  # float32 [leaves]: of the last large call
    spike_call: jax.Array  # int32: its number; -1 before there is one
    spike_deviations: (
        jax.Array
    )  # float32: by how many of its own deviations a leaf was above its usual norm then, at most
    leaf_history: History  # [leaves]: what is usual for each leaf


def init_leaf_record(params: optax.Params) -> LeafRecord:
    """The record before the first call."""
    names = paths(params)
    joined = "\n".join(name.replace("\n", " ") for name in names).encode()
    return LeafRecord(
        leaf_names=jnp.asarray(np.frombuffer(joined, np.uint8)),
        leaf_norms=jnp.zeros(len(names), jnp.float32),
        bad_leaf_norms=jnp.zeros(len(names), jnp.float32),
        bad_call=counter(-1),
        spike_leaf_norms=jnp.zeros(len(names), jnp.float32),
        spike_call=counter(-1),
        spike_deviations=jnp.zeros((), jnp.float32),
        leaf_history=init_history((len(names),), jnp.float32),
    )


def names_of(record: LeafRecord) -> list[str]:
    """The paths of the leaves, from a record on the host."""
    return bytes(record.leaf_names).decode().split("\n")


def with_leaves(
    record: LeafRecord | tuple[()], measured: Measured, call: jax.Array, is_large: jax.Array
) -> LeafRecord | tuple[()]:
    """The record after one more call. Raises ValueError for norms of other leaves than at `init`."""
    norms, is_finite = measured.leaves, measured.total.is_finite
    if not isinstance(record, LeafRecord) or norms is None:
        return ()
    if norms.mantissa.shape != record.leaf_norms.shape:
        raise ValueError(
            f"updates must have the gradients that init saw, {record.leaf_norms.shape[-1]} leaves; "
            f"got {norms.mantissa.shape[-1]}. For other parameters call init again, or adopt_state."
        )
    # Cap overflowing norms, so that only leaves with a NaN or inf are not finite.
    largest = jnp.finfo(jnp.float32).max
    values = jnp.where(norms.is_finite, jnp.minimum(norms.value, largest), norms.value)
    logarithms = log_of(norms)
    deviations = jnp.max(deviations_above(record.leaf_history, *logarithms), initial=0.0)
    is_kept = (
        is_finite & is_large & ((deviations >= STANDS_OUT) | (record.spike_deviations < STANDS_OUT))
    )

    def kept(old: jax.Array, new: Any, condition: Any) -> jax.Array:
        return jnp.where(condition, like(old, new), old)

    return LeafRecord(
        leaf_names=record.leaf_names,
        leaf_norms=like(record.leaf_norms, values),
        bad_leaf_norms=kept(record.bad_leaf_norms, values, ~is_finite),
        bad_call=kept(record.bad_call, call, ~is_finite),
        spike_leaf_norms=kept(record.spike_leaf_norms, values, is_kept),
        spike_call=kept(record.spike_call, call, is_kept),
        spike_deviations=kept(record.spike_deviations, deviations, is_kept),
        leaf_history=taught(record.leaf_history, *logarithms, running_bound().rule),
    )
