"""Reads a value back from its text, which is never run."""

import ast
import contextlib
import re
from typing import Any

from warmclip_jax._values._rules import nearest
from warmclip_jax._values._value import Value, factories


def parse(text: str) -> Any:
    """The value written in `text`, such as a config file or a command line holds: the `repr` of a value, or a call.

    The text is read and never run. It may hold only calls of this package's factories (with or
    without `wc.`), numbers, names in quotes, lists, True, False and None.

    Args:
      text: the call of a factory, such as `"linear_warmup(peak_value=0.1, warmup_steps=10)"`.

    Returns:
      The value that the call builds, such as a `Schedule`. `parse(repr(value)) == value`.

    Raises:
      TypeError: if `text` is no string.
      ValueError: if it cannot be read, with the part that is wrong, such as a Python function; or
        if a factory refuses its arguments, with the message of the factory.

    >>> import warmclip_jax as wc
    >>> schedule = wc.parse("with_warmup(cosine_decay(init_value=1.0, decay_steps=100), warmup_steps=10)")
    >>> schedule == wc.parse(repr(schedule)), float(schedule(5))
    (True, 0.5)
    """
    if not isinstance(text, str):
        raise TypeError(
            f"text must be a string; got {text!r} ({type(text).__name__}). Pass what repr printed."
        )
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if function := re.search(r"<.+? at 0x\w+>", text):
            raise ValueError(
                f"cannot rebuild {function[0]} from text: it is a Python object, not a call"
            ) from error
        raise ValueError(
            f"cannot read {_short(text)!r}: {getattr(error, 'msg', None) or error}"
        ) from error
    if not isinstance(tree, ast.Call):
        raise ValueError(
            f"{_short(text)!r} must be the call of a factory, such as "
            f"{next(iter(factories()))}(...)"
        )
    return _called(tree)


def _called(call: ast.Call) -> Value:
    name, known = re.sub(r"^(wc|warmclip_jax)\.", "", ast.unparse(call.func)), factories()
    if not name.isidentifier():
        raise ValueError(
            f"{_short(ast.unparse(call.func))!r} is not the name of a factory; it is not run"
        )
    if name not in known:
        raise ValueError(f"there is no {name!r} to call{nearest(name, known)}")
    said = [keyword.arg for keyword in call.keywords]
    if None in said:
        raise ValueError(f"{name}: write each argument out instead of **")
    if repeated := [argument for argument in said if said.count(argument) > 1]:
        raise ValueError(f"{name}: {repeated[0]} is repeated")
    named = {str(keyword.arg): _literal(keyword.value) for keyword in call.keywords}
    try:
        return known[name](*map(_literal, call.args), **named)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _literal(node: ast.expr) -> Any:
    """A value, a list, or a literal number, string, True, False or None."""
    if isinstance(node, ast.Call):
        return _called(node)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(element) for element in node.elts]
    with contextlib.suppress(ValueError, TypeError):
        literal = ast.literal_eval(node)
        if isinstance(literal, (int, float, str, type(None))):
            return literal
    raise ValueError(
        f"{_short(ast.unparse(node))!r} is neither a number nor a call; write the number itself"
    )


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
