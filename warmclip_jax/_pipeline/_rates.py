"""The learning rate that an optimizer really used: what it asked its schedule for, or the hyper-parameter that it held."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from warmclip_jax._clipping import UNKNOWN
from warmclip_jax._schedules import Schedule, shift

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # jax before 0.10
    from jax.core import get_opaque_trace_state


class _Update:
    """One update of an optimizer, and what its rate last returned meanwhile."""

    def __init__(self, rate: "Rate") -> None:
        self.rate, self.trace, self.heard = rate, get_opaque_trace_state(), UNKNOWN


#: The updates that are running in this thread, the innermost last.
_RUNNING: contextvars.ContextVar[tuple[_Update, ...]] = contextvars.ContextVar(
    "running", default=()
)


class Rate:
    """A learning rate that a pipeline hands to an optimizer, and listens to while the optimizer asks for it."""

    def __init__(self, rate: Any) -> None:
        self._rate = rate

    def handed(self) -> Schedule | Any:
        """What the optimizer is given: a `Schedule` that notes each value it returns, or the number itself."""
        return shift(self._ask, by=0) if callable(self._rate) else self._rate

    def _ask(self, count: Any) -> Any:
        value = self._rate(count)
        update = next((update for update in reversed(_RUNNING.get()) if update.rate is self), None)
        if update is not None:
            # A value traced inside of the optimizer's own `cond` or `scan` cannot leave it.
            update.heard = value if get_opaque_trace_state() == update.trace else UNKNOWN
        return value

    @contextlib.contextmanager
    def listening(self) -> Iterator[Callable[[Any], jax.Array]]:
        """Yields a function from the new inner state to the rate that the update used."""
        update = _Update(self)
        token = _RUNNING.set((*_RUNNING.get(), update))
        try:
            yield lambda inner_state: self._used(update, inner_state)
        finally:
            _RUNNING.reset(token)

    def _used(self, update: _Update, inner_state: Any) -> jax.Array:
        injected, plain = (
            _injected(inner_state),
            jnp.asarray(update.heard if callable(self._rate) else self._rate),
        )
        if len(injected) == 1:
            rate = jnp.asarray(injected[0])
            if _has_plain_part(
                inner_state
            ):  # Two parts of the parameters then have one rate only where both are equal.
                rate = jnp.where(rate == plain.astype(rate.dtype), rate, UNKNOWN)
        else:
            rate = plain if callable(self._rate) or not injected else jnp.asarray(UNKNOWN)
        return rate if rate.shape == () else jnp.asarray(UNKNOWN)


def _injected(state: Any) -> list[Any]:
    """The learning rates that the `optax.inject_hyperparams` in an optimizer hold."""
    nodes = jax.tree.leaves(state, is_leaf=_is_injection)
    return [
        node.hyperparams["learning_rate"]
        for node in nodes
        if "learning_rate" in getattr(node, "hyperparams", ())
    ]


def _has_plain_part(state: Any) -> bool:
    """Whether some parameters, by `optax.partition` or `optax.masked`, have an optimizer whose rate is not injected."""
    nodes = jax.tree.leaves(
        state, is_leaf=lambda node: isinstance(node, optax.MaskedState) or _is_injection(node)
    )
    inside = [node.inner_state for node in nodes if isinstance(node, optax.MaskedState)]
    # An empty state is that of `optax.set_to_zero`: those parameters are frozen.
    return any(
        not _injected(part) or _has_plain_part(part)
        for part in inside
        if not isinstance(part, optax.EmptyState)
    )


def _is_injection(node: Any) -> bool:
    return hasattr(node, "hyperparams")
