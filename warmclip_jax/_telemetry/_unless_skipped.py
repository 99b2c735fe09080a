"""Keep what a skipped step should not have changed: batch statistics, averages, target networks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._clipping import quietly
from warmclip_jax._telemetry._finding import found
from warmclip_jax._values import ArgumentValueError, named


@named
def unless_skipped(opt_state: Any, new: Any, old: Any) -> Any:
    """`new` where the last call of an optimizer was an update, `old` where it was skipped.

    `jax.tree.map(lambda n, o: jnp.where(skipped, o, n), new, old)`, inside of `jit` and outside.

    Args:
      opt_state: the optimizer's state after the call: any state with one guard or pipeline that
        stands outermost, which decides; by run for vmapped states.
      new: a tree of arrays as the step has made it: batch statistics, an average of parameters, a
        target network. Leaves that are no arrays come from here.
      old: the tree before the step, of the same structure and shapes.

    Returns:
      A tree like `new`, in its dtypes.

    Raises:
      ValueError: for a state without a guard or pipeline, or with several side by side; and as
        `jax.tree.map` for trees of other structures.

    >>> import jax.numpy as jnp, optax
    >>> import warmclip_jax as wc
    >>> optimizer = wc.pipeline(optax.sgd, 0.1)
    >>> _, opt_state = optimizer.update(jnp.array([jnp.nan]), optimizer.init(jnp.ones(1)))
    >>> wc.unless_skipped(opt_state, {"mean": jnp.array(7.0)}, {"mean": jnp.array(5.0)})
    {'mean': Array(5., dtype=float32)}
    """
    outermost = [
        each.state
        for each in found(opt_state)
        if each.guard is None and hasattr(each.state, "consecutive_skips")
    ]
    if len(outermost) != 1:
        raise ArgumentValueError(
            "opt_state must hold one guard or pipeline that stands outermost; got "
            f"{len(outermost)}. Pass the part of the state that decides."
        )
    skipped = jnp.asarray(outermost[0].consecutive_skips) > 0
    with quietly():
        return jax.tree.map(lambda made, before: _chosen(skipped, made, before), new, old)


@jax.jit
def _selected(skipped: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    condition = jnp.expand_dims(skipped, range(skipped.ndim, new.ndim))
    return jnp.where(condition, old.astype(new.dtype), new)


def _chosen(skipped: jax.Array, new: Any, old: Any) -> Any:
    is_array = isinstance(new, (jax.Array, np.ndarray, np.generic))
    return _selected(skipped, jnp.asarray(new), jnp.asarray(old)) if is_array else new
