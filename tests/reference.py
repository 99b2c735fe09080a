"""Textbook formulas in NumPy float64. Imports neither jax nor the package, so that it can be wrong
only by itself.
"""

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

# The norm and the clip. A tree is a sequence of arrays here.


def real_parts(leaf: Any) -> list[np.ndarray]:
    """The float64 arrays of numbers that a leaf holds: itself, or its real and its imaginary part."""
    leaf = np.asarray(leaf)
    return (
        [leaf.real.astype(np.float64), leaf.imag.astype(np.float64)]
        if np.iscomplexobj(leaf)
        else [leaf.astype(np.float64)]
    )


def limits(leaf: Any) -> Any:
    """`finfo` of a leaf, of its parts where it is complex."""
    dtype = np.asarray(leaf).dtype
    return ml_dtypes.finfo(np.finfo(dtype).dtype if dtype.kind == "c" else dtype)


def floor(leaf: Any) -> float:
    """The largest number that may become zero on the way into a leaf.

    XLA on CPU reads and writes subnormals as zero, except those of float16, which it computes in
    float32: there it is half of the smallest.
    """
    info = limits(leaf)
    return (
        float(info.smallest_subnormal) / 2
        if info.bits == 16 and info.nexp == 5
        else float(info.tiny)
    )


def visible_parts(leaf: Any) -> list[np.ndarray]:
    """`real_parts` as XLA on CPU sees them: zero below the floor."""
    return [np.where(np.abs(part) < floor(leaf), 0.0, part) for part in real_parts(leaf)]


def exponent(leaves: Sequence[Any]) -> int:
    """The power of two of the largest entry: what is divided by it has squares that neither
    overflow nor matter when lost.
    """
    largest = max(
        (np.max(np.abs(part), initial=0.0) for leaf in leaves for part in visible_parts(leaf)),
        default=0.0,
    )
    return math.frexp(largest)[1]


def scaled_norm(leaves: Sequence[Any]) -> tuple[float, int]:
    """The norm as `mantissa * 2**exponent`: the square root of the sum of squares, summed without
    rounding.
    """
    power = exponent(leaves)
    squares = (
        np.square(np.ldexp(part, -power)).ravel() for leaf in leaves for part in visible_parts(leaf)
    )
    return math.sqrt(math.fsum(np.concatenate([np.zeros(1), *squares]))), power


def global_norm(leaves: Sequence[Any]) -> float:
    """`sqrt(sum x^2)`, inf where that is too large for float64."""
    mantissa, power = scaled_norm(leaves)
    try:
        return math.ldexp(mantissa, power)
    except OverflowError:
        return math.inf


def norms_of_rows(rows: np.ndarray) -> np.ndarray:
    """The norm of each row of numbers that came from at most 32 bits: float64 holds their squares."""
    return np.sqrt(np.sum(np.square(rows), axis=1))


def clipped_rows(rows: np.ndarray, max_norm: np.ndarray) -> np.ndarray:
    """`x * max_norm / max(norm, max_norm)` for each row x with a bound of its own, not rounded."""
    norms = norms_of_rows(rows)
    return (
        rows
        * np.where(norms > max_norm, max_norm / np.where(norms > max_norm, norms, 1), 1)[:, None]
    )


def ulp(numbers: np.ndarray, leaf: Any) -> np.ndarray:
    """The distance of neighbours in the dtype of a leaf, at each of some numbers in its range."""
    info = limits(leaf)
    return np.ldexp(float(info.eps), np.maximum(np.frexp(numbers)[1] - 1, info.minexp))


def is_over(leaves: Sequence[Any], max_norm: float) -> bool:
    """Whether the norm is over the bound, also where it is not representable."""
    mantissa, power = scaled_norm(leaves)
    try:
        return mantissa > math.ldexp(max_norm, -power)
    except OverflowError:
        return False


def clip(leaves: Sequence[Any], max_norm: float) -> list[list[np.ndarray]]:
    """`x * max_norm / norm` over the bound, x below it: the parts of each leaf, not rounded to its
    dtype.
    """
    if not is_over(leaves, max_norm):
        return [real_parts(leaf) for leaf in leaves]
    mantissa, power = scaled_norm(leaves)
    fraction, bound_power = math.frexp(max_norm)

    def times_the_coefficient(part: np.ndarray) -> np.ndarray:
        # Fractions and exponents apart, so that no number on the way leaves the range of float64.
        fractions, powers = np.frexp(part)
        return np.ldexp(fractions * (fraction / mantissa), powers + (bound_power - power))

    return [[times_the_coefficient(part) for part in visible_parts(leaf)] for leaf in leaves]


