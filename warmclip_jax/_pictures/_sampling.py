"""Samples schedules for a picture: how far to draw, the values, and the steps to mark."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._pictures._structure import structure
from warmclip_jax._schedules import Schedule
from warmclip_jax._values import MAX_COUNT, Foreign, Function, Number, as_number, broken_rule

Drawable = Callable[[Any], Any]

#: How many evenly spaced steps to sample at most: no screen shows more.
_MAX_SAMPLES = 4096
_STEPS = Number(
    f"a whole number of steps from 1 to {MAX_COUNT}, or None",
    "It is how far to draw.",
    lambda n: 1 <= n <= MAX_COUNT,
    whole=True,
)
_SCHEDULE = Function("a schedule", "Pass warmclip_jax.linear_warmup(...) or any optax schedule.")
#: What JAX raises when a function needs a concrete number and gets a tracer.
_UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


class Sampled(NamedTuple):
    """The values of a schedule at some steps, in order, and the steps to mark."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    warmup: int | None  # The step at which the warm-up ends; None without one, or if it ends later.
    peak: int  # The first step with the largest value.
    end: int | None  # The step from which the value stays the same; None if it does not.

    def at(self, step: int) -> float:
        """The value at one of `steps`."""
        return float(self.values[np.searchsorted(self.steps, step)])


def sampled(schedules: Any, steps: int | None) -> list[Sampled]:
    """Samples each schedule of a list or dict, and each entry of a stacked one.

    Raises TypeError or ValueError for anything that is no schedule.
    """
    named = [entry for name, schedule in _named(schedules) for entry in _entries(name, schedule)]
    length = (
        max(extent(schedule) for _, schedule in named)
        if steps is None
        else int(_STEPS.check("steps", steps))
    )
    return [sample(schedule, length, name) for name, schedule in named]


def extent(schedule: Drawable) -> int:
    """How many steps to draw: the length of the schedule, and a tenth more to show what comes after."""
    return max(1, round(min(1.1 * (structure(schedule).length or 100), MAX_COUNT)))


def sample(schedule: Drawable, steps: int, name: str = "schedule") -> Sampled:
    """The schedule at steps 0 to `steps`: at all of them if they are few, else at even spaces, seams and marks."""
    told = structure(schedule)
    # Beside a seam too, so that a jump is drawn upright however few steps are sampled.
    near = {int(seam) + offset for seam in told.seams for offset in (-1, 0, 1)}
    first = np.linspace(0, steps, min(steps + 1, _MAX_SAMPLES)).astype(np.int64)
    at = np.union1d(first, [seam for seam in near if 0 <= seam <= steps]).astype(np.int32)
    values = _values_at(schedule, at, name)
    if not np.isfinite(values).any():
        raise broken_rule(
            "schedules",
            f"finite somewhere ({name!r})",
            float(values[0]),
            "There is nothing to draw.",
        )
    while (more := _between(at, _landmarks(values))).size:
        order = np.argsort(both := np.concatenate([at, more]))
        at, values = both[order], np.concatenate([values, _values_at(schedule, more, name)])[order]
    places = _landmarks(values)
    rise, end = (None if place is None else int(at[place]) for place in (places[0], places[2]))
    peak = int(at[places[1]])
    seams = [int(seam) for seam in told.seams if seam <= steps]
    line = Sampled(name, at, values, None, peak, end)
    if told.warmup is not None:
        rise = int(told.warmup) if told.warmup <= steps else None
    elif rise is not None:
        # At a seam the next formula starts, so a rise that the seam cuts short ends there, one step
        # after its last value.
        rise = rise + 1 if rise + 1 in seams else _at_seam(rise, seams, line)
    ahead = [step for step in near if steps < step <= MAX_COUNT]
    if end is not None and told.is_known and _changes_later(schedule, values[-1], steps, ahead):
        end = None
    return line._replace(
        warmup=rise, peak=_at_seam(peak, seams, line), end=end and _at_seam(end, seams, line)
    )


