"""The learning rate that an optimizer really used: what it asked its schedule for, or the hyper-parameter that it held."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from warmclip_jax._gradients._states import UNKNOWN
from warmclip_jax._schedules._schedule import Schedule
from warmclip_jax._schedules._transforms import shift

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # jax before 0.10
    from jax.core import get_opaque_trace_state


class _Listeners(threading.local):
    """The updates that are running in this thread, the innermost last."""

    def __init__(self) -> None:
        self.running: list[_Update] = []


class _Update:
    def __init__(self, rate: "Rate") -> None:
        self.rate, self.trace, self.heard = rate, get_opaque_trace_state(), UNKNOWN


_LISTENERS = _Listeners()


class Rate:
    """A learning rate that a pipeline hands to an optimizer, and listens to while the optimizer asks for it."""

    def __init__(self, rate: Any) -> None:
        self._rate = rate

    def handed(self) -> Schedule | Any:
        """What the optimizer is given: a `Schedule` that notes each value it returns, or the number itself."""
        return shift(self._ask, by=0) if callable(self._rate) else self._rate

    def _ask(self, count: Any) -> Any:
        value = self._rate(count)
        for update in _LISTENERS.running[::-1]:
            if update.rate is self:
                # A value traced inside of the optimizer's own `cond` or `scan` cannot leave it.
                update.heard = value if get_opaque_trace_state() == update.trace else UNKNOWN
                break
        return value

    @contextlib.contextmanager
    def listening(self) -> Iterator[Callable[[Any], jax.Array]]:
        """Yields a function from the new inner state to the rate that the update used."""
        update = _Update(self)
        _LISTENERS.running.append(update)
        try:
            yield lambda inner_state: self._used(update, inner_state)
        finally:
            _LISTENERS.running.pop()

    def _used(self, update: _Update, inner_state: Any) -> jax.Array:
        nodes = jax.tree.leaves(inner_state, is_leaf=lambda node: hasattr(node, "hyperparams"))
        held = [node.hyperparams["learning_rate"] for node in nodes if "learning_rate" in getattr(node, "hyperparams", ())]
        if len(held) == 1:
            rate = held[0]
        elif callable(self._rate):
            rate = update.heard
        else:
            rate = UNKNOWN if held else self._rate
        rate = jnp.asarray(rate)
        return rate if rate.shape == () else jnp.asarray(UNKNOWN)
