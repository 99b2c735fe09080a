"""Clipping by the global norm: one coefficient from one norm, and the transformation that keeps count of it."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from warmclip_jax._checks import Choice, Number, Scalar, is_traced
from warmclip_jax._gradients._axes import AxisName, check_axis_name
from warmclip_jax._gradients._norm import ScaledNorm, accumulation_dtype, is_gradient, scaled_norm
from warmclip_jax._gradients._rounding import unless

#: What a threshold may be: a number, a schedule of the step, or None to measure only.
MaxNorm = Scalar | Callable[[Any], Any] | None

_MAX_NORM = Number(
    "a non-negative number, a schedule, or None", "None or inf measures and never clips.", lambda bound: bound >= 0
)
_NONFINITE = Choice(("propagate", "zero"))


class ClipState(NamedTuple):
    """What `clip_by_global_norm` counts and remembers. All scalars; the counters stop at int32's largest value."""

    clip_calls: jax.Array  # int32: updates seen
    grad_norm: jax.Array  # float32 (float64 with float64 parameters): norm at the last call, before clipping
    clip_coef: jax.Array  # same dtype: what the last call multiplied by, in [0, 1]; NaN where it made everything NaN
    clipped_count: jax.Array  # int32: finite updates that were over the bound
    nonfinite_count: jax.Array  # int32: updates with a NaN or inf entry


class Coefficient(NamedTuple):
    """The number that clips a tree, `rest * factor * rest`: one alone could not reach from a norm of 1e38 to 1e-38."""

    factor: jax.Array  # scalar: 0 or more, or NaN
    rest: jax.Array  # 1, or a power of two below it where `factor` alone would underflow
    is_finite: jax.Array  # whether the norm it was made from is
    unbounded: bool  # known to be 1 where the norm is finite

    @property
    def value(self) -> jax.Array:
        """The coefficient as one number, in [0, 1]."""
        return self.factor * self.rest * self.rest


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
        norm = scaled_norm(updates, axis_name=axis_name)
        coef = coefficient(norm, at_step(bound, state.clip_calls), nonfinite)
        return scale_tree(updates, coef, nonfinite), record(state, norm, coef)

    return optax.GradientTransformationExtraArgs(init_clip_state, update)


def check_max_norm(max_norm: MaxNorm) -> Any:
    """`max_norm` as None (never clip), a callable, a number or a tracer. Raises TypeError or ValueError."""
    if max_norm is None or callable(max_norm):
        return max_norm
    is_real = is_gradient(max_norm) and not np.iscomplexobj(max_norm)
    if is_real and np.ndim(max_norm) == 0 and not is_traced(max_norm) and max_norm == np.inf:
        return None
    return _MAX_NORM.check("max_norm", max_norm)


def at_step(max_norm: Any, step: jax.Array) -> Any:
    """The bound that a checked `max_norm` sets at `step`."""
    return max_norm(step) if callable(max_norm) else max_norm


def init_clip_state(params: optax.Params) -> ClipState:
    """The state before the first call: no norm measured, nothing clipped."""
    dtype = accumulation_dtype(params)
    # A buffer for each field: one shared by two could not be donated.
    clip_calls, clipped_count, nonfinite_count = (jnp.zeros((), jnp.int32) for _ in range(3))
    return ClipState(clip_calls, jnp.zeros((), dtype), jnp.ones((), dtype), clipped_count, nonfinite_count)


def coefficient(norm: ScaledNorm, max_norm: Any, nonfinite: str) -> Coefficient:
    """`max_norm / norm` where the norm is over the bound, 1 where it is not, NaN or 0 where an entry is not finite."""
    one = jnp.ones((), norm.mantissa.dtype)
    numerator, denominator, rest = (one, one, one) if max_norm is None else _fraction(norm, max_norm)
    if nonfinite == "zero":
        numerator = jnp.where(norm.is_finite, numerator, 0)
    # The division comes last: XLA would work out again in the loop of every leaf what is cheaper.
    return Coefficient(_quotient(numerator, denominator), rest, norm.is_finite, unbounded=max_norm is None)


