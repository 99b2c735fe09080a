"""Read the length of a schedule, the steps where its formula changes, and its warm-up from its kind and arguments."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from warmclip_jax._schedules import Schedule
from warmclip_jax._values import MAX_COUNT

#: How many periods of a repeating schedule have seams.
_PERIODS = 100
#: The most seams to keep: a picture has fewer columns.
_MAX_SEAMS = 1000


class Structure(NamedTuple):
    """The length and seams of a schedule, in steps. A constant has length 0."""

    length: float
    seams: Sequence[float]  # Where one formula gives way to another.
    warmup: float | None = (
        None  # The step at which the warm-up ends; None where the arguments do not tell.
    )
    is_known: bool = True  # False if it holds a function of another library.

    def moved(self, by: float, factor: float = 1) -> "Structure":
        """The structure with each step multiplied by `factor` and moved `by` steps to the right."""
        warmup = self.warmup and self.warmup * factor + by
        return Structure(
            self.length * factor + by,
            [seam * factor + by for seam in self.seams],
            warmup,
            self.is_known,
        )


def structure(schedule: Any) -> Structure:
    """The structure of a schedule of any library, or of a number among the operands of a product; its seams in order."""
    if not isinstance(schedule, Schedule):
        return Structure(100, (0,), is_known=False) if callable(schedule) else Structure(0, (0,))
    parts = [structure(inner) for inner in _inner(schedule.arguments)]
    length, seams, warmup, _ = (
        _composed(schedule.kind, schedule.arguments, parts) if parts else _curve(schedule.arguments)
    )
    within = sorted({int(seam) for seam in seams if 0 <= seam <= MAX_COUNT})
    warmup = warmup if warmup is not None and warmup > 0 else None
    return Structure(
        max(length, 0), tuple(within[:_MAX_SEAMS]), warmup, all(part.is_known for part in parts)
    )


def _composed(kind: str, arguments: Any, parts: list[Structure]) -> Structure:
    """The structure of a schedule with these inside."""
    first = parts[0]
    match kind:
        case "with_warmup":
            moved = first.moved(arguments["warmup_steps"])
            return moved._replace(
                seams=(0, *moved.seams), warmup=moved.warmup or arguments["warmup_steps"]
            )
        case "shift":
            return first.moved(-arguments["by"])
        case "stretch":
            return first.moved(0, arguments["factor"])
        case "repeat":
            period = arguments["period"]
            seams = [
                seam + turn * period
                for turn in range(_PERIODS)
                for seam in first.seams
                if seam < period
            ]
            return Structure(3 * period, seams, _before(period, first.warmup))
        case "join":
            begins, ends = (0, *arguments["boundaries"]), (*arguments["boundaries"], math.inf)
            moved = [part.moved(begin) for part, begin in zip(parts, begins, strict=True)]
            seams = [
                seam
                for begin, end, part in zip(begins, ends, moved, strict=True)
                for seam in (begin, *part.seams)
                if begin <= seam < end
            ]
            return Structure(moved[-1].length, seams, _before(ends[0], first.warmup))
    # The warm-up of a product ends with its last factor's; that of a minimum or maximum is found in
    # the values.
    warmups = [part.warmup for part in parts if part.warmup is not None and kind == "product"]
    seams = [seam for part in parts for seam in part.seams]
    return Structure(max(part.length for part in parts), seams, max(warmups, default=None))


def _curve(arguments: Any) -> Structure:
    """The structure of a schedule without others inside."""
    total, decay, warmup = (
        arguments.get(name, 0) for name in ("total_steps", "decay_steps", "warmup_steps")
    )
    if "boundaries" in arguments:
        return Structure(max(arguments["boundaries"], default=0), (0, *arguments["boundaries"]))
    if "decay_rate" in arguments:
        reached = _reached(arguments)
        turns = [turn * decay for turn in range(_PERIODS if arguments["staircase"] else 1)]
        grows = arguments["decay_rate"] > 1
        return Structure(reached if grows and reached else 3 * decay, (*turns, reached or 0))
    if "timescale" in arguments:
        return Structure(3 * arguments["timescale"], (0,))
    if arguments.get("cycle"):
        return Structure(3 * decay, [turn * decay for turn in range(_PERIODS)])
    return Structure(
        total or decay or warmup, (0, warmup, total, total - decay if total else decay), warmup
    )


def _reached(arguments: Any) -> float | None:
    """The step at which init * rate^(t/D) reaches the end value; None if it never does."""
    first, last, rate = (
        float(arguments[name]) for name in ("init_value", "end_value", "decay_rate")
    )
    if first <= 0 or last <= 0 or rate <= 0 or rate == 1:
        return None
    steps = math.ceil(arguments["decay_steps"] * (math.log(last / first) / math.log(rate)))
    return steps if steps > 0 else None


def _inner(arguments: Any) -> Iterable[Any]:
    """The schedules that a schedule holds, and the numbers among the operands of a product."""
    if "schedule" in arguments:
        return (arguments["schedule"],)
    for value in arguments.values():
        if isinstance(value, (list, tuple)) and any(map(callable, value)):
            return value
    return ()


def _before(end: float, warmup: float | None) -> float | None:
    """`warmup`, or None if `end` cuts it short: it is then found in the values."""
    return warmup if warmup is not None and warmup < end else None
