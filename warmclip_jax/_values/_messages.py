"""The wording of messages, and the name of the function that was called before each of them."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

#: What other libraries call an argument, what it may be here, and a name beside which that means
#: something else.
_ELSEWHERE = (
    ("alpha end_lr eta_min final_value lr_min min_lr", "end_value", ""),
    ("decay_steps", "total_steps", "fraction"),
    ("learning_rate peak_lr", "peak_value", ""),
    ("learning_rate peak_lr", "value", ""),
    ("learning_rate peak_lr peak_value", "init_value", "warmup_steps"),
    ("transition_steps", "decay_steps", "warmup_steps"),
    ("transition_steps", "warmup_steps", "total_steps"),
)
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
        signature = plain_signature(function)

        @functools.wraps(function)
        def named(*args: Any, **given: Any) -> Any:
            try:
                return function(*args, **given)
            except (ArgumentTypeError, ArgumentValueError) as error:
                plain = TypeError if isinstance(error, TypeError) else ValueError
                raise plain(f"{name}: {error}") from error.__cause__
            except TypeError:
                if misfit := _misfit(function.__name__, signature, args, given):
                    raise TypeError(f"{name}: {misfit}") from None
                raise

        vars(named).update(is_named=True, __signature__=signature)
        return cast(F, named)

    return decorate


def named(function: F) -> F:
    """`naming` with the function's own name."""
    return naming(function.__name__)(function)


def plain_signature(function: Callable[..., Any]) -> inspect.Signature:
    """A signature for `help`: names and defaults, not the types, which would bury them."""
    parameters = inspect.signature(function).parameters.values()
    return inspect.Signature([each.replace(annotation=each.empty) for each in parameters])


def _misfit(name: str, signature: inspect.Signature, args: Any, given: dict[str, Any]) -> str:
    """What is wrong with the arguments of a call, and what to write; nothing where they fit."""
    try:
        signature.bind(*args, **given)
    except TypeError as error:
        names = signature.parameters.keys()
        usage = f". It is called as {name}{signature}.".replace("__call__(self, ", "schedule(")
        unknown = next((argument for argument in given if argument not in names), None)
        if unknown is None or "**" in usage:
            return f"{error}{usage}"
        free = names - given.keys()
        meant = _elsewhere(unknown, free, names) or nearest(unknown, free)
        return f"there is no argument {unknown!r}{meant or usage}"
    return ""


def _elsewhere(name: str, free: Iterable[str], names: Iterable[str]) -> str:
    for theirs, here, unless in _ELSEWHERE:
        if name in theirs.split() and here in free and unless not in names:
            return f"; here it is {here!r}{_NOTES.get(name, '')}."
    return ""


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about a wrong name: the one that is surely meant, or nothing."""
    # Any looser, and a hint may name another argument than the one that is meant.
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.85)
    return f"; did you mean {near[0]!r}?" if near else ""
