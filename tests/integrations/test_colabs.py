"""Each notebook runs from top to bottom, and what it shows is what is committed: its text, its
curves, its pictures.
"""

import base64
import io
import os
import pathlib
from typing import Any

import jax
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.integrations import notebooks
from tests.integrations.notebooks import (
    NOTEBOOKS,
    PICTURE,
    codes,
    curves,
    executed,
    has_devices_of_its_own,
    picture,
    pictures,
    printed,
    read,
    says_the_same,
    texts,
)

# The kernel's own machinery warns about sockets and event loops.
pytestmark = pytest.mark.filterwarnings("ignore")
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


@pytest.fixture(scope="module")
def pairs() -> dict[str, Any]:
    """Notebooks as they are committed and as they are run anew, but those with devices of their own."""
    committed = {path.stem: read(path) for path in NOTEBOOKS}
    before = {stem: each for stem, each in committed.items() if not has_devices_of_its_own(each)}
    return dict(
        zip(before, zip(before.values(), executed(*before.values()), strict=True), strict=True)
    )


def distances(before: Any, after: Any) -> list[float]:
    """How far apart each number of two sets of curves is, in fractions of the axes; inf where only
    one has it.
    """
    if isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            return [np.inf]
        return [
            distance for pair in zip(before, after, strict=True) for distance in distances(*pair)
        ]
    return (
        [0.0 if before is after else np.inf]
        if before is None or after is None
        else [abs(before - after)]
    )


def moved(before: Any, after: Any) -> float:
    """The share of numbers that changed by more than roundings do to a training run, and than an
    eye finds the same.
    """
    return float(np.mean(np.array([*distances(before, after), 0.0]) > 0.01))


def is_chaotic(cell: Any) -> bool:
    """Whether the cell is tagged as one with some runs, a quarter at most, that each rounding sends
    another way.
    """
    return "chaotic" in cell.metadata.get("tags", [])


def pixels(png: str) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(png)), format="png")[..., :3]


def software(png: str) -> str:
    """What says in the file itself that it was made by which matplotlib."""
    return base64.b64decode(png).partition(b"Software\0")[2].partition(b",")[0].decode()


def repainted(before: np.ndarray, after: np.ndarray, reach: int = 2) -> float:
    """The share of pixels that have nothing like them within `reach` pixels in the other picture."""
    if before.shape != after.shape:
        return 1.0
    if np.array_equal(before, after):
        return 0.0

    def strangers(picture: np.ndarray, other: np.ndarray) -> np.ndarray:
        shifts = range(-reach, reach + 1)
        near = np.stack(
            [np.roll(other, (down, right), axis=(0, 1)) for down in shifts for right in shifts]
        )
        return np.any(
            (picture < near.min(axis=0) - 0.1) | (picture > near.max(axis=0) + 0.1), axis=-1
        )

    return float(np.mean(strangers(before, after) | strangers(after, before)))


@pytest.mark.parametrize("name", ["diagnosis", "quickstart", "schedules"])
def test_a_notebook_runs_and_shows_what_is_committed(name: str, pairs: dict[str, Any]):
    assert len(pairs) == 3
    for before, after in zip(*map(codes, pairs[name]), strict=True):
        assert says_the_same(texts(before), texts(after)), before.source
        assert len(pictures(after)) == len(pictures(before)), before.source
        assert moved(curves(before), curves(after)) <= (0.25 if is_chaotic(before) else 0), (
            before.source
        )
        for old, new in zip(pictures(before), pictures(after), strict=True):
            assert software(old).startswith("Matplotlib version")
            # Under another version fonts and layout differ; there the curves have to do.
            if software(old) == software(new):
                assert repainted(pixels(old), pixels(new)) < (
                    0.1 if is_chaotic(before) else 0.002
                ), before.source


# test_framework_recipes.py runs the other one with devices of its own.
def test_the_notebook_of_many_devices_prints_what_is_committed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # Which is set there.
    names: dict[str, Any] = {}
    with jax.numpy_rank_promotion("allow"):
        for cell in codes(read(notebooks.COLABS / "scaling.ipynb")):
            assert says_the_same(texts(cell), printed(cell, names)), cell.source


def drawn(power: float) -> np.ndarray:
    figure = Figure(figsize=(7.5, 3.2), dpi=72)
    axes = figure.subplots()
    axes.plot(np.linspace(0, 1, 100), np.linspace(0, 1, 100) ** power)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return pixels(base64.b64encode(file.getvalue()).decode())


def test_a_changed_curve_is_seen_in_pixels_and_in_points():
    assert repainted(drawn(1.0), drawn(1.0)) == 0.0
    assert repainted(drawn(1.0), drawn(1.1)) > 0.002
    assert moved([[[[0.0, 0.5]]]], [[[[0.0, 0.505]]]]) == 0
    assert moved([[[[0.0, 0.5]]]], [[[[0.0, 0.52]]]]) > 0.25
    assert moved([[[[0.0, None]]]], [[[[0.0, 0.5]]]]) > 0.25
    assert moved([[[[0.0, 0.5]]]], [[]]) > 0.25


def test_a_changed_number_or_word_is_seen_in_text():
    assert says_the_same("rates [0.9 1. ]", "rates [0.9 1. ]")
    assert not says_the_same("rates [0.9 1. ]", "rates [0.9001 1. ]")
    assert not says_the_same("rates [0.9 1. ]", "bounds [0.9 1. ]")
    assert not says_the_same("rates [0.9 1. ]", "rates [0.9 ]")


@every_notebook
def test_a_notebook_is_committed_executed_and_every_cell_ends_in_something_to_see(
    path: pathlib.Path,
):
    cells = codes(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.outputs, cell.source
        assert not any(
            output.output_type == "error" or output.get("name") == "stderr"
            for output in cell.outputs
        ), cell.source


@every_notebook
def test_a_notebook_installs_the_package_where_it_is_missing(path: pathlib.Path):
    assert sum('%pip install -q "{source}' in cell.source for cell in codes(read(path))) == 1


def test_badges_open_each_notebook_in_colab_and_make_way_for_those_of_another_address(
    tmp_path: pathlib.Path, monkeypatch: Any
):
    folder = tmp_path / "colabs"
    folder.mkdir()
    (folder / "quickstart.ipynb").write_bytes((notebooks.COLABS / "quickstart.ipynb").read_bytes())
    before = read(folder / "quickstart.ipynb")
    monkeypatch.setattr(notebooks, "COLABS", folder)
    for repository in ("someone/elsewhere", "owner/name"):
        notebooks.main(["--repository", repository])
    first, *others = read(folder / "quickstart.ipynb").cells
    assert others == before.cells
    assert (
        "](https://colab.research.google.com/github/owner/name/blob/HEAD/colabs/quickstart.ipynb)"
        in first.source
    )


def test_the_guide_shows_the_quickstarts_figure():
    assert PICTURE.read_bytes() == picture()
    assert f"({PICTURE.name})" in (PICTURE.parent / "README.md").read_text()
