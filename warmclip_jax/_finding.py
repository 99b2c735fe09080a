"""Our states in any optimizer state, however nested: found by type, or in a raw checkpoint by the names of their fields."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from warmclip_jax._gradients._clip import ClipState
from warmclip_jax._gradients._groups import as_keys
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
#: What only a dict made of a state has, in any version: the dict that `metrics` returns has none of these pairs.
_SIGNS: tuple[tuple[Any, set[str]], ...] = (
    (ClipState, {"clip_calls", "clip_coef"}),
    (PipelineState, {"clip_state", "inner_state"}),
    (SkipState, {"skipped_count", "inner_state"}),
)

Path = tuple[Any, ...]


class Found(NamedTuple):
    """A state of ours, without what it guards; where it is; and the place in the list of the guard around it, if any."""

    path: Path
    state: Any
    guard: int | None


def found(opt_state: Any) -> list[Found]:
    """Our states in an optimizer state, outermost first.

    Raises ValueError where there is none, and for a checkpoint with a state that another version wrote.
    """
    seen: list[Found] = []
    _collect(opt_state, (), None, seen)
    if not seen:
        raise ValueError(
            f"opt_state must hold a state of clip_by_global_norm, skip_nonfinite or pipeline; got {type(opt_state).__name__} "
            "without one. Pass the state that init or update returned, or a checkpoint of it."
        )
    return seen


def of_this_process(leaf: Any) -> Any:
    """A copy that this process holds of an array that is the same on all, so that it need not ask the others."""
    is_spread = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and leaf.is_fully_replicated
    return leaf.addressable_data(0) if is_spread else leaf


def _collect(tree: Any, path: Path, guard: int | None, seen: list[Found]) -> None:
    for below, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_may_be_ours)[0]:
        at = (*path, *below)
        if _is_ours(node):
            state = _as_state(node)
            place = len(seen)
            if not isinstance(state, _GUARDS):
                seen.append(Found(at, state, guard))
                continue
            seen.append(Found(at, state._replace(inner_state=()), guard))
            _collect(state.inner_state, (*at, jax.tree_util.GetAttrKey("inner_state")), place, seen)
        elif (difference := _of_another_version(node)) is not None:
            raise ValueError(
                "opt_state must hold states that this version of warmclip_jax wrote; got one of another version at "
                f"{jax.tree_util.keystr(at) or 'its top'}: a {difference}. Read it with the version that wrote it."
            )


def _kind_of(node: Any, kinds: tuple[Any, ...] = KINDS) -> Any:
    for kind in kinds:
        if isinstance(node, kind) or (isinstance(node, Mapping) and _REQUIRED[kind] <= set(node) <= set(kind._fields)):
            return kind
    return None


def _is_ours(node: Any) -> bool:
    return _kind_of(node) is not None


def _may_be_ours(node: Any) -> bool:
    return _is_ours(node) or _of_another_version(node) is not None


def _of_another_version(node: Any) -> str | None:
    """How the fields of a dict differ from those of the state that another version made it of; None for any other node."""
    if not isinstance(node, Mapping) or _is_ours(node):
        return None
    names = set(map(str, node))
    kind = next((kind for kind, signs in _SIGNS if signs <= names), None)
    if kind is None:
        return None
    lacking, unknown = sorted(_REQUIRED[kind] - names), sorted(names - set(kind._fields))
    parts = [f"without {', '.join(lacking)}"] * bool(lacking) + [f"with {', '.join(unknown)}"] * bool(unknown)
    return f"{kind.__name__} {' and '.join(parts)}"


def _as_state(node: Any, kinds: tuple[Any, ...] = KINDS) -> Any:
    """A state with arrays in its fields: not with the variables of a framework, not as a dict."""
    kind = _kind_of(node, kinds)
    fields = node if isinstance(node, Mapping) else node._asdict()
    plain = {name: value if name in ("inner_state", "group_labels") else _plain(value) for name, value in fields.items()}
    state = kind(**{**_EMPTY.get(kind, {}), **plain})
    if kind is not ClipState:
        return state
    # `nnx.state` drops labels, which are keys without leaves: the groups are then known by their numbers.
    number = 0 if isinstance(state.group_clipped_count, tuple) else state.group_clipped_count.shape[-1]
    keys = state.group_labels or as_keys(f"group {place:0{len(str(number))}}" for place in range(number))
    return state._replace(group_labels=dict.fromkeys(keys, ()))


def _plain(value: Any) -> Any:
    if _kind_of(value, (ClipState, *_PARTS)) is not None:
        return _as_state(value, (ClipState, *_PARTS))
    leaves = jax.tree.leaves(value)
    return leaves[0] if len(leaves) == 1 else ()
