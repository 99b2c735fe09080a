"""The lines of a report about many runs, of a vmapped state: one a run, the worst first."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from warmclip_jax._telemetry._finding import Found
from warmclip_jax._telemetry._metrics import merged

#: How many runs are listed; the others are counted.
_LISTED = 20
_FACTS = {
    "calls": "calls",
    "skipped_count": "skipped",
    "consecutive_skips": "skipped in a row",
    "nonfinite_count": "with NaN or inf",
    "nonfinite_value_count": "with a value of NaN or inf",
    "clipped_count": "clipped",
    "value": "value",
    "grad_norm": "norm",
    "learning_rate": "learning rate",
}


def lines_of_runs(seen: list[Found], shape: tuple[int, ...]) -> Iterator[str]:
    """The lines for states on the host that have the axes `shape` in front."""
    numbers = {name: np.asarray(value) for name, value in merged(seen).items()}

    def of(run: tuple[int, ...], name: str) -> Any:
        """A number of a run; of several clips that have none together, the largest."""
        names = [name] if name in numbers else [n for n in numbers if n.endswith(f"/{name}")]
        return max((numbers[each][run].item() for each in names), default=0)

    def trouble(run: tuple[int, ...]) -> list[float]:
        counts = "consecutive_skips", "nonfinite_count", "skipped_count"
        return [
            *(of(run, name) for name in counts),
            np.nan_to_num(of(run, "grad_norm"), nan=np.inf),
        ]

    runs = sorted(np.ndindex(shape), key=trouble, reverse=True)
    yield f"Runs: {len(runs)}, the worst first. What is 0 is left out."
    for run in runs[:_LISTED]:
        facts = {text: of(run, name) for name, text in _FACTS.items()}
        shown = ", ".join(
            f"{text} {number if isinstance(number, int) else f'{number:.3g}'}"
            for text, number in facts.items()
            if number and np.isfinite(number)
        )
        yield f"  Run {_index(run)}: {shown}."
    if len(runs) > _LISTED:
        yield f"  And {len(runs) - _LISTED} more."
    one = f"jax.tree.map(lambda leaf: leaf[{_index(runs[0])}], opt_state)"
    yield f"More of one run: wc.report({one})."


def _index(run: tuple[int, ...]) -> str:
    return ", ".join(map(str, run))
