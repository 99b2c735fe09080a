"""Metrics on the host: the norms of leaves by name, and numbers that any logger takes."""

import math
from typing import Any

import jax
import numpy as np

from warmclip_jax._clipping import decoded, names_of


def leaf_metrics(states: tuple[Any, ...], groups: list[str]) -> dict[str, jax.Array]:
    """The last and the usual norm of each leaf of each state that records them, by name."""
    numbers: dict[str, Any] = {}
    for state, group in zip(states, groups, strict=True):
        record = getattr(state, "clip_state", state).leaves
        if not record:
            continue
        history = jax.device_get(record.leaf_history)
        is_usual = history.norms_taught > 0
        usual = np.where(is_usual, np.exp(np.where(is_usual, history.log_mean, 0)), np.nan)
        told = {"grad_norm": decoded(np.asarray(record.leaf_norms)), "typical_norm": usual}
        for leaf, name in enumerate(names_of(record)):
            for kind, norms in told.items():
                full = f"{group and f'{group}/'}leaf/{name}/{kind}"
                # The record of a guard is of every call, and so comes before that of a clip inside.
                numbers.setdefault(full, norms[..., leaf].astype(np.float32))
    return jax.device_put(numbers)


def as_plain(value: Any) -> Any:
    """A Python number, or lists of them; None for NaN and inf."""
    return _without_nan(np.asarray(value).tolist())


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return value if math.isfinite(value) else None
