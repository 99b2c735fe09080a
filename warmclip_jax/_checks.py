"""Argument checks that are safe under tracing, and the wording of every message.

A check looks at a value only when it is concrete. A traced value has a dtype and a shape but no number, so only those two
are checked; each public docstring says what an unchecked value then does.
"""

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

#: A number as users write it: Python, NumPy, a JAX scalar or a tracer of one.
Scalar = float | np.integer[Any] | np.floating[Any] | jax.Array

#: The largest count, and the largest length that is kept as an integer.
MAX_COUNT = 2**31 - 1


def default_float() -> np.dtype:
    """The dtype of every schedule's value: float32, or float64 under `jax_enable_x64`."""
    return np.dtype(jnp.result_type(float))


def is_traced(value: object) -> bool:
    """Whether `value` is a tracer, whose number nobody can see yet."""
    return isinstance(value, jax.core.Tracer)


def broken_rule(name: str, rule: str, value: object, remedy: str, error: type[Exception] = ValueError) -> Exception:
    """The one wording of every message: the argument, its rule, what came, and what to do."""
    shown = f"{value!r} ({type(value).__name__})" if error is TypeError else repr(value)
    return error(f"{name} must be {rule}; got {shown}. {remedy}")


@contextlib.contextmanager
def naming(function: str) -> Iterator[None]:
    """Puts the name of the public function in front of what its checks raise. Also a decorator of that function."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):  # JAX's own are built from more than a message.
            raise
        raise type(error)(f"{function}: {error}") from error.__cause__


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that is spelt most like it, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


def as_array_like(value: Any) -> Any:
    """`value`, or the array inside of it where it is a holder of one, such as a `flax.nnx` variable."""
    return value.__jax_array__() if hasattr(value, "__jax_array__") and not isinstance(value, jax.Array) else value


def as_number(value: Any) -> Any:
    """A concrete scalar array as the Python number with the shortest decimal of its dtype; anything else as it is.

    `np.float32(0.1)` is read as 0.1, which it was written as, and not as 0.10000000149.
    """
    if not hasattr(value, "dtype") or is_traced(value) or np.ndim(value):
        return value
    scalar = np.asarray(value)[()]
    if jnp.issubdtype(scalar.dtype, jnp.integer):
        return int(scalar)
    if not jnp.issubdtype(scalar.dtype, jnp.floating):
        return value
    if np.issubdtype(scalar.dtype, np.floating):
        return float(str(scalar))
    # bfloat16 and its like print six digits, needed or not.
    decimals = (float(f"{float(scalar):.{digits}e}") for digits in range(17))
    return next((decimal for decimal in decimals if scalar.dtype.type(decimal) == scalar), float(scalar))


@dataclasses.dataclass(frozen=True)
class Number:
    """What a numeric argument may be.

    `whole` ones count steps and are kept as integers. `lowering` works out what is computed with instead of the number itself,
    before it is rounded to float32: for the few arguments that lose their meaning there.
    """

    rule: str
    remedy: str
    holds: Callable[[float], bool]
    whole: bool = False
    lowering: Callable[[Any], Any] | None = None

    def check(self, name: str, value: Any) -> Any:
        """`value` as a Python number, or as it is when it is traced. Raises TypeError or ValueError."""
        value = as_array_like(value)
        _check_scalar(name, value, self)
        if is_traced(value):
            return value
        number = as_number(value)
        if not _is_finite(number) or not self.holds(number) or (self.whole and number != int(number)):
            raise broken_rule(name, self.rule, number, self.remedy)
        return as_length(number) if self.whole else float(number)

    def lowered(self, number: Any) -> Any:
        """What a compiled call is given for a checked number."""
        number = as_number(number)
        return number if self.lowering is None else self.lowering(number)

    def as_array(self, number: Any) -> jax.Array:
        """A lowered, perhaps traced, perhaps stacked number as what is computed with: int32 for steps, or the default float."""
        array = jnp.asarray(number)
        is_int32 = jnp.issubdtype(array.dtype, jnp.integer) and jnp.iinfo(array.dtype).max <= MAX_COUNT
        return array.astype(jnp.int32 if self.whole and is_int32 else default_float())


def as_length(steps: Any) -> int | float:
    """A whole number of steps as an integer, or as a float where it is past int32.

    As an integer that large it could not enter a compiled call; as a float it only loses what no count can reach.
    """
    return int(steps) if abs(steps) <= MAX_COUNT else float(steps)


@dataclasses.dataclass(frozen=True)
class Choice:
    """An argument that is one of a few fixed values, and so part of what the program is, not of its data."""

    options: tuple[Any, ...]

    def check(self, name: str, value: Any) -> Any:
        """`value`, when it is one of the options. Raises TypeError (another type) or ValueError."""
        if not isinstance(value, type(self.options[0])):
            raise broken_rule(name, self._rule, value, "It is fixed when the object is built and cannot be traced.", TypeError)
        if value not in self.options:
            raise broken_rule(name, self._rule, value, "Check the spelling.")
        return value

    @property
    def _rule(self) -> str:
        return "one of " + ", ".join(map(repr, self.options))


@dataclasses.dataclass(frozen=True)
class Each:
    """The rule of an argument that is a sequence of what another rule allows."""

    rule: Any  # Of each entry: a `Number`, or whatever else has its three methods.

    def check(self, name: str, value: Any) -> tuple[Any, ...]:
        """`value` as a tuple of checked entries. Raises TypeError, or what the rule of an entry raises."""
        is_array = getattr(value, "ndim", None) == 1
        if not is_array and (not isinstance(value, Sequence) or isinstance(value, (str, bytes))):
            remedy = "Put the entries in brackets, even a single one."
            raise broken_rule(name, "a list, tuple or array of one dimension", value, remedy, TypeError)
        entries = value if not is_array or is_traced(value) else np.asarray(value)
        return tuple(self.rule.check(f"{name}[{index}]", entry) for index, entry in enumerate(entries))

    def lowered(self, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(map(self.rule.lowered, entries))

    def as_array(self, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(map(self.rule.as_array, entries))


def exactly_one(names: tuple[str, str], values: tuple[Any, Any]) -> None:
    """Raises ValueError unless exactly one of two ways to say the same thing is used."""
    if (values[0] is None) == (values[1] is None):
        said = "both" if values[0] is not None else "neither"
        pair = " and ".join(f"{name}={value!r}" for name, value in zip(names, values, strict=True))
        raise ValueError(f"exactly one of {names[0]} and {names[1]} must be given; got {said} ({pair}). Give one of them.")


def _check_scalar(name: str, value: Any, number: Number) -> None:
    remedy = "Pass a Python number or a scalar array."
    if isinstance(value, (str, bytes, bool, complex)) or value is None:
        raise broken_rule(name, number.rule, value, remedy, TypeError)
    if isinstance(value, (int, float)):
        return
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        raise broken_rule(name, number.rule, value, remedy, TypeError)
    if not (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)):
        raise broken_rule(name, number.rule, value, remedy, TypeError)
    if shape != ():
        raise broken_rule(
            name, f"{number.rule}, a scalar", value, f"Its shape is {shape}; use jax.vmap to build one object for each entry."
        )


def _is_finite(number: float) -> bool:
    """Finite in the dtype it will be computed in, not only as a Python float."""
    try:
        return math.isfinite(number) and abs(number) <= float(jnp.finfo(default_float()).max)
    except OverflowError:
        return False
