"""Skipping a bad step: an update that never happened."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from warmclip_jax._gradients._applying import as_transformation
from warmclip_jax._gradients._axes import AxisName, check_axis_name
from warmclip_jax._gradients._coefficient import coefficient, scale_tree
from warmclip_jax._gradients._leaves import accumulation_dtype
from warmclip_jax._gradients._norm import scaled_norm
from warmclip_jax._gradients._selecting import choose
from warmclip_jax._gradients._states import counter, increment_if, like, own


class SkipState(NamedTuple):
    """What `skip_nonfinite` keeps. Scalars, whose counters stop at int32's largest value, and the state it guards."""

    skip_calls: jax.Array  # int32: calls seen
    grad_norm: jax.Array  # float32 (float64 with float64 parameters): norm at the last call
    skipped_count: jax.Array  # int32: calls skipped
    consecutive_skips: jax.Array  # int32: calls skipped since the last that was not
    last_skipped_call: jax.Array  # int32: its number, from 0; -1 before there is one
    nonfinite_count: jax.Array  # int32: calls with a NaN or inf entry
    inner_state: optax.OptState


def skip_nonfinite(
    inner: optax.GradientTransformation | optax.MultiSteps, *, axis_name: AxisName = None
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that leaves out every step whose gradient has a NaN or inf entry.

    Such a step returns zero updates, leaves the state of `inner` (moments, step counts, accumulated gradients) exactly as it
    was, and is counted. The steps after it are those of a run in which it never came.

    Args:
      inner: the transformation to guard, or an `optax.MultiSteps`. Put the skip outside of `MultiSteps`: inside, the NaN has
        already been added to what is accumulated.
      axis_name: how gradients are sharded, where their types do not tell: see `global_norm`.

    Returns:
      A transformation with a `SkipState`. In a compiled step that donates its state it costs the norm and keeps no copy: each
      number that `inner` makes is selected where it is made (after it, with a copy, where `inner` is jitted by itself). So
      `inner` runs in a bad step too, on zeros, and nothing of it is kept but what it prints or calls back.

    Raises:
      TypeError: when `inner` is no transformation. ValueError: when used, as `global_norm`.

    >>> import jax.numpy as jnp, optax
    >>> import warmclip_jax as wc
    >>> optimizer = wc.skip_nonfinite(optax.adam(0.1))
    >>> params = jnp.ones(2)
    >>> updates, state = optimizer.update(jnp.array([1.0, jnp.nan]), optimizer.init(params), params)
    >>> updates.tolist(), int(state.skipped_count), int(optax.tree.get(state.inner_state, "count"))
    ([0.0, 0.0], 1, 0)

    Source: the skipped step of mixed-precision training, Micikevicius et al. 2018, section 3.2.
    """
    check_axis_name(axis_name)
    guarded = as_transformation("inner", inner)

    def init(params: optax.Params) -> SkipState:
        norm = jnp.zeros((), accumulation_dtype(params))
        return SkipState(
            skip_calls=counter(), grad_norm=norm, **no_skips(), nonfinite_count=counter(), inner_state=guarded.init(params)
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, SkipState]:
        state = own(SkipState, state, updates)
        norm = scaled_norm(updates, axis_name=axis_name)
        zeroed = scale_tree(updates, coefficient(norm, None, "zero"), "zero")
        take = functools.partial(guarded.update, **extra)
        arguments = (zeroed, state.inner_state, params)
        updates, inner_state = choose(norm.is_finite, take, arguments, before=(state.inner_state,))
        return updates, SkipState(
            skip_calls=increment_if(True, state.skip_calls),
            grad_norm=like(state.grad_norm, norm.value),
            **counted(state, state.skip_calls, ~norm.is_finite),
            nonfinite_count=increment_if(~norm.is_finite, state.nonfinite_count),
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def counted(state: Any, call: jax.Array, is_skipped: jax.Array | bool) -> dict[str, jax.Array]:
    """The fields that count skips, after one more call."""
    return {
        "skipped_count": increment_if(is_skipped, state.skipped_count),
        "consecutive_skips": jnp.where(is_skipped, increment_if(True, state.consecutive_skips), 0).astype(
            state.consecutive_skips.dtype
        ),
        "last_skipped_call": jnp.where(is_skipped, like(state.last_skipped_call, call), state.last_skipped_call),
    }


def no_skips() -> dict[str, jax.Array]:
    """The same fields before the first call."""
    return {"skipped_count": counter(), "consecutive_skips": counter(), "last_skipped_call": counter(-1)}
