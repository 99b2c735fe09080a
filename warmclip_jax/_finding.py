"""Our states in any optimizer state, however nested: found by type, or in a raw checkpoint by the names of their fields."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from warmclip_jax._gradients._clipping import ClipState
from warmclip_jax._gradients._skipping import SkipState
from warmclip_jax._pipeline import PipelineState

KINDS: tuple[Any, ...] = (ClipState, SkipState, PipelineState)
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


def _kind_of(node: Any) -> Any:
    for kind in KINDS:
        if isinstance(node, kind) or (isinstance(node, Mapping) and set(node) == set(kind._fields)):
            return kind
    return None


def _is_ours(node: Any) -> bool:
    return _kind_of(node) is not None


def _as_state(node: Any) -> Any:
    """A state with arrays in its fields: not with the variables of a framework, not as a dict."""
    kind = _kind_of(node)
    fields = node if isinstance(node, Mapping) else node._asdict()
    return kind(**{name: value if name == "inner_state" else _plain(value) for name, value in fields.items()})


def _plain(value: Any) -> Any:
    if _is_ours(value):
        return _as_state(value)
    leaves = jax.tree.leaves(value)
    return leaves[0] if len(leaves) == 1 else value
