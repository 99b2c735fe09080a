"""The schedule: a value that is called with a count."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._schedules._counts import as_step, on_host
from warmclip_jax._values import (
    ArgumentValueError,
    Foreign,
    Number,
    Scalar,
    Value,
    default_float,
    factories,
    is_traced,
    naming,
    shortened,
)

#: A number, or a schedule of any library.
ScalarOrSchedule = Scalar | Callable[[Any], Any]


class Schedule(Value):
    """A learning-rate schedule: `schedule(count)` is the rate at step `count`.

    Build one with a factory such as `linear_warmup`; use it wherever optax takes a schedule. It is
    immutable; `==` and `hash` compare kind and arguments; it pickles; its `repr` is the call that
    rebuilds it, which `parse` reads. It is a pytree whose leaves are its numbers: passed to a
    function under `jax.jit`, it does not retrace for new numbers, and `jax.vmap` over a stacked
    schedule sweeps over them. Sums, differences and products with numbers and other schedules are
    schedules too: `1 - 2 * schedule`, `schedule + other`.

    A number is its shortest decimal: `np.float32(0.1)` is 0.1, also after a trip through `jit`.

    A schedule may hold any optax schedule or pure function of a scalar count. This package does not
    compile that function: it is called when the schedule is called, with an int32 count of 0 or
    more, and under `jax.vmap` for an array of counts. Such a schedule equals another only if both
    hold the same function object, and pickles only if the function does.

    >>> import warmclip_jax as wc
    >>> warmup = wc.linear_warmup(peak_value=0.1, warmup_steps=4)
    >>> warmup
    linear_warmup(peak_value=0.1, warmup_steps=4, init_value=0.0)
    >>> [round(float(warmup(count)), 3) for count in range(6)]
    [0.0, 0.025, 0.05, 0.075, 0.1, 0.1]
    """

    __slots__ = ("_lowered",)
    #: NumPy leaves `array * schedule` to the operators below, instead of multiplying each entry.
    __array_ufunc__ = None

    _promise = """

Returns:
  A `Schedule`.

Raises:
  TypeError, ValueError: for a concrete argument that breaks its rule, and for an unknown argument.
    A traced argument is not checked.
