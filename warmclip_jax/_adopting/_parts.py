"""Name the parts of an optimizer's state by what they are for, whatever stands around them."""

import collections
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import optax

from warmclip_jax._clipping import ClipState, SkipState
from warmclip_jax._pipeline import PipelineState

#: The sorts of this package's states. The name of a field of theirs ends with a sort and the field.
CLIP, GUARD = "clip", "guard"
#: In the names of what holds no moments: clocks and hyper-parameters. No key of a parameter.
BESIDE = ...
_CHAIN, _CLOCK, _MOMENTS = "chain", "clock", "moments"

Name = tuple[Any, ...]


class Part(NamedTuple):
    """A field of a state of this package, or an array of any other state."""

    at: Name  # the name of the state that it is in
    path: tuple[Any, ...]
    value: Any

    @property
    def field(self) -> Any:
        """The last key of the path."""
        return _word(self.path[-1]) if self.path else ""


Parts = dict[Name, Part]


def parts(state: Any) -> Parts:
    """The parts of a state by name, in the order of its leaves.

    Moments have the same name inside and outside of guards, `apply_if_finite`,
    `inject_hyperparams` and nested chains. A state of this package is named by the guards around
    it and the number of states before it. What is inside of another state, such as `MultiSteps`,
    has a name that begins with that state's.
    """
    return dict(_named(state, (), (), (), collections.Counter()))


def is_ours(name: Name) -> bool:
    """Whether a name is that of a field of this package's states."""
    return len(name) > 1 and name[-2] in (CLIP, GUARD)


def is_moment(name: Name) -> bool:
    """Whether a name is that of an array that must not be lost, nor be new."""
    return BESIDE not in name and not is_ours(name)


def is_state(node: Any) -> bool:
    """Whether a node is a state of optax or of this package."""
    module = type(node).__module__.split(".")[0]
    is_theirs = isinstance(node, tuple) and module in ("optax", "warmclip_jax")
    return is_theirs and not isinstance(node, optax.MaskedNode)


def _named(
    node: Any, path: tuple[Any, ...], at: Name, guards: Name, seen: collections.Counter[str]
) -> Iterator[tuple[Name, Part]]:
    """The parts of a node in the state `at`, inside of `guards` there, after the states `seen`."""
    if not jax.tree.leaves(node):
        return
    if jax.tree_util.all_leaves([node]):
        yield at, Part(at, path, node)
        return
    sort, name = _sort_of(node), at
    if sort in (CLIP, GUARD):
        name = (*at, *guards, seen.total(), sort)
    elif sort == _MOMENTS:
        name = (*at, type(node).__name__ if hasattr(node, "_fields") else "tree", seen[sort])
    elif sort != _CHAIN:
        name = (*at, BESIDE, sort, seen[sort])
    seen[sort] += sort not in (_CHAIN, GUARD)
    below = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)[0]
    for (key,), child in below:
        where, word = (*path, key), _word(key)
        if sort == _CHAIN or word == "clip_state":
            yield from _named(child, where, at, guards, seen)
        elif word == "inner_state" and sort != _MOMENTS:
            yield from _named(child, where, at, (*guards, sort), seen)
        elif is_ours((*name, word)):
            yield (*name, word), Part(at, where, child)
        else:
            loose = [BESIDE] * (word == "skip_state" and name[-2] == "MultiStepsState")
            yield from _named(child, where, (*name, *loose, word), (), collections.Counter())


def _sort_of(node: Any) -> str:
    if isinstance(node, ClipState):
        return CLIP
    if isinstance(node, (SkipState, PipelineState)):
        return GUARD
    fields = node._fields if is_state(node) else ()
    if {"hyperparams", "last_finite"} & {*fields}:  # `inject_hyperparams`, `apply_if_finite`
        return type(node).__name__
    if fields == ("count",):
        return _CLOCK
    if type(node) is tuple:  # as `chain` makes it
        return _MOMENTS if any(jax.tree_util.all_leaves([part]) for part in node) else _CHAIN
    is_named = type(node) is collections.OrderedDict  # as `named_chain` makes it
    return _CHAIN if is_named and all(isinstance(p, tuple) for p in node.values()) else _MOMENTS


def _word(key: Any) -> Any:
    """The name of a field; any other key of a path as it is."""
    return getattr(key, "name", key)
