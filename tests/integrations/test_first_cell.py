"""The first cell of a notebook finds the package: installed, in a wheel that was uploaded, in a
checkout around or below.
"""

import json
import os
import pathlib
import subprocess
import sys
import zipfile

from tests.integrations.notebooks import COLABS, NOTEBOOKS, codes, read

(FINDING,) = {
    cell.source
    for path in NOTEBOOKS
    for cell in codes(read(path))
    if "import pathlib" in cell.source
}

# In shells of IPython whose pip installs by putting the thing upon the path, and where the package
# is not there before, but in the first folder.
RUN = """
import json, os, re, sys
from IPython.core.interactiveshell import InteractiveShell

class Hidden:
    hides = False
    def find_spec(self, name, path=None, target=None):
        if name == "warmclip_jax" and self.hides:
            raise ModuleNotFoundError("No module named 'warmclip_jax'", name=name)

hidden, shell, path = Hidden(), InteractiveShell(), list(sys.path)
sys.meta_path.insert(0, hidden)

def pip(line):
    asked.append(line)
    sys.path.insert(0, re.match(r'install -q "(.*)\\[\\w+\\]"', line)[1])
    hidden.hides = False

shell.register_magic_function(pip, "line", "pip")
for folder in sys.argv[2:]:
    os.chdir(folder)
    asked, sys.path[:] = [], path
    done = shell.run_cell(sys.argv[1], silent=True)
    error = done.error_before_exec or done.error_in_exec
    wc = shell.user_ns.pop("wc", None)
    print("\\n" + json.dumps({"asked": asked, "error": str(error or ""), "from": getattr(wc, "__file__", "")}))
    sys.modules.pop("warmclip_jax", None)
    hidden.hides = True
"""


def checkout(folder: pathlib.Path) -> pathlib.Path:
    (folder / "warmclip_jax").mkdir(parents=True)
    (folder / "warmclip_jax" / "__init__.py").touch()
    return folder


def wheel(path: pathlib.Path, age: int = 0) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("warmclip_jax/__init__.py", "")
    os.utime(path, (10**9 - age, 10**9 - age))
    return path


def test_it_takes_what_is_installed_else_the_newest_wheel_else_a_checkout_and_else_asks_pypi(
    tmp_path: pathlib.Path,
):
    installed, below, wheels, nowhere = (
        tmp_path / name for name in ("installed", "below", "wheels", "nowhere")
    )
    source = checkout(below / "clone with spaces")
    for folder in (installed, source / "colabs", nowhere):
        folder.mkdir()
    wheel(installed / "warmclip_jax-0.1.0-py3-none-any.whl")
    checkout(wheels)
    wheel(wheels / "warmclip_jax-0.9.0-py3-none-any.whl", age=100)
    newest = wheel(wheels / "warmclip_jax-0.10.0-py3-none-any.whl")
    found = {
        installed: COLABS.parent,
        source / "colabs": source,
        source: source,
        below: source,
        wheels: newest,
        nowhere: COLABS.parent,
    }
    env = os.environ | {"IPYTHONDIR": str(tmp_path / ".ipython"), "PYTHONPATH": str(COLABS.parent)}
    arguments = [sys.executable, "-c", RUN, FINDING, *map(str, found)]
    ran = subprocess.run(arguments, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    told = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    for (folder, place), known in zip(found.items(), told, strict=True):
        assert (known["error"], known["from"]) == ("", str(place / "warmclip_jax/__init__.py"))
        assert len(known["asked"]) == (folder != installed)
    assert told[-1]["asked"] == ['install -q "warmclip-jax[examples]"']
    advice = f"put a warmclip_jax-*.whl or a checkout into {nowhere}, then run this cell again."
    assert ran.stdout.count("Should PyPI not have it") == 1
    assert advice in ran.stdout
