"""The history of a running bound on losses: of numbers, since a loss may be 0 or negative."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from warmclip_jax._clipping._history import dtype_of, kept_unless
from warmclip_jax._clipping._rule import Rule

#: The deviation counts as at least this share of the mean's size: losses may be all equal.
_SMALLEST_SHARE = 0.01
#: The first deviation is this share of the first loss.
_FIRST_SHARE = 0.5
#: No loss counts as further from the mean than this many deviations, to either side.
_REACH = 3.0


class LossHistory(NamedTuple):
    """What a running bound on losses remembers. The deviation, since its square leaves float32."""

    loss_mean: jax.Array  # float32 (float64 with float64 parameters): moving mean
    loss_deviation: jax.Array  # same dtype: moving, as the mean
    losses_taught: jax.Array  # int32: finite losses so far; stops at the largest value


def init_loss_history(shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> LossHistory:
    """The history before the first loss."""
    # A buffer for each field: one shared by two could not be donated.
    return LossHistory(
        jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(shape, jnp.int32)
    )


def loss_bound_from(history: LossHistory, rule: Rule, count: jax.Array) -> jax.Array:
    """`mean + deviations * deviation`, at most the ceiling; inf while nothing is usual yet."""
    dtype = dtype_of(history)
    floor, is_fresh = _floor(history)
    deviations = jnp.asarray(rule.deviations).astype(dtype)
    follows = ~is_fresh & (deviations < jnp.inf)
    margin = jnp.where(follows, deviations, 0) * floor
    return rule.lowered(
        jnp.where(follows, history.loss_mean.astype(dtype) + margin, jnp.inf), count
    )


def loss_taught(
    history: LossHistory, loss: jax.Array, usable: jax.Array, rule: Rule
) -> LossHistory:
    """The history after one more loss; unchanged where that is not usable."""
    dtype = dtype_of(history)
    mean, deviation, seen = (field.astype(dtype) for field in history)
    floor, is_fresh = _floor(history)
    largest = jnp.finfo(dtype).max / 16
    # Keep NaN out of the branch not taken.
    loss, scale = jnp.where(usable, loss.astype(dtype), 0), jnp.where(is_fresh, 1, floor)
    distance = jnp.clip((loss - mean) / scale, -_REACH, _REACH)
    weight = jnp.maximum(jnp.asarray(rule.rate).astype(dtype), 3 / (seen + 3))
    spread = (1 - weight) * ((deviation / scale) ** 2 + weight * distance**2)
    later = scale * jnp.sqrt(jnp.where(is_fresh, 1, spread))
    new = LossHistory(
        loss_mean=jnp.where(is_fresh, loss, mean + weight * distance * scale),
        loss_deviation=jnp.minimum(
            jnp.where(is_fresh, _FIRST_SHARE * jnp.abs(loss), later), largest
        ),
        losses_taught=jnp.asarray(optax.safe_increment(history.losses_taught)),
    )
    return kept_unless(usable, new, history)


def loss_deviations_above(history: LossHistory, loss: jax.Array) -> jax.Array:
    """By how many deviations a loss is above the usual one; 0 below it, and while none is usual."""
    floor, is_fresh = _floor(history)
    scale = jnp.where(is_fresh, 1, floor)
    deviations = (loss.astype(scale.dtype) - history.loss_mean.astype(scale.dtype)) / scale
    return jnp.where(is_fresh | ~jnp.isfinite(loss), 0, jnp.maximum(deviations, 0))


def _floor(history: LossHistory) -> tuple[jax.Array, jax.Array]:
    """The deviation that counts, and whether there is none yet: before the first loss, at zeros."""
    mean, deviation, _ = (field.astype(dtype_of(history)) for field in history)
    floor = jnp.maximum(deviation, _SMALLEST_SHARE * jnp.abs(mean))
    return floor, (history.losses_taught == 0) | (floor == 0)
