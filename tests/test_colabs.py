"""Each notebook runs from top to bottom, and what it shows is what is committed."""

import copy
import pathlib
from typing import Any

import nbclient
import nbformat
import pytest

COLABS = pathlib.Path(__file__).parent.parent / "colabs"
NOTEBOOKS = sorted(COLABS.glob("*.ipynb"))

# The kernel's own machinery warns about sockets and event loops.
pytestmark = pytest.mark.filterwarnings("ignore")


def read(path: pathlib.Path) -> Any:
    return nbformat.read(path, as_version=4)


def texts(cell: Any) -> str:
    """What a cell printed or returned as text; a figure's text is only its size."""
    outputs = [output for output in cell.get("outputs", []) if "image/png" not in output.get("data", {})]
    return "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)


def figures(cell: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def codes(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_and_shows_what_is_committed(path: pathlib.Path):
    committed = read(path)
    fresh = copy.deepcopy(committed)
    for cell in codes(fresh):
        cell.outputs, cell.execution_count = [], None
    nbclient.NotebookClient(fresh, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(COLABS)}}).execute()
    for before, after in zip(codes(committed), codes(fresh), strict=True):
        assert texts(after) == texts(before), before.source
        assert figures(after) == figures(before), before.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_is_committed_executed_and_every_cell_ends_in_something_to_see(path: pathlib.Path):
    cells = codes(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.outputs, cell.source
        assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in cell.outputs), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_installs_the_package_where_it_is_missing(path: pathlib.Path):
    assert "pip install" in codes(read(path))[0].source