"""

    @naming("Schedule")
    def __call__(self, count: Any) -> jax.Array:
        """The value at step `count`.

        Args:
          count: a step, or an array of them, of any int or float dtype. A negative count acts as 0,
            one past int32 as the largest int32, and a fraction is rounded down.

        Returns:
          The value in the default float dtype (float32, or float64 under x64), with the shape of
          `count`.
        """
        return computed(self.lowered(), on_host(count))

    def __mul__(self, other: ScalarOrSchedule) -> "Schedule":
        return _combined("*", self, other)

    def __rmul__(self, other: ScalarOrSchedule) -> "Schedule":
        return _combined("*", other, self)

    @naming("Schedule")
    def __truediv__(self, other: Scalar) -> "Schedule":
        if callable(other) or getattr(other, "ndim", 0):
            raise _no_operator("/", other)
        return self * (1 / _DIVISOR.check("divisor", other))

    def __add__(self, other: ScalarOrSchedule) -> "Schedule":
        return _combined("+", self, other)

    def __radd__(self, other: ScalarOrSchedule) -> "Schedule":
        return _combined("+", other, self)

    def __sub__(self, other: ScalarOrSchedule) -> "Schedule":
        # Checked as it is: -True would be a number, and -np.uint8(3) is 253.
        last = _combined("-", self, other)._arguments["operands"][-1]
        is_number = isinstance(last, float) and not isinstance(other, Schedule)
        return self + (-last if is_number else _combined("*", -1.0, other))

    def __rsub__(self, other: ScalarOrSchedule) -> "Schedule":
        return _combined("-", other, -self)

    def __neg__(self) -> "Schedule":
        return -1.0 * self

    def lowered(self) -> "Schedule":
        """The schedule with the numbers that a compiled call receives, for `computed`."""
        dtype, kept = getattr(self, "_lowered", (None, None))
        if kept is not None and dtype == default_float():
            return kept
        numbers = jax.tree_util.tree_leaves_with_path(self)
        for path, number in numbers:
            if np.ndim(number):
                raise ArgumentValueError(
                    f"a {self.kind} of stacked numbers ({jax.tree_util.keystr(path)} has the shape "
                    f"{np.shape(number)}) is called under vmap: jax.vmap(lambda schedule: "
                    "schedule(count))(schedules)."
                )
        rules, arguments = self._kind.rules, self._kind.lower(self._arguments)
        lowered = {name: rules[name].lowered(arguments[name]) for name in self._kind.numbers}
        result = cast(Schedule, self._kind.value(self._arguments | lowered))
        if not any(is_traced(number) for _, number in numbers):
            object.__setattr__(self, "_lowered", (default_float(), result))
        return result


_DIVISOR = Number(
    "a finite number other than 0",
    "Divide by a number or a scalar array.",
    lambda number: number != 0,
)


def _combined(symbol: str, *operands: Any) -> Schedule:
    for operand in operands:
        if getattr(operand, "ndim", 0):
            raise _no_operator(symbol, operand)
    name = "product" if symbol == "*" else "total"
    return cast(Schedule, factories()[name](*operands))


def _no_operator(symbol: str, other: Any) -> TypeError:
    return TypeError(
        f"Schedule: {symbol} makes no Schedule of a Schedule and {shortened(other)}. Sums and "
        "products with another schedule or a number do (s + t, 1 - s, 2 * s, s * t, s / 2). Call "
        "it first, s(count), or write a function of the count, which optax takes as well."
    )


def _refused(symbol: str) -> Callable[..., Schedule]:
    def operator(schedule: Schedule, other: Any) -> Schedule:
        raise _no_operator(symbol, other)

    return operator


# Set from outside the class: type checkers then refuse these operators too.
for _name, _symbol in {"__pow__": "**", "__rpow__": "**", "__rtruediv__": "/"}.items():
    setattr(Schedule, _name, _refused(_symbol))


def computed(lowered: Schedule, count: Any) -> jax.Array:
    """The value of a lowered schedule."""
    # One compiled call takes 16 microseconds; dispatching each operation by itself takes 450. A
    # foreign function may close over the caller's tracers, or not be traceable at all, so it runs
    # in the caller's context.
    return (_evaluated if is_foreign(lowered) else _compiled)(lowered, count)


def _evaluated(lowered: Schedule, count: Any) -> jax.Array:
    kind, arguments, step = lowered._kind, lowered._arguments, as_step(jnp.asarray(count))
    numbers = {name: kind.rules[name].as_array(arguments[name]) for name in kind.numbers}
    value = kind.called(arguments | numbers)(step)
    shape = jnp.broadcast_shapes(jnp.shape(value), step.shape)
    return jnp.broadcast_to(value, shape).astype(default_float())


@functools.partial(jax.jit, inline=True)
def _compiled(lowered: Schedule, count: Any) -> jax.Array:
    # XLA would compute otherwise with numbers that it sees, a product for a quotient, than with
    # those of an eager call, which it does not.
    return _evaluated(jax.lax.optimization_barrier(lowered), count)


def is_foreign(lowered: Any) -> bool:
    """Whether a function of another library is in a lowered argument."""
    if isinstance(lowered, Schedule):
        return any(map(is_foreign, lowered._arguments.values()))
    if isinstance(lowered, tuple):
        return any(map(is_foreign, lowered))
    return isinstance(lowered, Foreign)


def as_schedule(body: Callable[[jax.Array], Any]) -> Schedule:
    """What the body of a factory returns: a function of the count, shown as the factory's value."""
    return cast(Schedule, body)
