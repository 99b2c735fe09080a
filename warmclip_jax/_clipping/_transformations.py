"""Clipping by the global norm and by groups: a function, and transformations that keep count."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import optax

from warmclip_jax._clipping._bounds import Bound, RunningBound, check_bound
from warmclip_jax._clipping._clip import Clip, ClipState
from warmclip_jax._clipping._coding import quietly
from warmclip_jax._clipping._coefficient import coefficient
from warmclip_jax._clipping._gate import gated
from warmclip_jax._clipping._groups import Groups
from warmclip_jax._clipping._measuring import Measured
from warmclip_jax._clipping._scaling import scale_tree
from warmclip_jax._norms import AxisName, ScaledNorm, accumulation_dtype, scaled_norm
from warmclip_jax._values import Choice, Scalar, broken_rule, named, naming, real_scalar

_NONFINITE = Choice(("propagate", "zero"))


@named
def clip_tree(
    tree: Any, max_norm: Scalar | None, *, norm: Scalar | None = None, axis_name: AxisName = None
) -> tuple[Any, jax.Array]:
    """A tree clipped to a norm of at most `max_norm`, and the norm it had.

    `x * max_norm / max(norm, max_norm)` for every leaf x.

    Args:
      tree: gradients, as in `global_norm`. Leaves that are no gradients come back untouched.
      max_norm: the bound, 0 or more; None or inf measures only.
      norm: the norm of `tree`, if you have it already; otherwise it is computed.
      axis_name: how leaves are sharded, where their types do not tell: see `global_norm`.

    Returns:
      The tree, each leaf in its own shape and dtype: bit for bit as it was when `norm <= max_norm`,
      all NaN when an entry is NaN or inf. And the norm as a scalar, float32 (float64 when there is
      a float64 leaf).

    Raises:
      TypeError, ValueError: for a concrete bound that is negative, NaN or no number, and as
        `global_norm`. A traced bound is not checked: a negative one acts as 0, a NaN makes
        everything NaN. For a `norm` that is no real scalar; that it is the norm is not checked.

    >>> import jax.numpy as jnp
    >>> import warmclip_jax as wc
    >>> clipped, norm = wc.clip_tree({"w": jnp.array([3.0, 4.0])}, 1.0)
    >>> [round(float(x), 6) for x in clipped["w"]], float(norm)
    ([0.6, 0.8], 5.0)

    Source: TensorFlow's `tf.clip_by_global_norm`.
    """
    bound = check_bound("max_norm", max_norm)
    if callable(bound) or isinstance(bound, RunningBound):
        rule = "a number or None, since there is no step and no history here"
        remedy = "Call a schedule with the step first; a running bound needs clip_by_global_norm."
        raise broken_rule("max_norm", rule, max_norm, remedy, TypeError)
    if norm is None:
        scaled = scaled_norm(tree, axis_name=axis_name)
    else:
        number = real_scalar("norm", "a real scalar", norm, "Pass what global_norm returned.")
        scaled = ScaledNorm.of(number.astype(accumulation_dtype(tree)))
    return scale_tree(
        tree, coefficient(Measured(total=scaled, groups=scaled), bound, "propagate")
    ), scaled.value


@named
def clip_by_global_norm(
    max_norm: Bound,
    *,
    axis_name: AxisName = None,
    nonfinite: Literal["propagate", "zero"] = "propagate",
    record_leaves: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """An optax transformation that bounds the global norm of the updates.

    `u * max_norm / max(norm, max_norm)` for every leaf u; the identity, bit for bit, when `norm <=
    max_norm`.

    Args:
      max_norm: the bound, 0 or more: a number; a schedule, which is given the number of earlier
        calls; or a `running_bound`. None or inf measures only and never clips; 0 gives zeros, where
        some systems mean "off" by it.
      axis_name: how leaves are sharded, where their types do not tell: see `global_norm`.
      nonfinite: what an update with a NaN or inf entry becomes: `"propagate"`, NaN in every entry
        (as it is when only measuring); `"zero"`, zeros. Either way it is counted.
      record_leaves: whether the state keeps the norm of each leaf, for `report`: no further read of
        the gradients.

    Returns:
      A transformation with a `ClipState`. Each leaf keeps its shape, dtype and sharding.

    Raises:
      TypeError, ValueError: for a concrete bound that is negative, NaN or no number, for an unknown
        policy, and (when used) as `global_norm`; for a state that is not a `ClipState`. A traced
        bound, or what a schedule returns, is not checked: a negative one acts as 0.

    >>> import jax.numpy as jnp, optax
    >>> import warmclip_jax as wc
    >>> optimizer = optax.chain(wc.clip_by_global_norm(1.0), optax.sgd(0.1))
    >>> params = {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.array([3.0, 4.0])}
    >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
    >>> [round(float(u), 6) for u in updates["w"]], float(state[0].grad_norm)
    ([-0.06, -0.08], 5.0)

    Source: Pascanu et al. 2013, "On the difficulty of training recurrent neural networks",
    algorithm 1; the rule for non-finite gradients is TensorFlow's.
    """
    _NONFINITE.check("nonfinite", nonfinite)
    clip = Clip(max_norm, None, axis_name=axis_name, record_leaves=record_leaves)
    return _transformation("clip_by_global_norm", clip, nonfinite)


@named
def clip_by_group_norm(
    max_norm: Bound | Mapping[str, Bound],
    groups: Groups,
    *,
    axis_name: AxisName = None,
    nonfinite: Literal["propagate", "zero"] = "propagate",
    record_leaves: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """An optax transformation that bounds the norm of each group of leaves by itself.

    `u * max_norm / max(norm, max_norm)` for every leaf u, with the norm and the bound of its group.
    All groups are measured in one read. This changes the direction of the step, which a clip by the
    global norm does not; a clip for each group inside `optax.partition` does the same at the price
    of a record and a policy for each.

    Args:
      max_norm: one rule for every group, or a dict of them by label; each as in
        `clip_by_global_norm`, with a history of its own for each group. A label without leaves is
        no error, so that one config serves several models.
      groups: labels (`str`) as a pytree prefix of the parameters, or a function of the parameters
        that returns one, such as `label_by_path`.
      axis_name: how leaves are sharded, where their types do not tell: see `global_norm`.
      nonfinite: as in `clip_by_global_norm`. A NaN or inf entry anywhere makes the call bad for all
        groups.
      record_leaves: as in `clip_by_global_norm`.

    Returns:
      A transformation with a `ClipState`, whose norms, bounds and coefficients are arrays over the
      labels in sorted order. A group of zeros is not bounded and teaches its history nothing.
      `optax.tree.map_params` does not pass through the state.

    Raises:
      TypeError, ValueError: as `clip_by_global_norm`; for labels that are no `str`, for groups that
        do not match the parameters, and (at `init`) for a leaf without a rule.

    >>> import jax.numpy as jnp
    >>> import warmclip_jax as wc
    >>> groups = wc.label_by_path({"experts": "moe/.*"})
    >>> clip = wc.clip_by_group_norm({"experts": 1.0, "rest": 2.0}, groups)
    >>> grads = {"moe": {"w": jnp.array([3.0, 4.0])}, "head": jnp.array([6.0, 8.0])}
    >>> updates, state = clip.update(grads, clip.init(grads))
    >>> [round(float(u), 6) for u in (*updates["moe"]["w"], *updates["head"])]
    [0.6, 0.8, 1.2, 1.6]
    """
    _NONFINITE.check("nonfinite", nonfinite)
    if groups is None:
        rule = "labels or a function of the parameters"
        raise broken_rule("groups", rule, groups, "Without groups use clip_by_global_norm.")
    clip = Clip(max_norm, groups, axis_name=axis_name, record_leaves=record_leaves)
    return _transformation("clip_by_group_norm", clip, nonfinite)


def _transformation(name: str, clip: Clip, nonfinite: str) -> optax.GradientTransformationExtraArgs:
    @naming(name)
    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, ClipState]:
        with quietly():
            updates = updates if nonfinite == "propagate" else gated(updates)
            call = clip.call(updates, state, params)
            coef = call.coefficient(state.clip_calls, nonfinite)
            return scale_tree(updates, coef), call.after(coef)

    return optax.GradientTransformationExtraArgs(naming(name)(clip.init), update)
