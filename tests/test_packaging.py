"""What is installed: one version, no behaviour in assert statements, importable from an archive;
and how it is released.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from typing import Any

import pytest
import yaml

import warmclip_jax as wc

PACKAGE = pathlib.Path(wc.__file__).parent
ROOT = pathlib.Path(__file__).parent.parent

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
    """What the package said of itself in a fresh Python without assert statements and docstrings,
    imported from a zip.
    """
    path = tmp_path_factory.mktemp("archive") / "packages.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for file in PACKAGE.rglob("*"):
            if file.is_file() and file.suffix != ".pyc":
                zipped.write(file, file.relative_to(PACKAGE.parent))
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n{USE}"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-OO", "-c", code], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    names = ("file", "norm", "message", "optimize", "doc", "extra", "backends")
    return {"archive": str(path), **dict(zip(names, run.stdout.strip().split("|"), strict=True))}


def test_from_a_zip_and_with_optimization_on_it_computes_and_checks_the_same(used: dict[str, str]):
    assert used["file"].startswith(used["archive"])
    assert (used["norm"], used["optimize"], used["doc"]) == ("5.0", "2", "None")
    assert (
        used["message"]
        == "clip_by_global_norm: max_norm must be a non-negative number, a schedule, running_bound(...) or None"
    )


def test_importing_it_imports_nothing_but_jax_and_optax_and_starts_no_backend(used: dict[str, str]):
    assert (used["extra"], used["backends"]) == ("[]", "{}")


# How it is released.

WORKFLOWS: dict[str, Any] = {
    path.stem: yaml.safe_load(path.read_text("utf-8"))
    for path in (ROOT / ".github" / "workflows").glob("*.yml")
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
GATE = (ROOT / ".ci" / "run").read_text("utf-8")


def test_the_wheel_meets_the_versions_of_the_gate_on_the_lowest_and_the_newest_python():
    matrix = WORKFLOWS["release"]["jobs"]["test"]["strategy"]["matrix"]
    lowest = " ".join(requirement.replace(">=", "==") for requirement in PROJECT["dependencies"])
    (between,) = re.findall(r"^between=\((.*)\)$", GATE, flags=re.MULTILINE)
    (newest,) = re.findall(r'^ *bash \.ci/meet \S+ "\$newest" (.*)$', GATE, flags=re.MULTILINE)
    assert matrix["versions"] == [lowest, between, newest]
    named = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert matrix["python"] == [named[0], named[-1]]
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert f"python{named[-1]}\n" in GATE


def test_only_a_tag_is_published_after_the_whole_gate_and_by_nobodys_token():
    jobs = dict(WORKFLOWS["release"]["jobs"])
    publish = jobs.pop("publish")
    assert "pypi-publish" in str(publish["steps"])
    assert publish["if"] == "github.event_name == 'push' && github.ref_type == 'tag'"
    assert set(publish["needs"]) == {"test", "gate"}
    assert publish["permissions"] == {"id-token": "write"}
    assert not any("permissions" in job or "pypi-publish" in str(job) for job in jobs.values())
    assert jobs["gate"]["uses"] == "./.github/workflows/ci.yml"
    # YAML reads the word `on` as true.
    assert WORKFLOWS["release"][True]["push"]["tags"] == ["v*"]
    (check,) = [step for step in jobs["build"]["steps"] if ".ci/tagged" in step.get("run", "")]
    assert check["if"] == "github.ref_type == 'tag'"
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")


@pytest.mark.parametrize(
    ("tag", "heading", "complaint"),
    [
        ("v1.2.3", "## [1.2.3] - 2001-02-03", ""),
        ("v1.2.4", "## [1.2.3] - 2001-02-03", "the tag must be v1.2.3"),
        ("1.2.3", "## [1.2.3] - 2001-02-03", "the tag must be v1.2.3"),
        ("v1.2.3", "## [1.2.3] - Unreleased", "must begin with 1.2.3 and its date"),
        (
            "v1.2.3",
            "## [1.2.2] - 2001-02-03\n## [1.2.3] - 2001-02-03",
            "must begin with 1.2.3 and its date",
        ),
        ("v1.2.3", "## [1x2.3] - 2001-02-03", "must begin with 1.2.3 and its date"),
    ],
)
def test_a_tag_is_the_version_and_the_version_has_its_date(
    tmp_path: pathlib.Path, tag: str, heading: str, complaint: str
):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "tagged", tmp_path / ".ci")
    (tmp_path / "warmclip_jax").mkdir()
    (tmp_path / "warmclip_jax" / "__init__.py").write_text(
        '"""A docstring."""\n\n__version__ = "1.2.3"\n'
    )
    (tmp_path / "warmclip_jax" / "CHANGELOG.md").write_text(
        f"# Changelog\n\n{heading}\n\n### Added\n"
    )
    run = subprocess.run(["bash", ".ci/tagged", tag], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode == 0) == (complaint == ""), run.stderr
    assert complaint in run.stderr
