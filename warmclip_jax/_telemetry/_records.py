"""The last calls that an optimizer state recorded, as NumPy arrays."""

from typing import Any

import jax
import numpy as np

from warmclip_jax._clipping import COUNTS, NUMBERS, Ring, decoded, is_unknown
from warmclip_jax._telemetry._finding import Found, calls_of, found, of_this_process
from warmclip_jax._values import ArgumentTypeError, ArgumentValueError, Number, is_traced, named

_SINCE = Number(
    "a whole number, 0 or more", "It is the number of a call.", lambda n: n >= 0, whole=True
)


@named
def records(opt_state: Any, *, since: int | None = None) -> dict[str, np.ndarray]:
    """The last calls of an optimizer built with `record=N`, in order of time, the newest last.

    Args:
      opt_state: any optimizer state, however nested, or a raw checkpoint of one, as in `metrics`.
        It must hold one recorder. A guard's recorder stands for those of the clips and pipelines
        inside; give that part of the state to read those.
      since: the number of the first call to return: whoever logs every 100 calls sees all of them
        with `since=` the number of calls at the last time. None for all that is kept; of vmapped
        runs, the rows in which any run is at it or later.

    Returns:
      Arrays of one length, ready for a DataFrame; for vmapped states they have the run axes before
      the axis of time. `call`: int32, its number, from 0. `step`: int32, updates made after
      it. `skipped`: bool. And float32: `value`, the loss, NaN where none was given; `value_bound`;
      `grad_norm`, before clipping; `max_norm` and `skip_bound`, the bounds in force, inf for none;
      `clip_coef`, what gradients were multiplied by, 0 where skipped; `learning_rate`, NaN where
      skipped. NaN is what nobody measured: under a guard's recorder `max_norm`, `clip_coef` and
      `learning_rate`; under groups `max_norm`, while `grad_norm` is the global norm and `clip_coef`
      the smallest.

    Raises:
      ValueError: for a state without a recorder, or with several of which none guards the others.
        TypeError: for a traced state, since records are read on the host. In several processes each
        may ask by itself.

    >>> import jax.numpy as jnp, optax
    >>> import warmclip_jax as wc
    >>> optimizer = wc.pipeline(optax.sgd, 0.1, record=2)
    >>> state = optimizer.init(jnp.zeros(2))
    >>> for size in (1.0, jnp.nan, 3.0):
    ...     _, state = optimizer.update(jnp.array([size, 0.0]), state)
    >>> columns = wc.records(state)
    >>> {name: columns[name].tolist() for name in ("call", "step", "skipped", "grad_norm")}
    {'call': [1, 2], 'step': [1, 2], 'skipped': [True, False], 'grad_norm': [nan, 3.0]}
    """
    columns = recorded(on_host(opt_state))
    del columns["is_bad"]
    if since is None:
        return columns
    calls = columns["call"] >= int(_SINCE.check("since", since))
    is_asked = np.any(calls, axis=tuple(range(calls.ndim - 1)))
    return {name: column[..., is_asked] for name, column in columns.items()}


def recorded(seen: list[Found]) -> dict[str, np.ndarray]:
    """What the one recorder in a state kept, and which calls were bad.

    Raises ValueError where there is none, or there are several.
    """

    def is_guarded(each: Found) -> bool:
        return each.guard is not None and (
            ring_of(seen[each.guard].state) is not None or is_guarded(seen[each.guard])
        )

    holders = [each for each in seen if ring_of(each.state) is not None and not is_guarded(each)]
    if not holders:
        raise ArgumentValueError(
            "opt_state must hold a recorder; got one without. Build the optimizer with record=256, "
            "in pipeline or skip_nonfinite, and take the state over with adopt_state."
        )
    if len(holders) > 1:
        paths = " and ".join(repr(jax.tree_util.keystr(holder.path)) for holder in holders)
        raise ArgumentValueError(
            f"opt_state must hold one recorder, or one that guards the others; got {len(holders)}, "
            f"at {paths}. Pass one of these parts of the state."
        )
    return in_order_of_time(holders[0].state.ring)


def on_host(opt_state: Any) -> list[Found]:
    """What `found` gives, with NumPy arrays; TypeError for a traced state."""
    seen = found(opt_state)
    if any(map(is_traced, jax.tree.leaves([each.state for each in seen]))):
        raise ArgumentTypeError(
            "opt_state must hold arrays, since it is read on the host; got a traced state. Return "
            "the state from the compiled function and read it outside."
        )
    return [
        each._replace(
            state=jax.tree.map(lambda leaf: np.asarray(of_this_process(leaf)), each.state)
        )
        for each in seen
    ]


def common_shape(seen: list[Found]) -> tuple[int, ...]:
    """The axes of vmapped runs, which all states have in front; () for one run.

    Raises ValueError where one state has other axes than another.
    """
    shapes = {np.shape(calls_of(each.state)) for each in seen}
    if len(shapes) > 1:
        raise ArgumentValueError(
            f"opt_state must be of one run, or all of it of several; got states with the axes "
            f"{' and '.join(map(str, sorted(shapes)))} in front. Pass one of these parts."
        )
    return shapes.pop()


def check_one_run(seen: list[Found]) -> None:
    """Raises ValueError for the states of several runs."""
    if shape := common_shape(seen):
        raise ArgumentValueError(
            f"opt_state must be of one run; got a state with the axes {shape} in front, as vmap "
            "and pmap make it. Pass one run: jax.tree.map(lambda leaf: leaf[0], opt_state)."
        )


def ring_of(state: Any) -> Ring | None:
    """The ring of a guard or pipeline that records; None for any other state."""
    return getattr(state, "ring", ()) or None


def in_order_of_time(ring: Ring) -> dict[str, np.ndarray]:
    """The rows of a ring on the host that are written, as `records` gives them, and `is_bad`.

    A call is bad where its gradient or its loss is not finite.
    """
    order = np.argsort(np.asarray(ring.ring_counts)[..., :1], axis=-2)
    rows = (np.asarray(ring.ring_counts), np.asarray(ring.ring_numbers))
    counts, numbers = (np.take_along_axis(each, order, axis=-2) for each in rows)
    # Of vmapped runs one may have made fewer calls than another: its first rows then have the call
    # -1, and their numbers are unknown.
    is_written = np.any(counts[..., 0] >= 0, axis=tuple(range(counts.ndim - 2)))
    columns = {name: counts[..., is_written, index] for index, name in enumerate(COUNTS)}
    skipped = columns.pop("skipped") > 0
    numbers = numbers.astype(np.float32)[..., is_written, :]
    columns |= {name: decoded(numbers[..., index]) for index, name in enumerate(NUMBERS)}
    measured = numbers[..., [NUMBERS.index("grad_norm"), NUMBERS.index("value")]]
    is_bad = ~(np.isfinite(decoded(measured)) | is_unknown(measured)).all(axis=-1)
    return columns | {"skipped": skipped, "is_bad": is_bad}
