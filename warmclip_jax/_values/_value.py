"""Values: immutable objects that keep the arguments of the factory that built them, and are pytrees of their numbers."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, TypeVar, cast

import jax
import numpy as np

from warmclip_jax._values._foreign import Foreign, takes_a_count
from warmclip_jax._values._rules import (
    Choice,
    Each,
    Number,
    as_number,
    broken_rule,
    is_traced,
    naming,
    nearest,
)

F = TypeVar("F", bound=Callable[..., Any])
Prepare = Callable[[dict[str, Any]], dict[str, Any]]


class Value:
    """An immutable object that a factory builds from its arguments. Subclasses add what it does.

    `==` and `hash` compare factory and arguments; `repr` is the call that rebuilds it; it is a
    pytree whose leaves are its numbers. A number is read, compared and printed as the shortest
    decimal of its dtype.
    """

    __slots__ = ("__weakref__", "_arguments", "_kind")
    _kind: "Kind"
    _arguments: dict[str, Any]

    #: What other libraries call an argument, with the names that it may have here and a note on
    #: what else differs.
    _elsewhere: ClassVar[Mapping[str, tuple[tuple[str, ...], str]]] = {}
    #: Ends the docstring of every factory: what all of them return and raise.
    _promise: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_with_keys_class(cls)

    def __init__(self) -> None:
        raise TypeError(
            f"a {type(self).__name__} is made by calling one of {', '.join(factories(type(self)))}"
        )

    @property
    def kind(self) -> str:
        """The name of the factory that built it. Read only."""
        return self._kind.name

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments that it was built from, by name. Read only."""
        return {name: _shown(value) for name, value in self._arguments.items()}

    def __repr__(self) -> str:
        bound = inspect.BoundArguments(self._kind.signature, cast(Any, self.arguments))
        named = (f"{name}={value!r}" for name, value in bound.kwargs.items())
        return f"{self.kind}({', '.join([*map(repr, bound.args), *named])})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value):
            return NotImplemented
        return self is other or self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.kind, self._arguments)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"a {type(self).__name__} is immutable; make a new one instead of setting {name}"
        )

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} is immutable; {name} cannot be deleted")

    def _identity(self) -> tuple[Any, ...]:
        return self.kind, *map(_key_of, self._arguments.values())

    def _part(self, names: list[str]) -> tuple[Any, ...]:
        return tuple(self._arguments[name] for name in names)

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        numbers, auxiliary = self.tree_flatten()
        return tuple(
            zip(map(jax.tree_util.GetAttrKey, self._kind.numbers), numbers, strict=True)
        ), auxiliary

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return self._part(self._kind.numbers), (self._kind, self._part(self._kind.options))

    @classmethod
    def tree_unflatten(cls, auxiliary: tuple[Any, ...], children: tuple[Any, ...]) -> "Value":
        # No checks here: JAX unflattens with tracers, stacked arrays and placeholders.
        kind, options = auxiliary
        return kind.value(
            dict(zip((*kind.numbers, *kind.options), (*children, *options), strict=True))
        )


@dataclasses.dataclass(frozen=True)
class Function:
    """The rule for an argument that is a function of a count; or also a number, by the rule `number`."""

    rule: str
    remedy: str
    number: Number | None = None

    @classmethod
    def or_number(cls, rule: str, remedy: str, holds: Callable[[float], bool]) -> Self:
        """The rule for a function, or a number for which `holds` is true."""
        return cls(rule, remedy, Number(rule, remedy, holds))

    def check(self, name: str, value: Any) -> Any:
        """The value, `Foreign` function or number to keep for this argument. Raises TypeError or ValueError."""
        if self.number is not None and (not callable(value) or hasattr(value, "__jax_array__")):
            return self.number.check(name, value)
        if not callable(value) or isinstance(value, type):
            raise broken_rule(name, self.rule, value, self.remedy, TypeError)
        if isinstance(value, (Value, Foreign)):
            return value
        if any(value is factory for factory in factories().values()) or not takes_a_count(value):
            called = getattr(value, "__name__", repr(value))
            raise TypeError(
                f"{name} must be {self.rule}; got the function {called} itself. Call it with its "
                f"arguments: {called}(...)."
            )
        return Foreign(value)


