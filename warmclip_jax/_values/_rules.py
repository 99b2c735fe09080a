"""Argument checks that are safe under tracing.

A traced value has a dtype and a shape but no number, so only those two are checked; each public
docstring says what a traced number that breaks its rule does.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from warmclip_jax._values._messages import ArgumentValueError, broken_rule

#: A number as users write it: Python, NumPy, a JAX scalar or a tracer of one.
Scalar = float | np.integer[Any] | np.floating[Any] | jax.Array

#: The largest count, and the largest length that is kept as an integer.
MAX_COUNT = 2**31 - 1
#: The longest sequence of numbers: each is checked by itself.
MOST_ENTRIES = 100_000


def default_float() -> np.dtype:
    """JAX's default float dtype: float32, or float64 under `jax_enable_x64`."""
    return np.dtype(jnp.result_type(float))


def as_float(number: Any) -> jax.Array:
    """A number or array of any real dtype as an array in the default float dtype."""
    return jnp.asarray(number).astype(default_float())


def is_traced(value: object) -> bool:
    """Whether `value` is a tracer, whose number nobody can see yet."""
    return isinstance(value, jax.core.Tracer)


def is_integer(dtype: Any) -> bool:
    """Whether a dtype holds integers, signed or not."""
    return jnp.issubdtype(dtype, jnp.integer)


def is_real(dtype: Any) -> bool:
    """Whether a dtype holds integers or floats."""
    return is_integer(dtype) or jnp.issubdtype(dtype, jnp.floating)


def as_array_like(value: Any) -> Any:
    """`value`, or the array that it wraps, as a `flax.nnx` variable does."""
    return (
        value.__jax_array__()
        if hasattr(value, "__jax_array__") and not isinstance(value, jax.Array)
        else value
    )


def real_scalar(name: str, rule: str, value: Any, remedy: str) -> jax.Array:
    """A real number of any kind, traced or not, NaN and inf too, as an array. Raises TypeError."""
    value = as_array_like(value)
    is_number = not isinstance(value, bool) and is_real(getattr(value, "dtype", type(value)))
    if not is_number or jnp.shape(value) != ():
        raise broken_rule(name, rule, value, remedy, TypeError)
    number = jnp.asarray(value)
    is_wide = jnp.issubdtype(number.dtype, jnp.floating) and number.dtype.itemsize >= 4
    return number if is_wide else as_float(number)


def as_number(value: Any) -> Any:
    """A concrete scalar array as the Python number with the shortest decimal of its dtype.

    `np.float32(0.1)` is 0.1, as its user wrote it, and not 0.10000000149. Anything else stays as it
    is.
    """
    if not hasattr(value, "dtype") or is_traced(value) or np.ndim(value):
        return value
    scalar = np.asarray(value)[()]
    if is_integer(scalar.dtype):
        return int(scalar)
    if not jnp.issubdtype(scalar.dtype, jnp.floating):
        return value
    if np.issubdtype(scalar.dtype, np.floating):
        return float(str(scalar))
    # bfloat16 and its like always print six digits.
    decimals = (float(f"{float(scalar):.{digits}e}") for digits in range(17))
    return next(
        (decimal for decimal in decimals if scalar.dtype.type(decimal) == scalar), float(scalar)
    )


def stacked(numbers: Sequence[Any]) -> Any:
    """Lowered numbers as one array: on the host and in JAX's dtype, or traced where one is."""
    if any(map(is_traced, numbers)):
        return jnp.stack(numbers)
    array = np.array(numbers)
    # At each call JAX would convert a thousand numbers of another dtype.
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))


