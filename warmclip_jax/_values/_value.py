"""Values: immutable objects that keep the arguments of the factory that built them."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Never, cast

import jax
import numpy as np

from warmclip_jax._values._factories import Kind, factories
from warmclip_jax._values._foreign import Foreign
from warmclip_jax._values._rules import as_number, is_traced


class Value:
    """An immutable object that a factory builds from its arguments. Subclasses add what it does.

    `==` and `hash` compare factory and arguments; `repr` is the call that rebuilds it; it is a
    pytree whose leaves are its numbers. A number is read, compared and printed as the shortest
    decimal of its dtype.
    """

    __slots__ = ("__weakref__", "_arguments", "_kind")
    _kind: Kind
    _arguments: dict[str, Any]

    #: Ends the docstring of every factory: what all of them return and raise.
    _promise: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_with_keys_class(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        name = type(self).__name__
        raise TypeError(
            f"{name}: it is built by calling one of {', '.join(factories(type(self)))}. A function "
            "of the count needs no wrapping: pass it as it is."
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

    def _refuse_change(self, name: str, *_: object) -> Never:
        raise AttributeError(
            f"a {type(self).__name__} is immutable; make a new one with another {name}"
        )

    __setattr__ = __delattr__ = _refuse_change

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