class Kind:
    """A factory: its function, the rule for each argument, and the class of value that it builds."""

    registry: ClassVar[dict[str, "Kind"]] = {}
    factory: Callable[..., Any]

    def __init__(
        self,
        function: Callable[..., Any],
        made: type[Value],
        prepare: Prepare,
        resolves: tuple[str, ...],
    ) -> None:
        signature, hints = (
            inspect.signature(function),
            typing.get_type_hints(function, include_extras=True),
        )
        self.name, self.function, self.made, self.prepare = (
            function.__name__,
            function,
            made,
            prepare,
        )
        # `help` shows the names alone: the rules in the annotations would bury them.
        parameters = [
            parameter.replace(annotation=parameter.empty)
            for parameter in signature.parameters.values()
        ]
        self.signature = signature.replace(parameters=parameters, return_annotation=made)
        self.rules = {
            parameter.name: _rule_of(parameter, hints[parameter.name]) for parameter in parameters
        }
        self.names = [name for name in self.rules if name not in resolves]
        self.options = [name for name in self.names if isinstance(self.rules[name], Choice)]
        self.numbers = [name for name in self.names if name not in self.options]
        self.registry[self.name] = self

    def checked(self, args: tuple[Any, ...], given: dict[str, Any]) -> Value:
        """Builds a value from a user's arguments, each checked by its rule."""
        with naming(self.name):
            if unknown := [name for name in given if name not in self.rules]:
                raise TypeError(
                    f"there is no argument {unknown[0]!r}{self._instead_of(unknown[0])}"
                )
            try:
                bound = self.signature.bind(*args, **given)
            except TypeError as error:
                call = str(self.signature.replace(return_annotation=inspect.Signature.empty))
                raise TypeError(f"{error}. It is called as {self.name}{call}") from None
            bound.apply_defaults()
            return self.value(
                self.prepare(
                    {name: self._check(name, value) for name, value in bound.arguments.items()}
                )
            )

    def value(self, arguments: dict[str, Any]) -> Value:
        """Builds a value from arguments that are checked already."""
        value = object.__new__(self.made)
        object.__setattr__(value, "_kind", self)
        object.__setattr__(value, "_arguments", {name: arguments[name] for name in self.names})
        return value

    def called(self, arguments: dict[str, Any]) -> Any:
        """Calls the factory's function with these arguments."""
        bound = inspect.BoundArguments(
            self.signature, cast(Any, {n: arguments[n] for n in self.rules if n in arguments})
        )
        return self.function(*bound.args, **bound.kwargs)

    def _check(self, name: str, value: Any) -> Any:
        optional = self.signature.parameters[name].default is None
        return None if value is None and optional else self.rules[name].check(name, value)

    def _instead_of(self, name: str) -> str:
        names, note = self.made._elsewhere.get(name, ((), ""))
        here = [known for known in names if known in self.rules]
        return f"; here it is {here[0]!r}{note}" if here else nearest(name, self.rules)


def makes(
    made: type[Value],
    prepare: Prepare = lambda arguments: arguments,
    *,
    resolves: tuple[str, ...] = (),
) -> Callable[[F], F]:
    """Turns a function into a factory of values; editors and type checkers still see the function's signature.

    The annotation of each argument is its rule (see `_rule_of`). The factory itself never calls the
    function: `made` does, with lowered arguments, when the value is called.

    Args:
      made: the class that the factory builds.
      prepare: takes all checked arguments, raises for those that do not go together, and returns
        those to store.
      resolves: arguments that `prepare` replaces by others, such as a fraction by steps; they are
        not stored.
    """

    def decorate(function: F) -> F:
        kind = Kind(function, made, prepare, resolves)

        @functools.wraps(function)
        def factory(*args: Any, **given: Any) -> Any:
            return kind.checked(args, given)

        factory.__signature__ = kind.signature  # pyright: ignore[reportAttributeAccessIssue]
        if function.__doc__:  # There is none under -OO.
            factory.__doc__ = inspect.cleandoc(function.__doc__) + made._promise
        kind.factory = factory
        return cast(F, factory)

    return decorate


def factories(made: type[Value] = Value) -> dict[str, Callable[..., Any]]:
    """The factories that build `made` or a subclass of it, by name."""
    return {
        name: kind.factory for name, kind in Kind.registry.items() if issubclass(kind.made, made)
    }


def _rule_of(parameter: inspect.Parameter, hint: Any) -> Any:
    """The rule in an annotation: the one in `Annotated`, a `Choice` for `Literal` or `bool`; for `*args`, `Each` of it."""
    if parameter.kind is parameter.VAR_POSITIONAL:
        return Each(_rule_of(parameter.replace(kind=parameter.POSITIONAL_ONLY), hint))
    if hint is bool:
        return Choice((False, True))
    if typing.get_origin(hint) is typing.Literal:
        return Choice(typing.get_args(hint))
    for part in (hint, *typing.get_args(hint)):
        for extra in getattr(part, "__metadata__", ()):
            if hasattr(extra, "check"):
                return extra
    raise TypeError(f"no rule in the annotation {hint!r}")


def _restored(name: str, arguments: dict[str, Any]) -> Value:
    return Kind.registry[name].value(arguments)


def _shown(stored: Any) -> Any:
    if isinstance(stored, tuple):
        return tuple(map(_shown, stored))
    return stored.function if isinstance(stored, Foreign) else as_number(stored)


def _key_of(stored: Any) -> Any:
    if isinstance(stored, tuple):
        return tuple(map(_key_of, stored))
    if is_traced(stored):
        raise TypeError(
            "a value whose numbers are traced has no hash and no equality; compare it outside of "
            "jit"
        )
    number = as_number(stored)
    # An array, of stacked values, has no hash.
    return (
        (number.shape, tuple(map(as_number, np.ravel(np.asarray(number)))))
        if hasattr(number, "dtype")
        else number
    )
