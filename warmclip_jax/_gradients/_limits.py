"""The bound of each call, and the history of a running bound."""

from typing import Any

import jax
import numpy as np

from warmclip_jax._gradients._bounds import RunningBound, bound_at, rule_of, stacked
from warmclip_jax._gradients._history import History, bound_from, init_history, log_of, taught
from warmclip_jax._gradients._norm import ScaledNorm


class Limit:
    """A checked bound, or a list of them for groups in order, with its history in the state of its owner."""

    def __init__(self, bound: Any) -> None:
        bounds = bound if isinstance(bound, list) else [bound]
        self._bound = bound
        #: Whether it is known never to be reached.
        self.is_never = all(one is None for one in bounds)
        #: Whether it keeps a history.
        self.learns = any(isinstance(one, RunningBound) for one in bounds)

    def init(self, shape: tuple[int, ...], dtype: np.dtype) -> History | tuple[()]:
        """The history before the first call; () for a bound without one."""
        return init_history(shape, dtype) if self.learns else ()

    def at(self, history: History | tuple[()], count: jax.Array) -> Any:
        """The bound at `count`: None, a number, or an array over groups."""
        if self.is_never:
            return None
        if isinstance(history, History):
            return bound_from(history, self._rule(), count)
        if not isinstance(self._bound, list):
            return bound_at(self._bound, count)
        ceiling = self._rule().ceiling
        return None if ceiling is None else ceiling(count)

    def after(self, history: History | tuple[()], norm: ScaledNorm) -> History | tuple[()]:
        """The history after a call with this norm, whatever was done about it."""
        return taught(history, *log_of(norm), self._rule()) if isinstance(history, History) else ()

    def _rule(self) -> Any:
        return stacked(self._bound) if isinstance(self._bound, list) else rule_of(self._bound)
