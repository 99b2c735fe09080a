"""The schedule: a value that is called with a count."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from warmclip_jax._schedules._counts import as_step, on_host
from warmclip_jax._values import Foreign, Number, Scalar, Value, default_float, factories, naming


class Schedule(Value):
    """A learning-rate schedule: `schedule(count)` is the rate at step `count`.

    Build one with a factory such as `linear_warmup`; use it wherever optax takes a schedule. It is
    immutable; `==` and `hash` compare kind and arguments; it pickles; its `repr` is the call that
    rebuilds it, which `parse` reads. It is a pytree whose leaves are its numbers: passed to a
    function under `jax.jit`, it does not retrace for new numbers, and `jax.vmap` over a stacked
    schedule sweeps over them.

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

    __slots__ = ()
    #: NumPy leaves `array * schedule` to the operators below, instead of multiplying each entry.
    __array_ufunc__ = None

    _promise = """

Returns:
  A `Schedule`.

Raises:
  TypeError, ValueError: for a concrete argument that breaks its rule, and for an unknown argument. A traced argument
    is not checked.
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

    def __mul__(self, other: Scalar | Callable[[Any], Any]) -> "Schedule":
        return _product(self, other)

    def __rmul__(self, other: Scalar | Callable[[Any], Any]) -> "Schedule":
        return _product(other, self)

    @naming("Schedule")
    def __truediv__(self, other: Scalar) -> "Schedule":
        if callable(other) or getattr(other, "ndim", 0):
            raise _no_operator("/", other)
        return _product(self, 1 / _DIVISOR.check("divisor", other))

    def lowered(self) -> "Schedule":
        """The schedule with the numbers that a compiled call receives, for `computed`."""
        rules, numbers = self._kind.rules, self._kind.numbers
        lowered = {name: rules[name].lowered(self._arguments[name]) for name in numbers}
        return cast(Schedule, self._kind.value(self._arguments | lowered))


_DIVISOR = Number(
    "a finite number other than 0",
    "Divide by a number or a scalar array.",
    lambda number: number != 0,
)


def _product(*operands: Any) -> Schedule:
    for operand in operands:
        if getattr(operand, "ndim", 0):
            raise _no_operator("*", operand)
    return cast(Schedule, factories()["product"](*operands))


def _no_operator(symbol: str, other: Any) -> TypeError:
    return TypeError(
        f"{symbol} makes no Schedule of a Schedule and {other!r}: only a product with a scalar or "
        "another schedule is one (2 * s, s * t, s / 2). Call it first, s(count), or write a "
        "function of the count, which optax takes as well."
    )


def _refused(symbol: str) -> Callable[..., Schedule]:
    def operator(schedule: Schedule, other: Any = None) -> Schedule:
        raise _no_operator(symbol, other)

    return operator


# Set from outside the class: type checkers then refuse these operators too.
for _symbol, _names in {
    "+": ("add", "radd"),
    "-": ("sub", "rsub", "neg"),
    "**": ("pow", "rpow"),
    "/": ("rtruediv",),
}.items():
    for _name in _names:
        setattr(Schedule, f"__{_name}__", _refused(_symbol))


def computed(lowered: Schedule, count: Any) -> jax.Array:
    """The value of a lowered schedule."""
    # One compiled call takes 16 microseconds; dispatching each operation by itself takes 450. A
    # foreign function may close over the caller's tracers, or not be traceable at all, so it runs
    # in the caller's context.
    return (_evaluated if _is_foreign(lowered) else _compiled)(lowered, count)


def _evaluated(lowered: Schedule, count: Any) -> jax.Array:
    kind, arguments, step = lowered._kind, lowered._arguments, as_step(jnp.asarray(count))
    value = kind.called(
        arguments | {name: kind.rules[name].as_array(arguments[name]) for name in kind.numbers}
    )(step)
    return jnp.broadcast_to(value, jnp.broadcast_shapes(jnp.shape(value), step.shape)).astype(
        default_float()
    )


_compiled = jax.jit(_evaluated, inline=True)


def _is_foreign(part: Any) -> bool:
    parts = (
        part._arguments.values()
        if isinstance(part, Schedule)
        else part
        if isinstance(part, tuple)
        else ()
    )
    return isinstance(part, Foreign) or any(map(_is_foreign, parts))


def curve(value: Callable[[jax.Array], jax.Array]) -> Any:
    """Lets the function of a factory return a function of the count where type checkers see a `Schedule`."""
    return value
