"""Annotations for the arguments of schedules, each with the rule that checks the argument."""

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any, cast

import jax
import numpy as np

from warmclip_jax._schedules._counts import as_step
from warmclip_jax._schedules._schedule import Schedule, computed
from warmclip_jax._values import (
    MAX_COUNT,
    Each,
    Foreign,
    Function,
    Number,
    Scalar,
    broken_rule,
    is_traced,
)

#: Far above any rate, and low enough that the difference of two is finite in float32 too.
_MAX_VALUE = 1e38


class _AnySchedule(Function):
    """The rule for a schedule of any library; or also a number, by the rule `number`."""

    def lowered(self, checked: Any) -> Any:
        if isinstance(checked, Schedule):
            return checked.lowered()
        return checked if isinstance(checked, Foreign) else self._numbers.lowered(checked)

    def as_array(self, lowered: Any) -> Any:
        if isinstance(lowered, Foreign):
            return lambda count: lowered(as_step(count))
        if isinstance(lowered, Schedule):
            return functools.partial(computed, lowered)
        return self._numbers.as_array(lowered)

    @property
    def _numbers(self) -> Number:
        return cast(Number, self.number)  # where a number stands, the rule allows one


_FINITE = Number(
    "a finite number from -1e38 to 1e38",
    "Learning rates are finite; leave out a floor or ceiling that is never reached.",
    lambda value: abs(value) <= _MAX_VALUE,
)
Finite = Annotated[Scalar, _FINITE]
_STEPS = Number(
    "a whole number of steps, 0 or more",
    "Count optimizer steps; 0 means none.",
    lambda n: n >= 0,
    whole=True,
)
Steps = Annotated[Scalar, _STEPS]
PositiveSteps = Annotated[
    Scalar,
    Number(
        "a whole number of steps, 1 or more", "Count optimizer steps.", lambda n: n >= 1, whole=True
    ),
]
_SIGNED_REMEDY = "Count optimizer steps; a negative number delays the schedule."
SignedSteps = Annotated[
    Scalar,
    Number(
        "a whole number between -2**31 and 2**31",
        _SIGNED_REMEDY,
        lambda n: abs(n) <= MAX_COUNT,
        whole=True,
    ),
]
Timescale = Annotated[
    Scalar,
    Number(
        "a number of steps above 0",
        "It is a length in steps, not a rate; 1000.0, say.",
        lambda steps: steps > 0,
    ),
]
Power = Annotated[
    Scalar,
    Number(
        "a number above 0",
        "1 is a straight line, 2 a parabola, 0.5 a square root.",
        lambda power: power > 0,
    ),
]
Fraction = Annotated[
    Scalar,
    Number(
        "a fraction in [0, 1)",
        "It is a share of total_steps; 0.1 is a tenth.",
        lambda share: 0 <= share < 1,
    ),
]
_ANY = "Pass warmclip_jax.linear_warmup(...), any optax schedule, or a pure function of the count."
_INNER = _AnySchedule("a schedule", _ANY)
#: A schedule as an argument of another.
Inner = Annotated[Callable[[Any], Any], _INNER]
#: A schedule or a number.
Operand = Annotated[
    Scalar | Callable[[Any], Any],
    _AnySchedule.or_number(f"a schedule, or {_FINITE.rule}", _ANY, _FINITE.holds),
]

EachFinite = Annotated[Sequence[Scalar] | np.ndarray | jax.Array, Each(_FINITE)]
EachSteps = Annotated[Sequence[Scalar] | np.ndarray | jax.Array, Each(_STEPS, may_be_empty=True)]
EachInner = Annotated[Sequence[Callable[[Any], Any]] | np.ndarray, Each(_INNER)]


def with_boundaries(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments`. Raises ValueError unless a boundary lies between each two parts, and boundaries increase."""
    parts, boundaries = arguments[name], arguments["boundaries"]
    if len(boundaries) != len(parts) - 1:
        rule = f"one fewer than the {len(parts)} {name}"
        raise broken_rule(
            "boundaries",
            rule,
            list(boundaries),
            f"Each is the step at which the next of {name} takes over.",
        )
    for earlier, later in pairwise(boundaries):
        if not (is_traced(earlier) or is_traced(later)) and earlier >= later:
            remedy = "Count each from the start of the run, not from the one before."
            raise broken_rule("boundaries", "strictly increasing", list(boundaries), remedy)
    return arguments
