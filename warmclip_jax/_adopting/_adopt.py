"""Take over the state of another optimizer, so that a running project changes over without loss."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import keystr

from warmclip_jax._adopting._parts import (
    BESIDE,
    GUARD,
    Name,
    Parts,
    is_moment,
    is_ours,
    parts,
)
from warmclip_jax._clipping import (
    LeafRecord,
    Ring,
    as_transformation,
    check_params,
    from_keys,
    names_of,
)
from warmclip_jax._norms import stops_a_path
from warmclip_jax._values import (
    MAX_COUNT,
    ArgumentTypeError,
    ArgumentValueError,
    Number,
    Scalar,
    is_traced,
    named,
    shortened,
)

_STEP = Number(
    "a whole number, 0 or more",
    "Count the updates made.",
    lambda step: 0 <= step <= MAX_COUNT,
    whole=True,
)
#: The fields that begin at the first call, and what they are of a guard.
_CLOCKS = {"clip_calls": "skip_calls", "skip_calls": "skip_calls", "counts_from": "skip_calls"}
_OF_GROUPS = ("grad_norm", "norm_bound", "clip_coef")
_ONE_RUN = (
    "Pass the params and opt_state of one run; restore a checkpoint with the optimizer that wrote "
    "it."
)


@named
def adopt_state(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    params: optax.Params,
    opt_state: optax.OptState,
    *,
    step: Scalar,
) -> Any:
    """A state of `optimizer` that goes on where the state of another optimizer stopped.

    Moments, counts, running bounds and records are kept; what is new in `optimizer` starts fresh.

    Args:
      optimizer: what to change over to: a `pipeline`, a `skip_nonfinite`, or a chain with a clip.
      params: the parameters that `opt_state` belongs to.
      opt_state: a state of jax or NumPy arrays, or of flax nnx variables: of plain optax, or of
        this package, built with other options.
      step: updates made so far, a whole number. Clocks start there that `opt_state` has none for;
        inside of a `MultiSteps`, at its `gradient_step`. Calls of a guard around a `MultiSteps`
        that had none start at 0.

    Returns:
      A state like `optimizer.init(params)`, in its dtypes. It shares no buffer with `opt_state`:
      either can be donated. What an option of `optimizer` leaves out, such as a record, is dropped;
      so are clocks, hyper-parameters and `apply_if_finite`'s counts that it has no use for. Metrics
      of the last call are NaN where nobody measured it. For a moment the memory of three states is
      used, inside of `jit` that of two.

    Raises:
      TypeError: where moments of one have no counterpart in the other, or where `opt_state` has a
        clip or guard that `optimizer` has not got there: after as many other states, in the same
        `MultiSteps`, `masked`, `partition` and guards.
      TypeError, ValueError: for a concrete `step` that breaks its rule or that `opt_state` does not
        count: as calls less skips, as `gradient_step`, or without both as the `count` of a schedule
        or of Adam. A traced one is not checked, nor are the hyper-parameters of the optimizers.

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
    _check_arguments(params, opt_state)
    target = as_transformation("optimizer", optimizer).init(params)
    wanted, have = parts(_of_arrays(target)), parts(_of_arrays(opt_state))
    _check_whole(wanted, have)
    _check_step(step, have)
    adopted = [_adopted(name, wanted, have, step) for name in wanted]
    return jax.tree.structure(target).unflatten(jax.tree.leaves(adopted))


def _check_arguments(params: Any, opt_state: Any) -> None:
    check_params(params)
    if "opt_state" in (opt_state if isinstance(opt_state, Mapping) else dir(opt_state)):
        raise ArgumentTypeError(
            f"opt_state must be an optimizer's state; got a {type(opt_state).__name__} that holds "
            "one. Pass train_state.opt_state."
        )


def _of_arrays(state: Any) -> Any:
    """A state with the array of each variable, or box around one, instead of it."""

    def is_box(node: Any) -> bool:
        return stops_a_path(node) and jax.tree.structure(node).num_leaves == 1

    return jax.tree.map(lambda node: jax.tree.leaves(node)[0], state, is_leaf=is_box)


def _check_whole(wanted: Parts, have: Parts) -> None:
    """Raises TypeError for a state of this package, or for moments, without a counterpart."""
    owners = {name[:-1] for name in wanted}
    for name, part in have.items():
        if is_ours(name) and name[:-1] not in owners:
            raise ArgumentTypeError(
                f"opt_state{keystr(part.path[:-1])} is the state of a {name[-2]} that optimizer "
                "has not got there: after as many other states, in the same MultiSteps, masked, "
                "partition and guards. Keep it there, or start anew with optimizer.init(params)."
            )
    for name, part in (wanted | have).items():
        if is_moment(name) and (name in wanted) != (name in have):
            kind, where = [*name, "array"][0], keystr(part.path)
            alone = f"no {kind} for its {where}" if name in wanted else f"{kind}, opt_state{where}"
            raise ArgumentTypeError(
                "opt_state must hold the moments that optimizer.init(params) does, and no others; "
                f"got {alone}. {_ONE_RUN}"
            )


