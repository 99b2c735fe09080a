"""What the arguments of a schedule may be, each an annotation that carries its rule."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._checks import MAX_COUNT, Each, Number, Scalar, default_float
from warmclip_jax._foreign import Foreign
from warmclip_jax._schedules._counts import as_step
from warmclip_jax._schedules._schedule import Schedule
from warmclip_jax._values import Function

#: Far above any rate, and low enough that the difference of two is finite in float32 too.
_MAX_VALUE = 1e38


def _logarithm(rate: Any) -> Any:
    # In float64 where the number is known: the logarithm of 0.9999 rounded to float32 is off by 3e-4 of itself.
    return math.log(rate) if isinstance(rate, float) else jnp.log(jnp.asarray(rate).astype(default_float()))


class _AnySchedule(Function):
    """The rule of a schedule, of this package or any other; or a number, where it has a rule for that."""

    def lowered(self, checked: Any) -> Any:
        return checked.lowered() if isinstance(checked, Schedule) else checked

    def as_array(self, lowered: Any) -> Any:
        return (lambda count: lowered(as_step(count))) if isinstance(lowered, Foreign) else lowered


Finite = Annotated[
    Scalar,
    Number(
        "a finite number, of at most 1e38 either way",
        "Learning rates are finite; a schedule that never ends is not needed.",
        lambda value: abs(value) <= _MAX_VALUE,
    ),
]
_STEPS = Number("a whole number of steps, 0 or more", "Count optimizer steps; 0 means none.", lambda n: n >= 0, whole=True)
Steps = Annotated[Scalar, _STEPS]
PositiveSteps = Annotated[
    Scalar,
    Number("a whole number of steps, 1 or more", "Count optimizer steps.", lambda n: n >= 1, whole=True),
]
SignedSteps = Annotated[
    Scalar,
    Number(
        "a whole number of steps, less than 2**31 either way",
        "Count optimizer steps; negative ones wait.",
        lambda n: abs(n) <= MAX_COUNT,
        whole=True,
    ),
]
Timescale = Annotated[
    Scalar, Number("a number of steps above 0", "It is a length in steps, not a rate; 1000.0, say.", lambda steps: steps > 0)
]
Power = Annotated[
    Scalar, Number("a number above 0", "1 is a straight line, 2 a parabola, 0.5 a square root.", lambda power: power > 0)
]
Fraction = Annotated[
    Scalar, Number("a fraction in [0, 1)", "It is a share of total_steps; 0.1 is a tenth.", lambda share: 0 <= share < 1)
]
#: The curve gets its logarithm instead of the rate itself.
LogOfRate = Annotated[
    Scalar,
    Number(
        "a number above 0 and at most 1",
        "It is what a value is multiplied by every decay_steps; 0.5 halves it.",
        lambda rate: 0 < rate <= 1,
        lowering=_logarithm,
    ),
]
_INNER = _AnySchedule(
    "a schedule", "Pass warmclip_jax.linear_warmup(...), any optax schedule, or a pure function of the count."
)
#: A schedule as an argument of another.
Inner = Annotated[Callable[[Any], Any], _INNER]

EachSteps = Annotated[Sequence[Scalar] | np.ndarray | jax.Array, Each(_STEPS)]
EachInner = Annotated[Sequence[Callable[[Any], Any]] | np.ndarray, Each(_INNER)]