def _named(schedules: Any) -> list[tuple[str, Drawable]]:
    """The schedules with their names: the keys of a dict, else their kinds, numbered where two are of one kind."""
    named: dict[Any, Drawable]
    if isinstance(schedules, Mapping):
        named = dict(schedules)
    elif isinstance(schedules, (list, tuple)) and not hasattr(
        schedules, "_fields"
    ):  # An optimizer is a tuple too.
        named = dict(enumerate(schedules))
    else:
        _SCHEDULE.check("schedules", schedules)
        return [(_kind(schedules), cast(Drawable, schedules))]
    if not named:
        raise broken_rule(
            "schedules",
            "a schedule, or a list or dict of at least one",
            schedules,
            "Pass a schedule.",
        )
    for key, schedule in named.items():
        _SCHEDULE.check(f"schedules[{key!r}]", schedule)
    if isinstance(schedules, Mapping):
        return [(str(key), schedule) for key, schedule in named.items()]
    kinds = [_kind(schedule) for schedule in schedules]
    numbers = [kinds[: place + 1].count(kind) for place, kind in enumerate(kinds)]
    names = [
        kind if kinds.count(kind) == 1 else f"{kind} {number}"
        for kind, number in zip(kinds, numbers, strict=True)
    ]
    return list(zip(names, schedules, strict=True))


def _kind(schedule: Any) -> str:
    return (
        schedule.kind
        if isinstance(schedule, Schedule)
        else getattr(schedule, "__name__", "schedule")
    )


def _entries(name: str, schedule: Drawable) -> Iterable[tuple[str, Drawable]]:
    """A stacked schedule entry by entry, each named by the numbers that vary; any other schedule as it is."""
    paths, treedef = (
        jax.tree_util.tree_flatten_with_path(schedule)
        if isinstance(schedule, Schedule)
        else ([], None)
    )
    shape = np.broadcast_shapes(*(np.shape(leaf) for _, leaf in paths))
    if treedef is None or not shape:
        yield name, schedule
        return
    stacks = [
        (jax.tree_util.keystr(path, simple=True, separator="."), np.broadcast_to(leaf, shape))
        for path, leaf in paths
    ]
    for index in np.ndindex(shape):
        numbers = [as_number(stack[index]) for _, stack in stacks]
        varying = [
            f"{path}={number:.3g}"
            for (path, stack), number in zip(stacks, numbers, strict=True)
            if np.ptp(stack)
        ]
        yield f"{name} {', '.join(varying) or list(index)}", treedef.unflatten(numbers)


def _values_at(schedule: Drawable, steps: np.ndarray, name: str) -> np.ndarray:
    """The values as float64. A function of another library that cannot be traced is called with one count at a time."""
    # Padded to a power of two, so that few programs are compiled.
    padded = jnp.asarray(
        np.pad(steps, (0, (1 << (steps.size - 1).bit_length()) - steps.size), mode="edge"), np.int32
    )
    try:
        values = (schedule if isinstance(schedule, Schedule) else Foreign(schedule, "schedules"))(
            padded
        )
    except _UNTRACEABLE:
        values = [schedule(step) for step in steps]
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        remedy = "Draw one schedule for each number."
        raise broken_rule(
            "schedules", f"a function from a count to one number ({name!r})", values[0], remedy
        )
    return values[: steps.size]


def _landmarks(values: np.ndarray) -> tuple[int | None, int, int | None]:
    """The places where the first rise ends, of the peak, and from which the values stay the same; None if there is none."""
    last = values.size - 1
    falls = np.flatnonzero(np.diff(values) < 0)
    top = falls[0] if falls.size else last
    rise = int(np.argmax(values[: top + 1] == values[top]))
    moving = np.flatnonzero(values != values[-1])
    end = int(moving[-1]) + 1 if moving.size else 0
    peak = int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))
    return rise if 0 < rise < last else None, peak, end if 0 < end < last else None


def _between(at: np.ndarray, places: Iterable[int | None]) -> np.ndarray:
    """More steps in the gaps beside `places`, to find their exact steps."""
    lows = {
        low
        for place in places
        if place is not None
        for low in (place - 1, place)
        if 0 <= low < at.size - 1
    }
    finer = [
        np.linspace(at[low], at[low + 1], 64).astype(np.int32)
        for low in sorted(lows)
        if at[low + 1] - at[low] > 1
    ]
    return np.setdiff1d(np.concatenate(finer), at) if finer else np.empty(0, np.int32)


def _at_seam(step: int, seams: list[int], line: Sampled) -> int:
    """`step`, or a seam shortly after it with the same value: rounding can reach a value before the formula does."""
    same = (
        seam for seam in seams if step <= seam <= 1.001 * step and line.at(seam) == line.at(step)
    )
    return next(same, step)


def _changes_later(schedule: Drawable, value: float, steps: int, ahead: list[int]) -> bool:
    """Whether a value that stays to the end of the picture changes after it, at a stair or a restart."""
    later = np.union1d(np.geomspace(steps, MAX_COUNT, 64).astype(np.int64), ahead).astype(np.int32)
    return bool(np.any(_values_at(schedule, later, "") != value))
