"""Our states in any optimizer state, however nested: found by type, or in a raw checkpoint by the names of their fields."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from warmclip_jax._gradients._clip import ClipState
from warmclip_jax._gradients._history import History
from warmclip_jax._gradients._recorder import LeafRecord, Ring
from warmclip_jax._gradients._skipping import SkipState
from warmclip_jax._pipeline import PipelineState

KINDS: tuple[Any, ...] = (ClipState, SkipState, PipelineState)
_PARTS: tuple[Any, ...] = (History, Ring, LeafRecord)
#: The fields that may be empty, which a checkpoint may have left out.
_EMPTY: dict[Any, dict[str, Any]] = {
    ClipState: {"clip_history": (), "group_labels": {}, "group_clipped_count": (), "leaves": ()},
    SkipState: {"skip_history": (), "ring": (), "leaves": (), "inner_state": ()},
    PipelineState: {"skip_history": (), "ring": (), "inner_state": ()},
}
_REQUIRED = {kind: set(kind._fields) - set(_EMPTY.get(kind, ())) for kind in (*KINDS, *_PARTS)}
_GUARDS = (SkipState, PipelineState)

Path = tuple[Any, ...]


class Found(NamedTuple):
    """A state of ours, without what it guards; where it is; and the place in the list of the guard around it, if any."""

    path: Path
    state: Any
    guard: int | None


def found(opt_state: Any) -> list[Found]:
    """Our states in an optimizer state, outermost first. Raises ValueError where there is none."""
    seen: list[Found] = []
    _collect(opt_state, (), None, seen)
    if not seen:
        raise ValueError(
            f"opt_state must hold a state of clip_by_global_norm, skip_nonfinite or pipeline; got {type(opt_state).__name__} "
            "without one. Pass the state that init or update returned."
        )
    return seen


def _collect(tree: Any, path: Path, guard: int | None, seen: list[Found]) -> None:
    for below, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_ours)[0]:
        if _is_ours(node):
            state, at = _as_state(node), (*path, *below)
            place = len(seen)
            if not isinstance(state, _GUARDS):
                seen.append(Found(at, state, guard))
                continue
            seen.append(Found(at, state._replace(inner_state=()), guard))
            _collect(state.inner_state, (*at, jax.tree_util.GetAttrKey("inner_state")), place, seen)


def _kind_of(node: Any, kinds: tuple[Any, ...] = KINDS) -> Any:
    for kind in kinds:
        if isinstance(node, kind) or (isinstance(node, Mapping) and _REQUIRED[kind] <= set(node) <= set(kind._fields)):
            return kind
    return None


def _is_ours(node: Any) -> bool:
    return _kind_of(node) is not None


def _as_state(node: Any, kinds: tuple[Any, ...] = KINDS) -> Any:
    """A state with arrays in its fields: not with the variables of a framework, not as a dict."""
    kind = _kind_of(node, kinds)
    fields = node if isinstance(node, Mapping) else node._asdict()
    plain = {name: value if name in ("inner_state", "group_labels") else _plain(value) for name, value in fields.items()}
    return kind(**{**_EMPTY.get(kind, {}), **plain})


def _plain(value: Any) -> Any:
    if _kind_of(value, (ClipState, *_PARTS)) is not None:
        return _as_state(value, (ClipState, *_PARTS))
    leaves = jax.tree.leaves(value)
    return leaves[0] if len(leaves) == 1 else ()
