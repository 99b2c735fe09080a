"""Runs notebooks, and takes the curves out of their figures.

`python -m tests.integrations.notebooks` runs all anew and writes them back, and the guide's picture.
With `--repository OWNER/NAME` it gives them the badges that open them in Colab, which need that
address.

A PNG is the same only under one version of matplotlib. So each cell with figures also keeps, in its
metadata, some points of every line in them, in fractions of the axes: these hold for every version.
"""

import argparse
import base64
import contextlib
import copy
import io
import json
import os
import pathlib
import re
from typing import Any

import jax
import nbclient
import nbformat
import numpy as np

COLABS = pathlib.Path(__file__).parents[2] / "colabs"
NOTEBOOKS = sorted(COLABS.glob("*.ipynb"))
#: The figure of the quickstart that the guide shows, in the cell with the tag "picture".
PICTURE = COLABS / "quickstart.png"

# Runs in the kernel, before the notebooks: whenever a figure is rendered, notes where its lines are.
_RECORD = """
import functools as _functools, json as _json
import matplotlib as _matplotlib, numpy as _np
from matplotlib.backend_bases import FigureCanvasBase as _Canvas

_recorded, _render = [], _Canvas.print_figure

def _points(line, axes):
    x, y = line.get_data(orig=False)
    index = _np.linspace(0, len(x) - 1, 17).round().astype(int) if len(x) else []
    data = _np.stack([_np.asarray(x, float)[index], _np.asarray(y, float)[index]], axis=-1)
    places = axes.transAxes.inverted().transform(line.get_transform().transform(data))
    return [[round(float(v), 3) if _np.isfinite(v) else None for v in place] for place in places]

@_functools.wraps(_render)
def _noted(canvas, *args, **kwargs):
    done = _render(canvas, *args, **kwargs)
    _recorded.append([[_points(line, axes) for line in axes.lines] for axes in canvas.figure.axes])
    return done

_Canvas.print_figure = _noted
_kept = {*globals(), "_kept"}
"""
# Runs after each: the next one finds nothing of it.
_TELL = """
print(_json.dumps(_recorded))
_recorded.clear()
_matplotlib.rcdefaults()
for _name in {*globals()} - _kept:
    del globals()[_name]
"""


def read(path: pathlib.Path) -> Any:
    return nbformat.read(path, as_version=4)


def codes(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(cell: Any) -> list[str]:
    """The PNGs that a cell shows, in base64."""
    return [
        output.data["image/png"]
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]


def texts(cell: Any) -> str:
    """What a cell printed or returned as text; a figure's text is only its size."""
    outputs = [
        output for output in cell.get("outputs", []) if "image/png" not in output.get("data", {})
    ]
    return "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs
    )


def says_the_same(before: str, after: str) -> bool:
    """Whether two texts are equal; under an older XLA, but for the last place of a float32 and the
    spaces around it.
    """
    if jax.__version_info__ >= (0, 10, 2):
        return before == after
    number = r"(-?\d+\.?\d*(?:e[+-]?\d+)?)"
    (old, new) = (re.split(number, text) for text in (before, after))
    if [word.strip() for word in old[::2]] != [word.strip() for word in new[::2]]:
        return False
    return np.allclose(
        np.array(old[1::2], float), np.array(new[1::2], float), rtol=2.0**-23, atol=0
    )


def picture() -> bytes:
    """The PNG of the quickstart's cell with the tag "picture"."""
    (cell,) = [
        cell
        for cell in codes(read(PICTURE.with_suffix(".ipynb")))
        if "picture" in cell.metadata.get("tags", [])
    ]
    (png,) = pictures(cell)
    return base64.b64decode(png)


def curves(cell: Any) -> Any:
    """Points of every line in every figure that a cell shows: figures, axes, lines, points, x and
    y.
    """
    return json.loads(cell.metadata.get("curves", "[]"))


def has_devices_of_its_own(notebook: Any) -> bool:
    """Whether it says, before jax is imported, how many devices there are."""
    return "XLA_FLAGS" in codes(notebook)[0].source


def printed(cell: Any, names: dict[str, Any]) -> str:
    """What a cell without figures prints in this process, which has the package and no %pip."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(cell.source.replace("%pip", "# %pip"), names)
    return out.getvalue()


def executed(*notebooks: Any) -> list[Any]:
    """The notebooks run from top to bottom in one fresh kernel, one after the other, each cell with
    the curves of its figures in its metadata.
    """
    fresh = [copy.deepcopy(notebook) for notebook in notebooks]
    run = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(_RECORD)])
    for notebook in fresh:
        for cell in codes(notebook):
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("curves", None)
        run.cells += [*notebook.cells, nbformat.v4.new_code_cell(_TELL)]
        notebook.told = run.cells[-1]
    client = nbclient.NotebookClient(
        run, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(COLABS)}}
    )
    # With one device, as a reader: the eight of the tests would change roundings. And with the
    # package of this checkout.
    flags = re.sub(
        r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", "")
    )
    env = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(COLABS.parent)}
    client.execute(env=os.environ | env)
    for notebook in fresh:
        recorded = json.loads(notebook.pop("told").outputs[0]["text"])
        for number, cell in enumerate(codes(notebook), start=1):
            cell.execution_count = number
            cell.metadata.pop("execution", None)
            shown = len(pictures(cell))
            if shown:  # one line of the file, not thousands
                cell.metadata["curves"] = json.dumps(recorded[:shown])
            recorded = recorded[shown:]
        assert not recorded, "a figure was rendered that no cell shows"
    return fresh


def with_badge(notebook: Any, name: str, repository: str) -> Any:
    """The notebook, opened by a badge that starts it in Colab from a repository on GitHub; in the
    place of an earlier badge.
    """
    address = (
        f"https://colab.research.google.com/github/{repository}/blob/HEAD/{COLABS.name}/{name}"
    )
    text = (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"
    )
    badge = nbformat.v4.new_markdown_cell(text, id="badge")
    fresh = copy.deepcopy(notebook)
    fresh.cells = [badge, *(cell for cell in fresh.cells if cell.id != badge.id)]
    return fresh


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repository", metavar="OWNER/NAME", help="give each notebook its badge, and run none"
    )
    repository = parser.parse_args(arguments).repository
    notebooks = {path: read(path) for path in sorted(COLABS.glob("*.ipynb"))}
    if repository:
        new = [with_badge(each, path.name, repository) for path, each in notebooks.items()]
    else:
        new = [executed(each)[0] for each in notebooks.values()]
    for path, notebook in zip(notebooks, new, strict=True):
        nbformat.write(notebook, path)
        print("wrote", path.name)
    if not repository:
        PICTURE.write_bytes(picture())


if __name__ == "__main__":
    main()