def clip_derivative(
    leaves: Sequence[Any], max_norm: float, along: Sequence[Any]
) -> list[list[np.ndarray]]:
    """The derivative of `clip` in the direction `along`: `max_norm / norm * (v - u (u . v))`, where u is `x / norm`.

    It is symmetric, so it is the pullback too.
    """
    if not is_over(leaves, max_norm):
        return [real_parts(direction) for direction in along]
    mantissa, power = scaled_norm(leaves)
    unit = [[np.ldexp(part, -power) / mantissa for part in visible_parts(leaf)] for leaf in leaves]
    pairs = [
        pair
        for us, direction in zip(unit, along, strict=True)
        for pair in zip(us, real_parts(direction), strict=True)
    ]
    dot = math.fsum(np.concatenate([np.zeros(1), *((u * v).ravel() for u, v in pairs)]))
    ratio = math.ldexp(max_norm / mantissa, -power)
    flat = iter([ratio * (v - u * dot) for u, v in pairs])
    return [[next(flat) for _ in us] for us in unit]


# Schedules. Each is a function of an array of counts and of the arguments of its factory.

#: The largest count: later ones are counted as this one.
LAST = 2**31 - 1


def of(schedule, count):
    """The value of a schedule, which tells its kind and arguments, or of a number."""
    if isinstance(schedule, (int, float)):
        return np.full(np.shape(count), float(schedule))
    arguments = dict(schedule.arguments)
    count = np.clip(np.asarray(count, np.float64), 0, LAST)
    return globals()[schedule.kind](count, *arguments.pop("operands", ()), **arguments)


def largest(schedule):
    """The largest number that a schedule can be, as its arguments tell."""
    if isinstance(schedule, (int, float)):
        return abs(schedule)
    arguments = schedule.arguments
    names = ("peak_value", "init_value", "value", "end_value", "schedule")
    numbers = [arguments[name] for name in names if name in arguments]
    for name in ("values", "operands", "schedules"):
        numbers += arguments.get(name, ())
    return (math.prod if schedule.kind == "product" else max)(map(largest, numbers))


def constant(count, *, value):
    return np.full_like(count, value)


def piecewise_constant(count, *, values, boundaries):
    return np.asarray(values)[np.searchsorted(boundaries, count, side="right")]


def linear_warmup(count, *, peak_value, warmup_steps, init_value=0.0):
    return polynomial_warmup(
        count, peak_value=peak_value, warmup_steps=warmup_steps, init_value=init_value
    )


def polynomial_warmup(count, *, peak_value, warmup_steps, init_value=0.0, power=1.0):
    passed = np.minimum(count / warmup_steps, 1) if warmup_steps else np.ones_like(count)
    return init_value + (peak_value - init_value) * passed**power


def exponential_warmup(count, *, peak_value, timescale):
    return peak_value * -np.expm1(-count / timescale)


def polynomial_decay(count, *, init_value, decay_steps, end_value=0.0, power=1.0, cycle=False):
    length = decay_steps * np.maximum(np.ceil(count / decay_steps), 1) if cycle else decay_steps
    # (D - t) / D instead of 1 - t / D, which loses the last steps of a long run even in float64.
    left = (length - np.minimum(count, length)) / length
    return (init_value - end_value) * left**power + end_value


def cosine_decay(count, *, init_value, decay_steps, end_value=0.0):
    share = np.minimum(count, decay_steps) / decay_steps
    return end_value + (init_value - end_value) * (1 + np.cos(np.pi * share)) / 2


def exponential_decay(
    count, *, init_value, decay_steps, decay_rate, end_value=0.0, staircase=False
):
    periods = np.floor(count / decay_steps) if staircase else count / decay_steps
    if decay_rate <= 1:
        return np.maximum(init_value * decay_rate**periods, end_value)
    # The ceiling is within the first periods; past them float64 would overflow.
    most = 1 + math.log(end_value / init_value) / math.log(decay_rate)
    return np.minimum(init_value * decay_rate ** np.minimum(periods, most), end_value)


def inverse_power_decay(count, *, init_value, timescale, power, end_value=0.0):
    return end_value + (init_value - end_value) * (timescale / (timescale + count)) ** power


def inverse_sqrt_decay(count, *, init_value, timescale, end_value=0.0):
    return end_value + (init_value - end_value) / np.sqrt(1 + count / timescale)


def warmup_polynomial_decay(count, *, power=1.0, **run):
    return _run(count, lambda _, left: left**power, **run)


def warmup_cosine_decay(count, **run):
    return _run(count, _SHAPES["cosine"], **run)


def warmup_stable_decay(count, *, decay_shape="linear", **run):
    return _run(count, _SHAPES[decay_shape], **run)


