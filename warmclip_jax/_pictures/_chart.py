"""Draws schedules in characters, for a terminal of 80 columns."""

from collections.abc import Sequence

import numpy as np

from warmclip_jax._pictures._limits import limits
from warmclip_jax._pictures._sampling import Sampled

_WIDTH, _HEIGHT, _MARGIN = 80, 18, 10
_GLYPHS = "*o+x#@%&"


def chart(lines: Sequence[Sampled], *, log_scale: bool = False) -> str:
    """The curves, the axes, and the marks of each schedule, in lines of at most 80 characters."""
    columns = _WIDTH - _MARGIN - 1
    steps = int(lines[0].steps[-1])
    glyphs = [_GLYPHS[index % len(_GLYPHS)] for index in range(len(lines))]
    low, high = limits(lines, log_scale)
    high = high if high > low else low + (abs(low) or 1.0)
    # Eight samples in each column, so that a steep line has no gaps.
    where = np.linspace(0, steps, columns * 8).reshape(columns, 8)
    cells: list[list[str]] = [[""] * columns for _ in range(_HEIGHT)]
    for glyph, line in zip(glyphs, lines, strict=True):
        heights = _heights(np.interp(where, line.steps, line.values), low, high, log_scale)
        for column, rows in enumerate(heights):
            seen = rows[np.isfinite(rows)]
            for row in range(round(seen.min()), round(seen.max()) + 1) if seen.size else ():
                cells[_HEIGHT - 1 - row][column] += glyph
    # Curves that meet in a cell take turns from column to column, so that none is hidden.
    grid = (
        "".join(cell[column % len(cell)] if cell else " " for column, cell in enumerate(row))
        for row in cells
    )
    middle = float(np.sqrt(low) * np.sqrt(high)) if log_scale else low / 2 + high / 2
    # As many digits as tell the ends of a narrow range apart.
    digits = 3 + max(0, int(np.log10(max(abs(low), abs(high)) / (high - low))))
    labels = {0: high, (_HEIGHT - 1) // 2: middle, _HEIGHT - 1: low}
    body = [
        f"{f'{labels[row]:.{digits}g}' if row in labels else '':>{_MARGIN - 1}} |{text}".rstrip()
        for row, text in enumerate(grid)
    ]
    axis = " " * _MARGIN + "+" + "-" * columns
    ends = f"{'0':<{columns // 2}}{steps // 2:<{columns // 2 - len(str(steps)) + 1}}{steps}"
    legend = [_legend(glyph, line) for glyph, line in zip(glyphs, lines, strict=True)]
    return "\n".join([*body, axis, " " * (_MARGIN + 1) + ends, *legend])


def _heights(values: np.ndarray, low: float, high: float, log_scale: bool) -> np.ndarray:
    """The row of each value, from 0 at the bottom; not finite for values that are not shown."""
    if log_scale:
        values = np.log(np.where(values >= low, values, np.nan))
        low, high = float(np.log(low)), float(np.log(high))
    return (values - low) / (high - low) * (_HEIGHT - 1)


def _legend(glyph: str, line: Sampled) -> str:
    warmup, peak, end = line.marks
    parts = [f"warm-up to {warmup}"] if warmup is not None else []
    parts += [f"peak {line.at(peak):.4g} at {peak}"] if peak is not None else []
    parts += [f"{line.at(end):.4g} from {end} on"] if end is not None else []
    facts = "; ".join(parts) or f"{line.values[-1]:.4g} at {line.steps[-1]}"
    room = _WIDTH - len(facts) - 4
    name = " ".join(line.name.split())
    name = name if len(name) <= room else name[: max(room - 3, 1)] + "..."
    return f"{glyph} {name}: {facts}"[:_WIDTH]
