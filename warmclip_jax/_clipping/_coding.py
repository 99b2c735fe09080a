"""Numbers as a state holds them: NaN, inf and the unknown are coded by the largest of a dtype.

A NaN in a state would stop every later step under `jax_debug_nans`, not the step that made it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

#: The codes, as steps of 2**-8 below the end of the range, which bfloat16 tells apart too.
_INF, _NAN, _UNKNOWN = 1, 2, 3
#: Where the numbers end: a finite number past it is kept as this one.
_LARGEST = 4


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Where numbers may be NaN or inf before they are coded: no flag of JAX's stops there."""
    with jax.debug_nans(False), jax.debug_infs(False):
        yield


def unknown(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """What nobody has measured yet, as a state holds it."""
    return jnp.full(shape, _top(_UNKNOWN, dtype), dtype)


def coded(number: Any, like: jax.Array) -> jax.Array:
    """A number as a state holds it, in the dtype and shape of `like`; None for an unknown one."""
    if number is None:
        return unknown(like.shape, like.dtype)
    number = jnp.asarray(number)
    if not jnp.issubdtype(number.dtype, jnp.inexact):
        number = number.astype(like.dtype)
    inf, nan, largest = (_top(steps, like.dtype) for steps in (_INF, _NAN, _LARGEST))
    is_finite = jnp.isfinite(number)
    # Keep NaN out of the branch not taken: its derivative would be NaN too.
    finite = jnp.clip(jnp.where(is_finite, number, 0), -largest, largest).astype(like.dtype)
    infinite = jnp.where(number > 0, inf, -inf)
    code = jnp.where(jnp.isnan(number), nan, infinite).astype(like.dtype)
    return jnp.broadcast_to(jnp.where(is_finite, finite, code), like.shape)


def decoded(number: Any) -> Any:
    """A number from a state as users read it: NaN where it is unknown. NumPy stays NumPy."""
    xp: Any = np if isinstance(number, (np.ndarray, np.generic)) else jnp
    wide, dtype = _wide(number)
    is_infinite = xp.abs(wide) > _top(_INF + 0.5, dtype)
    infinite = xp.where(wide > 0, np.inf, -np.inf)
    shown = xp.where(
        is_infinite, infinite, xp.where(wide > _top(_UNKNOWN + 0.5, dtype), np.nan, wide)
    )
    return shown.astype(number.dtype)


def is_unknown(number: Any) -> Any:
    """Whether a number from a state was never measured."""
    wide, dtype = _wide(number)
    return (wide > _top(_UNKNOWN + 0.5, dtype)) & (wide < _top(_NAN + 0.5, dtype))


def _wide(number: Any) -> tuple[Any, Any]:
    # bfloat16 has no numbers between two codes.
    dtype = number.dtype if number.dtype.itemsize >= 4 else np.dtype(np.float32)
    return number.astype(dtype), dtype


def _top(steps: float, dtype: Any) -> float:
    return float(np.ldexp(256.0 - steps, int(jnp.finfo(dtype).maxexp) - 8))
