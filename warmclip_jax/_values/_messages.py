"""The wording of messages, and the name of the function that was called before each of them."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

_END = {"end_value": ""}
_RATE = {"peak_value": "", "value": "", "init_value": "warmup_steps"}
#: What other libraries call an argument: the names that it may have here, each with another name
#: beside which it means something else.
_ELSEWHERE: dict[str, dict[str, str]] = {
    "alpha": _END,
    "decay_steps": {"total_steps": "fraction"},
    "end_lr": _END,
    "eta_min": _END,
    "final_value": _END,
    "learning_rate": _RATE,
    "loss": {"value": ""},
    "lr_min": _END,
    "min_lr": _END,
    "peak_lr": _RATE,
    "peak_value": {"init_value": "warmup_steps"},
    "transition_steps": {"decay_steps": "warmup_steps", "warmup_steps": "total_steps"},
}
#: What else differs.
_NOTES = {
    "alpha": ", a value and not a share of the first one",
    "decay_steps": ", which includes the warm-up",
}


class ArgumentTypeError(TypeError):
    """A refused argument, in a message that lacks the name of the function: `naming` adds it.

    No other code raises it, so that `naming` never renames an error of the user's.
    """


class ArgumentValueError(ValueError):
    """The same for a value of the right type."""


def broken_rule(
    name: str, rule: str, value: object, remedy: str, error: type[Exception] = ValueError
) -> Exception:
    """An error in the usual wording: the argument, its rule, the value received, what to do."""
    is_type = error is TypeError
    shown = shortened(value) + (f" ({type(value).__name__})" if is_type else "")
    refusal = ArgumentTypeError if is_type else ArgumentValueError
    return refusal(f"{name} must be {rule}; got {shown}. {remedy}")


def shortened(value: object) -> str:
    """What a message says of a value that may be long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:200]} ..."


def described(node: Any) -> str:
    """A part of a tree in a few words."""
    if hasattr(node, "dtype"):
        return f"{node.dtype}{list(node.shape)}"
    if isinstance(node, dict):
        return f"a dict of {', '.join(map(repr, node)) or 'nothing'}"
    if type(node) in (tuple, list):
        kinds = ", ".join(type(entry).__name__ for entry in node)
        return f"a {type(node).__name__} of {kinds or 'nothing'}"
    is_short = node is None or isinstance(node, (int, float, str))
    return shortened(node) if is_short else f"a {type(node).__name__}"


def naming(name: str) -> Callable[[F], F]:
    """A decorator that puts `name` before the messages of this package's checks in a function.

    It also says how the function is called, where the arguments do not fit. What other code
    raises, and what another function with a name has raised, passes as it is.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def named(*args: Any, **given: Any) -> Any:
            try:
                try:
                    return function(*args, **given)
                except TypeError as error:
                    if not isinstance(error, ArgumentTypeError):
                        bound_arguments(name, inspect.signature(function), args, given)
                    raise
            except (ArgumentTypeError, ArgumentValueError) as error:
                plain = TypeError if isinstance(error, TypeError) else ValueError
                raise plain(f"{name}: {error}") from error.__cause__

        cast(Any, named).is_named = True
        return cast(F, named)

    return decorate


def named(function: F) -> F:
    """`naming` with the function's own name."""
    return naming(function.__name__)(function)


def is_named(function: object) -> bool:
    """Whether a function is one of this package's."""
    return getattr(function, "is_named", False)


def bound_arguments(
    name: str, signature: inspect.Signature, args: tuple[Any, ...], given: dict[str, Any]
) -> inspect.BoundArguments:
    """The arguments by name. Raises a TypeError that says how the function is called."""
    try:
        return signature.bind(*args, **given)
    except TypeError as error:
        parameters = signature.parameters
        plain = [each.replace(annotation=each.empty) for each in parameters.values()]
        usage = f". It is called as {name}{inspect.Signature(plain)}."
        unknown = next((argument for argument in given if argument not in parameters), None)
        if unknown is None or any(each.kind is each.VAR_KEYWORD for each in plain):
            raise ArgumentTypeError(f"{error}{usage}") from None
        free = parameters.keys() - given.keys()
        meant = _elsewhere(unknown, free, parameters.keys()) or nearest(unknown, free)
        raise ArgumentTypeError(f"there is no argument {unknown!r}{meant or usage}") from None


def _elsewhere(name: str, free: Iterable[str], names: Iterable[str]) -> str:
    for here, unless in _ELSEWHERE.get(name, {}).items():
        if here in free and unless not in names:
            return f"; here it is {here!r}{_NOTES.get(name, '')}."
    return ""


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about a wrong name: the one that is surely meant, or nothing."""
    # Any looser, and a hint may name another argument than the one that is meant.
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.85)
    return f"; did you mean {near[0]!r}?" if near else ""
