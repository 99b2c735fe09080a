"""Evaluate schedules that differ in their numbers alone as one schedule of stacked numbers.

A table of a thousand schedules is then compiled and called as quickly as one of three.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._schedules._counts import as_step, reached
from warmclip_jax._schedules._schedule import Schedule, computed, is_foreign
from warmclip_jax._values import Foreign, as_float, stacked


class Alike(NamedTuple):
    """Lowered operands (schedules or numbers) that differ in their numbers alone."""

    indices: Any  # Where each stands among all operands, increasing.
    stacked: Any  # The only one as it is; or all in one, each number with an axis in front.

    def values(self, count: jax.Array) -> jax.Array:
        """The value of each at `count`, with an axis in front."""
        if len(self.indices) == 1:  # Not under vmap: a foreign function may not be traceable.
            return value_of(self.stacked, count)[None]
        return jax.vmap(value_of, in_axes=(0, None))(self.stacked, count)

    def chosen(
        self, index: jax.Array, counts: Callable[[jax.Array], jax.Array], otherwise: jax.Array
    ) -> jax.Array:
        """The value of operand `index` at its count; `otherwise` where it is none of these."""
        if len(self.indices) == 1:
            mine = self.indices[0]
            value = value_of(self.stacked, counts(mine))
        else:
            row = reached(index, self.indices[1:])
            mine = jnp.asarray(self.indices)[row]
            value = jnp.vectorize(self._in_row)(row, counts(mine))
        return jnp.where(index == mine, value, otherwise)

    def _in_row(self, row: jax.Array, count: jax.Array) -> jax.Array:
        numbers = jax.tree.map(lambda numbers: jnp.asarray(numbers)[row], self.stacked)
        return value_of(numbers, count)


def alike(lowered: tuple[Any, ...]) -> tuple[Alike, ...]:
    """Lowered operands, those that are alike together."""
    groups: dict[Any, list[int]] = {}
    for index, operand in enumerate(lowered):
        numbers, structure = jax.tree.flatten(operand)
        kinds = [(np.shape(number), getattr(number, "dtype", type(number))) for number in numbers]
        groups.setdefault(index if is_foreign(operand) else (structure, *kinds), []).append(index)
    return tuple(
        Alike(
            np.array(indices, np.int32),
            jax.tree.map(_stacked, *(lowered[index] for index in indices)),
        )
        for indices in groups.values()
    )


def _stacked(first: Any, *others: Any) -> Any:
    return stacked((first, *others)) if others else first


def value_of(lowered: Any, count: jax.Array) -> jax.Array:
    """The value of a lowered schedule, function or number."""
    if isinstance(lowered, Schedule):
        return computed(lowered, count)
    if isinstance(lowered, Foreign):
        return lowered(as_step(count))
    return jnp.broadcast_to(as_float(lowered), count.shape)
