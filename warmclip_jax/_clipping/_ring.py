"""The last calls, as a ring of rows on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from warmclip_jax._clipping._states import UNKNOWN, like
from warmclip_jax._values import Number

#: The columns of a ring, in order.
COUNTS = ("call", "step", "skipped")


NUMBERS = ("grad_norm", "max_norm", "skip_bound", "clip_coef", "learning_rate")


#: The rule for the length of a ring.
LENGTH = Number(
    "a whole number, 0 or more",
    "It is how many calls are kept; 0 keeps none.",
    lambda n: n >= 0,
    whole=True,
)


class Ring(NamedTuple):
    """The last calls; call `c` is in row `c % length`."""

    ring_counts: jax.Array  # int32 [length, 3]: `COUNTS`; a call of -1 is a row not written yet
    ring_numbers: jax.Array  # float32 [length, 5]: `NUMBERS`


def init_ring(length: int) -> Ring | tuple[()]:
    """An empty ring; () for a length of 0."""
    if not length:
        return ()
    return Ring(
        jnp.full((length, len(COUNTS)), -1, jnp.int32),
        jnp.zeros((length, len(NUMBERS)), jnp.float32),
    )


def with_row(
    ring: Ring | tuple[()], *, call: jax.Array, step: Any, skipped: Any, **numbers: Any
) -> Ring | tuple[()]:
    """The ring with one more call. Numbers left out are stored as `UNKNOWN`; bounds come as `stored` writes them."""
    if not isinstance(ring, Ring):
        return ()
    row = (call % ring.ring_counts.shape[-2]).astype(jnp.int32)
    counts = jnp.stack([like(ring.ring_counts, value) for value in (call, step, skipped)])
    values = jnp.stack([like(ring.ring_numbers, numbers.get(name, UNKNOWN)) for name in NUMBERS])
    return Ring(ring.ring_counts.at[row].set(counts), ring.ring_numbers.at[row].set(values))
