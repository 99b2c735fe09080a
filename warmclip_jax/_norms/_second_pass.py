"""Sums of squares on CPUs: plain ones, and a second pass over what is out of their range."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from warmclip_jax._norms._adding import added, in_order, sums_at
from warmclip_jax._norms._range import Range
from warmclip_jax._norms._sums import MIDDLE, Summand, put_together, together

#: At most one part in so many of all entries is put together at a time.
_PARTS = 16
#: At least this many second passes before norms share them: each is a branch to compile.
_BRANCHES = 32


def with_second_passes(
    summands: list[Summand], number: int, dtype: np.dtype
) -> tuple[jax.Array, jax.Array]:
    """The sums of each norm, at the one of the scales 1, `up` and `down` that keeps it in range.

    And these scales. Seldom reads twice.
    """
    most = sum(summand.entries or 0 for summand in summands) // _PARTS
    norms: list[int] = []
    parts = []
    for branch in _branches(summands):
        of_branch = list(dict.fromkeys(norm for summand in branch for norm in summand.norms))
        own = [
            summand._replace(norms=tuple(of_branch.index(norm) for norm in summand.norms))
            for summand in branch
        ]
        parts.append(_second_pass_if_needed(own, len(of_branch), most, dtype))
        norms += of_branch
    totals, scales = zip(*parts, strict=True)
    return in_order(norms, totals, number), in_order(norms, scales, number, missing=1)


def _second_pass_if_needed(
    summands: list[Summand], number: int, most: int, dtype: np.dtype
) -> tuple[jax.Array, jax.Array]:
    (plain,) = sums_at((None,), summands, number, dtype)
    fits, scales = Range.of(dtype).fitting(plain)
    total = lax.cond(
        jnp.all(fits), lambda: plain, lambda: _read_again(summands, scales, most, dtype)
    )
    return total, scales


def _read_again(
    summands: list[Summand], scales: jax.Array, most: int, dtype: np.dtype
) -> jax.Array:
    """The sums at `scales`, one for each norm: in few kernels, and with little memory at a time."""
    read: list[Summand] = []
    sums: list[jax.Array] = []
    for parts in together(summands, MIDDLE, most):
        first, last = parts[0], parts[-1]
        if (
            sums
            and len(parts) > 1
            and first.norms == last.norms
            and first.reduction == read[-1].reduction
        ):
            # A zero that depends on the previous sum, also on one that is NaN: otherwise XLA joins
            # every part before it reads the first.
            zero = (sums[-1] < 0).astype(first.array.dtype)
            parts = [first._replace(array=zero), *parts]
        summand = put_together(parts)
        # One by one: under `vmap` over an explicit mesh a branch takes no array of indices.
        own = jnp.stack([scales[norm] for norm in summand.norms])
        rows = (-1, *(1,) * (summand.array.ndim - 1)) if len(summand.norms) > 1 else ()
        read.append(summand)
        sums += summand.sums((own.reshape(rows),), dtype)
    (total,) = added(read, [sums], scales.size)
    return total


def _branches(summands: list[Summand]) -> list[list[Summand]]:
    """What shares a second pass: all of one norm; of many norms, those of like leaves."""
    of_norms: dict[tuple[int, ...], list[Summand]] = {}
    for summand in summands:
        of_norms.setdefault(summand.norms, []).append(summand)
    sorts: dict[Any, list[list[Summand]]] = {}
    for of_norm in of_norms.values():
        array = of_norm[0].array
        sorts.setdefault((array.dtype, array.shape), []).append(of_norm)
    number = max(1, len(of_norms) // _BRANCHES)
    return [
        [summand for of_norm in sort[start : start + number] for summand in of_norm]
        for sort in sorts.values()
        for start in range(0, len(sort), number)
    ]
