"""What is installed: one version, no behaviour in assert statements, importable from an archive."""

import ast
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

import warmclip_jax as wc

PACKAGE = pathlib.Path(wc.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
CHANGELOG = (PACKAGE / "CHANGELOG.md").read_text(encoding="utf-8")

USE = """
import sys
import warmclip_jax as wc
from jax._src import xla_bridge

extra = sorted({"flax", "matplotlib", "tqdm", "orbax", "hypothesis"} & set(sys.modules))
backends = dict(xla_bridge._backends)

import jax.numpy as jnp, optax
optimizer = wc.pipeline(optax.sgd, wc.constant(value=0.1), max_norm=1.0)
params = jnp.zeros(2)
params, state = wc.apply_gradients(optimizer, params, optimizer.init(params), grads=jnp.array([3.0, 4.0]))
try:
    wc.clip_by_global_norm(-1.0)
except ValueError as error:
    message = str(error)
norm = float(wc.metrics(state)["grad_norm"])
print(wc.__file__, norm, message.partition(";")[0], sys.flags.optimize, wc.__doc__, extra, backends, sep="|")
"""


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the package said of itself in a fresh Python without assert statements and docstrings, imported from a zip."""
    path = tmp_path_factory.mktemp("archive") / "packages.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for file in PACKAGE.rglob("*"):
            if file.is_file() and file.suffix != ".pyc":
                zipped.write(file, file.relative_to(PACKAGE.parent))
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n{USE}"
    run = subprocess.run([sys.executable, "-W", "error", "-OO", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    names = ("file", "norm", "message", "optimize", "doc", "extra", "backends")
    return {"archive": str(path), **dict(zip(names, run.stdout.strip().split("|"), strict=True))}


def test_from_a_zip_and_with_optimization_on_it_computes_and_checks_the_same(used: dict[str, str]):
    assert used["file"].startswith(used["archive"])
    assert (used["norm"], used["optimize"], used["doc"]) == ("5.0", "2", "None")
    assert (
        used["message"] == "clip_by_global_norm: max_norm must be a non-negative number, a schedule, running_bound(...) or None"
    )


def test_importing_it_imports_nothing_but_jax_and_optax_and_starts_no_backend(used: dict[str, str]):
    assert (used["extra"], used["backends"]) == ("[]", "{}")


@pytest.mark.parametrize("path", MODULES, ids=[path.relative_to(PACKAGE).as_posix() for path in MODULES])
def test_no_module_asserts_anything(path: pathlib.Path):
    assert not [node.lineno for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Assert)]


def test_the_version_is_written_once_in_code_and_heads_the_changelog():
    written = [path.name for path in MODULES if wc.__version__ in path.read_text("utf-8")]
    assert written == ["__init__.py"]
    assert re.findall(r"^## \[(.*?)\]", CHANGELOG, flags=re.MULTILINE)[0] == wc.__version__


def test_the_changelog_keeps_to_its_form():
    releases = re.findall(r"^## (.*)$", CHANGELOG, flags=re.MULTILINE)
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - (Unreleased|\d{4}-\d{2}-\d{2})", release) for release in releases)
    sections = set(re.findall(r"^### (.*)$", CHANGELOG, flags=re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_metadata_is_complete():
    metadata = importlib.metadata.metadata("warmclip-jax")
    assert {"Summary", "License-Expression", "License-File", "Requires-Python", "Classifier", "Keywords"} <= set(metadata)
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