def _fraction(norm: ScaledNorm, max_norm: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`max_norm / norm` as `rest * (numerator / denominator) * rest`, 1 if that is over 1. Nothing in it leaves the range."""
    dtype = norm.mantissa.dtype
    bound = jnp.maximum(jnp.asarray(max_norm).astype(dtype), 0)
    # Not `>`: a NaN on either side has to count as over. A bound of inf never clips, whatever the norm.
    over = ~(norm.mantissa <= bound * norm.scale) & (bound != jnp.inf)
    rise, fall = jnp.maximum(norm.scale, 1), jnp.minimum(norm.scale, 1)
    half, power = (40, 70) if dtype == jnp.float32 else (300, 540)
    # Half of a scale below one goes to the mantissa: all of it could make the bound underflow.
    lift = jnp.where(fall < 1, np.ldexp(1.0, half), 1).astype(dtype)
    # No NaN in a number that is not used: a derivative would meet it.
    denominator = jnp.where(over & norm.is_finite, norm.mantissa * lift, 1)
    far = jnp.where(over, bound * (fall * lift) * rise, 1) / denominator < jnp.finfo(dtype).tiny
    boost, rest = (jnp.where(far, np.ldexp(1.0, exponent), 1).astype(dtype) for exponent in (power, -power))
    numerator = jnp.where(norm.is_finite, bound * (fall * lift * boost) * boost * rise, jnp.nan)
    return jnp.where(over, numerator, 1), denominator, rest


@jax.custom_jvp
def _quotient(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return numerator / denominator


@_quotient.defjvp
def _quotient_jvp(primals: Any, tangents: Any) -> Any:
    # JAX's own derivative divides by the square of the denominator, which leaves the range long before the quotient does.
    (_, denominator), quotient = primals, _quotient(*primals)
    return quotient, (tangents[0] - quotient * tangents[1]) / denominator


def scale_tree(tree: Any, coef: Coefficient, nonfinite: str) -> Any:
    """Every gradient times the coefficient, rounded once to its dtype, and untouched where that is 1."""
    factor, rest, unchanged = coef.factor, coef.rest, coef.value == 1

    def scale(leaf: Any) -> Any:
        if not is_gradient(leaf):
            return leaf
        leaf = jnp.asarray(leaf)
        if coef.unbounded:
            # Bound to what the norm is known by. Otherwise XLA would share the squares, or the converted entries, that norm and
            # optimizer both need: another copy of all gradients.
            leaf, _ = lax.optimization_barrier((leaf, coef.is_finite))

        def scale_real(part: jax.Array) -> jax.Array:
            scaled = part.astype(factor.dtype)
            if not coef.unbounded:
                scaled = scaled * rest * factor * rest
            if nonfinite == "zero":
                scaled = lax.select(coef.is_finite, scaled, jnp.zeros_like(scaled))  # 0 * inf is NaN
            # A product with 1 would flush subnormals and rewrite NaNs.
            return unless(unchanged, part, scaled)

        if coef.unbounded and nonfinite == "propagate":
            return leaf
        # Part by part: as a complex number the coefficient would also multiply by its imaginary zero.
        return lax.complex(scale_real(leaf.real), scale_real(leaf.imag)) if jnp.iscomplexobj(leaf) else scale_real(leaf)

    return jax.tree.map(scale, tree)


def record(state: ClipState, norm: ScaledNorm, coef: Coefficient) -> ClipState:
    """The state after one more call. A non-finite call is counted as such and as nothing else."""
    clipped = norm.is_finite & (coef.value != 1)
    return ClipState(
        clip_calls=increment_if(True, state.clip_calls),
        grad_norm=norm.value.astype(state.grad_norm.dtype),
        clip_coef=coef.value.astype(state.clip_coef.dtype),
        clipped_count=increment_if(clipped, state.clipped_count),
        nonfinite_count=increment_if(~norm.is_finite, state.nonfinite_count),
    )


def increment_if(condition: jax.Array | bool, counter: jax.Array) -> jax.Array:
    """`counter` plus one where `condition` holds, never past its dtype."""
    return jnp.where(condition, optax.safe_increment(counter), counter)
