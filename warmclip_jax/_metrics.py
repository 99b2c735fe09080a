"""What the clips, guards and pipelines in an optimizer state know, for programs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from warmclip_jax._checks import is_traced
from warmclip_jax._finding import Path, found, of_this_process
from warmclip_jax._gradients._clip import ClipState
from warmclip_jax._gradients._groups import from_keys
from warmclip_jax._gradients._history import History
from warmclip_jax._gradients._skipping import SkipState
from warmclip_jax._gradients._states import shown, shown_bound
from warmclip_jax._pipeline import PipelineState

#: What a guard around a clip or pipeline counts of every call, and what stands inside counts only of some.
_OF_EVERY_CALL = (
    "calls",
    "grad_norm",
    "nonfinite_count",
    "skipped_count",
    "consecutive_skips",
    "last_skipped_call",
    "skip_bound",
    "typical_norm",
)
#: With more groups than this, their numbers would bury the others.
_MOST_GROUPS = 32


def metrics(opt_state: Any) -> dict[str, jax.Array]:
    """What the clips, guards and pipelines in an optimizer state know, by name.

    A *call* is one call of `update`, numbered from 0; an *update* is a call that was not skipped.

    Args:
      opt_state: any optimizer state, however nested: of `chain`, `MultiSteps`, `masked`, `partition`, `inject_hyperparams`; a
        flax `TrainState`, an `nnx.Optimizer`; a raw checkpoint tree, in which states are dicts of their fields.

    Returns:
      Scalars, arrays with a run axis for vmapped states. The keys depend only on how the optimizer was built; what is not known
      is NaN.
      Of the last call: `grad_norm` (before clipping), `max_norm` (the bound in force; inf for none), `clip_coef` (0 where
      skipped). Of the last update: `learning_rate`, the one that the optimizer used, where `pipeline` built it. Counts, int32:
      `calls`, `step` (updates made, where a pipeline or guard counts them), `clipped_count`, `nonfinite_count`,
      `skipped_count`, `consecutive_skips` and `last_skipped_call` (-1: none).
      A guard around a pipeline owns the plain names that both have; the pipeline's own are `"update/skipped_count"` and so on.
      Several clips have their path before the name: `"encoder/grad_norm"`.
      Outside of `jit` these are copies, which survive donation and later updates; `jax.device_get` makes them numbers.

    Raises:
      ValueError: when the state holds nothing of this package, or two metrics would share a name.

    >>> import jax.numpy as jnp, optax
    >>> import warmclip_jax as wc
    >>> optimizer = optax.chain(wc.clip_by_global_norm(1.0), optax.adamw(1e-3))
    >>> list(wc.metrics(optimizer.init(jnp.zeros(2))))
    ['calls', 'clip_coef', 'clipped_count', 'grad_norm', 'max_norm', 'nonfinite_count']
    """
    seen = found(opt_state)
    paths, states, guards = (tuple(column) for column in zip(*seen, strict=True))
    if any(map(is_traced, jax.tree.leaves(states))):
        return _merged(states, paths, guards)
    # One compiled call for all: as single copies they take twenty times as long.
    return _copies(jax.tree.map(of_this_process, states), paths, guards)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _copies(states: tuple[Any, ...], paths: tuple[Path, ...], guards: tuple[int | None, ...]) -> dict[str, jax.Array]:
    # Copied, since a number handed through would die with the state that it came from.
    return {name: jnp.copy(value) for name, value in _merged(states, paths, guards).items()}


def _merged(states: tuple[Any, ...], paths: tuple[Path, ...], guards: tuple[int | None, ...]) -> dict[str, jax.Array]:
    merged: dict[str, jax.Array] = {}
    owners: dict[str, Any] = {}
    for state, path, group, guard in zip(states, paths, _groups(states, paths, guards), guards, strict=True):
        known = _of_state(state)
        if guard is not None and "clip_coef" in known:
            # What a guard skips never gets to the clip inside.
            known["clip_coef"] = jnp.where(states[guard].consecutive_skips > 0, 0, known["clip_coef"])
        for name, value in known.items():
            full = f"{group}/{name}" if group else name
            if full in merged and name in _OF_EVERY_CALL:
                # First come, first served: the clip before a guard, the guard before the clip that it guards.
                if isinstance(state, ClipState) or (guard is None and isinstance(owners[full], ClipState)):
                    continue
                full = f"{group}/update/{name}" if group else f"update/{name}"
            if full in merged and not (name == "step" and guard is not None):
                raise ValueError(
                    f"metrics must have names of their own; two states would both be {full!r}, the second at "
                    f"{jax.tree_util.keystr(path)}. Put them under different keys, in a dict or in optax.named_chain."
                )
            merged[full], owners[full] = value, state
    return dict(sorted(merged.items()))


def _of_state(state: Any) -> dict[str, jax.Array]:
    if isinstance(state, PipelineState):
        calls = state.clip_state.clip_calls
        rate = {"learning_rate": shown(state.last_learning_rate)}
        # The skip's usual norm where the clip has none.
        return {**_of_guard(state, calls), **_of_state(state.clip_state), **rate}
    if isinstance(state, SkipState):
        measured = {"grad_norm": _known(state.skip_calls, state.grad_norm), "nonfinite_count": state.nonfinite_count}
        return {"calls": state.skip_calls, **measured, **_of_guard(state, state.skip_calls)}
    labels = from_keys(state.group_labels)
    norms, bounds, coefs = (
        _known(state.clip_calls, value) for value in (state.grad_norm, shown_bound(state.norm_bound), state.clip_coef)
    )
    counts = {name: getattr(state, name) for name in ("clipped_count", "nonfinite_count")}
    if isinstance(state.group_clipped_count, tuple):
        numbers = {"grad_norm": norms, "max_norm": bounds, "clip_coef": coefs, **_typical(state.clip_history)}
        return {"calls": state.clip_calls, **numbers, **counts}
    known = {
        "calls": state.clip_calls,
        "grad_norm": _norm_of(norms),
        "max_norm": jnp.full(coefs.shape[:-1], jnp.nan, coefs.dtype),
        "clip_coef": jnp.min(coefs, axis=-1, initial=1),
        **counts,
    }
    each = {"grad_norm": norms, "max_norm": bounds, "clip_coef": coefs, "clipped_count": state.group_clipped_count}
    each |= _typical(state.clip_history)
    for place, label in enumerate(labels if len(labels) <= _MOST_GROUPS else ()):
        known |= {f"{label}/{name}": values[..., place] for name, values in each.items()}
    return known


def _of_guard(state: Any, calls: jax.Array) -> dict[str, jax.Array]:
    counts = {name: getattr(state, name) for name in ("skipped_count", "consecutive_skips", "last_skipped_call")}
    bound = _known(calls, shown_bound(state.above_bound))
    return {**counts, "step": calls - state.skipped_count, "skip_bound": bound, **_typical(state.skip_history)}


def _typical(history: Any) -> dict[str, jax.Array]:
    if not isinstance(history, History):
        return {}
    return {"typical_norm": jnp.where(history.norms_taught > 0, jnp.exp(history.log_mean), jnp.nan)}


def _known(calls: jax.Array, value: jax.Array) -> jax.Array:
    """A number of the last call, which is not known before there is one."""
    calls = jnp.asarray(calls)
    return jnp.where(jnp.expand_dims(calls, range(calls.ndim, jnp.ndim(value))) > 0, value, jnp.nan)


def _norm_of(norms: jax.Array) -> jax.Array:
    top = jnp.max(norms, axis=-1, initial=0)
    safe = jnp.where((top > 0) & (top < jnp.inf), top, 1)
    return safe * jnp.sqrt(jnp.sum(jnp.square(norms / safe[..., None]), axis=-1))


def _groups(states: tuple[Any, ...], paths: tuple[Path, ...], guards: tuple[int | None, ...]) -> list[str]:
    """The name that each state has before those of its metrics, "" for the only one."""
    places = [place for place, state in enumerate(states) if not isinstance(state, SkipState)]
    # Guards alone are told apart as clips are; beside clips, a guard speaks for all of them, or for the group that it is in.
    places = places or [place for place, guard in enumerate(guards) if guard is None]
    names = dict(zip(places, _names([paths[place] for place in places]), strict=True))
    return [names.get(place, "" if len(places) == 1 else _name(path, _KEYS[:1])) for place, path in enumerate(paths)]


_KEYS = (jax.tree_util.DictKey, jax.tree_util.SequenceKey, jax.tree_util.FlattenedIndexKey, jax.tree_util.GetAttrKey)


def _names(paths: list[Path]) -> list[str]:
    """The shortest names that tell some paths apart: of dict keys; with indices; or of all keys."""
    if len(paths) == 1:
        return [""]
    names: list[str] = []
    for kinds in (_KEYS[:1], _KEYS[:3], _KEYS):
        names = [_name(path, kinds) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _name(path: Path, kinds: tuple[type, ...]) -> str:
    return jax.tree_util.keystr(tuple(key for key in path if isinstance(key, kinds)), simple=True, separator="/")
