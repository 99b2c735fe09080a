"""A schedule from its text, as its `repr` writes it: read as data, never evaluated as code."""

import ast
import difflib
import inspect
from collections.abc import Iterable
from typing import Any

from warmclip_jax._curve import Schedule, factories

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
    return _schedule(tree)


def _schedule(call: ast.Call) -> Schedule:
    name = _name(call.func)
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
    arguments = [_value(argument) for argument in call.args]
    named = {keyword.arg: _value(keyword.value) for keyword in call.keywords if keyword.arg is not None}
    try:
        return known[name](*arguments, **named)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def _value(node: ast.expr) -> Any:
    """A schedule, a list of values, or a literal number, string, True, False or None."""
    if isinstance(node, ast.Call):
        return _schedule(node)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(element) for element in node.elts]
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, type(None))):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        number = _value(node.operand)
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            return -number if isinstance(node.op, ast.USub) else number
    raise ValueError(f"{_short(ast.unparse(node))!r} is neither a number nor a schedule; write the number itself")


def _name(node: ast.expr) -> str:
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
