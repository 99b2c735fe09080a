"""The first cell of a notebook finds the package: installed, in a wheel that was uploaded, in a
checkout around or below.
"""

import json
import os
import pathlib
import subprocess
import sys
import zipfile
from typing import Any

import pytest

from tests.integrations.notebooks import COLABS, NOTEBOOKS, codes, read

(FINDING,) = {
    cell.source
    for path in NOTEBOOKS
    for cell in codes(read(path))
    if "import pathlib" in cell.source
}
WHEEL = "warmclip_jax-0.1.0-py3-none-any.whl"

# In a shell of IPython whose pip installs by putting the thing upon the path, and where the package
# is not there before.
RUN = """
import json, re, sys
from IPython.core.interactiveshell import InteractiveShell

class Hidden:
    hides = sys.argv[2] == "hidden"
    def find_spec(self, name, path=None, target=None):
        if name == "warmclip_jax" and self.hides:
            raise ModuleNotFoundError("No module named 'warmclip_jax'", name=name)

hidden, asked = Hidden(), []
sys.meta_path.insert(0, hidden)
shell = InteractiveShell()

def pip(line):
    asked.append(line)
    sys.path.insert(0, re.match(r'install -q "(.*)\\[\\w+\\]"', line)[1])
    hidden.hides = False

shell.register_magic_function(pip, "line", "pip")
done = shell.run_cell(sys.argv[1], silent=True)
error = done.error_before_exec or done.error_in_exec
print("\\n" + json.dumps({"asked": asked, "error": str(error or ""), "from": getattr(shell.user_ns.get("wc"), "__file__", "")}))
"""


def run(folder: pathlib.Path, *, hidden: bool = True) -> dict[str, Any]:
    """What the cell asked of pip, which package it then imported, and its error, when run in a
    folder.
    """
    arguments = [sys.executable, "-c", RUN, FINDING, "hidden" if hidden else "installed"]
    env = os.environ | {"IPYTHONDIR": str(folder / ".ipython"), "PYTHONPATH": str(COLABS.parent)}
    ran = subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    *printed, known = ran.stdout.splitlines()
    return json.loads(known) | {"printed": "\n".join(printed)}


def checkout(folder: pathlib.Path) -> pathlib.Path:
    (folder / "warmclip_jax").mkdir(parents=True)
    (folder / "warmclip_jax" / "__init__.py").touch()
    return folder


def wheel(path: pathlib.Path, age: int = 0) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("warmclip_jax/__init__.py", "")
    os.utime(path, (10**9 - age, 10**9 - age))
    return path


def test_an_installed_package_is_taken_and_nothing_asked_of_pip(tmp_path: pathlib.Path):
    wheel(tmp_path / WHEEL)
    ran = run(tmp_path, hidden=False)
    assert (ran["asked"], ran["error"]) == ([], "")
    assert ran["from"] == str(COLABS.parent / "warmclip_jax" / "__init__.py")


@pytest.mark.parametrize("place", ["around", "itself", "below"])
def test_a_checkout_is_installed_from(tmp_path: pathlib.Path, place: str):
    source = checkout(tmp_path / "clone with spaces")
    (source / "colabs").mkdir()
    ran = run({"around": source / "colabs", "itself": source, "below": tmp_path}[place])
    assert (ran["error"], ran["from"]) == ("", str(source / "warmclip_jax" / "__init__.py"))


def test_of_several_wheels_the_newest_goes_before_older_ones_and_before_a_checkout(
    tmp_path: pathlib.Path,
):
    source = checkout(tmp_path / "checkout")
    wheel(source / "warmclip_jax-0.9.0-py3-none-any.whl", age=100)
    newest = wheel(source / "warmclip_jax-0.10.0-py3-none-any.whl")
    ran = run(source)
    assert ran["error"] == ""
    assert ran["from"].startswith(str(newest))
    assert len(ran["asked"]) == 1


def test_without_any_it_asks_pypi_and_says_what_to_do_should_that_fail(tmp_path: pathlib.Path):
    ran = run(tmp_path)
    assert ran["asked"] == ['install -q "warmclip-jax[examples]"']
    advice = f"put a warmclip_jax-*.whl or a checkout into {tmp_path}, then run this cell again."
    assert advice in ran["printed"]
