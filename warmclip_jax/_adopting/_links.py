"""Read the state of any optimizer as links in frames.

*Links* hold moments and counts: Adam's, momentum, a schedule's clock. *Frames* stand around or
beside links: clips, guards, optax's `apply_if_finite`, `inject_hyperparams`, `masked`. Nested
chains are one row of links, of those with arrays.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from warmclip_jax._clipping import ClipState, SkipState
from warmclip_jax._pipeline import PipelineState

GUARDS = (SkipState, PipelineState)

Path = tuple[Any, ...]
#: Kind and fields of each. `SkipState` stands for both guards.
Frames = list[tuple[type, dict[str, Any]]]


def peeled(state: Any) -> tuple[list[Any], Frames]:
    """The links of a state in order, and its frames, outermost first."""
    if isinstance(state, ClipState):
        return [], [(ClipState, known(state))]
    if not jax.tree.leaves(state):
        return [], []
    if is_chain(state):
        parts = [peeled(part) for part in state]
        return [link for links, _ in parts for link in links], [
            frame for _, frames in parts for frame in frames
        ]
    if not is_frame(state):
        return [state], []
    links, frames = peeled(state.inner_state)
    if isinstance(
        state, PipelineState
    ):  # A guard and a clip: each may go on in a state of its own.
        clip = known(state.clip_state)
        return links, [(SkipState, clip | known(state)), (ClipState, clip), *frames]
    return links, [(type(state), known(state)), *frames]


def fields_of(frame: Any) -> dict[str, Any]:
    """The fields of a frame, without the states inside of it."""
    return {
        name: value
        for name, value in frame._asdict().items()
        if name not in ("clip_state", "inner_state")
    }


def known(frame: Any) -> dict[str, Any]:
    """The fields of a frame that are not empty, without the states inside of it."""
    return {
        name: value
        for name, value in fields_of(frame).items()
        if not (isinstance(value, tuple) and value == ())
    }


def is_chain(node: Any) -> bool:
    """Whether a node is a tuple of states, as `optax.chain` makes it."""
    return type(node) is tuple and not any(jax.tree_util.all_leaves([part]) for part in node)


def is_frame(node: Any) -> bool:
    """Whether a node is a guard, or has an `inner_state` with scalars or hyper-parameters beside it."""
    if "inner_state" not in getattr(node, "_fields", ()):
        return False
    beside = jax.tree.leaves(node._replace(inner_state=()))
    return isinstance(node, GUARDS) or hasattr(node, "hyperparams") or not any(map(np.ndim, beside))


def is_clock(node: Any) -> bool:
    """Whether a node only counts, as the state of `scale_by_schedule`."""
    return getattr(node, "_fields", ()) == ("count",)


def is_state(node: Any) -> bool:
    """Whether a node is a state of optax or of this package."""
    is_theirs = isinstance(node, tuple) and type(node).__module__.split(".")[0] in (
        "optax",
        "warmclip_jax",
    )
    return is_theirs and not isinstance(node, optax.MaskedNode)


def children(node: Any) -> dict[Any, Any]:
    """What is right below a node, by key."""
    pairs = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda below: below is not node)[0]
    return {path[0]: child for path, child in pairs if path}


def arrays_beside(state: Any, path: Path) -> Iterator[Path]:
    """Where a state has arrays, other than scalars, outside of the part at `path` and of the frames around it."""
    for depth, key in enumerate(path):
        below = children(state)
        # The gradients that a MultiSteps has accumulated may be dropped.
        if not isinstance(state, optax.MultiStepsState) and not is_frame(state):
            others = {other: child for other, child in below.items() if other != key}
            for other, child in others.items():
                pairs = jax.tree_util.tree_flatten_with_path(child)[0]
                yield from ((*path[:depth], other, *rest) for rest, leaf in pairs if np.ndim(leaf))
        state = below[key]


def sort_of(node: Any) -> Any:
    """What must be the same of two nodes: their type, or the shape and sort of number of two arrays."""
    if not isinstance(node, (jax.Array, np.ndarray, np.generic, int, float, complex)):
        return type(node)
    dtype = jnp.result_type(node)
    sorts = (jnp.integer, jnp.floating, jnp.complexfloating)
    return np.shape(node), next((sort for sort in sorts if jnp.issubdtype(dtype, sort)), dtype)


def names(state: Any) -> str:
    """The names of a state's links, for messages."""
    return ", ".join(type(link).__name__ for link in peeled(state)[0]) or "no moments"


def place(path: Path) -> str:
    """Where a part of `opt_state` is, for messages."""
    return f"opt_state{jax.tree_util.keystr(path)}"
