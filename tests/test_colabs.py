"""Each notebook runs from top to bottom, and what it shows is what is committed: its text, its curves, its pictures."""

import base64
import functools
import io
import pathlib
from typing import Any

import matplotlib as mpl
import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest

from tests.notebooks import NOTEBOOKS, codes, curves, executed, pictures, read

# The kernel's own machinery warns about sockets and event loops.
pytestmark = pytest.mark.filterwarnings("ignore")
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


@functools.cache
def run(path: pathlib.Path) -> Any:
    return executed(read(path))


def texts(cell: Any) -> str:
    """What a cell printed or returned as text; a figure's text is only its size."""
    outputs = [output for output in cell.get("outputs", []) if "image/png" not in output.get("data", {})]
    return "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)


def moved(before: Any, after: Any) -> float:
    """How far apart the points of two sets of curves are at most, in fractions of their axes; inf where only one is drawn."""
    if isinstance(before, list) and isinstance(after, list):
        return max(map(moved, before, after), default=0.0) if len(before) == len(after) else np.inf
    if before is None or after is None:
        return 0.0 if before is after else np.inf
    return abs(before - after)


def pixels(png: str) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(png)), format="png")[..., :3]


def software(png: str) -> str:
    """What says in the file itself that it was made by which matplotlib."""
    return base64.b64decode(png).partition(b"Software\0")[2].partition(b",")[0].decode()


def repainted(before: np.ndarray, after: np.ndarray, reach: int = 2) -> float:
    """The share of pixels that have nothing like them within `reach` pixels in the other picture."""
    if before.shape != after.shape:
        return 1.0

    def strangers(picture: np.ndarray, other: np.ndarray) -> np.ndarray:
        shifts = range(-reach, reach + 1)
        near = np.stack([np.roll(other, (down, right), axis=(0, 1)) for down in shifts for right in shifts])
        return np.any((picture < near.min(axis=0) - 0.1) | (picture > near.max(axis=0) + 0.1), axis=-1)

    return float(np.mean(strangers(before, after) | strangers(after, before)))


def test_there_are_notebooks():
    assert {"quickstart", "scaling", "schedules"} <= {path.stem for path in NOTEBOOKS}


@every_notebook
def test_a_notebook_runs_and_prints_what_is_committed(path: pathlib.Path):
    for before, after in zip(codes(read(path)), codes(run(path)), strict=True):
        assert texts(after) == texts(before), before.source
        assert len(pictures(after)) == len(pictures(before)), before.source


@every_notebook
def test_the_curves_in_its_figures_are_those_that_are_committed(path: pathlib.Path):
    for before, after in zip(codes(read(path)), codes(run(path)), strict=True):
        # A hundredth of the axes: what roundings make of a training run, and less than what an eye finds changed.
        assert moved(curves(before), curves(after)) < 0.01, before.source


@every_notebook
def test_the_figures_look_as_committed_under_the_same_matplotlib(path: pathlib.Path):
    for before, after in zip(codes(read(path)), codes(run(path)), strict=True):
        for old, new in zip(pictures(before), pictures(after), strict=True):
            assert software(old).startswith("Matplotlib version")
            # Under another version fonts and layout differ; there the curves of the test above have to do.
            if software(old) == software(new):
                assert repainted(pixels(old), pixels(new)) < 0.002, before.source


def drawn(power: float) -> np.ndarray:
    figure = mpl.figure.Figure(figsize=(7.5, 3.2), dpi=72)
    axes = figure.subplots()
    axes.plot(np.linspace(0, 1, 100), np.linspace(0, 1, 100) ** power)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return pixels(base64.b64encode(file.getvalue()).decode())


def test_a_changed_curve_is_seen_in_pixels_and_in_points():
    assert repainted(drawn(1.0), drawn(1.0)) == 0.0
    assert repainted(drawn(1.0), drawn(1.1)) > 0.002
    assert moved([[[[0.0, 0.5]]]], [[[[0.0, 0.505]]]]) < 0.01 < moved([[[[0.0, 0.5]]]], [[[[0.0, 0.52]]]])
    assert moved([[[[0.0, None]]]], [[[[0.0, 0.5]]]]) == np.inf
    assert moved([[[[0.0, 0.5]]]], [[]]) == np.inf


@every_notebook
def test_a_notebook_is_committed_executed_and_every_cell_ends_in_something_to_see(path: pathlib.Path):
    cells = codes(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.outputs, cell.source
        assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in cell.outputs), cell.source


@every_notebook
def test_a_notebook_installs_the_package_where_it_is_missing(path: pathlib.Path):
    assert "pip install" in codes(read(path))[0].source
