"""The range of values that a picture shows."""

from collections.abc import Sequence

import numpy as np

from warmclip_jax._pictures._sampling import Sampled
from warmclip_jax._values import broken_rule


def limits(lines: Sequence[Sampled], log_scale: bool) -> tuple[float, float]:
    """The lowest and the highest value to show: all, and 0 too where it is near.

    On a logarithmic scale only positive values count.
    """
    values = np.concatenate([line.values for line in lines])
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    if log_scale:
        if high <= 0:
            rule, remedy = "False where no value is above 0", "There is nothing to draw."
            raise broken_rule("log_scale", rule, True, remedy)
        return min(high, *map(_lowest, lines)), high
    # Zero is near if the values lie further apart than they lie from it.
    if low == high or min(abs(low), abs(high)) < high - low:
        return min(low, 0.0), max(high, 0.0)
    return low, high


def _lowest(line: Sampled) -> float:
    """The lowest positive value to show: most of a way down to 0 takes up no width at all.

    It is a third of what the curve is above for 98 % of its width, at the least.
    """
    evenly = np.interp(np.linspace(0, line.steps[-1], 1000), line.steps, line.values)
    seen = evenly[np.isfinite(evenly) & (evenly > 0)]
    return float(max(seen.min(), np.percentile(seen, 2) / 3)) if seen.size else np.inf
