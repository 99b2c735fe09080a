"""The last calls, as a ring of rows on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from warmclip_jax._clipping._coding import coded, unknown
from warmclip_jax._clipping._states import counter, increment_if
from warmclip_jax._values import Number

#: The columns of a ring, in order.
COUNTS = ("call", "step", "skipped")
NUMBERS = (
    "value",
    "value_bound",
    "grad_norm",
    "max_norm",
    "skip_bound",
    "clip_coef",
    "learning_rate",
)

#: The rule for the length of a ring.
LENGTH = Number(
    "a whole number from 0 to 1,000,000",
    "It is how many calls are kept on the device; 0 keeps none.",
    lambda n: 0 <= n <= 1_000_000,
    whole=True,
)
#: Of calls in a row that change nothing, so many are written: what led there is worth more.
MOST_IN_A_ROW = 16


class Ring(NamedTuple):
    """The last calls. A new one takes the place of the oldest."""

    ring_counts: jax.Array  # int32 [length, 3]: `COUNTS`; a call of -1 is a row not written yet
    ring_numbers: jax.Array  # float32 [length, 7]: `NUMBERS`, coded
    lost_in_a_row: jax.Array  # int32: calls skipped, or not finite, since the last that was neither


def init_ring(length: int) -> Ring | tuple[()]:
    """An empty ring; () for a length of 0."""
    if not length:
        return ()
    return Ring(
        jnp.full((length, len(COUNTS)), -1, jnp.int32),
        unknown((length, len(NUMBERS)), jnp.float32),
        counter(),
    )


def with_row(ring: Ring | tuple[()], is_lost: jax.Array, **columns: Any) -> Ring | tuple[()]:
    """The ring with one more call, if it is not one of many in a row that are lost.

    Numbers left out are unknown.
    """
    if not ring:
        return ()
    counts, numbers, lost = ring
    lost = jnp.where(is_lost, increment_if(True, lost), 0)
    row_counts = _row([jnp.asarray(columns[name]).astype(jnp.int32) for name in COUNTS])
    row_numbers = _row([coded(columns.get(name), numbers[0, 0]) for name in NUMBERS])
    # A row past the end is not written.
    oldest = jnp.where(lost <= MOST_IN_A_ROW, jnp.argmin(counts[:, 0]), len(counts))
    return Ring(
        counts.at[oldest].set(row_counts, mode="drop"),
        numbers.at[oldest].set(row_numbers, mode="drop"),
        lost,
    )


def _row(values: list[jax.Array]) -> jax.Array:
    # JAX cannot stack what `vmap` maps over an explicit mesh with what it does not map.
    row = values[0]
    for lane, value in enumerate(values):
        row = jnp.where(jnp.arange(len(values)) == lane, value, row)
    return row
