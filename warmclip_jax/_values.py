"""What turns a function of the count into a value: `Schedule` and the decorator `curve`."""

import ast
import dataclasses
import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._checks import Choice, Each, Number, broken_rule, default_float, is_traced
from warmclip_jax._schedules._counts import as_step, on_host

P = ParamSpec("P")


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

    __slots__ = ("__weakref__", "_kind", "_numbers", "_options")
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
        # One compiled call instead of a dispatch for each operation: the difference is 450 against 16 microseconds.
        return _evaluate(self.lowered(), on_host(count))

    @property
    def kind(self) -> str:
        """The name of the factory that built the schedule. Read only."""
        return self._kind.name

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What the schedule was built from, by argument name. Read only."""
        return dict(self._kind.in_order(self._numbers, self._options))

    def lowered(self) -> "Program":
        """What a compiled call is given: what is computed with instead of what was said."""
        numbers = self._numbers
        if self._kind.lowerings:
            numbers = list(numbers)
            for index, lowering in self._kind.lowerings:
                numbers[index] = lowering(numbers[index])
        return Program(self._kind, self._options, tuple(numbers))

    def __repr__(self) -> str:
        parameters = self._kind.signature.parameters
        shown = (
            repr(value) if parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD else f"{name}={value!r}"
            for name, value in self.arguments.items()
        )
        return f"{self._kind.name}({', '.join(shown)})"

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
        return self._kind.name, self._options, _key_of(self._numbers)

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        keys = map(jax.tree_util.GetAttrKey, self._kind.numbers)
        return tuple(zip(keys, self._numbers, strict=True)), (self._kind, self._options)

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return self._numbers, (self._kind, self._options)

    @classmethod
    def tree_unflatten(cls, aux: tuple[Any, ...], children: tuple[Any, ...]) -> "Schedule":
        # No checks here: JAX unflattens with tracers, stacked arrays and placeholders.
        return _build(aux[0], tuple(children), aux[1])


@functools.partial(jax.tree_util.register_dataclass, data_fields=("numbers",), meta_fields=("kind", "options"))
@dataclasses.dataclass(slots=True)
class Program:
    """A schedule inside of a compiled call: the function of its kind, bound to its numbers."""

    kind: "_Kind"
    options: tuple[Any, ...]
    numbers: tuple[Any, ...]

    def __call__(self, count: Any) -> jax.Array:
        step = as_step(jnp.asarray(count))
        arguments = dict(self.kind.in_order(self.numbers, self.options))
        for name in self.kind.numbers:
            arguments[name] = self.kind.rules[name].as_array(arguments[name])
        value = self.kind.function(step, **arguments)
        return jnp.broadcast_to(value, jnp.broadcast_shapes(jnp.shape(value), step.shape)).astype(default_float())


@functools.partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("function",))
@dataclasses.dataclass(frozen=True, slots=True)
class Foreign:
    """A schedule of another library: any pure function from a count to a value. Part of the program, not of its data."""

    function: Callable[[Any], Any]

    def __call__(self, count: Any) -> jax.Array:
        return jnp.asarray(self.function(as_step(jnp.asarray(count)))).astype(default_float())

    def __repr__(self) -> str:
        return repr(self.function)


@dataclasses.dataclass(frozen=True)
class AnySchedule:
    """The rule of an argument that is a schedule, ours or another library's."""

    def check(self, name: str, value: Any) -> Any:
        """`value` as a schedule that can be stored. Raises TypeError."""
        rule, remedy = (
            "a schedule",
            "Pass warmclip_jax.linear_warmup(...), any optax schedule, or a pure function of the count.",
        )
        if isinstance(value, Schedule):
            return value
        if any(value is kind.factory for kind in _Kind.registry.values()):
            raise TypeError(f"{name} must be {rule}; got the factory {value.__name__} itself. Call it with its arguments.")
        if not callable(value) or isinstance(value, type):
            raise broken_rule(name, rule, value, remedy, TypeError)
        return Foreign(value)

    @staticmethod
    def lowered(schedule: Any) -> Any:
        return schedule.lowered() if isinstance(schedule, Schedule) else schedule

    @staticmethod
    def as_array(schedule: Any) -> Any:
        return schedule


