"""What an optimizer is, and one step of it applied to parameters."""

from typing import Any, TypeVar

import jax
import optax

from warmclip_jax._values import ArgumentTypeError, described, named

Params = TypeVar("Params")


@named
def apply_gradients(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    params: Params,
    opt_state: optax.OptState,
    *,
    grads: optax.Updates,
    **extra: Any,
) -> tuple[Params, Any]:
    """New parameters and optimizer state: `optimizer.update`, then `optax.apply_updates`.

    A skipped step adds zeros: the parameters stay as they were (but -0.0 becomes 0.0).

    Args:
      optimizer: any optax optimizer.
      params: parameters.
      opt_state: the optimizer's state.
      grads: gradients, a tree like `params`. By keyword: two trees of one structure are easily
        swapped.
      **extra: more arguments for `optimizer.update`, such as `value`.

    Returns:
      The new parameters, each in its dtype, and the new state. A parameter whose update is None
      comes back as it is. Results have the order of the arguments, so that with `jax.jit(...,
      donate_argnums=(0, 1))` each reuses the buffer it replaces.

    Raises:
      TypeError: when `optimizer` is no transformation, and whatever it raises itself. Does not
        check that `grads` has the structure of `params`.

    >>> import jax.numpy as jnp, optax
    >>> import warmclip_jax as wc
    >>> optimizer = optax.sgd(0.5)
    >>> params = jnp.ones(2)
    >>> opt_state = optimizer.init(params)
    >>> params, opt_state = wc.apply_gradients(optimizer, params, opt_state, grads=jnp.ones(2))
    >>> params.tolist()
    [0.5, 0.5]
    """
    transformation = as_transformation("optimizer", optimizer)
    updates, opt_state = transformation.update(grads, opt_state, check_params(params), **extra)

    def applied(param: Any, update: Any) -> Any:
        return param if update is None else optax.apply_updates(param, update)

    return jax.tree.map(applied, params, updates, is_leaf=lambda leaf: leaf is None), opt_state


def check_params(params: Any) -> Any:
    """`params`, when no state of an optimizer is among them. Raises TypeError."""
    if any(map(_is_state, jax.tree.leaves(params, is_leaf=_is_state))):
        raise ArgumentTypeError(
            "params must be parameters; got an optimizer's state. The order is (optimizer, params, "
            "opt_state)."
        )
    return params


def _is_state(node: Any) -> bool:
    package, name = type(node).__module__.split(".")[0], type(node).__name__
    # `optax.LookaheadParams` are parameters.
    return package in ("optax", "warmclip_jax") and name.endswith("State")


def as_transformation(name: str, candidate: Any) -> optax.GradientTransformationExtraArgs:
    """`candidate` as a transformation that takes extra arguments; raises where it is none."""
    if isinstance(candidate, optax.MultiSteps):
        candidate = candidate.gradient_transformation()
    if not isinstance(candidate, optax.GradientTransformation):
        raise ArgumentTypeError(
            f"{name} must be an optax.GradientTransformation; got {described(candidate)}. Build it "
            "first: optax.adamw(1e-3), not optax.adamw."
        )
    return optax.with_extra_args_support(candidate)
