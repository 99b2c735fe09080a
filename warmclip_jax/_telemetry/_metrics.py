"""What the clips, guards and pipelines in an optimizer state know, for programs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from warmclip_jax._clipping import (
    ClipState,
    SkipState,
    decoded,
    from_keys,
    quietly,
)
from warmclip_jax._pipeline import PipelineState
from warmclip_jax._telemetry._finding import Found, Path, calls_of, found, of_this_process
from warmclip_jax._telemetry._plain import as_plain, leaf_metrics
from warmclip_jax._values import (
    ArgumentTypeError,
    ArgumentValueError,
    Choice,
    is_traced,
    named,
)

_OPTION = Choice((False, True))
_OF_SKIPS = ("skipped_count", "consecutive_skips", "last_skipped_call")
#: What a guard knows of every call, and the clip or pipeline inside only of calls that were not
#: skipped.
_OF_EVERY_CALL = (
    "calls",
    "grad_norm",
    "nonfinite_count",
    *_OF_SKIPS,
    "skip_bound",
    "typical_norm",
    "value",
    "value_bound",
    "typical_value",
    "nonfinite_value_count",
)
#: With more groups than this, their numbers would bury the others.
_MOST_GROUPS = 32
#: Fields of states around ours, which are keys of dicts in a checkpoint.
_FIELDS = {"opt_state", "inner_opt_state", "inner_state", "inner_states"}
_KEYS = (
    jax.tree_util.DictKey,
    jax.tree_util.SequenceKey,
    jax.tree_util.FlattenedIndexKey,
    jax.tree_util.GetAttrKey,
)


@named
@quietly()
def metrics(
    opt_state: Any, *, leaves: bool = False, plain: bool = False, prefix: str = ""
) -> dict[str, Any]:
    """What the clips, guards and pipelines in an optimizer state have measured, by name.

    A *call* is one call of `update`, numbered from 0; an *update* is a call that was not skipped.

    Args:
      opt_state: any optimizer state, however nested: of `chain`, `MultiSteps`, `masked`,
        `partition`, `inject_hyperparams`; a flax `TrainState`, an `nnx.Optimizer`; a raw checkpoint
        tree, in which states are dicts of their fields.
      leaves: whether the norms of leaves are among them, where `record_leaves=True` keeps them.
      plain: whether to return Python numbers, None for what is unknown or infinite, which
        `json.dumps(..., allow_nan=False)` takes; lists of them for vmapped states.
      prefix: what each name begins with, such as `"train/"`.

    Returns:
      Scalars, arrays with a run axis for vmapped states. The keys depend only on how the optimizer
      was built; NaN is what nobody measured. Outside of `jit` these are copies, which survive
      donation and later updates; `jax.device_get` makes them numbers.

      - Of the last call: `grad_norm` before clipping; `max_norm` and `skip_bound`, the bounds in
        force, inf for none; `clip_coef`, 0 where skipped; `value` and `value_bound` in a guard or
        pipeline.
      - Of the last update: `learning_rate`, the one that the optimizer used, where `pipeline` built
        it; NaN where some parameters have an injected rate and others a different one.
      - Of a running bound: `typical_norm`, the clip's where it has one, else that of skipping;
        `typical_value`.
      - Counts, int32: `calls`, `step` (updates made, where a pipeline or guard counts them),
        `clipped_count`, `nonfinite_count`, `nonfinite_value_count`, `skipped_count`,
        `consecutive_skips`, `last_skipped_call` (-1: none).
      - Of each group, up to 32: `"<label>/grad_norm"`, `max_norm`, `clip_coef`, `clipped_count`,
        `typical_norm`; without a label, `max_norm` is NaN and `clip_coef` the smallest.
      - Of several clips, under their paths: `"encoder/grad_norm"`.
      - Of each leaf, with `leaves`: `"leaf/<path>/grad_norm"`, `"leaf/<path>/typical_norm"`.

      A guard around a clip or pipeline sees every call, and has the plain names of what both
      measure; what is inside sees those that were not skipped: `"update/grad_norm"` and so on. What
      only the inside has keeps its plain name: there `max_norm`, `clip_coef`, `clipped_count` and
      `learning_rate` belong to `"update/grad_norm"`.

    Raises:
      ValueError: when the state holds nothing of this package, or two metrics would share a name.
      TypeError: for a state of shapes without numbers; in a trace, with `leaves` or `plain`.

    >>> import jax.numpy as jnp, optax
    >>> import warmclip_jax as wc
    >>> optimizer = optax.chain(wc.clip_by_global_norm(1.0), optax.adamw(1e-3))
    >>> list(wc.metrics(optimizer.init(jnp.zeros(2))))
    ['calls', 'clip_coef', 'clipped_count', 'grad_norm', 'max_norm', 'nonfinite_count']
    """
    for name, option in {"leaves": leaves, "plain": plain}.items():
        _OPTION.check(name, option)
    seen = found(opt_state)
    if any(map(is_traced, jax.tree.leaves([each.state for each in seen]))):
        if leaves or plain:
            raise ArgumentTypeError(
                "leaves and plain need numbers, and here they are traced. Return the state from "
                "the compiled function, and call metrics outside."
            )
        return {f"{prefix}{name}": value for name, value in merged(seen).items()}
    states = tuple(jax.tree.map(of_this_process, each.state) for each in seen)
    # One compiled call for all: as single copies they take twenty times as long.
    numbers = _copies(states, tuple((each.path, each.guard) for each in seen))
    if leaves:
        numbers |= leaf_metrics(states, _groups(seen))
    if plain:
        numbers = {name: as_plain(value) for name, value in numbers.items()}
    return {f"{prefix}{name}": value for name, value in numbers.items()}


@functools.partial(jax.jit, static_argnums=1)
def _copies(
    states: tuple[Any, ...], whence: tuple[tuple[Path, int | None], ...]
) -> dict[str, jax.Array]:
    seen = [Found(path, state, guard) for state, (path, guard) in zip(states, whence, strict=True)]
    # Copied, since a number handed through would die with the state that it came from.
    return {name: jnp.copy(value) for name, value in merged(seen).items()}


def merged(seen: list[Found]) -> dict[str, jax.Array]:
    """The metrics of all states, by their names."""
    names: dict[str, jax.Array] = {}
    owners: dict[str, Any] = {}
    for (path, state, guard), group in zip(seen, _groups(seen), strict=True):
        numbers = of_state(state)
        around = guard
        while around is not None:
            # What a guard skips never gets to the clip inside.
            is_skipped = seen[around].state.consecutive_skips > 0
            for name in numbers:
                if name.split("/")[-1] == "clip_coef":
                    numbers[name] = jnp.where(is_skipped, 0, numbers[name])
            around = seen[around].guard
        for name, value in numbers.items():
            full = f"{group}/{name}" if group else name
            if full in names and name in _OF_EVERY_CALL:
                # First come, first served: the clip before a guard, the guard before the clip that
                # it guards.
                if isinstance(state, ClipState) or (
                    guard is None and isinstance(owners[full], ClipState)
                ):
                    continue
                full = f"{group}/update/{name}" if group else f"update/{name}"
            if full in names and not (name == "step" and guard is not None):
                raise ArgumentValueError(
                    f"metrics must have names of their own; two states would both be {full!r}, the "
                    f"second at {jax.tree_util.keystr(path)}. Put them under different keys, in a "
                    "dict or in optax.named_chain."
                )
            names[full], owners[full] = value, state
    return dict(sorted(names.items()))


def of_state(state: Any) -> dict[str, jax.Array]:
    """What one state knows, by name."""
    if isinstance(state, ClipState):
        return _of_clip(state)
    calls = calls_of(state)
    numbers = {name: getattr(state, name) for name in _OF_SKIPS}
    numbers |= {
        "step": calls - state.skipped_count,
        "skip_bound": decoded(state.above_bound),
        "value": decoded(state.last_loss),
        "value_bound": decoded(state.loss_bound),
        "nonfinite_value_count": state.nonfinite_loss_count,
    }
    numbers |= _typical(state.skip_history)
    if state.loss_history:
        mean, _, seen = state.loss_history
        numbers["typical_value"] = jnp.where(seen > 0, mean, jnp.nan)
    if isinstance(state, PipelineState):
        # The clip's usual norm takes the place of the skip's.
        rate = decoded(state.last_learning_rate)
        return {**numbers, **_of_clip(state.clip_state), "learning_rate": rate}
    return {
        **numbers,
        "calls": calls,
        "grad_norm": decoded(state.grad_norm),
        "nonfinite_count": state.nonfinite_count,
    }


def _of_clip(state: ClipState) -> dict[str, jax.Array]:
    each = {
        "grad_norm": decoded(state.grad_norm),
        "max_norm": decoded(state.norm_bound),
        "clip_coef": decoded(state.clip_coef),
    }
    each |= _typical(state.clip_history)
    numbers = {
        "calls": state.clip_calls,
        "clipped_count": state.clipped_count,
        "nonfinite_count": state.nonfinite_count,
    }
    if isinstance(state.group_clipped_count, tuple):
        return each | numbers
    numbers["grad_norm"] = _norm_of(each["grad_norm"])
    numbers["max_norm"] = jnp.full_like(numbers["grad_norm"], jnp.nan)
    numbers["clip_coef"] = jnp.min(each["clip_coef"], axis=-1)
    each["clipped_count"] = state.group_clipped_count
    labels = from_keys(state.group_labels)
    for group, label in enumerate(labels if len(labels) <= _MOST_GROUPS else ()):
        numbers |= {f"{label}/{name}": values[..., group] for name, values in each.items()}
    return numbers


def _typical(history: Any) -> dict[str, jax.Array]:
    """The usual norm that a running bound knows; nothing for another bound."""
    if not history:
        return {}
    return {"typical_norm": jnp.where(history.norms_taught > 0, jnp.exp(history.log_mean), jnp.nan)}


def _norm_of(norms: jax.Array) -> jax.Array:
    """The norm of all groups from the norm of each, whose square may be past the dtype."""
    top = jnp.max(norms, axis=-1, initial=0)
    safe = jnp.where((top > 0) & (top < jnp.inf), top, 1)
    return safe * jnp.sqrt(jnp.sum(jnp.square(norms / safe[..., None]), axis=-1))


def _groups(seen: list[Found]) -> list[str]:
    """The name that each state has before those of its metrics, "" for the only one."""
    clips = [each.path for each in seen if not isinstance(each.state, SkipState)]
    # Guards alone are told apart as clips are; beside clips, a guard speaks for all of them, or for
    # the group that it is in.
    named = clips or [each.path for each in seen if each.guard is None]
    # The shortest names that tell paths apart: of dict keys, without fields that are keys in a
    # checkpoint; of all dict keys; with indices; or of all keys.
    levels = [(_KEYS[:1], _FIELDS), (_KEYS[:1], set()), (_KEYS[:3], set()), (_KEYS, set())]

    def tells_apart(level: tuple[Any, set[str]]) -> bool:
        names = {_name(path, *level) for path in named}
        return len(names) == len(named) and ("" not in names or level[1] != _FIELDS)

    level = next(filter(tells_apart, levels), levels[-1])
    return [
        "" if len(named) == 1 else _name(path, *(level if path in named else levels[0]))
        for path, _, _ in seen
    ]


def _name(path: Path, kinds: tuple[type, ...], without: set[str]) -> str:
    keys = [key for key in path if isinstance(key, kinds)]
    names = (jax.tree_util.keystr((key,), simple=True) for key in keys)
    return "/".join(name for name in names if name not in without)
