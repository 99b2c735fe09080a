"""The learning rate that an optimizer really used."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from warmclip_jax._clipping import coded, quietly
from warmclip_jax._schedules import Schedule, shift

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # jax before 0.10
    from jax.core import get_opaque_trace_state


class _Update:
    """One update of an optimizer, and what it asks of its rate meanwhile."""

    def __init__(self, rate: "WatchedRate") -> None:
        self.rate, self.trace = rate, get_opaque_trace_state()
        self.times_asked, self.answer = 0, None


#: The updates that are running in this thread, the innermost last.
_RUNNING: contextvars.ContextVar[tuple[_Update, ...]] = contextvars.ContextVar(
    "running", default=()
)


class WatchedRate:
    """A learning rate that a pipeline gives to an optimizer, and watches while it is asked for."""

    def __init__(self, rate: Any) -> None:
        self._rate = rate

    def for_optimizer(self) -> Schedule | Any:
        """A `Schedule` that notes each value it returns; or the number itself."""
        return shift(self._answer, by=0) if callable(self._rate) else self._rate

    def _answer(self, count: Any) -> Any:
        value = self._rate(count)
        update = next((update for update in reversed(_RUNNING.get()) if update.rate is self), None)
        if update is not None:
            update.times_asked += 1
            # A value traced inside of the optimizer's own `cond` or `scan` cannot leave it.
            update.answer = value if get_opaque_trace_state() == update.trace else None
        return value

    @contextlib.contextmanager
    def watched(self) -> Iterator[Callable[[Any, jax.Array], jax.Array]]:
        """Watches one update.

        Yields a function from the new inner state, and the rate of the update before as the
        optimizer's state holds it, to the rate that this update used, coded likewise.
        """
        update = _Update(self)
        token = _RUNNING.set((*_RUNNING.get(), update))
        try:
            yield lambda inner_state, last: self._used(update, inner_state, last)
        finally:
            _RUNNING.reset(token)

    def _used(self, update: _Update, inner_state: Any, last: jax.Array) -> jax.Array:
        rate = update.answer if callable(self._rate) else self._rate
        injected, scales = _injected(inner_state), _plateau_scales(inner_state)
        is_true: Any = True
        if len(injected) == 1:
            # Two parts of the parameters have one rate only where both are equal.
            is_true = not _has_plain_part(inner_state) or (rate is not None and injected[0] == rate)
            rate = injected[0]
        elif injected and not callable(self._rate):
            rate = None
        if _scheduled(inner_state) > update.times_asked or scales is None:
            rate = None
        if rate is None or jnp.shape(rate) != ():
            return coded(None, last)
        with quietly():
            for scale in scales or ():
                rate = jnp.asarray(rate).astype(last.dtype) * scale.astype(last.dtype)
            return coded(jnp.where(is_true, rate, jnp.nan), last)


def _injected(state: Any) -> list[Any]:
    """The learning rates that the `optax.inject_hyperparams` in an optimizer hold."""
    nodes = jax.tree.leaves(state, is_leaf=_is_injection)
    return [
        node.hyperparams["learning_rate"]
        for node in nodes
        if "learning_rate" in getattr(node, "hyperparams", ())
    ]


def _has_plain_part(state: Any) -> bool:
    """Whether some parameters have an optimizer whose rate is not injected."""
    parts = _parts(state, _is_injection)
    return any(not _injected(part) or _has_plain_part(part) for part in parts)


def _plateau_scales(state: Any) -> list[jax.Array] | None:
    """What each `optax.contrib.reduce_on_plateau` scaled by; None where some are of a part only."""
    if any(_plateau_scales(part) != [] for part in _parts(state)):
        return None
    nodes = jax.tree.leaves(state, is_leaf=_is_plateau)
    return [node.scale for node in nodes if _is_plateau(node)]


def _scheduled(state: Any) -> int:
    """How many schedules an optimizer has asked, by the clocks that it keeps for them."""
    nodes = jax.tree.leaves(state, is_leaf=_is_clock)
    return sum(map(_is_clock, nodes))


def _parts(state: Any, is_leaf: Callable[[Any], bool] = lambda node: False) -> list[Any]:
    """The states of the optimizers of some parameters, by `optax.partition` or `optax.masked`."""
    nodes = jax.tree.leaves(
        state, is_leaf=lambda node: isinstance(node, optax.MaskedState) or is_leaf(node)
    )
    inside = [node.inner_state for node in nodes if isinstance(node, optax.MaskedState)]
    # An empty state is that of `optax.set_to_zero`: those parameters are frozen.
    return [part for part in inside if not isinstance(part, optax.EmptyState)]


def _is_injection(node: Any) -> bool:
    return hasattr(node, "hyperparams")


def _is_plateau(node: Any) -> bool:
    return {"scale", "plateau_count"} <= set(getattr(node, "_fields", ()))


def _is_clock(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)
