"""What a picture of a schedule is drawn from: how far to look, at which steps, and what stands out there."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from warmclip_jax._schedules._schedule import Schedule

Drawable = Callable[[Any], Any]

#: More steps than this are thinned out: no screen shows them.
_MAX_SAMPLES = 4096


class Sampled(NamedTuple):
    """A schedule at some steps, in order, and the steps that stand out among them."""

    steps: np.ndarray
    values: np.ndarray
    warmup: int | None  # The step at which the warm-up ends; None without one.
    peak: int  # The first step at the largest value.
    end: int | None  # The first step of the last value; None while it still moves.

    def at(self, step: int) -> float:
        """The value at one of `steps`."""
        return float(self.values[np.searchsorted(self.steps, step)])


def sample(schedule: Drawable, steps: int) -> Sampled:
    """The schedule at the steps 0 to `steps`, all of them where they are few."""
    at = np.unique(np.linspace(0, steps, min(steps + 1, _MAX_SAMPLES)).astype(np.int64))
    seams = [seam + offset for seam in _seams(schedule) for offset in (-1, 0, 1)]
    at = np.union1d(at, [seam for seam in seams if 0 <= seam <= steps]).astype(np.int32)
    values = np.broadcast_to(np.asarray(schedule(at), np.float64), at.shape)
    peak = int(np.argmax(values))
    moving = np.flatnonzero(values != values[-1])
    last = int(moving[-1]) + 1 if moving.size else 0
    end = int(at[last]) if last < at.size - 1 and moving.size else None
    warmup = _warmup(schedule)
    if warmup is None and peak and np.all(np.diff(values[: peak + 1]) >= 0):
        warmup = int(at[peak])
    return Sampled(at, values, warmup if warmup is not None and 0 < warmup <= steps else None, int(at[peak]), end)


def extent(schedule: Drawable) -> int:
    """How many steps to look at: the lengths that the schedule was given, and a tenth more to see what comes after."""
    return max(1, round(1.1 * _length(schedule)))


def _warmup(schedule: Drawable) -> int | None:
    """The step at which a warm-up ends, where the schedule says so; its values show it too, but not to the step."""
    arguments = schedule.arguments if isinstance(schedule, Schedule) else {}
    if "warmup_steps" in arguments:
        return int(arguments["warmup_steps"])
    if "schedules" in arguments:
        return _warmup(arguments["schedules"][0])
    inner = _warmup(arguments["schedule"]) if "schedule" in arguments else None
    return None if inner is None else inner - int(arguments.get("by", 0))


def _length(schedule: Drawable) -> float:
    """The lengths in the arguments of a schedule; 100 steps for one that has none."""
    if not isinstance(schedule, Schedule):
        return 100
    arguments = schedule.arguments
    if "schedules" in arguments:
        return (0, *arguments["boundaries"])[-1] + _length(arguments["schedules"][-1])
    if "period" in arguments:
        return 3 * arguments["period"]
    if "schedule" in arguments:
        return max(1, _length(arguments["schedule"]) + arguments.get("warmup_steps", 0) - arguments.get("by", 0))
    # A curve that never ends, or that repeats, is worth more than one of its lengths.
    times = 3 if arguments.get("cycle") or "decay_rate" in arguments or "timescale" in arguments else 1
    lengths = [arguments[name] for name in ("total_steps", "decay_steps", "warmup_steps", "timescale") if name in arguments]
    return min(times * lengths[0], 2.0**31 / 1.2) if lengths else 100


def _seams(schedule: Drawable, start: int = 0) -> list[int]:
    """The steps at which a schedule changes from one thing to another, which thinning out would miss."""
    if not isinstance(schedule, Schedule):
        return []
    arguments = schedule.arguments
    inner = arguments.get("schedule")
    warmup = int(arguments.get("warmup_steps", 0))
    if "period" in arguments:
        return [start, *(start + time * int(arguments["period"]) for time in range(1, 100))]
    if inner is not None:
        return [start, *_seams(inner, start + warmup - int(arguments.get("by", 0)))]
    if "schedules" in arguments:
        begins = [0, *map(int, arguments["boundaries"])]
        each = zip(arguments["schedules"], begins, strict=True)
        return [seam for one, begin in each for seam in (start + begin, *_seams(one, start + begin))]
    total, decay = int(arguments.get("total_steps", 0)), int(arguments.get("decay_steps", 0))
    return [start, start + warmup, start + total, start + (total - decay if total else decay)]
