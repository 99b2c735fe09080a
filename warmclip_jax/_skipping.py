"""Leaving a bad step out: an update that never happened where a gradient is not finite."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from warmclip_jax._axes import AxisName, check_axis_name, manual_axes
from warmclip_jax._checks import is_traced
from warmclip_jax._clipping import increment_if
from warmclip_jax._norm import scaled_norm


class SkipState(NamedTuple):
    """What `skip_nonfinite` keeps: how many updates it left out, and the state of the optimizer it guards."""

    skipped_count: jax.Array  # int32 scalar; stops at its largest value
    inner_state: optax.OptState


class Finish(NamedTuple):
    """What becomes of an update: `done(updates, params)`, and what takes its place where there is none."""

    done: Callable[[optax.Updates, Any], Any]
    instead: Callable[[Any, Any], Any]  # (a tree of the shapes of the result, params) -> result


#: The step ends with the updates; a step left out has zeros.
GIVE_UPDATES = Finish(lambda updates, params: updates, lambda shapes, params: jax.tree.map(jnp.zeros_like, shapes))
#: The step ends with new parameters; a step left out has the old ones.
APPLY_UPDATES = Finish(lambda updates, params: optax.apply_updates(params, updates), lambda shapes, params: params)


class Step(Protocol):
    """An update that is told how to finish, so that it can put its branch around the whole step."""

    def __call__(
        self, finish: Finish, updates: optax.Updates, state: Any, params: Any, extra: dict[str, Any], /
    ) -> tuple[Any, Any]: ...


class Skipping(optax.GradientTransformationExtraArgs):
    """A transformation that leaves steps out, and lets `apply_gradients` put the parameters under the same branch."""

    step: Step

    @classmethod
    def of(cls, init: optax.TransformInitFn, step: Step) -> "Skipping":
        """A transformation whose update is `step`, finished by giving the updates."""

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
            return step(GIVE_UPDATES, updates, state, params, extra)

        skipping = cls(init, update)
        skipping.step = step
        return skipping


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
      A transformation with a `SkipState`. With `apply_gradients`, and as the outermost one, it costs nothing but the norm; its
      `update` alone has to keep two states alive on CPU.

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

    def step(finish: Finish, updates: Any, state: SkipState, params: Any, extra: dict[str, Any]) -> tuple[Any, SkipState]:
        is_finite = scaled_norm(updates, axis_name=axis_name).is_finite
        take = functools.partial(guarded.update, **extra)
        result, inner_state = update_if(is_finite, take, finish, updates, state.inner_state, params)
        return result, SkipState(increment_if(~is_finite, state.skipped_count), inner_state)

    return Skipping.of(init, step)


def apply_gradients(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    params: optax.Params,
    opt_state: optax.OptState,
    grads: optax.Updates,
    **extra: Any,
) -> tuple[Any, Any]:
    """Updates and applies in one: the same numbers as `optimizer.update`, then `optax.apply_updates`.

    Where the outermost transformation leaves bad steps out (`skip_nonfinite`, or `pipeline` with `nonfinite="skip"`), such a
    step returns the parameters and the state exactly as they were, with no copy of either on a good step.

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
    transformation = as_transformation("optimizer", optimizer)
    if isinstance(transformation, Skipping):
        return transformation.step(APPLY_UPDATES, grads, opt_state, params, extra)
    updates, opt_state = transformation.update(grads, opt_state, params, **extra)
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


def update_if(
    condition: jax.Array, take: Callable[..., tuple[Any, Any]], finish: Finish, updates: Any, state: Any, params: Any
) -> tuple[Any, Any]:
    """The finished step `take(updates, state, params)` where `condition` holds; elsewhere `state` stays as it was."""

    def attempt(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = take(updates, state, params)
        return finish.done(updates, params), state

    once = jax.jit(attempt)  # its several uses below share one trace

    def leave_out() -> tuple[Any, Any]:
        shapes, _ = jax.eval_shape(once, updates, state, params)
        return finish.instead(shapes, params), state

    def branch() -> tuple[Any, Any]:
        return lax.cond(condition, lambda: once(updates, state, params), leave_out)

    def select() -> tuple[Any, Any]:
        done, instead = once(updates, state, params), leave_out()
        return jax.tree.map(lambda new, old: jnp.where(condition, new, old), done, instead)

    if not is_traced(condition):
        # Outside of jit the branch is Python's own: compiling one anew in every call would take a second each.
        return attempt(updates, state, params) if condition else leave_out()
    # On CPU a select keeps both states alive and a branch does not; accelerators fuse the select into the step for nothing.
    # Under manual axes the two sides of a branch would also have to agree in the axes that they vary over.
    return select() if manual_axes() else lax.platform_dependent(cpu=branch, default=select)