@dataclasses.dataclass(frozen=True)
class Number:
    """The rule for a number.

    With `whole` it counts something and is kept as an integer.
    """

    rule: str
    remedy: str
    holds: Callable[[float], bool]
    whole: bool = False

    def check(self, name: str, value: Any) -> Any:
        """`value` as a Python number; as it is when it is traced. Raises what breaks the rule."""
        value = as_array_like(value)
        is_number = isinstance(value, (int, float)) or is_real(getattr(value, "dtype", bool))
        if isinstance(value, bool) or not is_number:
            remedy = "Pass a Python number or a scalar array."
            if isinstance(value, str):
                remedy = "Pass a number, not text; YAML reads 1.0e-4 as a number, 1e-4 as text."
            raise broken_rule(name, self.rule, value, remedy, TypeError)
        if shape := np.shape(value):
            remedy = f"Its shape is {shape}; use jax.vmap to build one object for each entry."
            raise broken_rule(name, f"{self.rule}, a scalar", value, remedy)
        if is_traced(value):
            return value
        number = as_number(value)
        # Finite in the dtype of the computation, not only as a Python float.
        is_finite = abs(number) <= float(jnp.finfo(default_float()).max)
        if not is_finite or not self.holds(number) or (self.whole and number != int(number)):
            raise broken_rule(name, self.rule, number, self.remedy)
        return as_length(number) if self.whole else float(number)

    def lowered(self, number: Any) -> Any:
        """The number that a compiled call receives for a checked one."""
        return as_number(number)

    def lowered_all(self, numbers: tuple[Any, ...]) -> Any:
        """The same of a sequence: one array, or a tuple where some are traced."""
        lowered = tuple(map(self.lowered, numbers))
        return lowered if any(map(is_traced, lowered)) else stacked(lowered)

    def as_array(self, number: Any) -> jax.Array:
        """A lowered number, traced or stacked too, in the dtype of the computation."""
        array = jnp.asarray(number)
        is_int32 = self.whole and np.can_cast(array.dtype, np.int32)
        return array.astype(jnp.int32 if is_int32 else default_float())

    def as_arrays(self, lowered: Any) -> Any:
        """A lowered sequence as one array."""
        if not isinstance(lowered, tuple):
            return self.as_array(lowered)
        return jnp.stack(list(map(self.as_array, lowered)))


def as_length(steps: Any) -> int | float:
    """A whole number of steps as an integer, or as a float past int32.

    A larger integer could not enter a compiled call; the float loses only digits that no count
    reaches.
    """
    return int(steps) if abs(steps) <= MAX_COUNT else float(steps)


@dataclasses.dataclass(frozen=True)
class Choice:
    """The rule for an argument with a few fixed values. It selects the program: none is traced."""

    options: tuple[Any, ...]

    def check(self, name: str, value: Any) -> Any:
        """`value`, when it is one of the options. Raises where it is not."""
        rule = f"one of {', '.join(map(repr, self.options))}"
        if not isinstance(value, type(self.options[0])):
            remedy = "It is fixed when the object is built, and cannot be traced."
            raise broken_rule(name, rule, value, remedy, TypeError)
        if value not in self.options:
            raise broken_rule(name, rule, value, "Check the spelling.")
        return value


#: The rule for what is on or off.
FLAG = Choice((False, True))


@dataclasses.dataclass(frozen=True)
class Each:
    """The rule for a sequence whose entries all follow one other rule."""

    rule: Any  # For each entry: a `Number`, or another class with its methods.
    may_be_empty: bool = False

    def check(self, name: str, value: Any) -> tuple[Any, ...]:
        """`value` as a tuple of checked entries. Raises where it, or an entry, breaks its rule."""
        is_array = getattr(value, "ndim", None) == 1
        if not is_array and (not isinstance(value, Sequence) or isinstance(value, (str, bytes))):
            remedy = "Put the entries in brackets, even a single one."
            rule = "a list, tuple or array of one dimension"
            raise broken_rule(name, rule, value, remedy, TypeError)
        if not self.may_be_empty and not len(value):
            raise broken_rule(name, "a sequence of one or more", list(value), "Pass at least one.")
        if len(value) > MOST_ENTRIES:
            rule, remedy = f"of at most {MOST_ENTRIES} entries", "Pass a function of the count."
            raise broken_rule(name, rule, len(value), remedy)
        entries = value if not is_array or is_traced(value) else np.asarray(value)
        return tuple(
            self.rule.check(f"{name}[{index}]", entry) for index, entry in enumerate(entries)
        )

    def lowered(self, entries: tuple[Any, ...]) -> Any:
        return self.rule.lowered_all(entries)

    def as_array(self, lowered: Any) -> Any:
        return self.rule.as_arrays(lowered)


def exactly_one(arguments: dict[str, Any]) -> str:
    """The name of the only argument that is not None. Raises ValueError for none or several."""
    given = [name for name, value in arguments.items() if value is not None]
    if len(given) != 1:
        received = ", ".join(f"{name}={arguments[name]!r}" for name in given)
        raise ArgumentValueError(
            f"exactly one of {', '.join(arguments)} must be given; got {received or 'none'}."
        )
    return given[0]
