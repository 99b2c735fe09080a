"""Factories: functions that check their arguments and store them in a value."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

from warmclip_jax._values._messages import naming, plain_signature
from warmclip_jax._values._rules import FLAG, Choice, Each

F = TypeVar("F", bound=Callable[..., Any])
Prepare = Callable[[dict[str, Any]], dict[str, Any]]


class Kind:
    """A factory: its function, the rule for each argument, and the class of its values."""

    registry: ClassVar[dict[str, "Kind"]] = {}
    factory: Callable[..., Any]

    def __init__(
        self,
        function: Callable[..., Any],
        made: type[Any],
        prepare: Prepare,
        lower: Prepare,
        resolves: tuple[str, ...],
    ) -> None:
        self.name, self.function = function.__name__, function
        self.made, self.prepare, self.lower = made, prepare, lower
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters.values()
        self.rules = {each.name: _rule_of(each, hints[each.name]) for each in parameters}
        self.signature = plain_signature(function).replace(return_annotation=made)
        self.names = [name for name in self.rules if name not in resolves]
        self.options = [name for name in self.names if isinstance(self.rules[name], Choice)]
        self.numbers = [name for name in self.names if name not in self.options]
        self.registry[self.name] = self

    def checked(self, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """Builds a value from a user's arguments, each checked by its rule."""
        bound = self.signature.bind(*args, **given)
        bound.apply_defaults()
        checked = {name: self._check(name, value) for name, value in bound.arguments.items()}
        return self.value(self.prepare(checked))

    def value(self, arguments: dict[str, Any]) -> Any:
        """Builds a value from arguments that are checked already."""
        value = object.__new__(self.made)
        object.__setattr__(value, "_kind", self)
        object.__setattr__(value, "_arguments", {name: arguments[name] for name in self.names})
        return value

    def called(self, arguments: dict[str, Any]) -> Any:
        """Calls the factory's function with these arguments."""
        bound = inspect.BoundArguments(self.signature, cast(Any, arguments))
        return self.function(*bound.args, **bound.kwargs)

    def _check(self, name: str, value: Any) -> Any:
        optional = self.signature.parameters[name].default is None
        return None if value is None and optional else self.rules[name].check(name, value)


def makes(
    made: type[Any],
    prepare: Prepare = dict,
    *,
    lower: Prepare = dict,
    resolves: tuple[str, ...] = (),
) -> Callable[[F], F]:
    """Turns a function into a factory of values.

    The annotation of each argument is its rule (see `_rule_of`). The factory itself never calls the
    function: `made` does, with lowered arguments, when the value is called. Editors and type
    checkers still see the function's signature.

    Args:
      made: the class that the factory builds.
      prepare: takes all checked arguments, raises for those that do not go together, and returns
        those to store; by default all of them.
      lower: takes the stored arguments when the value is called, and returns what its function
        receives, such as a logarithm, before it is rounded to float32.
      resolves: arguments that `prepare` replaces by others, such as a fraction by steps; they are
        not stored.
    """

    def decorate(function: F) -> F:
        kind = Kind(function, made, prepare, lower, resolves)

        @naming(kind.name)
        @functools.wraps(function)
        def factory(*args: Any, **given: Any) -> Any:
            return kind.checked(args, given)

        factory.__signature__ = kind.signature  # pyright: ignore[reportAttributeAccessIssue]
        if function.__doc__:  # There is none under -OO.
            factory.__doc__ = inspect.cleandoc(function.__doc__) + made._promise
        kind.factory = factory
        return cast(F, factory)

    return decorate


def factories(made: type[Any] = object) -> dict[str, Callable[..., Any]]:
    """The factories that build `made` or a subclass of it, by name."""
    return {
        name: kind.factory for name, kind in Kind.registry.items() if issubclass(kind.made, made)
    }


def _rule_of(parameter: inspect.Parameter, hint: Any) -> Any:
    """The rule in an annotation: that in `Annotated`, or a `Choice` for `Literal` and `bool`."""
    if parameter.kind is parameter.VAR_POSITIONAL:
        return Each(_rule_of(parameter.replace(kind=parameter.POSITIONAL_ONLY), hint))
    if hint is bool:
        return FLAG
    if typing.get_origin(hint) is typing.Literal:
        return Choice(typing.get_args(hint))
    for part in (hint, *typing.get_args(hint)):
        for extra in getattr(part, "__metadata__", ()):
            if hasattr(extra, "check"):
                return extra
    raise TypeError(f"no rule in the annotation {hint!r}")
