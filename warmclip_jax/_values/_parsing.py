"""Reads a value back from its text, which is never run."""

import ast
import contextlib
import re
from typing import Any

from warmclip_jax._values._factories import factories
from warmclip_jax._values._messages import (
    ArgumentValueError,
    broken_rule,
    named,
    nearest,
    shortened,
)


@named
def parse(text: str) -> Any:
    """The value written in a text: the `repr` of a value, or a call, from a config file, say.

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
    >>> schedule = wc.parse("shift(linear_warmup(peak_value=1.0, warmup_steps=10), by=2)")
    >>> schedule == wc.parse(repr(schedule)), float(schedule(3))
    (True, 0.5)
    """
    if not isinstance(text, str):
        raise broken_rule("text", "a string", text, "Pass what repr printed.", TypeError)
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if function := re.search(r"<.+? at 0x\w+>", text):
            raise ArgumentValueError(
                f"cannot rebuild {function[0]} from text: it is a Python object, and no call. "
                "Build this schedule in Python."
            ) from error
        why = getattr(error, "msg", None) or error
        raise ArgumentValueError(f"cannot read {shortened(text)}: {why}.") from error
    if not isinstance(tree, ast.Call):
        raise ArgumentValueError(f"{shortened(text)} must be a call, such as constant(value=0.1).")
    return _called(tree)


def _called(call: ast.Call) -> Any:
    name = re.sub(r"^(wc|warmclip_jax)\.", "", ast.unparse(call.func))
    known = factories()
    if name not in known:
        meant = nearest(name, known) or f"; there are {', '.join(sorted(known))}."
        raise ArgumentValueError(f"there is no {shortened(name)} to call{meant}")
    given = [keyword.arg for keyword in call.keywords]
    if None in given:
        raise ArgumentValueError(f"write each argument of {name} out, instead of **.")
    if repeated := [argument for argument in given if given.count(argument) > 1]:
        raise ArgumentValueError(f"{repeated[0]} is repeated in {name}(...).")
    arguments = {str(keyword.arg): _literal(keyword.value) for keyword in call.keywords}
    try:
        return known[name](*map(_literal, call.args), **arguments)
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
    raise ArgumentValueError(
        f"{shortened(ast.unparse(node))} is neither a number nor a call. Write the number itself."
    )
