"""Leaving a bad step out: an update that never happened where a gradient is not finite."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from warmclip_jax._checks import is_traced
from warmclip_jax._gradients._axes import AxisName, check_axis_name
from warmclip_jax._gradients._clipping import coefficient, increment_if, scale_tree
from warmclip_jax._gradients._norm import scaled_norm
from warmclip_jax._gradients._selecting import select_early


class SkipState(NamedTuple):
    """What `skip_nonfinite` keeps: how many updates it left out, and the state of the optimizer it guards."""

    skipped_count: jax.Array  # int32 scalar; stops at its largest value
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
        return SkipState(jnp.zeros((), jnp.int32), guarded.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, SkipState]:
        norm = scaled_norm(updates, axis_name=axis_name)
        zeroed = scale_tree(updates, coefficient(norm, None, "zero"), "zero")
        take = functools.partial(guarded.update, **extra)
        updates, inner_state = update_if(norm.is_finite, take, zeroed, state.inner_state, params)
        return updates, SkipState(increment_if(~norm.is_finite, state.skipped_count), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def apply_gradients(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    params: optax.Params,
    opt_state: optax.OptState,
    grads: optax.Updates,
    **extra: Any,
) -> tuple[Any, Any]:
    """Updates and applies in one: the same numbers as `optimizer.update`, then `optax.apply_updates`.

    A step that `skip_nonfinite` or `pipeline` leaves out adds zeros: the parameters stay as they were (but -0.0 becomes 0.0).

    Args:
      optimizer: any optax optimizer.
      params: parameters.
      opt_state: the optimizer's state.
      grads: gradients, a tree like `params`.
      **extra: more arguments for `optimizer.update`, such as `value`.

    Returns:
      The new parameters, each in its dtype, and the new state: in the order of the arguments, so that with
      `jax.jit(..., donate_argnums=(0, 1))` each result takes the place of the argument it replaces.

    Raises:
      TypeError: when `optimizer` is none, and whatever it raises itself. That `grads` matches `params` is not checked here.

    >>> import jax.numpy as jnp, optax
    >>> import warmclip_jax as wc
    >>> optimizer = optax.sgd(0.5)
    >>> params = jnp.ones(2)
    >>> params, opt_state = wc.apply_gradients(optimizer, params, optimizer.init(params), jnp.ones(2))
    >>> params.tolist()
    [0.5, 0.5]
    """
    updates, opt_state = as_transformation("optimizer", optimizer).update(grads, opt_state, params, **extra)
    return optax.apply_updates(params, updates), opt_state


def as_transformation(name: str, candidate: Any) -> optax.GradientTransformationExtraArgs:
    """`candidate` as a transformation that takes extra arguments. Raises TypeError where it is none."""
    if isinstance(candidate, optax.MultiSteps):
        candidate = candidate.gradient_transformation()
    if not isinstance(candidate, optax.GradientTransformation):
        raise TypeError(
            f"{name} must be an optax.GradientTransformation; got {candidate!r} ({type(candidate).__name__}). "
            "Build it first: optax.adamw(1e-3), not optax.adamw."
        )
    return optax.with_extra_args_support(candidate)


def update_if(condition: jax.Array, take: Callable[..., Any], updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """`take(updates, state, params)` where `condition` holds; elsewhere zero updates, and `state` as it was.

    `updates` should be zero there. What is not finite would not be kept, but a derivative would multiply it by zero.
    """

    def instead(shapes: tuple[Any, Any]) -> tuple[Any, Any]:
        given, returned = jax.tree.structure(state), jax.tree.structure(shapes[1])
        if given != returned:
            raise TypeError(
                f"the optimizer must return a state of the structure it was given, which a step left out keeps; got {returned} "
                f"for {given}. Initialize it with all that it will hold."
            )
        return jax.tree.map(jnp.zeros_like, shapes[0]), state

    if not is_traced(condition):
        return take(updates, state, params) if condition else instead(jax.eval_shape(take, updates, state, params))
    return select_early(condition, take, (updates, state, params), instead)