def _check_step(step: Any, have: Parts) -> None:
    """Raises ValueError for a concrete `step` that `have` counts nowhere."""
    updates, counts = [], []
    for name, part in have.items():
        kinds = {*name[-4:-2]}
        if is_ours(name) and part.field in ("clip_calls", "skip_calls"):
            skips = have.get((*name[:-2], GUARD, "skipped_count"))
            updates.append(part.value - (skips.value if skips else 0))
        elif part.field == "gradient_step" and "MultiStepsState" in kinds:
            updates.append(part.value)
        elif part.field == "count" and kinds & {BESIDE, "ScaleByAdamState"}:
            counts.append(part.value)
    counts = updates or counts
    if any(map(is_traced, (step, *counts))):
        return
    counts = sorted(map(int, counts), key=lambda count: abs(count - step))
    if counts and step != counts[0]:
        raise ArgumentValueError(
            f"step must be a number of updates that opt_state counts; got {step}, and the nearest "
            f"there is {counts[0]}. Pass the step, params and opt_state of one moment."
        )


def _adopted(name: Name, wanted: Parts, have: Parts, step: Any) -> Any:
    """What `have` holds for a part of `wanted`; else what it is at `step`, or before the first."""
    at, _, fresh = wanted[name]
    field = wanted[name].field
    if field == "group_counts_from":  # New groups are counted from here on.
        calls = _adopted((*name[:-1], "clip_calls"), wanted, have, step)
        fresh = jax.tree.map(lambda start: jnp.full_like(start, calls), fresh)
    # A pipeline's clip goes on from a guard that had none.
    part = have.get(name) or have.get((*name[:-2], GUARD, _CLOCKS.get(field, field)))
    if part is None:
        # Nobody counts what is given to a MultiSteps.
        is_micro = any(each[: len(at) + 1] == (*at, "MultiStepsState") for each in wanted)
        starts = field == "count" or (field in _CLOCKS and not is_micro)
        return jnp.array(_updates(at, have, step), fresh.dtype, copy=True) if starts else fresh
    _, path, given = part
    if not (jax.tree.leaves(fresh) and jax.tree.leaves(given)):
        return fresh  # An option is new, or off.
    if isinstance(fresh, Ring) and len(fresh.ring_counts) != len(given.ring_counts):
        newest = jnp.argsort(-given.ring_counts[:, 0])[: len(fresh.ring_counts)]
        return _moved(fresh, given, np.arange(newest.size), newest)
    labels, theirs = _labels(name, wanted), _labels(name, have)
    if labels and theirs and labels != theirs:
        if isinstance(fresh, LeafRecord) or not {*theirs} <= {*labels}:
            raise ArgumentTypeError(
                f"opt_state{keystr(path)} must be of what optimizer.init(params) has, "
                f"{shortened(labels)}; got {shortened(theirs)}. Keep their names, or start anew "
                "with optimizer.init(params)."
            )
        return _moved(fresh, given, np.array([*map(labels.index, theirs)]), slice(None))
    if field in _OF_GROUPS and np.shape(fresh) != np.shape(given):
        return fresh  # The norm of one group is not that of all.
    return _fitted(fresh, given, path)


def _updates(at: Name, have: Parts, step: Any) -> Any:
    """The updates that the innermost `MultiSteps` around a part has made, or else `step`."""
    counts = [(*at[:length], "gradient_step") for length in range(len(at), 0, -1)]
    return next((have[count].value for count in counts if count in have), step)


def _labels(name: Name, parts: Parts) -> list[str]:
    """The labels of the entries of a part, or the names of leaves; none where there are none."""
    record = parts[name].value if name in parts else ()
    if isinstance(record, LeafRecord):
        return [] if is_traced(record.leaf_names) else names_of(jax.device_get(record))
    part = parts.get((*name[:-1], "group_labels"))
    return from_keys(part.value) if part else []


def _moved(fresh: Any, given: Any, to: Any, rows: Any) -> Any:
    """`fresh` with the `rows` of `given` in the rows `to`; scalars as they are in `given`."""

    def moved(new: Any, old: Any) -> jax.Array:
        old = jnp.array(old, new.dtype, copy=True)
        return new.at[to].set(old[rows]) if new.ndim else old

    return jax.tree.map(moved, fresh, given)


def _fitted(fresh: Any, given: Any, path: Any) -> Any:
    """Copies of `given` in the dtypes of `fresh`. Raises TypeError for other shapes."""
    shapes, theirs = ([*map(np.shape, jax.tree.leaves(each))] for each in (fresh, given))
    if shapes != theirs:
        raise ArgumentTypeError(
            f"opt_state{keystr(path)} must have the shapes of optimizer.init(params), "
            f"{shortened(shapes)}; got {shortened(theirs)}. {_ONE_RUN}"
        )
    return jax.tree.map(
        lambda new, old: jnp.array(old, dtype=jnp.result_type(new), copy=True), fresh, given
    )
