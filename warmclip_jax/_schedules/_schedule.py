"""The schedule: a value that is called with a count."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from warmclip_jax._checks import default_float
from warmclip_jax._foreign import Foreign
from warmclip_jax._schedules._counts import as_step, on_host
from warmclip_jax._values import Kind, Value


class Schedule(Value):
    """A learning rate as a value: `schedule(count)` is the rate at step `count`.

    Build one with a factory such as `linear_warmup`; use it wherever optax takes a schedule. It is immutable; `==` and
    `hash` go by kind and numbers; it pickles; its `repr` is the call that rebuilds it, and `parse` reads that. It is a pytree
    whose leaves are its numbers: as an argument of `jax.jit` it does not retrace for new numbers, and `jax.vmap` over a stacked
    one sweeps.

    A number is what its shortest decimal says: `np.float32(0.1)` is 0.1, also after a trip through `jit`.

    Inside one, any optax schedule or pure function of a scalar count may stand. It is called where the schedule is called,
    with an int32 count of 0 or more, and for an array of counts by `jax.vmap`; it is not compiled by this package. A schedule
    is then equal to another only with the very same function inside, and picklable where that function is.

    >>> import warmclip_jax as wc
    >>> warmup = wc.linear_warmup(peak_value=0.1, warmup_steps=4)
    >>> warmup
    linear_warmup(peak_value=0.1, warmup_steps=4, init_value=0.0)
    >>> [round(float(warmup(count)), 3) for count in range(6)]
    [0.0, 0.025, 0.05, 0.075, 0.1, 0.1]
    """

    __slots__ = ()

    _elsewhere = {  # noqa: RUF012
        "transition_steps": (("decay_steps", "warmup_steps", "total_steps"), ""),
        "decay_steps": (("total_steps",), ", which includes the warm-up"),
        "init_value": (("peak_value",), ""),
        "peak_lr": (("peak_value", "init_value", "value"), ""),
        "learning_rate": (("peak_value", "init_value", "value"), ""),
        "alpha": (("end_value",), ", a value and not a share of the first one"),
        "end_lr": (("end_value",), ""),
    }
    _promise = """

Returns:
  A `Schedule`.

Raises:
  TypeError, ValueError: for a concrete argument that breaks its rule, and for a name that is no argument. A traced argument is
    not checked.
"""

    def __call__(self, count: Any) -> jax.Array:
        """The value at step `count`.

        Args:
          count: a step, or an array of them, of any int or float dtype and any sign. Below 0 counts as 0, past int32 as
            int32's largest, and a fractional count as the whole step it lies in.

        Returns:
          The value in the default float dtype (float32, or float64 under x64), with the shape of `count`.
        """
        return self.lowered()(on_host(count))

    def lowered(self) -> "Program":
        """What computes the values."""
        rules, numbers = self._kind.rules, self._kind.numbers
        return Program(
            self._kind,
            self._part(self._kind.options),
            tuple(rules[name].lowered(self._arguments[name]) for name in numbers),
        )


@functools.partial(jax.tree_util.register_dataclass, data_fields=("numbers",), meta_fields=("kind", "options"))
@dataclasses.dataclass(slots=True)
class Program:
    """What computes a schedule: the function of its kind with the numbers it is given, lowered."""

    kind: Kind
    options: tuple[Any, ...]
    numbers: tuple[Any, ...]

    def __call__(self, count: Any) -> jax.Array:
        # One compiled call instead of a dispatch for each operation: the difference is 450 against 16 microseconds. A foreign
        # function may close over tracers of the caller, or not be traceable at all: only the caller's context is right for it.
        return (_evaluated if _is_foreign(self) else _compiled)(self, count)


def _evaluated(program: Program, count: Any) -> jax.Array:
    kind, step = program.kind, as_step(jnp.asarray(count))
    arguments = dict(zip(kind.options, program.options, strict=True))
    for name, number in zip(kind.numbers, program.numbers, strict=True):
        arguments[name] = kind.rules[name].as_array(number)
    value = kind.called(arguments)(step)
    return jnp.broadcast_to(value, jnp.broadcast_shapes(jnp.shape(value), step.shape)).astype(default_float())


_compiled = jax.jit(_evaluated, inline=True)


def _is_foreign(lowered: Any) -> bool:
    if isinstance(lowered, (tuple, Program)):
        return any(map(_is_foreign, lowered.numbers if isinstance(lowered, Program) else lowered))
    return isinstance(lowered, Foreign)


def curve(value: Callable[[jax.Array], jax.Array]) -> Any:
    """What the function of a factory returns: the value at a count. A type checker sees the schedule that a caller gets."""
    return value
