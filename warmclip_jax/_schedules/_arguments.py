"""Annotations for the arguments of schedules, each with the rule that checks the argument."""

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._schedules._alike import Alike, alike, value_of
from warmclip_jax._schedules._counts import as_limit
from warmclip_jax._schedules._schedule import ScalarOrSchedule, Schedule
from warmclip_jax._values import (
    MAX_COUNT,
    Each,
    Function,
    Number,
    Scalar,
    as_number,
    broken_rule,
    is_traced,
)

#: Far above any rate, and low enough that the difference of two is finite in float32 too.
_MAX_VALUE = 1e38


class _AnySchedule(Function):
    """The rule for a schedule of any library; or also a number, by the rule `number`."""

    def lowered(self, checked: Any) -> Any:
        return checked.lowered() if isinstance(checked, Schedule) else as_number(checked)

    def lowered_all(self, checked: tuple[Any, ...]) -> tuple[Alike, ...]:
        return alike(tuple(map(self.lowered, checked)))

    def as_array(self, lowered: Any) -> Callable[[jax.Array], jax.Array]:
        return functools.partial(value_of, lowered)

    def as_arrays(self, lowered: tuple[Alike, ...]) -> tuple[Alike, ...]:
        return lowered


class _Boundary(Number):
    """The rule for a step at which something begins: in the computation a limit, as a uint32."""

    def lowered(self, number: Any) -> Any:
        step = as_number(number)
        return step if is_traced(step) else np.uint32(min(max(math.ceil(step), 0), 2**32 - 1))

    def as_array(self, number: Any) -> jax.Array:
        return as_limit(jnp.asarray(number))


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
_BOUNDARY = _Boundary(**vars(_STEPS))
PositiveSteps = Annotated[
    Scalar,
    Number(
        "a whole number of steps, 1 or more", "Count optimizer steps.", lambda n: n >= 1, whole=True
    ),
]
SignedSteps = Annotated[
    Scalar,
    Number(
        "a whole number between -2**31 and 2**31",
        "Count optimizer steps; a negative number delays the schedule.",
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
        "1 changes nothing, 2 is a square, 0.5 a square root.",
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
    ScalarOrSchedule,
    _AnySchedule.or_number(f"a schedule, or {_FINITE.rule}", _ANY, _FINITE.holds),
]

_Scalars = Sequence[Scalar] | np.ndarray | jax.Array
EachFinite = Annotated[_Scalars, Each(_FINITE)]
EachSteps = Annotated[_Scalars, Each(_BOUNDARY, may_be_empty=True)]
EachInner = Annotated[Sequence[Callable[[Any], Any]] | np.ndarray, Each(_INNER)]


def with_boundaries(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments`, if a boundary lies between each two of `name` and boundaries increase."""
    parts, boundaries = arguments[name], arguments["boundaries"]
    if len(boundaries) != len(parts) - 1:
        rule = f"one fewer than the {len(parts)} {name}"
        remedy = f"Each is the step at which the next of {name} takes over."
        raise broken_rule("boundaries", rule, list(boundaries), remedy)
    for earlier, later in pairwise(boundaries):
        if not (is_traced(earlier) or is_traced(later)) and earlier >= later:
            remedy = "Count each from the start of the run, not from the one before."
            raise broken_rule("boundaries", "strictly increasing", [earlier, later], remedy)
    return arguments
