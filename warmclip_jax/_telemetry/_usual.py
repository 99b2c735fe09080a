"""What was usual at each recorded call: the rule of the running bounds, over the record."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._clipping import (
    STANDS_OUT,
    deviations_above,
    init_history,
    init_loss_history,
    log_of,
    loss_deviations_above,
    loss_taught,
    running_bound,
    taught,
)
from warmclip_jax._norms import ScaledNorm


class Usual(NamedTuple):
    """What was usual before each recorded call: arrays `[calls]` on the host."""

    loss: np.ndarray  # float32: the usual loss; NaN before the first
    norm_is_far: np.ndarray  # bool: whether the norm stood 6 deviations above it
    loss_is_far: np.ndarray  # bool


def usual_of(norms: np.ndarray, losses: np.ndarray) -> Usual:
    """What was usual, from the norms and losses of calls in order; NaN and inf teach nothing."""
    columns = (jnp.asarray(norms, jnp.float32), jnp.asarray(losses, jnp.float32))
    loss, norm_deviations, loss_deviations = map(np.asarray, _scanned(*columns))
    return Usual(loss, norm_deviations >= STANDS_OUT, loss_deviations >= STANDS_OUT)


@jax.jit
def _scanned(norms: jax.Array, losses: jax.Array) -> Any:
    rule = running_bound().rule

    def at_call(histories: Any, numbers: tuple[jax.Array, jax.Array]) -> Any:
        (of_norms, of_losses), (norm, loss) = histories, numbers
        logarithm = log_of(ScaledNorm.of(norm))
        told = (
            jnp.where(of_losses.losses_taught > 0, of_losses.loss_mean, jnp.nan),
            deviations_above(of_norms, *logarithm),
            loss_deviations_above(of_losses, loss),
        )
        after = (
            taught(of_norms, *logarithm, rule),
            loss_taught(of_losses, loss, jnp.isfinite(loss), rule),
        )
        return after, told

    return jax.lax.scan(at_call, (init_history(), init_loss_history()), (norms, losses))[1]
