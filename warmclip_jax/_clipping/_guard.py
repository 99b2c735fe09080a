"""What decides that a call is skipped, and what a state remembers of that."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._clipping._bounds import check_bound, check_loss_bound
from warmclip_jax._clipping._coding import coded, unknown
from warmclip_jax._clipping._coefficient import is_over
from warmclip_jax._clipping._history import log_of
from warmclip_jax._clipping._limit import OF_LOSSES, Limit
from warmclip_jax._clipping._ring import LENGTH, init_ring, with_row
from warmclip_jax._clipping._states import as_number, counter, increment_if
from warmclip_jax._norms import ScaledNorm


class Guard:
    """The bounds above which calls are skipped. What it remembers stands in fields of a state."""

    def __init__(
        self, prefix: str, above: Any, value_above: Any, record: int, *, skips: bool = True
    ) -> None:
        self.norms = Limit(check_bound(f"{prefix}above", above))
        self.losses = Limit(check_loss_bound(f"{prefix}value_above", value_above), OF_LOSSES)
        self.skips = skips
        self._length = int(LENGTH.check("record", record))
        #: Whether the fields that may be empty hold arrays.
        self.filled = {
            "skip_history": self.norms.learns,
            "loss_history": self.losses.learns,
            "ring": self._length > 0,
        }

    def init(self, dtype: np.dtype) -> dict[str, Any]:
        """The fields before the first call."""
        return {
            "skipped_count": counter(),
            "consecutive_skips": counter(),
            "last_skipped_call": counter(-1),
            "above_bound": unknown((), dtype),
            "last_loss": unknown((), dtype),
            "loss_bound": unknown((), dtype),
            "nonfinite_loss_count": counter(),
            "counts_from": counter(),
            "skip_history": self.norms.init((), dtype),
            "loss_history": self.losses.init((), dtype),
            "ring": init_ring(self._length),
        }

    def call(
        self, state: Any, norm: ScaledNorm, loss: jax.Array | None, call: jax.Array
    ) -> "GuardedCall":
        """One more call, decided by the history before it."""
        above = self.norms.at(state.skip_history, call)
        loss_above = self.losses.at(state.loss_history, call)
        is_finite = norm.is_finite if loss is None else norm.is_finite & jnp.isfinite(loss)
        taken = is_finite
        if above is not None:
            above = jnp.maximum(above, 0)
            taken &= ~is_over(norm, above)
        if loss is not None and loss_above is not None:
            taken &= loss <= jnp.asarray(loss_above).astype(loss.dtype)
        taken = taken if self.skips else jnp.ones_like(is_finite)
        return GuardedCall(self, state, call, norm, loss, above, loss_above, ~is_finite, taken)


class GuardedCall(NamedTuple):
    """One call, decided."""

    guard: Guard
    state: Any  # before the call
    number: jax.Array  # of the call
    norm: ScaledNorm
    loss: jax.Array | None  # None where none was given
    above: Any  # the bounds; None for one that is never reached
    loss_above: Any
    is_bad: jax.Array  # bool: whether the gradient or the loss is not finite
    taken: jax.Array  # bool: whether it is an update

    def after(self, **numbers: Any) -> dict[str, Any]:
        """The fields after the call, taken or not. `numbers` go into the row of the ring."""
        state, taken, loss = self.state, self.taken, self.loss
        loss_is_finite = jnp.bool_(False) if loss is None else jnp.isfinite(loss)
        loss_is_bad = ~loss_is_finite & (loss is not None)
        skipped_count = increment_if(~taken, state.skipped_count)
        above, loss_above = (np.inf if b is None else b for b in (self.above, self.loss_above))
        row = {
            "call": self.number,
            "step": self.number + 1 - skipped_count,
            "skipped": ~taken,
            "value": loss,
            "value_bound": loss_above,
            "grad_norm": as_number(self.norm),
            "skip_bound": above,
            **numbers,
        }
        return {
            "skipped_count": skipped_count,
            "consecutive_skips": jnp.where(taken, 0, increment_if(True, state.consecutive_skips)),
            "last_skipped_call": jnp.where(taken, state.last_skipped_call, self.number),
            "above_bound": coded(row["skip_bound"], state.above_bound),
            "last_loss": coded(loss, state.last_loss),
            "loss_bound": coded(loss_above, state.loss_bound),
            "nonfinite_loss_count": increment_if(loss_is_bad, state.nonfinite_loss_count),
            "counts_from": state.counts_from,
            "skip_history": self.guard.norms.after(state.skip_history, *log_of(self.norm)),
            "loss_history": self.guard.losses.after(
                state.loss_history, jnp.float32(0) if loss is None else loss, loss_is_finite
            ),
            "ring": with_row(state.ring, self.is_bad | ~taken, **row),
        }
