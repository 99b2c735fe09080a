"""A bound in use: it says how far the next number may go, and learns from the one that came."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from warmclip_jax._clipping._bounds import RunningBound
from warmclip_jax._clipping._history import bound_from, init_history, taught
from warmclip_jax._clipping._loss_history import init_loss_history, loss_bound_from, loss_taught
from warmclip_jax._clipping._rule import Rule


class Memory(NamedTuple):
    """How a history of one kind of number begins, bounds the next number, and learns from it."""

    init: Callable[..., Any]
    bound: Callable[..., Any]
    taught: Callable[..., Any]


OF_NORMS = Memory(init_history, bound_from, taught)
OF_LOSSES = Memory(init_loss_history, loss_bound_from, loss_taught)


class Limit:
    """A checked bound, or a list of one for each group. The history stands in its owner's state."""

    def __init__(self, bound: Any, memory: Memory = OF_NORMS) -> None:
        self._bound, self._memory = bound, memory
        bounds = bound if isinstance(bound, list) else [bound]
        self._is_never = all(one is None for one in bounds)
        #: Whether it keeps a history.
        self.learns = any(isinstance(one, RunningBound) for one in bounds)

    def init(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """The history before the first call; () for a bound without one."""
        return self._memory.init(shape, dtype) if self.learns else ()

    def at(self, history: Any, count: jax.Array) -> Any:
        """The bound at `count`: None (never reached), a number, or an array over groups."""
        if self.learns:
            return self._memory.bound(history, self._rule(), count)
        return None if self._is_never else self._rule().ceiling(count)

    def after(self, history: Any, number: Any, usable: Any) -> Any:
        """The history after a call with this number, whether or not the call was skipped."""
        return self._memory.taught(history, number, usable, self._rule()) if self.learns else ()

    def _rule(self) -> Any:
        is_list = isinstance(self._bound, list)
        return Rule.of_groups(self._bound) if is_list else Rule.of(self._bound)
