"""Take over the state of another optimizer, so that a running project changes over without losing moments."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from warmclip_jax._adopting._links import (
    GUARDS,
    Frames,
    Path,
    arrays_beside,
    children,
    fields_of,
    is_chain,
    is_clock,
    is_frame,
    is_state,
    known,
    names,
    peeled,
    place,
    sort_of,
)
from warmclip_jax._clipping import ClipState, SkipState, as_transformation
from warmclip_jax._pipeline import PipelineState
from warmclip_jax._values import MAX_COUNT, ArgumentTypeError, Number, Scalar, described, named

_STEP = Number(
    "a whole number, 0 or more",
    "Count the updates made.",
    lambda step: 0 <= step <= MAX_COUNT,
    whole=True,
)
#: What nobody knows where no state of this package measured the last call: NaN.
_OF_THE_LAST_CALL = ("grad_norm", "norm_bound", "clip_coef", "above_bound")
_OF_EACH_GROUP = ("grad_norm", "norm_bound", "clip_coef", "clip_history", "group_clipped_count")


class _MisfitError(Exception):
    """Two states do not fit. Says where, when the names of their links are the same."""


@named
def adopt_state(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    params: optax.Params,
    opt_state: optax.OptState,
    *,
    step: Scalar,
) -> Any:
    """A state of `optimizer` that goes on where the state of another optimizer stopped.

    Moments and counts are kept, clocks of this package are set to `step`, and what is new in
    `optimizer` starts fresh.

    Args:
      optimizer: what to change over to: a `pipeline`, a chain with `clip_by_global_norm` or
        `skip_nonfinite`, or plain optax.
      params: the parameters that `opt_state` belongs to.
      opt_state: a state of jax or NumPy arrays: of plain optax, in a chain, `apply_if_finite`,
        `MultiSteps`, `inject_hyperparams` or another container; or of this package, built with
        other options.
      step: updates made so far, a whole number. A scheduled `max_norm` goes on from it, and so does
        a learning rate that `opt_state` has no count for. Inside of a `MultiSteps` its
        `gradient_step` counts instead.

    Returns:
      A state like `optimizer.init(params)`, in its dtypes. It shares no buffer with `opt_state`:
      either can be donated. Counts of clipped and skipped calls are kept. Metrics of the last call
      are NaN until the next one where nobody measured them. Gradients that a `MultiSteps` has
      accumulated are dropped where `optimizer` has none. For a moment the memory of three states is
      used, inside of `jit` that of two.

    Raises:
      TypeError: when no part of `opt_state` fits, several do, or moments would be lost. TypeError,
        ValueError: for a concrete `step` that breaks its rule. Does not check a traced `step`, that
        `step` agrees with the counts in `opt_state`, nor the hyper-parameters of the two
        optimizers.

    >>> import jax.numpy as jnp, optax
    >>> import warmclip_jax as wc
    >>> params, schedule = jnp.ones(2), wc.linear_warmup(peak_value=0.1, warmup_steps=4)
    >>> old = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    >>> params, opt_state = wc.apply_gradients(old, params, old.init(params), grads=jnp.ones(2))
    >>> optimizer = wc.pipeline(optax.adamw, schedule, max_norm=1.0)
    >>> opt_state = wc.adopt_state(optimizer, params, opt_state, step=1)
    >>> int(opt_state.inner_state[0].count), int(wc.metrics(opt_state)["step"])
    (1, 1)
    """
    step = _STEP.check("step", step)
    if any(map(is_state, jax.tree.leaves(params, is_leaf=is_state))):
        raise ArgumentTypeError(
            "params must be parameters; got an optimizer's state. The order is (optimizer, params, "
            "opt_state)."
        )
    target = as_transformation("optimizer", optimizer).init(params)
    misfits: list[str] = []
    fitting = [] if opt_state is None else _search(target, opt_state, step, (), misfits)
    # Where `optimizer` has no moments, parts without arrays fit too, and one is as good as another.
    fitting = [found for found in fitting if jax.tree.leaves(found[1])] or fitting[:1]
    if not fitting:
        where = next((f" ({misfit})" for misfit in misfits if misfit), "")
        raise ArgumentTypeError(
            f"opt_state must hold what optimizer.init(params) does, {names(target)}; got "
            f"{names(opt_state)}{where}. Pass the params and opt_state of one run; restore a "
            "checkpoint with the optimizer that wrote it."
        )
    if len(fitting) > 1:
        places = " and ".join(place(path) for path, _, _ in fitting)
        raise ArgumentTypeError(
            f"opt_state must hold one state that fits optimizer; got {places} (ambiguous). Pass "
            "the one that is meant."
        )
    path, _, adopted = fitting[0]
    lost = next(arrays_beside(opt_state, path), None)
    if lost is not None:
        raise ArgumentTypeError(
            f"opt_state must hold nothing that optimizer has no place for, beside {names(target)}; "
            f"got {place(lost)}. Pass only the part to keep, or an optimizer with that link."
        )
    return adopted


def _search(
    target: Any, given: Any, step: Any, path: Path, misfits: list[str]
) -> list[tuple[Path, Any, Any]]:
    """The outermost parts of `given` that fit: where they are, what they are, and what `target` becomes with each."""
    try:
        return [(path, given, _adopted(target, given, step))]
    except _MisfitError as misfit:
        misfits.append(str(misfit))
    return [
        found
        for key, child in children(given).items()
        for found in _search(target, child, step, (*path, key), misfits)
    ]


def _adopted(target: Any, given: Any, step: Any, at: str = "") -> Any:
    """`target` with the links of `given` and the numbers of its frames."""
    (wanted, _), (have, frames) = peeled(target), peeled(given)
    if [*map(type, wanted)] == [optax.MultiStepsState] and optax.MultiStepsState not in map(
        type, have
    ):
        new = wanted[0]._replace(gradient_step=_clock(wanted[0].gradient_step, step))
        links = [new._replace(inner_opt_state=_adopted(new.inner_opt_state, tuple(have), step, at))]
    else:
        links = _kept(wanted, have, step, at)
    return _refilled(target, iter(links), frames, step)


def _refilled(target: Any, links: Iterator[Any], frames: Frames, step: Any) -> Any:
    """`target` with the next of `links` in the place of each of its own, and in each frame what one of its kind knows."""
    if isinstance(target, ClipState):
        return _measured(target, _taken(frames, ClipState))._replace(
            clip_calls=_clock(target.clip_calls, step)
        )
    if not jax.tree.leaves(target):
        return target
    if is_chain(target):
        parts = [_refilled(part, links, frames, step) for part in target]
        # A clip in front of a guard is called in skipped steps too.
        skipped = sum(part.skipped_count for part in parts if isinstance(part, GUARDS))
        return tuple(
            p._replace(clip_calls=p.clip_calls + skipped) if isinstance(p, ClipState) else p
            for p in parts
        )
    if not is_frame(target):
        return next(links)
    if isinstance(target, PipelineState):
        guard, clip = _taken(frames, SkipState), _taken(frames, ClipState)
        state, clip_state = _measured(target, guard), _measured(target.clip_state, clip | guard)
        calls = _clock(clip_state.clip_calls, step) + state.skipped_count
        state = state._replace(clip_state=clip_state._replace(clip_calls=calls))
    elif isinstance(target, SkipState):
        state = _measured(target, _taken(frames, SkipState))
        state = state._replace(skip_calls=_clock(target.skip_calls, step) + state.skipped_count)
    else:
        theirs = _taken(frames, type(target))
        fields = {
            name: _kept_or(_timed(name, fresh, step), theirs.get(name))
            for name, fresh in known(target).items()
        }
        state = target._replace(**fields)
    return state._replace(inner_state=_refilled(target.inner_state, links, frames, step))


def _kept(wanted: list[Any], have: list[Any], step: Any, at: str) -> list[Any]:
    """A link of `have` for each that is wanted. Clocks go on from `step` where `have` has others, or none."""
    moments, clocks = (
        [link for link in have if not is_clock(link)],
        [link for link in have if is_clock(link)],
    )
    if [type(link) for link in wanted if not is_clock(link)] != [*map(type, moments)]:
        raise _MisfitError(
            f"{at} holds {names(tuple(have))}, not {names(tuple(wanted))}" if at else ""
        )
    has_clocks = [type(link) for link in wanted if is_clock(link)] == [*map(type, clocks)]
    counts = iter([clock.count for clock in clocks]) if has_clocks else itertools.repeat(step)
    given = iter(moments)
    return [
        link._replace(count=_clock(link.count, next(counts)))
        if is_clock(link)
        else _fitted(link, next(given), step, at or type(link).__name__)
        for link in wanted
    ]


def _fitted(target: Any, given: Any, step: Any = 0, at: str = "") -> Any:
    """Copies of `given` in the dtypes of `target`. Raises where its nodes, keys or shapes are others."""
    if (
        is_chain(target)
        or is_frame(target)
        or is_clock(target)
        or isinstance(target, ClipState)
        or not jax.tree.leaves(target)
    ):
        return _adopted(target, given, step, at)
    if isinstance(target, optax.MultiStepsState) and isinstance(given, optax.MultiStepsState):
        return optax.MultiStepsState(
            mini_step=_fitted(target.mini_step, given.mini_step),
            gradient_step=_fitted(target.gradient_step, given.gradient_step),
            inner_opt_state=_adopted(
                target.inner_opt_state, given.inner_opt_state, given.gradient_step, at
            ),
            acc_grads=_fitted(target.acc_grads, given.acc_grads, step, f"{at}.acc_grads"),
            skip_state=_kept_or(target.skip_state, given.skip_state),
        )
    wanted, have = children(target), children(given)
    if sort_of(target) != sort_of(given) or [*wanted] != [*have]:
        raise _MisfitError(f"{at} is {described(given)}, not {described(target)}")
    if not wanted:
        return jnp.array(given, dtype=jnp.result_type(target), copy=True)
    fitted = [
        _fitted(wanted[key], have[key], step, at + jax.tree_util.keystr((key,))) for key in wanted
    ]
    return jax.tree.structure(target, is_leaf=lambda node: node is not target).unflatten(fitted)


def _kept_or(fresh: Any, given: Any) -> Any:
    """`given` in the dtypes of `fresh` where it fits, else `fresh`."""
    if isinstance(fresh, dict) and isinstance(given, dict):
        return {key: _kept_or(value, given.get(key)) for key, value in fresh.items()}
    try:
        return _fitted(fresh, given)
    except _MisfitError:
        return fresh


def _measured(state: Any, theirs: dict[str, Any]) -> Any:
    """A clip or guard with each field of `theirs` that fits. Others stay as `init` made them, or are NaN for the last call."""
    fields = fields_of(state)
    labels, their_labels = (sorted(known.get("group_labels", ())) for known in (fields, theirs))
    for name, fresh in fields.items():
        if name in _OF_THE_LAST_CALL:
            fresh = jax.device_put(np.full(fresh.shape, np.nan, fresh.dtype))
        given = theirs.get(name)
        if (
            labels
            and their_labels
            and name in _OF_EACH_GROUP
            and jax.tree.structure(fresh) == jax.tree.structure(given)
        ):
            given = jax.tree.map(functools.partial(_by_label, labels, their_labels), fresh, given)
        fields[name] = _kept_or(fresh, given)
    return state._replace(**fields)


def _by_label(labels: list[str], their_labels: list[str], fresh: Any, given: Any) -> jax.Array:
    """The entry of each label in an array over `their_labels`; that of `fresh` for a new label."""
    place_of = {label: place for place, label in enumerate(their_labels)}
    places = np.array([place_of.get(label, 0) for label in labels])
    return jnp.where(
        np.array([label in place_of for label in labels]), jnp.asarray(given)[places], fresh
    )


def _taken(frames: Frames, kind: type) -> dict[str, Any]:
    """Takes the first frame of a kind out of `frames`, and returns its fields; none where there is no such frame."""
    index = next((index for index, frame in enumerate(frames) if frame[0] is kind), None)
    return {} if index is None else frames.pop(index)[1]


def _clock(like: Any, step: Any) -> jax.Array:
    return jnp.array(step, dtype=like.dtype, copy=True)


def _timed(name: str, fresh: Any, step: Any) -> Any:
    """A field of a frame of optax with its clocks at `step`."""
    if name in ("count", "step"):
        return _clock(fresh, step)

    def at_step(node: Any) -> Any:
        return node._replace(count=_clock(node.count, step)) if is_clock(node) else node

    return jax.tree.map(at_step, fresh, is_leaf=is_clock)
