"""The norms that one call needs, of all leaves, of groups and of each leaf: from one read."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from warmclip_jax._norms import AxisName, ScaledNorm, combined, scaled_leaf_norms, scaled_norm


class Members(NamedTuple):
    """Which group each gradient is in."""

    places: np.ndarray  # int [leaves]
    number: int  # of groups


class Measured(NamedTuple):
    """The norms of one tree."""

    total: ScaledNorm  # scalar
    groups: ScaledNorm  # scalar without groups, else a vector
    leaves: ScaledNorm | None = None  # a vector, where it was asked for
    members: Members | None = None  # None without groups


def measured(
    updates: Any, *, axis_name: AxisName, leaves: bool, members: Members | None = None
) -> Measured:
    """The norms of `updates`. Without groups and leaf norms, the global one exactly as `global_norm` computes it."""
    each = None
    if leaves or (members is not None and members.number > 1):
        each = scaled_leaf_norms(
            updates, axis_name=axis_name, members=None if members is None else members.places
        )
    if each is not None and each.mantissa.size:
        total = combined(each)
        groups = total if members is None else combined(each, members.places, members.number)
    else:
        total = scaled_norm(updates, axis_name=axis_name)
        shape = () if members is None else (members.number,)
        groups = ScaledNorm(*(jnp.broadcast_to(part, shape) for part in total))
    return Measured(total, groups, each if leaves else None, members)
