"""Finds what stands out in a schedule from its values: how far to draw, and which steps to mark."""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._schedules import Schedule
from warmclip_jax._values import MAX_COUNT, Foreign

Drawable = Schedule | Foreign

#: A schedule is always asked for this many counts, so that it is compiled for one shape.
_AT_ONCE = 8192
#: A value that changes after this step may change at any count.
_LATE = 0.9 * MAX_COUNT


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
        beside = self._corners + np.array([[-1], [0], [1]])
        self.look_at(np.append(np.geomspace(1, MAX_COUNT, 1024), beside))

    def look_at(self, steps: np.ndarray) -> None:
        """Adds `steps`, and then more and more of the steps between which a mark stands."""
        while (new := np.setdiff1d(np.clip(steps, 0, MAX_COUNT).astype(int), self.steps)).size:
            places = np.searchsorted(self.steps, new)
            self.steps = np.insert(self.steps, places, new)
            self.values = np.insert(self.values, places, self._values_at(new))
            around = np.clip(self._landmarks()[1], 1, self.steps.size - 2)
            steps = np.linspace(self.steps[around - 1], self.steps[around + 1], 127)

    def length(self) -> int:
        """The step from which the value stays, or, if that is far, nearly stays; 0 for a constant.

        A value that never stays is followed through three rises and falls.
        """
        values, (_, _, rest) = self._landmarks()
        if rest == 0:
            return 0
        low, tenth = values.min(), np.ptp(values) / 10
        near = int(self.steps[_settled(values, tenth)])
        end = self._step(rest)
        if end is not None and end <= 5 * near:
            return end
        if near < _LATE / 2:
            return near
        high = int(np.argmax(values >= low + 9 * tenth))
        fallen = self.steps[high:][values[high:] <= low + tenth]
        return min(3 * int(min(fallen, default=MAX_COUNT)), MAX_COUNT)

    def marks(self, last: int = MAX_COUNT) -> Marks:
        """The steps to mark, up to step `last`; none in a constant."""
        values, (rise, peak, rest) = self._landmarks()
        ups = np.diff(values[: rise + 1])
        rising = np.flatnonzero(ups > 0)
        # A table does not warm up: it goes up in a few large steps and stays between them.
        is_gradual = rising.size > 1 and (
            2 * rising.size >= rise - rising[0] or 16 * ups.max() <= ups.sum()
        )
        stays = rest > 0 and np.isfinite(self.values[rest])
        return Marks(
            self._step(rise, last) if is_gradual else None,
            self._step(peak, last) if rest > 0 else None,
            self._step(rest, last) if stays else None,
        )

    def _landmarks(self) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Finite values, and the index of the end of the first rise, of the peak, of the end."""
        finite = np.isfinite(self.values)
        values = np.where(finite, self.values, self.values.min(where=finite, initial=0))
        # A rounding is no fall.
        falls = values < np.maximum.accumulate(values) - 1e-6 * np.abs(values).max()
        rise = int(np.argmax(values[: np.argmax(falls) or None]))
        return values, (rise, int(np.argmax(values)), _settled(values, 0))

    def _step(self, index: int, last: int = MAX_COUNT) -> int | None:
        """The step of a mark; where rounding reached a value too early, the likeliest corner."""
        step = self.steps[index]
        near = self._corners[(self._corners >= step) & (self._corners <= 1.0002 * step)]
        same = near[self.values[np.searchsorted(self.steps, near)] == self.values[index]]
        step = int(next(iter(same), step))
        return step if step <= last and step < _LATE else None

    def _values_at(self, steps: np.ndarray) -> np.ndarray:
        """The values as float64; NaN past the end of a table of another library."""
        counts = np.resize(steps, _AT_ONCE).astype(np.int32)
        with contextlib.suppress(TypeError, jax.errors.NonConcreteBooleanIndexError):
            return np.asarray(self._schedule(jnp.asarray(counts)), np.float64)[: steps.size]
        # Count by count, for a function that cannot be traced. Any other error comes again.
        values = np.full(steps.size, np.nan)
        for index, count in enumerate(counts[: steps.size]):
            with contextlib.suppress(LookupError):
                values[index] = self._schedule(count)
        return values


def _settled(values: np.ndarray, within: float) -> int:
    """The index from which no value is further than `within` from the last one."""
    return int(max(np.flatnonzero(np.abs(values - values[-1]) > within), default=-1)) + 1


def _corners(schedule: Drawable) -> np.ndarray:
    """Step 0, and those at which one formula may follow another: from pairs of whole numbers.

    The likelier come first: a number alone (its sum with 0), then the sums of two.
    """
    leaves = [np.float64(leaf).ravel() for leaf in jax.tree.leaves(schedule)]
    numbers = np.hstack([0.0, *leaves])
    whole = numbers[numbers == np.clip(np.round(numbers), -MAX_COUNT, MAX_COUNT)][:20]
    first, second = np.meshgrid(whole, whole)
    last_restart = second + first * ((MAX_COUNT - second) // np.maximum(first, 1))
    corners = np.ravel([first + second, first - second, first * second, last_restart])
    return corners[(corners >= 0) & (corners <= MAX_COUNT)].astype(int)
