"""What one state has measured, as the sentences of a report need it."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from warmclip_jax._clipping import decoded, is_unknown
from warmclip_jax._telemetry._metrics import of_state
from warmclip_jax._telemetry._records import in_order_of_time, ring_of

#: How many leaves, groups or runs of skips are listed; the others are counted.
LISTED = 5


class Account:
    """The numbers, leaves and recorded calls of one state on the host."""

    def __init__(self, state: Any, *, is_guarded: bool = False) -> None:
        self.is_guarded = is_guarded
        self.clip = getattr(state, "clip_state", state)
        self.leaves = self.clip.leaves or None
        #: The norm of the last call, with all its digits; an array over groups.
        norm = getattr(state, "grad_norm", self.clip.grad_norm)
        self.last_norm, self.norm_is_known = decoded(norm), not is_unknown(norm).any()
        self.numbers = {name: value.item() for name, value in of_state(state).items()}
        ring = ring_of(state)
        self.rows = {} if ring is None else _by_call(in_order_of_time(ring))
        #: The calls since which bad and clipped ones are counted, and skipped ones.
        self.counts_from, self.skips_from = int(self.clip.counts_from), int(state.counts_from)

    @property
    def bad_since(self) -> int | None:
        """The call since which all were bad, if they have been for three or more."""
        last = self.numbers["calls"] - 1
        if self.leaves is not None:
            first, is_on = int(self.leaves.bad_call), self.leaves.last_bad_call == last
            return first if is_on and 0 <= first < last - 1 else None
        bad = [call for call, row in self.rows.items() if row["is_bad"]]
        run = bad[-1:]
        while bad and run[0] - 1 in bad:
            run.insert(0, run[0] - 1)
        is_on = bool(run) and run[-1] == max(self.rows)
        return run[0] if is_on and len(run) > 2 else None

    @property
    def skipped(self) -> list[np.ndarray]:
        """The calls that are recorded as skipped, in runs."""
        calls = np.array([call for call, row in self.rows.items() if row["skipped"]], int)
        return np.split(calls, np.flatnonzero(np.diff(calls) > 1) + 1) if calls.size else []

    @property
    def period(self) -> int:
        """How many calls lie between the starts of runs of skips, if always as many; or 0."""
        distances = np.diff([run[0] for run in self.skipped])
        return int(distances[0]) if distances.size > 1 and np.ptp(distances) == 0 else 0

    def when(self, call: int) -> str:
        """A call, and what became of it, as far as that is recorded."""
        numbers = self.numbers
        if row := self.rows.get(call):
            clipped = f", multiplied by {row['clip_coef']:.3g}" if row["clip_coef"] < 1 else ""
            return f"call {call}, step {row['step']}{', skipped' if row['skipped'] else clipped}"
        if call == numbers.get("last_skipped_call"):
            return f"call {call}, step {call + 1 - numbers['skipped_count']}, skipped"
        return f"call {call}"


def _by_call(columns: dict[str, np.ndarray]) -> dict[int, dict[str, Any]]:
    """The rows of a record, in order of time."""
    rows = zip(*columns.values(), strict=True)
    return {int(row[0]): dict(zip(columns, row, strict=True)) for row in rows}


def span(first: int, last: int) -> str:
    """The numbers from the first to the last."""
    return f"{first}" if first == last else f"{first} to {last}"


def listed(texts: Iterable[Any]) -> str:
    """The first few texts, and how many more there are."""
    texts = list(map(str, texts))
    more = len(texts) - LISTED
    return ", ".join(texts[:LISTED]) + (f" and {more} more" if more > 0 else "")


def bound_text(name: str, bound: Any) -> str:
    """A bound in a list of facts."""
    if np.isnan(bound):
        return f"{name} not known"
    return f"{name} {bound:.3g}" if np.isfinite(bound) else f"no {name}"
