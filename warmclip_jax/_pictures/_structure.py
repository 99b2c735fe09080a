"""Read the length of a schedule, the steps where its formula changes, and its warm-up from its kind and arguments."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from warmclip_jax._checks import MAX_COUNT
from warmclip_jax._schedules._schedule import Schedule

#: How many periods of a repeating schedule have seams.
_PERIODS = 100
#: The most seams to keep: a picture has fewer columns.
_MAX_SEAMS = 1000


class Structure(NamedTuple):
    """The length and seams of a schedule, in steps. A constant has length 0."""

    length: float
    seams: tuple[int, ...]  # Where one formula gives way to another, in order.
    warmup: float | None  # The step at which the warm-up ends; None where the arguments do not tell.
    is_known: bool  # False if it holds a function of another library.


def structure(schedule: Any) -> Structure:
    """The structure of a schedule of any library, or of a number among the operands of a product."""
    if not isinstance(schedule, Schedule):
        return _built(100, (0,), is_known=False) if callable(schedule) else _built(0, (0,))
    arguments = schedule.arguments
    parts = [structure(inner) for inner in _inner(arguments)]
    known = all(part.is_known for part in parts)
    match schedule.kind:
        case "with_warmup":
            (inner,), warmup = parts, arguments["warmup_steps"]
            return _built(inner.length + warmup, (0, *_moved(inner, warmup)), (inner.warmup or 0) + warmup, known)
        case "shift":
            (inner,), by = parts, arguments["by"]
            return _built(inner.length - by, _moved(inner, -by), inner.warmup and inner.warmup - by, known)
        case "stretch":
            (inner,), factor = parts, arguments["factor"]
            seams = (seam * factor for seam in inner.seams)
            return _built(inner.length * factor, seams, inner.warmup and inner.warmup * factor, known)
        case "repeat":
            (inner,), period = parts, arguments["period"]
            first = [seam for seam in inner.seams if seam < period]
            seams = (seam + turn * period for turn in range(_PERIODS) for seam in first)
            return _built(3 * period, seams, _before(period, inner.warmup), known)
        case "join":
            begins = (0, *arguments["boundaries"])
            ends = (*arguments["boundaries"], math.inf)
            moved = (_moved(part, begin) for part, begin in zip(parts, begins, strict=True))
            seams = (
                seam
                for begin, end, each in zip(begins, ends, moved, strict=True)
                for seam in (begin, *each)
                if begin <= seam < end
            )
            return _built(begins[-1] + parts[-1].length, seams, _before(ends[0], parts[0].warmup), known)
    if parts:
        # The warm-up of a product ends with its last factor's; that of a minimum or maximum is found in the values.
        warmups = [part.warmup for part in parts if part.warmup is not None]
        warmup = max(warmups, default=None) if schedule.kind == "product" else None
        return _built(max(part.length for part in parts), (seam for part in parts for seam in part.seams), warmup, known)
    return _curve(arguments)


def _curve(arguments: Any) -> Structure:
    """The structure of a schedule without others inside."""
    total, decay, warmup = (arguments.get(name, 0) for name in ("total_steps", "decay_steps", "warmup_steps"))
    if "boundaries" in arguments:
        return _built(max(arguments["boundaries"], default=0), (0, *arguments["boundaries"]))
    if "decay_rate" in arguments:
        reached = _reached(arguments)
        turns = (turn * decay for turn in range(_PERIODS if arguments["staircase"] else 1))
        grows = arguments["decay_rate"] > 1
        return _built(reached if grows and reached else 3 * decay, (*turns, reached or 0))
    if "timescale" in arguments:
        return _built(3 * arguments["timescale"], (0,))
    if arguments.get("cycle"):
        return _built(3 * decay, (turn * decay for turn in range(_PERIODS)))
    return _built(total or decay or warmup, (0, warmup, total, total - decay if total else decay), warmup)


def _reached(arguments: Any) -> float | None:
    """The step at which init * rate^(t/D) reaches the end value; None if it never does."""
    first, last, rate = (float(arguments[name]) for name in ("init_value", "end_value", "decay_rate"))
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


def _moved(part: Structure, by: float) -> Iterable[float]:
    return (seam + by for seam in part.seams)


def _before(end: float, warmup: float | None) -> float | None:
    """`warmup`, or None if `end` cuts it short: it is then found in the values."""
    return warmup if warmup is not None and warmup < end else None


def _built(length: float, seams: Iterable[float], warmup: float | None = None, is_known: bool = True) -> Structure:
    within = sorted({int(seam) for seam in seams if 0 <= seam <= MAX_COUNT})
    warmup = warmup if warmup is not None and warmup > 0 else None
    return Structure(max(length, 0), tuple(within[:_MAX_SEAMS]), warmup, is_known)
