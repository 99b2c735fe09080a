"""What the clips, skips and pipelines in an optimizer state know, for programs."""

from collections.abc import Iterator
from typing import Any

import jax
import optax

from warmclip_jax._gradients._clipping import ClipState
from warmclip_jax._gradients._skipping import SkipState
from warmclip_jax._pipeline import PipelineState


def metrics(opt_state: optax.OptState) -> dict[str, jax.Array]:
    """What the clips, skips and pipelines in an optimizer state know, by name.

    Args:
      opt_state: any optimizer state, however nested: `chain`, `MultiSteps`, `masked`, `partition`, `inject_hyperparams`.

    Returns:
      Scalars: `step` (updates made, int32; neither skipped steps nor accumulated micro-steps count), `learning_rate` (that of
      the last update made; where `pipeline` built it), `grad_norm` (before clipping), `clip_coef`, `clipped_count`,
      `nonfinite_count` and `skipped_count` (int32). Where a state holds several clips each has its path before the name:
      `"encoder/grad_norm"`. Works on traced states.

    Raises:
      ValueError: when the state holds nothing of this package.

    >>> import jax.numpy as jnp, optax
    >>> import warmclip_jax as wc
    >>> optimizer = optax.chain(wc.clip_by_global_norm(1.0), optax.adamw(1e-3))
    >>> sorted(wc.metrics(optimizer.init(jnp.zeros(2))))
    ['clip_coef', 'clipped_count', 'grad_norm', 'nonfinite_count', 'step']
    """
    found = list(_found(opt_state))
    if not found:
        raise ValueError(
            f"opt_state must hold a state of clip_by_global_norm, skip_nonfinite or pipeline; got {type(opt_state).__name__} "
            "without one. Pass the state that init or update returned."
        )
    clips = [path for path, state in found if not isinstance(state, SkipState)]
    names = dict(zip(clips, _names(clips), strict=True))
    merged: dict[str, jax.Array] = {}
    for path, state in found:
        # A skip around or inside of the only clip speaks of the same steps; beside several it speaks for its own group.
        group = names.get(path, "" if len(clips) == 1 else _name(path, (jax.tree_util.DictKey,)))
        for name, value in _of_state(state).items():
            full = f"{group}/{name}" if group else name
            merged[full] = merged[full] + value if full in merged else value
    return merged


_OURS = (ClipState, SkipState, PipelineState)


def _of_state(state: Any) -> dict[str, jax.Array]:
    if isinstance(state, SkipState):
        return {"skipped_count": state.skipped_count}
    if isinstance(state, PipelineState):
        own = {"learning_rate": state.last_learning_rate, "skipped_count": state.skipped_count}
        clip = _of_state(state.clip_state)
        return {**clip, **own, "step": clip["step"] - state.skipped_count}
    return {"step": state.clip_calls, **{name: value for name, value in state._asdict().items() if name != "clip_calls"}}


def _found(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Our states in `tree` with their paths, outermost first."""
    nodes, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: isinstance(node, _OURS))
    for below, node in nodes:
        if isinstance(node, _OURS):
            yield (*path, *below), node
        if isinstance(node, (PipelineState, SkipState)):
            yield from _found(node.inner_state, (*path, *below, jax.tree_util.GetAttrKey("inner_state")))


def _names(paths: list[tuple[Any, ...]]) -> list[str]:
    """The shortest name for each path that tells them all apart: its dict keys; with its indices; or all of it."""
    if len(paths) == 1:
        return [""]
    dict_key, index, field = jax.tree_util.DictKey, jax.tree_util.SequenceKey, jax.tree_util.GetAttrKey
    names: list[str] = []
    for kinds in ((dict_key,), (dict_key, index), (dict_key, index, field)):
        names = [_name(path, kinds) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _name(path: tuple[Any, ...], kinds: tuple[type, ...]) -> str:
    return jax.tree_util.keystr(tuple(key for key in path if isinstance(key, kinds)), simple=True, separator="/")
