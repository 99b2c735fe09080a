"""Finds what stands out in a schedule from its values: how far to draw, and which steps to mark."""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._schedules import Schedule
from warmclip_jax._values import MAX_COUNT, Foreign

Drawable = Schedule | Foreign

#: A schedule is asked for this many counts at once, so that it is compiled for one shape.
_AT_ONCE = 8192
#: A value that changes after this step may change at any count.
_LATE = 0.9 * MAX_COUNT
#: What JAX raises when a function needs a concrete number and gets a tracer.
_UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


class Marks(NamedTuple):
    """The steps to mark; None where there is no such step."""

    warmup: int | None  # A gradual rise from step 0 ends.
    peak: int | None  # The first step with the largest value.
    end: int | None  # From here on, up to the largest count, the value stays the same.


class Explored:
    """A schedule and its values at more and more steps: some of every size, all around a mark."""

    def __init__(self, schedule: Drawable) -> None:
        self._schedule: Any = schedule
        self._corners = _corners(schedule)
        self.steps, self.values = np.empty(0, np.int64), np.empty(0)
        beside = [self._corners + offset for offset in (-1, 0, 1)]
        self.look_at(np.concatenate([[0], np.geomspace(1, MAX_COUNT, 1024), *beside]))

    def look_at(self, steps: np.ndarray) -> None:
        """Adds `steps`, and then more and more of the steps between which a mark stands."""
        while (new := np.setdiff1d(np.clip(steps, 0, MAX_COUNT).astype(int), self.steps)).size:
            seen = np.concatenate([self.steps, new])
            order = np.argsort(seen)
            self.steps = seen[order]
            self.values = np.concatenate([self.values, self._values_at(new)])[order]
            around = np.clip(self._landmarks()[1], 1, seen.size - 2)
            steps = np.linspace(self.steps[around - 1], self.steps[around], 64)
            steps = np.append(steps, np.linspace(self.steps[around], self.steps[around + 1], 64))

    def length(self) -> int:
        """The step from which the value stays, or, if that is far, nearly stays; 0 for a constant.

        A value that never stays is followed through three rises and falls.
        """
        values, (_, _, rest) = self._landmarks()
        if rest == 0:
            return 0
        low, tenth = values.min(), np.ptp(values) / 10
        near = int(self.steps[np.flatnonzero(np.abs(values - values[-1]) > tenth)[-1] + 1])
        if (end := self._step(rest)) is not None:
            return end if end <= 5 * near else near
        if near < _LATE / 2:
            return near
        high = int(np.argmax(values >= low + 9 * tenth))
        fallen = self.steps[high:][values[high:] <= low + tenth]
        return min(3 * int(fallen[0]), MAX_COUNT) if fallen.size else MAX_COUNT

    def marks(self) -> Marks:
        """The steps to mark; none in a constant."""
        values, (rise, peak, rest) = self._landmarks()
        ups = np.diff(values[: rise + 1])
        rising = np.flatnonzero(ups > 0)
        # A table that steps up does not warm up.
        is_gradual = rising.size > 1 and (
            2 * rising.size >= rise - rising[0] or 16 * ups.max() <= ups.sum()
        )
        stays = rest > 0 and np.isfinite(self.values[rest])
        return Marks(
            self._step(rise) if is_gradual else None,
            self._step(peak) if rest > 0 else None,
            self._step(rest) if stays else None,
        )

    def _landmarks(self) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Finite values, and the index of the end of the first rise, of the peak, of the end."""
        finite = np.isfinite(self.values)
        values = np.where(finite, self.values, self.values.min(where=finite, initial=0))
        # A rounding is no fall.
        falls = values < np.maximum.accumulate(values) - 1e-6 * np.abs(values).max()
        rise = int(np.argmax(values[: np.argmax(falls) or None]))
        changes = np.flatnonzero(values != values[-1])
        return values, (rise, int(np.argmax(values)), int(changes[-1]) + 1 if changes.size else 0)

    def _step(self, index: int) -> int | None:
        """The step of a mark; where rounding reached a value too early, the corner after it."""
        step = self.steps[index]
        near = self._corners[(self._corners >= step) & (self._corners <= 1.0002 * step)]
        same = near[self.values[np.searchsorted(self.steps, near)] == self.values[index]]
        return int(same[0] if same.size else step) if step < _LATE else None

    def _values_at(self, steps: np.ndarray) -> np.ndarray:
        """The values as float64; NaN past the end of a table of another library."""
        counts = np.pad(steps, (0, max(0, _AT_ONCE - steps.size)), mode="edge").astype(np.int32)
        try:
            values = self._schedule(jnp.asarray(counts))
        except _UNTRACEABLE:
            values = [self._value_at(count) for count in counts[: steps.size]]
        return np.asarray(values, np.float64)[: steps.size]

    def _value_at(self, count: np.int32) -> Any:
        with contextlib.suppress(LookupError):
            return self._schedule(count)
        return np.nan


def _corners(schedule: Drawable) -> np.ndarray:
    """Steps at which one formula may follow another, from the numbers of a schedule in pairs."""
    leaves = [0.0, *(np.float64(leaf).ravel() for leaf in jax.tree.leaves(schedule))]
    numbers = np.hstack(leaves)
    is_step = (numbers == np.round(numbers)) & (np.abs(numbers) <= MAX_COUNT)
    first, second = np.meshgrid(numbers[is_step][:20], numbers[is_step][:20])
    last_restart = second + first * ((MAX_COUNT - second) // np.maximum(first, 1))
    corners = np.ravel([first + second, first - second, first * second, last_restart])
    return corners[(corners >= 1) & (corners <= MAX_COUNT)].astype(int)
