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


# Schedules. Each is a function of an array of counts and of the numbers its factory takes.


def constant(count, *, value):
    return np.full_like(_clock(count), value)


def piecewise_constant(count, *, values, boundaries):
    return np.asarray(values, np.float64)[np.searchsorted(boundaries, _clock(count), side="right")]


def linear_warmup(count, *, peak_value, warmup_steps, init_value=0.0):
    return polynomial_warmup(
        count, peak_value=peak_value, warmup_steps=warmup_steps, init_value=init_value
    )


def polynomial_warmup(count, *, peak_value, warmup_steps, init_value=0.0, power=1.0):
    passed = (
        np.minimum(_clock(count) / warmup_steps, 1) if warmup_steps else np.ones_like(_clock(count))
    )
    return init_value + (peak_value - init_value) * passed**power


def exponential_warmup(count, *, peak_value, timescale):
    return peak_value * (1 - np.exp(-_clock(count) / timescale))


def polynomial_decay(count, *, init_value, decay_steps, end_value=0.0, power=1.0, cycle=False):
    clock = _clock(count)
    length = decay_steps * np.maximum(np.ceil(clock / decay_steps), 1) if cycle else decay_steps
    # (D - t) / D instead of 1 - t / D, which loses the last steps of a long run even in float64.
    return (init_value - end_value) * (
        (length - np.minimum(clock, length)) / length
    ) ** power + end_value


def cosine_decay(count, *, init_value, decay_steps, end_value=0.0):
    share = np.minimum(_clock(count), decay_steps) / decay_steps
    return end_value + (init_value - end_value) * (1 + np.cos(np.pi * share)) / 2


def exponential_decay(
    count, *, init_value, decay_steps, decay_rate, end_value=0.0, staircase=False
):
    periods = _clock(count) / decay_steps
    bound = np.minimum if decay_rate > 1 else np.maximum
    # The ceiling of what grows is within the first periods; past them float64 would overflow.
    periods = (
        np.minimum(periods, 1 + np.log(end_value / init_value) / np.log(decay_rate))
        if decay_rate > 1
        else periods
    )
    return bound(
        init_value * decay_rate ** (np.floor(periods) if staircase else periods), end_value
    )


def inverse_sqrt_decay(count, *, init_value, timescale):
    return init_value * np.sqrt(timescale / (timescale + _clock(count)))


def warmup_polynomial_decay(
    count,
    *,
    peak_value,
    total_steps,
    warmup_steps,
    init_value=0.0,
    end_value=0.0,
    power=1.0,
    decay_from="warmup_end",
):
    start = warmup_steps if decay_from == "warmup_end" else 0
    falling = polynomial_decay(
        _clock(count) - start,
        init_value=peak_value,
        decay_steps=total_steps - start,
        end_value=end_value,
        power=power,
    )
    return _after_warmup(count, peak_value, warmup_steps, init_value, falling)


def warmup_cosine_decay(
    count,
    *,
    peak_value,
    total_steps,
    warmup_steps,
    init_value=0.0,
    end_value=0.0,
    decay_from="warmup_end",
):
    start = warmup_steps if decay_from == "warmup_end" else 0
    falling = cosine_decay(
        _clock(count) - start,
        init_value=peak_value,
        decay_steps=total_steps - start,
        end_value=end_value,
    )
    return _after_warmup(count, peak_value, warmup_steps, init_value, falling)


def warmup_stable_decay(
    count,
    *,
    peak_value,
    total_steps,
    warmup_steps,
    decay_steps,
    init_value=0.0,
    end_value=0.0,
    decay_shape="linear",
):
    passed = np.clip((_clock(count) - (total_steps - decay_steps)) / decay_steps, 0, 1)
    shape = {
        "linear": 1 - passed,
        "cosine": (1 + np.cos(np.pi * passed)) / 2,
        "one_minus_sqrt": 1 - np.sqrt(passed),
        "exponential": 2 * 0.5**passed - 1,
    }[decay_shape]
    return _after_warmup(
        count, peak_value, warmup_steps, init_value, end_value + (peak_value - end_value) * shape
    )


def _after_warmup(count, peak_value, warmup_steps, init_value, falling):
    rising = linear_warmup(
        count, peak_value=peak_value, warmup_steps=warmup_steps, init_value=init_value
    )
    return np.where(_clock(count) < warmup_steps, rising, falling)


def _clock(count):
    return np.maximum(np.asarray(count, np.float64), 0)


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
