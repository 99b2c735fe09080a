"""The history of a running bound: its three numbers, its bound, and its update by one more norm."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from warmclip_jax._clipping._rule import Rule
from warmclip_jax._norms import ScaledNorm

#: The deviation counts as at least this: norms that are all equal must not make the bound the norm
#: itself.
_SMALLEST_DEVIATION = 0.1
#: The variance before there is any: the second norm may be exp(deviations / 2) times the first.
_FIRST_VARIANCE = 0.25
#: No norm counts as further from the mean than this many deviations, to either side.
_REACH = 3.0


class History(NamedTuple):
    """What a running bound remembers. Scalars, or arrays over groups."""

    log_mean: jax.Array  # float32 (float64 with float64 gradients): of the norms' logarithms
    log_variance: jax.Array  # same dtype: moving, as the mean
    norms_taught: jax.Array  # int32: finite norms above 0 so far; stops at the largest value


def init_history(shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> History:
    """The history before the first norm."""
    # A buffer for each field: one shared by two could not be donated.
    return History(
        jnp.zeros(shape, dtype),
        jnp.full(shape, _FIRST_VARIANCE, dtype),
        jnp.zeros(shape, jnp.int32),
    )


def bound_from(history: History, rule: Rule, count: jax.Array) -> jax.Array:
    """`exp(mean + deviations * deviation)`, at most the ceiling at `count`.

    Without a ceiling it is inf before the first norm. In the history's dtype, float32 at least. A
    bound past its largest number is inf.
    """
    dtype = dtype_of(history)
    deviations = jnp.asarray(rule.deviations).astype(dtype)
    follows = (history.norms_taught > 0) & (deviations < jnp.inf)
    # No inf in the branch that is not taken: its derivative would be NaN.
    margin = jnp.where(follows, deviations, 0) * _deviation(history.log_variance.astype(dtype))
    bound = jnp.where(follows, jnp.exp(history.log_mean.astype(dtype) + margin), jnp.inf)
    return rule.lowered(bound, count)


def taught(history: History, log_norm: jax.Array, usable: jax.Array, rule: Rule) -> History:
    """The history after one more norm; unchanged where that is not usable."""
    dtype = dtype_of(history)
    mean, variance, seen = (field.astype(dtype) for field in history)
    log_norm = log_norm.astype(dtype)
    reach = _REACH * _deviation(variance)
    distance = jnp.clip(log_norm - mean, -reach, reach)
    # Early norms weigh more than the rate: 3 / 4, 3 / 5, ...
    weight = jnp.maximum(jnp.asarray(rule.rate).astype(dtype), 3 / (seen + 3))
    is_first = seen == 0
    new = History(
        log_mean=jnp.where(is_first, log_norm, mean + weight * distance),
        log_variance=jnp.where(
            is_first, _FIRST_VARIANCE, (1 - weight) * (variance + weight * distance**2)
        ),
        norms_taught=jnp.asarray(optax.safe_increment(history.norms_taught)),
    )
    return kept_unless(usable, new, history)


def deviations_above(history: History, log_norm: jax.Array, usable: jax.Array) -> jax.Array:
    """By how many deviations a norm is above the usual one; 0 below it, and before the first."""
    dtype = dtype_of(history)
    mean, variance, seen = (field.astype(dtype) for field in history)
    deviations = (log_norm.astype(dtype) - mean) / _deviation(variance)
    return jnp.where(usable & (seen > 0), jnp.maximum(deviations, 0), 0)


def log_of(norm: ScaledNorm) -> tuple[jax.Array, jax.Array]:
    """The natural logarithm of a norm, and whether the norm is finite and above 0; if not, 0.

    Also of a norm that its dtype cannot hold.
    """
    # Not `> 0`: XLA may flush a subnormal in one loop and keep it in another. No scaled mantissa is
    # subnormal.
    usable = norm.is_finite & (norm.mantissa >= jnp.finfo(norm.mantissa.dtype).tiny)
    # The scale is 1 in the ordinary case, and its logarithm then exactly 0.
    logarithm = jnp.log(jnp.where(usable, norm.mantissa, 1)) - jnp.log(norm.scale)
    return jnp.where(usable, logarithm, 0), usable


def _deviation(variance: jax.Array) -> jax.Array:
    # Clamped before the root, whose slope at 0 is infinite.
    return jnp.sqrt(jnp.maximum(variance, _SMALLEST_DEVIATION**2))


def dtype_of(history: tuple[jax.Array, ...]) -> np.dtype:
    """What a history is computed in: float32 also where a user has cast it to less."""
    dtype = np.dtype(history[0].dtype)
    return dtype if jnp.finfo(dtype).bits >= 32 else np.dtype(np.float32)


def kept_unless(usable: jax.Array, new: Any, old: Any) -> Any:
    """`new` in the dtypes of `old`, where a number is usable; elsewhere `old`."""
    return jax.tree.map(
        lambda after, before: jnp.where(usable, after.astype(before.dtype), before), new, old
    )
