"""Finds clips, guards and pipelines in any optimizer state, by their types or their fields."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from warmclip_jax._clipping import (
    ClipState,
    History,
    LeafRecord,
    LossHistory,
    Ring,
    SkipState,
    as_keys,
)
from warmclip_jax._pipeline import PipelineState
from warmclip_jax._values import ArgumentTypeError, ArgumentValueError, described

#: What only a dict made of a state has, in any version: the dict that `metrics` returns has none of
#: these pairs.
_STATES: dict[Any, set[str]] = {
    ClipState: {"clip_calls", "clip_coef"},
    PipelineState: {"clip_state", "inner_state"},
    SkipState: {"skipped_count", "inner_state"},
}
#: What may stand in a field of a state.
_PARTS: dict[Any, set[str]] = {
    kind: set(kind._fields) for kind in (History, LossHistory, Ring, LeafRecord)
}

Path = tuple[Any, ...]


class Found(NamedTuple):
    """The state of a clip, guard or pipeline in an optimizer state."""

    path: Path
    state: Any  # without the state that it guards
    guard: int | None  # where in the list of all that are found the guard around it is


def found(opt_state: Any) -> list[Found]:
    """The states of clips, guards and pipelines in an optimizer state, outermost first.

    Raises ValueError where there is none, and for a checkpoint with a state that another version
    wrote; TypeError for shapes without numbers.
    """
    seen: list[Found] = []
    _collect(opt_state, (), None, seen)
    if not seen:
        raise ArgumentValueError(
            "opt_state must hold a state of clip_by_global_norm, skip_nonfinite or pipeline; got "
            f"{described(opt_state)} without one. Pass the state that init or update returned, or "
            "a checkpoint of it."
        )
    leaves = jax.tree.leaves([each.state for each in seen])
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        raise ArgumentTypeError(
            "opt_state must hold arrays; got their shapes alone, as jax.eval_shape gives them. "
            "Pass the state that init, update or a checkpoint gave."
        )
    return seen


def of_this_process(leaf: Any) -> Any:
    """This process's copy of an array that is the same on all, so that it asks no other."""
    is_spread = (
        isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and leaf.is_fully_replicated
    )
    return leaf.addressable_data(0) if is_spread else leaf


def calls_of(state: Any) -> Any:
    """How many calls a clip, guard or pipeline has seen."""
    if isinstance(state, PipelineState):
        return state.clip_state.clip_calls
    return state.clip_calls if isinstance(state, ClipState) else state.skip_calls


def _collect(tree: Any, path: Path, guard: int | None, seen: list[Found]) -> None:
    for below, node in jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: kind_of(node) is not None
    )[0]:
        at = (*path, *below)
        if (kind := kind_of(node)) is None:
            continue
        state = _as_state(kind, node, at)
        if kind is ClipState:
            seen.append(Found(at, state, guard))
        else:
            seen.append(Found(at, state._replace(inner_state=()), guard))
            _collect(
                state.inner_state,
                (*at, jax.tree_util.GetAttrKey("inner_state")),
                len(seen) - 1,
                seen,
            )


def kind_of(node: Any, kinds: dict[Any, set[str]] = _STATES) -> Any:
    """The class of state that a node is, or that a dict was made of; None for any other node."""
    for kind, signs in kinds.items():
        if isinstance(node, kind) or (
            isinstance(node, Mapping) and (signs <= node.keys() or _required(kind) <= node.keys())
        ):
            return kind
    return None


def _required(kind: Any) -> set[str]:
    # A checkpoint may have left out what is empty.
    return set(kind._fields) - set(kind._field_defaults) - {"inner_state"}


def _as_state(kind: Any, node: Any, at: Path) -> Any:
    """A state with arrays in its fields: not with the variables of a framework, not as a dict."""
    fields = node if isinstance(node, Mapping) else node._asdict()
    lacking = sorted(_required(kind) - fields.keys())
    unheard = sorted(map(str, fields.keys() - set(kind._fields)))
    if lacking or unheard:
        words = ("without", lacking), ("with", unheard)
        parts = [f"{word} {', '.join(names)}" for word, names in words if names]
        raise ArgumentValueError(
            "opt_state must hold states that this version of warmclip_jax wrote; got one of "
            f"another version at {jax.tree_util.keystr(at) or 'its top'}: a {kind.__name__} "
            f"{' and '.join(parts)}. Read it with the version that wrote it."
        )
    plain = {
        name: value if name in ("inner_state", "group_labels") else _plain(value, at)
        for name, value in fields.items()
    }
    if "inner_state" in kind._fields:
        plain.setdefault("inner_state", ())
    state = kind(**plain)
    if kind is not ClipState:
        return state
    # `nnx.state` drops labels, which are keys without leaves: the groups then have
    # numbers.
    number = (
        0 if isinstance(state.group_clipped_count, tuple) else state.group_clipped_count.shape[-1]
    )
    keys = state.group_labels or as_keys(
        f"group {group:0{len(str(number))}}" for group in range(number)
    )
    return state._replace(group_labels=dict.fromkeys(keys, ()))


def _plain(value: Any, at: Path) -> Any:
    """A field of a state: a clip, a history or a record; one array; or ()."""
    if (kind := kind_of(value, _STATES | _PARTS)) is not None:
        return _as_state(kind, value, at)
    leaves = jax.tree.leaves(value)
    return leaves[0] if len(leaves) == 1 else ()
