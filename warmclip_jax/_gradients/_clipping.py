"""Clipping by the global norm: the function, and the transformation that keeps count of it."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from warmclip_jax._checks import Choice, Number, Scalar, is_traced
from warmclip_jax._gradients._axes import AxisName, check_axis_name
from warmclip_jax._gradients._coefficient import Coefficient, coefficient, scale_tree
from warmclip_jax._gradients._leaves import accumulation_dtype, is_gradient
from warmclip_jax._gradients._norm import ScaledNorm, scaled_norm
from warmclip_jax._gradients._states import counter, increment_if, like, own

#: What a threshold may be: a number, a schedule of the step, or None to measure only.
MaxNorm = Scalar | Callable[[Any], Any] | None

_MAX_NORM = Number(
    "a non-negative number, a schedule, or None", "None or inf measures and never clips.", lambda bound: bound >= 0
)
_NONFINITE = Choice(("propagate", "zero"))

#: How a state writes a bound that is never reached. It holds no inf of its own, which `jax_debug_infs` would stop at.
NEVER = -1.0


class ClipState(NamedTuple):
    """What `clip_by_global_norm` counts and remembers. All scalars; the counters stop at int32's largest value."""

    clip_calls: jax.Array  # int32: calls seen
    grad_norm: jax.Array  # float32 (float64 with float64 parameters): norm at the last call, before clipping
    norm_bound: jax.Array  # same dtype: the bound in force at the last call; -1 for one that is never reached
    clip_coef: jax.Array  # same dtype: what the last call multiplied by, in [0, 1]; NaN where it made everything NaN
    clipped_count: jax.Array  # int32: finite updates that were over the bound
    nonfinite_count: jax.Array  # int32: calls with a NaN or inf entry


def clip_tree(
    tree: Any, max_norm: Scalar | None, *, norm: Scalar | None = None, axis_name: AxisName = None
) -> tuple[Any, jax.Array]:
    """A tree clipped to a norm of at most `max_norm`, and the norm it had.

    `x * max_norm / max(norm, max_norm)` for every leaf x.

    Args:
      tree: gradients, as in `global_norm`. Leaves that are no gradients come back untouched.
      max_norm: the bound, 0 or more; None or inf measures only.
      norm: the norm of `tree`, if it is known already; otherwise it is computed.
      axis_name: how leaves are sharded, where their types do not tell: see `global_norm`.

    Returns:
      The tree, each leaf in its own shape and dtype: bit for bit as it was when `norm <= max_norm`, all NaN when an entry is
      NaN or inf. And the norm as a scalar, float32 (float64 when there is a float64 leaf).

    Raises:
      TypeError, ValueError: for a concrete bound that is negative, NaN or no number, and as `global_norm`. A traced bound is
        not checked: a negative one acts as 0, a NaN makes everything NaN. That `norm` is the norm is not checked.

    >>> import jax.numpy as jnp
    >>> import warmclip_jax as wc
    >>> clipped, norm = wc.clip_tree({"w": jnp.array([3.0, 4.0])}, 1.0)
    >>> [round(float(x), 6) for x in clipped["w"]], float(norm)
    ([0.6, 0.8], 5.0)

    Source: TensorFlow's `tf.clip_by_global_norm`.
    """
    bound = check_max_norm(max_norm)
    if callable(bound):
        raise TypeError(f"max_norm must be a number or None in clip_tree, which has no step; got {max_norm!r}. Call it first.")
    if norm is None:
        measured = scaled_norm(tree, axis_name=axis_name)
    else:
        measured = ScaledNorm.of(jnp.asarray(norm).astype(accumulation_dtype(tree)))
    return scale_tree(tree, coefficient(measured, bound, "propagate"), "propagate"), measured.value