Rule = Number | Choice | AnySchedule | Each


class _Kind:
    """One sort of schedule: a pure function of the count and the rule of each of its arguments."""

    registry: typing.ClassVar[dict[str, "_Kind"]] = {}

    def __init__(self, function: Callable[..., jax.Array], prepare: "Prepare", resolves: tuple[str, ...]) -> None:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function, include_extras=True)
        self.name = function.__name__
        self.function = function
        self.prepare = prepare
        # Without the count, and without the rules, which are for `curve` and would bury the names in `help`.
        parameters = [p.replace(annotation=p.empty) for p in list(signature.parameters.values())[1:]]
        self.signature = signature.replace(parameters=parameters, return_annotation=Schedule)
        self.rules: dict[str, Any] = {name: _rule_of(hints[name]) for name in self.signature.parameters}
        kept = [name for name in self.signature.parameters if name not in resolves]
        self.options = [name for name in kept if isinstance(self.rules[name], Choice)]
        self.numbers = [name for name in kept if name not in self.options]
        lowerings = enumerate(self.rules[name].lowered for name in self.numbers)
        self.lowerings = [(index, lowering) for index, lowering in lowerings if lowering is not None]
        self.factory: Callable[..., Schedule] | None = None
        self.registry[self.name] = self

    def bind(self, *args: Any, **given: Any) -> Schedule:
        """A schedule from a user's arguments, each checked by its rule."""
        bound = self.signature.bind(*args, **given)
        bound.apply_defaults()
        stored = self.prepare({name: self._check(name, value) for name, value in bound.arguments.items()})
        return _build(self, tuple(stored[name] for name in self.numbers), tuple(stored[name] for name in self.options))

    def _check(self, name: str, value: Any) -> Any:
        optional = self.signature.parameters[name].default is None
        return None if value is None and optional else self.rules[name].check(name, value)

    def in_order(self, numbers: tuple[Any, ...], options: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
        """The stored arguments in the order in which the factory takes them."""
        stored = dict(zip([*self.numbers, *self.options], [*numbers, *options], strict=True))
        return ((name, stored[name]) for name in self.signature.parameters if name in stored)


Prepare = Callable[[dict[str, Any]], dict[str, Any]]


def curve(
    prepare: Prepare = lambda arguments: arguments, *, resolves: tuple[str, ...] = ()
) -> Callable[[Callable[Concatenate[jax.Array, P], jax.Array]], Callable[P, Schedule]]:
    """Makes a factory of schedules out of `function(count, *, ...) -> value`.

    The annotation of each argument is its rule (see `_rule_of`). The function is written once, in terms of arrays: `count`
    is a non-negative int32, whole arguments are int32 (or float past its range), others are of the default float dtype, and
    schedules are functions of a count.

    Args:
      prepare: sees all checked arguments at once; raises for those that do not go together, and returns what to store.
      resolves: the arguments that `prepare` turns into others, a fraction into steps say; they are not stored.
    """

    def decorate(function: Callable[Concatenate[jax.Array, P], jax.Array]) -> Callable[P, Schedule]:
        kind = _Kind(function, prepare, resolves)

        @functools.wraps(function)
        def factory(*args: P.args, **kwargs: P.kwargs) -> Schedule:
            return kind.bind(*args, **kwargs)

        factory.__signature__ = kind.signature  # pyright: ignore[reportAttributeAccessIssue]
        factory.__annotations__ = {name: function.__annotations__[name] for name in kind.signature.parameters}
        factory.__annotations__["return"] = Schedule
        kind.factory = factory
        return factory

    return decorate


def factories() -> dict[str, Callable[..., Schedule]]:
    """Every factory of schedules by its name."""
    return {name: kind.factory for name, kind in _Kind.registry.items() if kind.factory is not None}


def _rule_of(hint: Any) -> Rule:
    """The rule in an annotation: that in `Annotated`, the choices of a `Literal` or `bool`, or for each of a `Sequence`."""
    if hint is bool:
        return Choice((False, True))
    if typing.get_origin(hint) is typing.Literal:
        return Choice(typing.get_args(hint))
    if typing.get_origin(hint) is Sequence:
        return Each(_rule_of(typing.get_args(hint)[0]))
    for part in (hint, *typing.get_args(hint)):
        for extra in getattr(part, "__metadata__", ()):
            if isinstance(extra, (Number, AnySchedule)):
                return extra
    raise TypeError(f"no rule in the annotation {hint!r}")


def _build(kind: _Kind, numbers: tuple[Any, ...], options: tuple[Any, ...]) -> Schedule:
    schedule = object.__new__(Schedule)
    for name, value in (("_kind", kind), ("_numbers", numbers), ("_options", options)):
        object.__setattr__(schedule, name, value)
    return schedule


def _restore(name: str, numbers: tuple[Any, ...], options: tuple[Any, ...]) -> Schedule:
    return _build(_Kind.registry[name], numbers, options)


def _key_of(stored: Any) -> Any:
    if isinstance(stored, tuple):
        return tuple(map(_key_of, stored))
    if isinstance(stored, (Schedule, Foreign)):
        return stored
    if is_traced(stored):
        raise TypeError("a schedule whose numbers are traced has no hash and no equality; compare it outside of jit")
    array = np.asarray(stored)
    return array.item() if array.ndim == 0 else (array.shape, tuple(array.ravel().tolist()))


@functools.partial(jax.jit, inline=True)
def _evaluate(program: Program, count: jax.Array) -> jax.Array:
    return program(count)


_PREFIXES = ("wc", "warmclip_jax")


def parse(text: str) -> Schedule:
    """The schedule that `text` says: a call of a factory with literals, and schedules where it takes them.

    Raises ValueError with what is wrong and where, or what the factory raises.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"cannot read {_short(text)!r}: {getattr(error, 'msg', None) or error}") from error
    if not isinstance(tree, ast.Call):
        raise ValueError(
            f"{_short(text)!r} must be the call of a schedule, such as linear_warmup(peak_value=1, warmup_steps=10)"
        )
    return _called(tree)


def _called(call: ast.Call) -> Schedule:
    name = _called_name(call.func)
    known = factories()
    if name not in known:
        raise ValueError(f"there is no schedule {name!r}{_nearest(name, known)}")
    parameters = inspect.signature(known[name]).parameters
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError(f"{name}: write each argument out instead of **")
        if keyword.arg not in parameters:
            raise ValueError(f"{name} has no argument {keyword.arg!r}{_nearest(keyword.arg, parameters)}")
    said = [keyword.arg for keyword in call.keywords]
    if repeated := [argument for argument in said if said.count(argument) > 1]:
        raise ValueError(f"{name}: {repeated[0]} is repeated")
    arguments = [_literal(argument) for argument in call.args]
    named = {keyword.arg: _literal(keyword.value) for keyword in call.keywords if keyword.arg is not None}
    try:
        return known[name](*arguments, **named)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def _literal(node: ast.expr) -> Any:
    """A schedule, a list of values, or a literal number, string, True, False or None."""
    if isinstance(node, ast.Call):
        return _called(node)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(element) for element in node.elts]
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, type(None))):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        number = _literal(node.operand)
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            return -number if isinstance(node.op, ast.USub) else number
    raise ValueError(f"{_short(ast.unparse(node))!r} is neither a number nor a schedule; write the number itself")


def _called_name(node: ast.expr) -> str:
    """The name that is called, with or without the package before it."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in _PREFIXES:
        return node.attr
    if isinstance(node, ast.Name):
        return node.id
    raise ValueError(f"{_short(ast.unparse(node))!r} is not the name of a schedule; it is not run")


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
