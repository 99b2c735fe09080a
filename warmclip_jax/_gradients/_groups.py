"""Groups of leaves: a label for each leaf, given by the caller or taken from its path."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from warmclip_jax._gradients._leaves import gradients, joined, paths, stops_a_path

#: Labels as a pytree prefix of the parameters with `str` leaves, or a function of the parameters that returns one.
Groups = Any

_KEY = "label "


class LabelByPath:
    """What `label_by_path` returns: a function from parameters to a tree of labels."""

    def __init__(self, patterns: Mapping[str, str] | None, default: str) -> None:
        self._patterns = None if patterns is None else {label: re.compile(pattern) for label, pattern in patterns.items()}
        self._default = default

    def __call__(self, params: Any) -> Any:
        return jax.tree.map_with_path(lambda path, _: self.label(joined(path)), params, is_leaf=stops_a_path)

    def label(self, path: str) -> str:
        """The label of the leaf at `path`."""
        if self._patterns is None:
            return path
        return next((label for label, pattern in self._patterns.items() if pattern.fullmatch(path)), self._default)


def label_by_path(patterns: Mapping[str, str] | None = None, *, default: str = "rest") -> Callable[[Any], Any]:
    r"""A function of parameters that labels each leaf by its path, for `groups` and for `optax.partition`.

    The first pattern that matches the whole path gives the label; without patterns each leaf's label is its path.

    Args:
      patterns: regular expressions by label, in the order in which they are tried: `{"experts": r"moe/.*"}`. A path is the keys
        joined by `/`.
      default: the label of leaves that no pattern matches.

    Returns:
      A function from parameters to a tree like them of labels.

    Raises:
      TypeError: for patterns that are no mapping from `str` to `str`. ValueError: for one that is no regular expression.

    >>> import jax.numpy as jnp
    >>> import warmclip_jax as wc
    >>> params = {"moe": {"w": jnp.ones(2)}, "dense": {"w": jnp.ones(2), "b": jnp.ones(1)}}
    >>> wc.label_by_path({"experts": r"moe/.*"})(params)
    {'dense': {'b': 'rest', 'w': 'rest'}, 'moe': {'w': 'experts'}}
    """
    if not isinstance(default, str):
        raise TypeError(f"label_by_path: default must be a label, a str; got {default!r} ({type(default).__name__}).")
    for label, pattern in _entries(patterns):
        if not (isinstance(label, str) and isinstance(pattern, str)):
            raise TypeError(
                f"label_by_path: patterns must be regular expressions by label, both str; got {label!r}: {pattern!r}. "
                r'Write {"experts": r"moe/.*"}.'
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"label_by_path: {pattern!r}, for {label!r}, is no regular expression: {error}.") from error
    return LabelByPath(patterns, default)


def labels_of(groups: Groups, tree: Any, params: Any = None) -> list[str]:
    """The label of each gradient of `tree`, in leaf order. A function of parameters is given `params`, else `tree`.

    Raises TypeError, ValueError for labels that are no strings or do not match the tree.
    """
    if isinstance(groups, LabelByPath):
        # By path, and not by way of a tree of labels: a node of the user's may not take strings for arrays.
        return [groups.label(path) for path in paths(tree)]
    given = groups(tree if params is None else params) if callable(groups) else groups
    labels, structure = jax.tree.flatten(given)
    for label in labels:
        if not isinstance(label, str):
            kind = type(label).__name__
            raise TypeError(f"groups must have labels that are str; got {shown(label)} ({kind}) among {shown(given)}.")
    try:
        parts = structure.flatten_up_to(tree)
    except ValueError as error:
        raise ValueError(
            f"groups must be a pytree prefix of the parameters with a label for each leaf; got {shown(given)}, which does not "
            f"match the gradients: {error!s:.200}"
        ) from error
    return [label for label, part in zip(labels, parts, strict=True) for _ in gradients(part)]


def as_keys(labels: Iterable[str]) -> dict[str, tuple[()]]:
    """Labels as a state holds them: as keys without leaves, none of which is `count` or another name that optax looks for."""
    return {f"{_KEY}{label}": () for label in labels}


def from_keys(keys: Iterable[str]) -> list[str]:
    """The labels that a state holds, in the order of its arrays."""
    return sorted(key.removeprefix(_KEY) for key in keys)


def shown(value: Any) -> str:
    """What a message says of a value that may be long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _entries(patterns: Any) -> list[tuple[Any, Any]]:
    if patterns is not None and not isinstance(patterns, Mapping):
        raise TypeError(
            f"label_by_path: patterns must be a mapping from labels to regular expressions, or None; got {patterns!r} "
            f"({type(patterns).__name__})."
        )
    return list((patterns or {}).items())
