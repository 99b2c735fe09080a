"""Groups of leaves: a label for each leaf, given by the caller or taken from its path."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from warmclip_jax._clipping._measuring import of_gradients
from warmclip_jax._norms import from_prefix, joined, leaf_names, paths, stops_a_path
from warmclip_jax._values import ArgumentTypeError, ArgumentValueError, Value, broken_rule, named

#: Labels as a pytree prefix of the parameters with `str` leaves, or a function of the parameters
#: that returns one.
Groups = Any

#: A state holds each label as a key that begins so: none then is a name that optax looks for, such
#: as `count`.
_KEY = "label "
_EXAMPLE = r'Write {"experts": r"moe/.*"}.'


class LabelByPath:
    """What `label_by_path` returns: a function from parameters to a tree of labels."""

    def __init__(self, patterns: dict[str, re.Pattern[str]] | None, default: str) -> None:
        self._patterns, self._default = patterns, default

    def __call__(self, params: Any) -> Any:
        return jax.tree.map_with_path(
            lambda path, _: self._label(joined(path)), params, is_leaf=stops_a_path
        )

    def labels(self, tree: Any) -> list[str]:
        """The label of each gradient of `tree`, in leaf order; of its own without patterns."""
        if self._patterns is None:
            return leaf_names(tree)
        return [self._label(path) for path in paths(tree)]

    def _label(self, path: str) -> str:
        if self._patterns is None:
            return path
        return next(
            (label for label, pattern in self._patterns.items() if pattern.fullmatch(path)),
            self._default,
        )


@named
def label_by_path(
    patterns: Mapping[str, str] | None = None, *, default: str = "rest"
) -> Callable[[Any], Any]:
    r"""A function that labels each leaf by its path, for `groups` and for `optax.partition`.

    The first pattern that matches the whole path gives the label; without patterns each leaf's
    label is its path.

    Args:
      patterns: regular expressions by label, in the order in which they are tried: `{"experts":
        r"moe/.*"}`. A path is the keys joined by `/`.
      default: the label of leaves that no pattern matches.

    Returns:
      A function from parameters to a tree like them of labels.

    Raises:
      TypeError: for patterns that are no mapping from `str` to `str`. ValueError: for one that is
        no regular expression.

    >>> import jax.numpy as jnp
    >>> import warmclip_jax as wc
    >>> params = {"moe": {"w": jnp.ones(2)}, "dense": {"w": jnp.ones(2), "b": jnp.ones(1)}}
    >>> wc.label_by_path({"experts": r"moe/.*"})(params)
    {'dense': {'b': 'rest', 'w': 'rest'}, 'moe': {'w': 'experts'}}
    """
    if not isinstance(default, str):
        remedy = "Leaves that no pattern matches get it."
        raise broken_rule("default", "a label, a str", default, remedy, TypeError)
    if patterns is None:
        return LabelByPath(None, default)
    if not isinstance(patterns, Mapping):
        rule = "a mapping from labels to regular expressions, or None"
        raise broken_rule("patterns", rule, patterns, _EXAMPLE, TypeError)
    return LabelByPath(
        {label: _compiled(label, pattern) for label, pattern in patterns.items()}, default
    )


def _compiled(label: Any, pattern: Any) -> re.Pattern[str]:
    if not (isinstance(label, str) and isinstance(pattern, str)):
        raise ArgumentTypeError(
            "patterns must be regular expressions by label, both str; got "
            f"{label!r}: {pattern!r}. {_EXAMPLE}"
        )
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ArgumentValueError(
            f"{pattern!r}, for {label!r}, is no regular expression: {error}."
        ) from error


def labels_of(groups: Groups, tree: Any, params: Any = None) -> list[str]:
    """The label of each gradient of `tree`, in leaf order.

    A function of parameters is given `params`, else `tree`. Raises TypeError, ValueError for labels
    that are no strings or do not match the tree.
    """
    tree = of_gradients(tree)
    if isinstance(groups, LabelByPath):
        # By path, and not by way of a tree of labels: a node of the user's may not take strings for
        # arrays.
        return groups.labels(tree)
    given = groups
    if callable(groups):
        given = check_labels(groups(tree if params is None else of_gradients(params)))
    return from_prefix(
        given,
        tree,
        "groups must be a pytree prefix of the parameters with a label for each leaf, or a "
        "function that makes one of them, such as label_by_path(...)",
    )


def check_labels(groups: Groups) -> Groups:
    """`groups`, when it is a function, or its leaves are labels. Raises TypeError."""
    # The leaves of a schedule or a running bound, in the place of `max_norm`, are numbers.
    if isinstance(groups, Value) or not callable(groups):
        for label in jax.tree.leaves(groups):
            if not isinstance(label, str):
                rule = "labels, each a str, or a function of the parameters that returns them"
                raise broken_rule("groups", rule, label, "Bounds go into max_norm.", TypeError)
    return groups


def as_keys(labels: Iterable[str]) -> dict[str, tuple[()]]:
    """Labels as a state holds them: as the keys of a dict without leaves."""
    return {f"{_KEY}{label}": () for label in labels}


def from_keys(keys: Iterable[str]) -> list[str]:
    """The labels that a state holds, in the order of its arrays."""
    return sorted(key.removeprefix(_KEY) for key in keys)
