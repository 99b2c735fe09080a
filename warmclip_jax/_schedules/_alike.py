"""Evaluate schedules that differ in their numbers alone as one schedule of stacked numbers.

A table of a thousand schedules is then compiled and called as quickly as one of three.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._schedules._counts import as_step, reached
from warmclip_jax._schedules._schedule import Schedule, computed, is_foreign
from warmclip_jax._values import Foreign, default_float, stacked


class Alike(NamedTuple):
    """Lowered operands (schedules or numbers) that differ in their numbers alone."""

    indices: Any  # Where each stands among all operands, increasing.
    stack: Any  # All in one: each number has an axis in front.

    def values(self, count: jax.Array) -> Iterable[jax.Array]:
        """The value of each at `count`."""
        if len(self.indices) == 1:  # Not under vmap: a foreign function may not be traceable.
            return [self._at(0, count)]
        return jax.vmap(value_of, in_axes=(0, None))(self.stack, count)

    def chosen(
        self, index: jax.Array, counts: Callable[[jax.Array], jax.Array], otherwise: jax.Array
    ) -> jax.Array:
        """The value of operand `index` at its count; `otherwise` where it is none of these."""
        row = reached(index, self.indices[1:])
        mine = jnp.asarray(self.indices)[row]
        return jnp.where(index == mine, jnp.vectorize(self._at)(row, counts(mine)), otherwise)

    def _at(self, row: Any, count: jax.Array) -> jax.Array:
        return value_of(jax.tree.map(lambda numbers: jnp.asarray(numbers)[row], self.stack), count)


def alike(lowered: tuple[Any, ...]) -> tuple[Alike, ...]:
    """Lowered operands, those that are alike together."""
    groups: dict[Any, list[int]] = {}
    for index, operand in enumerate(lowered):
        numbers, structure = jax.tree.flatten(operand)
        kinds = [(np.shape(number), getattr(number, "dtype", type(number))) for number in numbers]
        groups.setdefault(index if is_foreign(operand) else (structure, *kinds), []).append(index)
    return tuple(
        Alike(
            np.int32(indices),
            jax.tree.map(lambda *numbers: stacked(numbers), *(lowered[index] for index in indices)),
        )
        for indices in groups.values()
    )


def value_of(lowered: Any, count: jax.Array) -> jax.Array:
    """The value of a lowered schedule, function or number."""
    if isinstance(lowered, Schedule):
        return computed(lowered, count)
    if isinstance(lowered, Foreign):
        return lowered(as_step(count))
    return jnp.broadcast_to(jnp.asarray(lowered).astype(default_float()), count.shape)