def clip_by_global_norm(
    max_norm: MaxNorm, *, axis_name: AxisName = None, nonfinite: Literal["propagate", "zero"] = "propagate"
) -> optax.GradientTransformationExtraArgs:
    """An optax transformation that bounds the global norm of the updates.

    `u * max_norm / max(norm, max_norm)` for every leaf u; the identity, bit for bit, when `norm <= max_norm`.

    Args:
      max_norm: the bound, 0 or more; or a schedule, which is given the number of earlier calls; None or inf measures only and
        never clips.
      axis_name: how leaves are sharded, where their types do not tell: see `global_norm`.
      nonfinite: what an update with a NaN or inf entry becomes: `"propagate"`, NaN in every entry (as it is when only
        measuring); `"zero"`, zeros. Either way it is counted.

    Returns:
      A transformation with a `ClipState`. Each leaf keeps its shape, dtype and sharding.

    Raises:
      TypeError, ValueError: for a concrete bound that is negative, NaN or no number, for an unknown policy, and (when used)
        as `global_norm`. A traced bound, or what a schedule returns, is not checked: a negative one acts as 0.

    >>> import jax.numpy as jnp, optax
    >>> import warmclip_jax as wc
    >>> optimizer = optax.chain(wc.clip_by_global_norm(1.0), optax.sgd(0.1))
    >>> params = {"w": jnp.zeros(2)}
    >>> updates, state = optimizer.update({"w": jnp.array([3.0, 4.0])}, optimizer.init(params), params)
    >>> [round(float(u), 6) for u in updates["w"]], float(state[0].grad_norm)
    ([-0.06, -0.08], 5.0)

    Source: Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", algorithm 1; the rule for
    non-finite gradients is TensorFlow's.
    """
    bound = check_max_norm(max_norm)
    check_axis_name(axis_name)
    _NONFINITE.check("nonfinite", nonfinite)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ClipState]:
        del params, extra
        state = own(ClipState, state, updates)
        norm, limit = scaled_norm(updates, axis_name=axis_name), at_step(bound, state.clip_calls)
        coef = coefficient(norm, limit, nonfinite)
        return scale_tree(updates, coef, nonfinite), advance(state, norm, limit, coef)

    return optax.GradientTransformationExtraArgs(init_clip_state, update)


def check_max_norm(max_norm: MaxNorm) -> Any:
    """`max_norm` as None (never clip), a callable, a number or a tracer. Raises TypeError or ValueError."""
    if max_norm is None or callable(max_norm):
        return max_norm
    is_real = is_gradient(max_norm) and not np.iscomplexobj(max_norm)
    if is_real and np.ndim(max_norm) == 0 and not is_traced(max_norm) and max_norm == np.inf:
        return None
    return _MAX_NORM.check("max_norm", max_norm)


def init_clip_state(params: optax.Params) -> ClipState:
    """The state before the first call: no norm measured, nothing clipped."""
    zeros = [jnp.zeros((), accumulation_dtype(params)) for _ in range(3)]
    return ClipState(counter(), *zeros, counter(), counter())


def at_step(max_norm: Any, step: jax.Array) -> Any:
    """The bound that a checked `max_norm` sets at `step`."""
    return max_norm(step) if callable(max_norm) else max_norm


def stored(bound: Any) -> Any:
    """A bound as a state holds it."""
    return NEVER if bound is None else jnp.where(jnp.asarray(bound) == jnp.inf, NEVER, jnp.maximum(bound, 0))


def advance(state: ClipState, norm: ScaledNorm, bound: Any, coef: Coefficient, made: jax.Array | bool = True) -> ClipState:
    """The state after one more call. A call that is not finite is counted as such alone; one that is not `made`, as no clip."""
    value = jnp.where(made, coef.value, 0)
    clipped = norm.is_finite & (value != 1) & made
    return ClipState(
        clip_calls=increment_if(True, state.clip_calls),
        grad_norm=like(state.grad_norm, norm.value),
        norm_bound=like(state.norm_bound, stored(bound)),
        clip_coef=like(state.clip_coef, value),
        clipped_count=increment_if(clipped, state.clipped_count),
        nonfinite_count=increment_if(~norm.is_finite, state.nonfinite_count),
    )
