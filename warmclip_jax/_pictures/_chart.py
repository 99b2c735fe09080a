"""Draws schedules in characters, for a terminal of 80 columns."""

from collections.abc import Sequence

import numpy as np

from warmclip_jax._pictures._sampling import Sampled

_WIDTH, _HEIGHT, _MARGIN = 80, 18, 10
_GLYPHS = "*o+x#@%&"


def chart(lines: Sequence[Sampled], *, log_scale: bool = False) -> str:
    """Lines of at most 80 characters: the curves, the axes, and for each schedule its warm-up, peak and end."""
    columns = _WIDTH - _MARGIN - 1
    steps = int(lines[0].steps[-1])
    glyphs = [_GLYPHS[place % len(_GLYPHS)] for place in range(len(lines))]
    low, high = _range(np.concatenate([line.values for line in lines]), log_scale)
    # Eight samples in each column, so that a steep line has no gaps.
    where = np.linspace(0, steps, columns * 8).reshape(columns, 8)
    cells: list[list[str]] = [[""] * columns for _ in range(_HEIGHT)]
    for glyph, line in zip(glyphs, lines, strict=True):
        heights = _heights(np.interp(where, line.steps, line.values), low, high, log_scale)
        for column, places in enumerate(heights):
            seen = places[np.isfinite(places)]
            for row in range(round(seen.min()), round(seen.max()) + 1) if seen.size else ():
                cells[_HEIGHT - 1 - row][column] += glyph
    # Curves that meet in a cell take turns from column to column, so that none is hidden.
    grid = (
        "".join(cell[column % len(cell)] if cell else " " for column, cell in enumerate(row))
        for row in cells
    )
    middle = float(np.sqrt(low) * np.sqrt(high)) if log_scale else low / 2 + high / 2
    labels = {0: high, (_HEIGHT - 1) // 2: middle, _HEIGHT - 1: low}
    body = [
        f"{f'{labels[row]:.3g}' if row in labels else '':>{_MARGIN - 1}} |{text}".rstrip()
        for row, text in enumerate(grid)
    ]
    axis = " " * _MARGIN + "+" + "-" * columns
    ends = f"{'0':<{columns // 2}}{steps // 2:<{columns // 2 - len(str(steps)) + 1}}{steps}"
    legend = [_legend(glyph, line) for glyph, line in zip(glyphs, lines, strict=True)]
    return "\n".join([*body, axis, " " * (_MARGIN + 1) + ends, *legend])


def _range(values: np.ndarray, log_scale: bool) -> tuple[float, float]:
    """The values at the bottom and the top: zero is between them, or on a logarithmic scale only positive values count."""
    values = values[np.isfinite(values)]
    if log_scale:
        values = values[values > 0] if np.any(values > 0) else np.ones(1)
    low, high = float(values.min()), float(values.max())
    low = low if log_scale else min(low, 0.0)
    return low, high if high > low else low + (abs(low) or 1.0)


def _heights(values: np.ndarray, low: float, high: float, log_scale: bool) -> np.ndarray:
    """The row of each value, from 0 at the bottom; not finite for values that are not shown."""
    if log_scale:
        with np.errstate(divide="ignore", invalid="ignore"):
            values, low, high = (
                np.where(values >= low, np.log(values), np.nan),
                float(np.log(low)),
                float(np.log(high)),
            )
    return (values - low) / (high - low) * (_HEIGHT - 1)


def _legend(glyph: str, line: Sampled) -> str:
    parts = [f"peak {line.at(line.peak):.3g} at {line.peak}"]
    if line.warmup is not None:
        parts.insert(0, f"warm-up to {line.warmup}")
    if line.end is not None:
        parts.append(f"{line.at(line.end):.3g} from {line.end} on")
    facts = "; ".join(parts)
    room = _WIDTH - len(facts) - 4
    name = line.name if len(line.name) <= room else line.name[: max(room - 3, 1)] + "..."
    return f"{glyph} {name}: {facts}"[:_WIDTH]
