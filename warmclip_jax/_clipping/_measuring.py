"""The norms that one call needs, of all leaves, of groups and of each leaf: from one read."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from warmclip_jax._norms import (
    AxisName,
    Grouping,
    ScaledNorm,
    all_together,
    each_alone,
    scaled_norms,
)


class Measured(NamedTuple):
    """The norms of one tree."""

    total: ScaledNorm  # scalar
    groups: ScaledNorm  # scalar without groups, else a vector
    leaves: ScaledNorm | None = None  # a vector, where it was asked for
    members: Grouping | None = None  # None without groups


def of_gradients(params: Any) -> Any:
    """The part of parameters that gradients are of."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def measured(
    updates: Any, *, axis_name: AxisName, leaves: bool, members: Grouping | None = None
) -> Measured:
    """The norms of `updates`. The total is `global_norm`, bit for bit, beside whatever else."""
    groupings: list[Callable[[int], Grouping]] = [all_together]
    if members is not None and members.number != 1:
        groupings.append(lambda _: members)
    if leaves:
        groupings.append(each_alone)
    total, *others = scaled_norms(updates, axis_name, *groupings)
    each = others.pop() if leaves else None
    groups = total
    if others:
        (groups,) = others
    elif members is not None:
        groups = jax.tree.map(lambda part: jnp.broadcast_to(part, (1,)), total)
    return Measured(total, groups, each, members)
