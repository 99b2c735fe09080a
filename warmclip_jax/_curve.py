"""What turns a function of the count into a value: `Schedule` and the decorator `curve`."""

import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Concatenate, Literal, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._checks import MAX_COUNT, Choice, Number, broken_rule, default_float, is_traced

P = ParamSpec("P")
Rule = Number | Choice


@jax.tree_util.register_pytree_with_keys_class
class Schedule:
    """A learning rate as a value: `schedule(count)` is the rate at step `count`.

    Build one with a factory such as `linear_warmup`; use it wherever optax takes a schedule. It is immutable; `==` and
    `hash` go by kind and numbers; it pickles; its `repr` is the call that rebuilds it. It is a pytree whose leaves are its
    numbers: as an argument of `jax.jit` it does not retrace for new numbers, and `jax.vmap` over a stacked one sweeps.

    >>> import warmclip_jax as wc
    >>> warmup = wc.linear_warmup(peak_value=0.1, warmup_steps=4)
    >>> warmup
    linear_warmup(peak_value=0.1, warmup_steps=4, init_value=0.0)
    >>> [round(float(warmup(count)), 3) for count in range(6)]
    [0.0, 0.025, 0.05, 0.075, 0.1, 0.1]
    """

    __slots__ = ("_kind", "_numbers", "_options")
    _kind: "_Kind"
    _numbers: tuple[Any, ...]
    _options: tuple[Any, ...]

    def __init__(self) -> None:
        raise TypeError(
            "a Schedule is built by a factory, such as warmclip_jax.linear_warmup(peak_value=1e-3, warmup_steps=100)"
        )

    def __call__(self, count: Any) -> jax.Array:
        """The value at step `count`.

        Args:
          count: a step, or an array of them, of any int or float dtype and any sign. Below 0 counts as 0, past int32 as
            int32's largest, and a fractional count as the whole step it lies in.

        Returns:
          The value in the default float dtype (float32, or float64 under x64), with the shape of `count`.
        """
        return _evaluate(self, _as_array(count))

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What the schedule was built from, by argument name. Read only."""
        return dict(self._kind.in_order(self._numbers, self._options))

    def __repr__(self) -> str:
        return f"{self._kind.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return self is other or self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._kind.name, self._numbers, self._options)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Schedule is immutable; build a new one instead of setting {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Schedule is immutable; {name} cannot be deleted")

    def _identity(self) -> tuple[Any, ...]:
        return self._kind.name, self._options, tuple(map(_key_of, self._numbers))

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        keys = map(jax.tree_util.GetAttrKey, self._kind.numbers)
        return tuple(zip(keys, self._numbers, strict=True)), (self._kind, self._options)

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return self._numbers, (self._kind, self._options)

    @classmethod
    def tree_unflatten(cls, aux: tuple[Any, ...], children: tuple[Any, ...]) -> "Schedule":
        # No checks here: JAX unflattens with tracers, stacked arrays and placeholders.
        return _build(aux[0], tuple(children), aux[1])


class _Kind:
    """One sort of schedule: a pure function of the count and the rule of each of its arguments."""

    registry: typing.ClassVar[dict[str, "_Kind"]] = {}

    def __init__(self, function: Callable[..., jax.Array], prepare: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function, include_extras=True)
        self.name = function.__name__
        self.function = function
        self.prepare = prepare
        # Without the count, and without the rules, which are for `curve` and would bury the names in `help`.
        parameters = [p.replace(annotation=p.empty) for p in list(signature.parameters.values())[1:]]
        self.signature = signature.replace(parameters=parameters, return_annotation=Schedule)
        self.rules = {name: _rule_of(hints[name]) for name in self.signature.parameters}
        self.registry[self.name] = self
        # What `prepare` resolves into something else, a fraction say, is not stored.
        kept = [name for name, parameter in self.signature.parameters.items() if name not in getattr(prepare, "resolves", ())]
        self.numbers = [name for name in kept if isinstance(self.rules[name], Number)]
        self.options = [name for name in kept if isinstance(self.rules[name], Choice)]

    def bind(self, *args: Any, **given: Any) -> Schedule:
        """A schedule from a user's arguments, each checked by its rule."""
        bound = self.signature.bind(*args, **given)
        bound.apply_defaults()
        checked = {name: self._check(name, value) for name, value in bound.arguments.items()}
        stored = self.prepare(checked)
        return _build(self, tuple(stored[name] for name in self.numbers), tuple(stored[name] for name in self.options))

    def _check(self, name: str, value: Any) -> Any:
        optional = self.signature.parameters[name].default is None
        return None if value is None and optional else self.rules[name].check(name, value)

    def in_order(self, numbers: tuple[Any, ...], options: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
        """The stored arguments in the order in which the factory takes them."""
        stored = dict(zip([*self.numbers, *self.options], [*numbers, *options], strict=True))
        return ((name, stored[name]) for name in self.signature.parameters if name in stored)


def curve(
    prepare: Callable[[dict[str, Any]], dict[str, Any]] = lambda arguments: arguments,
) -> Callable[[Callable[Concatenate[jax.Array, P], jax.Array]], Callable[P, Schedule]]:
    """Makes a factory of schedules out of `function(count, *, ...) -> value`.

    The annotation of each argument is its rule (see `_rule_of`). The function is written once, in terms of arrays: `count`
    is a non-negative int32, whole arguments are int32 (or float past its range), others are of the default float dtype.

    Args:
      prepare: sees all checked arguments at once; raises for those that do not go together, and returns what to store.
    """

    def decorate(function: Callable[Concatenate[jax.Array, P], jax.Array]) -> Callable[P, Schedule]:
        kind = _Kind(function, prepare)

        @functools.wraps(function)
        def factory(*args: P.args, **kwargs: P.kwargs) -> Schedule:
            return kind.bind(*args, **kwargs)

        factory.__signature__ = kind.signature  # pyright: ignore[reportAttributeAccessIssue]
        return factory

    return decorate


def _rule_of(hint: Any) -> Rule:
    """The rule in an annotation: the `Number` in `Annotated`, or the choices of a `Literal` or `bool`."""
    if hint is bool:
        return Choice((False, True))
    if typing.get_origin(hint) is Literal:
        return Choice(typing.get_args(hint))
    for part in (hint, *typing.get_args(hint)):
        for extra in getattr(part, "__metadata__", ()):
            if isinstance(extra, Number):
                return extra
    raise TypeError(f"no rule in the annotation {hint!r}")


def _build(kind: _Kind, numbers: tuple[Any, ...], options: tuple[Any, ...]) -> Schedule:
    schedule = object.__new__(Schedule)
    for name, value in (("_kind", kind), ("_numbers", numbers), ("_options", options)):
        object.__setattr__(schedule, name, value)
    return schedule


def _restore(name: str, numbers: tuple[Any, ...], options: tuple[Any, ...]) -> Schedule:
    return _build(_Kind.registry[name], numbers, options)


def _key_of(number: Any) -> Any:
    if is_traced(number):
        raise TypeError("a schedule whose numbers are traced has no hash and no equality; compare it outside of jit")
    array = np.asarray(number)
    return array.item() if array.ndim == 0 else (array.shape, tuple(array.ravel().tolist()))


@functools.partial(jax.jit, inline=True)
def _evaluate(schedule: Schedule, count: jax.Array) -> jax.Array:
    # One compiled call instead of a dispatch for each operation: the difference is 450 against 16 microseconds.
    kind = schedule._kind
    arguments = dict(kind.in_order(schedule._numbers, schedule._options))
    for name in kind.numbers:
        arguments[name] = _on_device(arguments[name], whole=typing.cast(Number, kind.rules[name]).whole)
    step = _as_step(count)
    value = kind.function(step, **arguments)
    return jnp.broadcast_to(value, jnp.broadcast_shapes(jnp.shape(value), step.shape)).astype(default_float())


def _on_device(number: Any, *, whole: bool) -> jax.Array:
    array = jnp.asarray(number)
    return array.astype(jnp.int32 if whole and jnp.issubdtype(array.dtype, jnp.integer) else default_float())


def _as_array(count: Any) -> Any:
    """`count` as an array; what JAX would wrap around or refuse on the way in is clamped on the host."""
    if isinstance(count, jax.Array):
        array = count
    elif isinstance(count, int) and not isinstance(count, bool):
        return np.int32(max(0, min(count, MAX_COUNT)))
    else:
        array = np.asarray(count)
        if array.dtype.kind in "iu":
            return np.clip(array, 0, min(MAX_COUNT, np.iinfo(array.dtype).max)).astype(np.int32)
    if not (jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)):
        raise broken_rule("count", "a step number or an array of them", count, "Pass integers.", TypeError)
    return array


def _as_step(count: jax.Array) -> jax.Array:
    """`count` as int32 in [0, MAX_COUNT], from any dtype, without a wrap-around on the way."""
    if jnp.issubdtype(count.dtype, jnp.integer):
        return jnp.clip(count, 0, min(MAX_COUNT, jnp.iinfo(count.dtype).max)).astype(jnp.int32)
    wide = count.astype(jnp.promote_types(count.dtype, jnp.float32))
    limit = np.nextafter(np.asarray(2.0**31, wide.dtype), np.asarray(0, wide.dtype))
    # The comparison also sends NaN to step 0.
    return jnp.where(wide > 0, jnp.minimum(wide, limit), 0).astype(jnp.int32)
