"""What a bound may be: None (never), a number, a schedule, or a rule that follows the run."""

import math
from collections.abc import Callable
from typing import Annotated, Any, cast

from warmclip_jax._clipping._rule import Rule, of_count
from warmclip_jax._values import Function, Number, Scalar, Value, as_array_like, as_number, makes


class RunningBound(Value):
    """A bound that follows the norms or losses of a run, as a value: see `running_bound`.

    It is not callable, since it needs a history. It is immutable, prints as the call that rebuilds
    it, compares and hashes by its numbers, and is a pytree of them.

    >>> import warmclip_jax as wc
    >>> wc.running_bound(ceiling=1)
    running_bound(deviations=3.0, ceiling=1.0, decay=0.99)
    """

    __slots__ = ()

    @property
    def rule(self) -> Rule:
        """The numbers of the bound, for the computation."""
        return self._kind.called(
            {name: as_number(value) for name, value in self._arguments.items()}
        )


#: What `max_norm` and `skip_above` may be.
Bound = Scalar | Callable[[Any], Any] | RunningBound | None


class _OrNever(Number):
    """The rule for a number, or None. inf becomes None: both never bound."""

    def check(self, name: str, value: Any) -> Any:
        number = as_number(as_array_like(value))
        never = number is None or (isinstance(number, float) and number == math.inf)
        return None if never else super().check(name, value)


def _function_or_number(rule: str, remedy: str, holds: Callable[[float], bool]) -> Function:
    return Function(rule, remedy, _OrNever(rule, remedy, holds))


_BOUND = _function_or_number(
    "a non-negative number, a schedule, running_bound(...) or None",
    "None or inf is no bound.",
    lambda number: number >= 0,
)
_LOSS_BOUND = _function_or_number(
    "a finite number, a schedule, running_bound(...) or None",
    "None or inf is no bound.",
    lambda number: True,
)
_CEILING = _function_or_number(
    "a non-negative number, a schedule or None",
    "None or inf is no ceiling.",
    lambda number: number >= 0,
)
_DEVIATIONS = Number("a positive number", "3 suits a clip and 6 a skip.", lambda number: number > 0)
_DECAY = Number("between 0 and 1", "0.99 remembers about 100 norms.", lambda number: 0 < number < 1)


@makes(RunningBound)
def running_bound(
    *,
    deviations: Annotated[Scalar, _DEVIATIONS] = 3.0,
    ceiling: Annotated[Scalar | Callable[[Any], Any] | None, _CEILING] = None,
    decay: Annotated[Scalar, _DECAY] = 0.99,
) -> RunningBound:
    """A bound that follows the norms, or losses, of the run, and needs no units.

    `exp(mean + deviations * s)`, where mean and s are those of the logarithms of the norms so far;
    at most `ceiling`. With `l` the logarithm of a norm and `count` the number of norms before it:

        s    = max(sqrt(variance), 0.1)
        d    = clip(l - mean, -3 * s, 3 * s)
        a    = max(1 - decay, 3 / (count + 3))
        mean = mean + a * d
        variance = (1 - a) * (variance + a * d**2)

    The first norm is bounded by the ceiling alone; it sets mean to `l` and variance to 0.25. Every
    later one is bounded by the history before it, and then teaches, whatever was done about it.
    NaN, inf and 0 teach nothing.

    Logarithms make the rule independent of the loss's scale: a norm 100 times the mean is 4.6 above
    it. No norm counts as further away than 3 s, above or below: spikes hardly move the bound, and
    near-zero norms do not open it. s is at least 0.1: with 3 deviations the bound stays above 1.35
    times the usual norm, even where all norms are equal. On the second norm it is 4.5 times the
    first, and the early weights are large: there is no warm-up phase.

    A lasting change is followed, so without a ceiling the rule never locks up: s grows by 3.9 %
    with every norm past 3 s, and in the long run about one norm of nine can be over the bound, for
    3 deviations and more. With 1 about 15 % of ordinary norms are over it, with 0.5 a third.

    Its limits:
    - It follows a slow divergence too. Keep a `ceiling` on a clip.
    - With a ceiling in `skip_above`, as with a number there, a run whose norms stay above it skips
      every step. Watch `consecutive_skips`.
    - A burst longer than about 20 steps raises the bound until it passes, and a kind of batch that
      is more than one of nine is no outlier.
    - It is loose while norms collapse in the first hundred steps.
    - A lost state means that the next step is not bounded.
    - A history that is cast to bfloat16 follows badly.
    - It bounds gradients. Spikes of the updates that Adam makes of them are another matter.

    Losses (`skip_value_above`, `value_above`) may be 0 or negative, so there the rule works on the
    numbers: s is at least 1 % of the size of the mean, the first loss x sets mean to x and the
    deviation to |x| / 2, and the bound is `mean + deviations * s`. A loss that falls by a factor of
    e in 430 steps hides spikes of less than three times its value; a lasting jump of 10 is followed
    in some 140 calls, one of 10**6 in some 450; a loss that was exactly 0 for thousands of calls
    and comes back is skipped for some hundreds.

    Args:
      deviations: how far above the mean the bound lies, above 0. 3 for a clip, where a false alarm
        costs next to nothing; 6 for a skip, where it costs a batch, and for losses.
      ceiling: the largest bound: 0 or more, or a schedule of the same count as a scheduled bound;
        None for none.
      decay: between 0 and 1, both excluded: the weight of the past when a norm is added. 0.99
        remembers about 100 norms.

    Returns:
      A `RunningBound`: a value that prints, compares, hashes, pickles and parses like a schedule.
      It is not called; the transformation that it is given to keeps its history, two floats and an
      int32 for each bound and group.

    Raises:
      TypeError, ValueError: for a concrete argument that breaks its rule. A traced one is not
        checked: deviations of inf leave the ceiling alone, and a decay outside of its range makes a
        history that follows nothing.

    >>> import warmclip_jax as wc
    >>> wc.running_bound(deviations=6) == wc.running_bound(deviations=6.0, decay=0.99)
    True

    Source: deviations of the log-norm, Chen et al. 2018, "The best of both worlds" (arXiv
    1804.09849), and Lingvo's `GradNormTracker`; the limited influence of one value on mean and
    deviation, Huber 1964, "Robust estimation of a location parameter", proposal 2; the early
    weights, Shamir & Zhang 2013, "Stochastic gradient descent for non-smooth optimization",
    polynomial-decay averaging.
    """
    # What `RunningBound.rule` asks for; a caller of the factory gets a `RunningBound`.
    return cast(RunningBound, Rule(deviations, 1 - decay, of_count(ceiling)))


def check_bound(name: str, bound: Any) -> Any:
    """A bound as None (never), a number, a tracer, a callable, or a `RunningBound`; or raises."""
    return bound if isinstance(bound, RunningBound) else _BOUND.check(name, bound)


def check_loss_bound(name: str, bound: Any) -> Any:
    """The same for a bound on losses, which may be negative."""
    return bound if isinstance(bound, RunningBound) else _LOSS_BOUND.check(name, bound)