#: Of the shares that have passed and are left.
_SHAPES = {
    "linear": lambda _, left: left,
    "cosine": lambda passed, _: (1 + np.cos(np.pi * passed)) / 2,
    "one_minus_sqrt": lambda passed, _: 1 - np.sqrt(passed),
    "exponential": lambda passed, _: 2 * 0.5**passed - 1,
}


def _run(
    count,
    shape,
    *,
    peak_value,
    total_steps,
    warmup_steps,
    decay_steps=None,
    init_value=0.0,
    end_value=0.0,
    decay_from="warmup_end",
):
    if decay_steps is None:
        decay_steps = total_steps - (warmup_steps if decay_from == "warmup_end" else 0)
    passed = np.clip(count - (total_steps - decay_steps), 0, decay_steps)
    length = max(decay_steps, 1)
    falling = end_value + (peak_value - end_value) * shape(
        passed / length, (length - passed) / length
    )
    rising = init_value + (peak_value - init_value) * count / max(warmup_steps, 1)
    return np.where(count < warmup_steps, rising, falling)


def with_warmup(count, *, schedule, warmup_steps, init_value=0.0):
    rising = init_value + (of(schedule, 0) - init_value) * count / max(warmup_steps, 1)
    return np.where(count < warmup_steps, rising, of(schedule, count - warmup_steps))


def join(count, *, schedules, boundaries):
    value = of(schedules[0], count)
    for schedule, boundary in zip(schedules[1:], boundaries, strict=True):
        value = np.where(count < boundary, value, of(schedule, count - boundary))
    return value


def repeat(count, *, schedule, period):
    return of(schedule, count % period)


def shift(count, *, schedule, by):
    return of(schedule, count + by)


def stretch(count, *, schedule, factor):
    return of(schedule, count // factor)


def product(count, *operands):
    return np.prod([of(operand, count) for operand in operands], axis=0)


def total(count, *operands):
    return np.sum([of(operand, count) for operand in operands], axis=0)


def minimum(count, *operands):
    return np.min([of(operand, count) for operand in operands], axis=0)


def maximum(count, *operands):
    return np.max([of(operand, count) for operand in operands], axis=0)


# The running bound: the rule alone, on one stream of norms.


class RunningBound:
    """The bound that follows the norms of a run, in float64. A norm is given by its natural
    logarithm, NaN for none.
    """

    def __init__(self, *, deviations=3.0, ceiling=math.inf, decay=0.99):
        self.deviations, self.ceiling, self.decay = deviations, ceiling, decay
        self.mean, self.variance, self.count = 0.0, 0.0, 0

    @property
    def deviation(self) -> float:
        return max(math.sqrt(self.variance), 0.1)

    @property
    def log_bound(self) -> float:
        """The logarithm of the bound on the next norm."""
        highest = math.log(self.ceiling) if self.ceiling else -math.inf
        return min(self.mean + self.deviations * self.deviation, highest) if self.count else highest

    def teach(self, log_norm: float) -> None:
        """One more norm, whatever was done about it. Zero, inf and NaN have no finite logarithm and
        teach nothing.
        """
        if not math.isfinite(log_norm):
            return
        if self.count == 0:
            self.mean, self.variance = log_norm, 0.25
        else:
            reach = 3 * self.deviation
            distance = min(max(log_norm - self.mean, -reach), reach)
            weight = max(1 - self.decay, 3 / (self.count + 3))
            self.mean += weight * distance
            self.variance = (1 - weight) * (self.variance + weight * distance**2)
        self.count += 1


class RunningLossBound:
    """The bound that follows the losses of a run, in float64: on the numbers themselves."""

    def __init__(self, *, deviations=6.0, decay=0.99, largest=1.7e308):
        self.deviations, self.decay, self.largest = deviations, decay, largest
        self.mean, self.deviation, self.count = 0.0, 0.0, 0

    @property
    def floor(self) -> float:
        return max(self.deviation, 0.01 * abs(self.mean))

    @property
    def bound(self) -> float:
        """The bound on the next loss: none while nothing is usual yet, or all was zero."""
        is_fresh = self.count == 0 or self.floor == 0
        return math.inf if is_fresh else self.mean + self.deviations * self.floor

    def teach(self, loss: float) -> None:
        """One more loss, skipped or not. One that is not finite teaches nothing."""
        if not math.isfinite(loss):
            return
        floor = self.floor
        if self.count == 0 or floor == 0:
            self.mean, self.deviation = loss, 0.5 * abs(loss)
        else:
            distance = min(max((loss - self.mean) / floor, -3.0), 3.0)
            weight = max(1 - self.decay, 3 / (self.count + 3))
            self.mean += weight * distance * floor
            spread = (self.deviation / floor) ** 2 + weight * distance**2
            self.deviation = floor * math.sqrt((1 - weight) * spread)
        self.deviation = min(self.deviation, self.largest / 16)
        self.count += 1
