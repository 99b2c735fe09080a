"""The command: what it draws, and that text is read as data and never run."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests._schedules.catalogue import catalogue
from warmclip_jax.__main__ import main

RUN = "warmup_polynomial_decay(peak_value=1e-4, total_steps=1000, warmup_fraction=0.1)"


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that must fail with status 2."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    out, err = capsys.readouterr()
    assert exit_.value.code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    return err


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {}')",
        "constant(value=__import__('os').system('touch {}'))",
        "(lambda: __import__('os').system('touch {}'))()",
        "[open('{}', 'w') for _ in range(1)]",
        "open('{}', 'w')",
        "constant(value=open('{}', 'w'))",
        "with_warmup(open('{}', 'w'), warmup_steps=3)",
        "constant.__wrapped__.__globals__['__builtins__']['open']('{}', 'w')",
        "wc.__loader__('{}')",
        "eval('open(\"{}\")')",
        "constant(**open('{}', 'w'))",
        "constant(value=f\"{{open('{}', 'w')}}\")",
    ],
)
def test_code_is_refused_and_not_run(
    text: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    trap = tmp_path / "trap"
    failure(capsys, "plot", text.format(trap))
    assert not trap.exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (
            ("plot", "warmup_polynomal_decay(peak_value=1)"),
            "did you mean 'warmup_polynomial_decay'",
        ),
        (("plot", "linear_warmup(peak_value=1, warmup_steps=-3)"), "warmup_steps must be"),
        (("plot", ""), "cannot read"),
        (("plot", "(" * 10_000), "cannot read"),
        (("draw", RUN), "invalid choice"),
        (("plot", RUN, "--steps", "1.5"), "steps must be"),
        (("plot", "constant(value=0)", "--log"), "no value is above 0"),
        (("plot", RUN, "--steps", "many"), "--steps"),
    ],
)
def test_a_mistake_is_one_line_with_what_is_wrong(
    arguments: tuple[str, ...], word: str, capsys: pytest.CaptureFixture[str]
):
    assert word in failure(capsys, *arguments)


def test_alone_it_prints_its_help(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    assert "usage: python -m warmclip_jax" in capsys.readouterr().out


def test_without_an_expression_it_lists_the_schedules_with_their_arguments(
    capsys: pytest.CaptureFixture[str],
):
    assert main(["plot"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "linear_warmup(*, peak_value, warmup_steps, init_value=0.0)" in lines
    assert "repeat(schedule, *, period)" in lines
    assert {line.partition("(")[0] for line in lines} == {
        entry.schedule.kind for entry in catalogue(100).values()
    }


def test_without_a_file_it_prints_a_chart_of_all_schedules(capsys: pytest.CaptureFixture[str]):
    assert main(["plot", RUN, "--steps", "5e2", "constant(value=2e-4)", RUN]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "* warmup_polynomial_decay 1: warm-up to 100; peak 0.0001 at 100",
        "o constant: 0.0002 at 500",
        "+ warmup_polynomial_decay 2: warm-up to 100; peak 0.0001 at 100",
    ]
    assert lines[-4].split() == ["0", "250", "500"]


@pytest.mark.parametrize(
    ("name", "written", "begins"),
    [
        ("lr.png", "lr.png", b"\x89PNG"),
        ("lr", "lr.png", b"\x89PNG"),
        ("lr.", "lr.png", b"\x89PNG"),
        (".lr", ".lr.png", b"\x89PNG"),
        ("lr.PDF", "lr.PDF", b"%PDF"),
    ],
)
def test_with_a_file_it_writes_the_picture_and_prints_the_name_of_what_it_wrote(
    name: str,
    written: str,
    begins: bytes,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
):
    assert main(["plot", "constant(value=1)", "--out", str(tmp_path / name)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / written}\n"
    assert [path.name for path in tmp_path.iterdir()] == [written]
    assert (tmp_path / written).read_bytes().startswith(begins)


@pytest.mark.parametrize(
    ("out", "word"),
    [
        ("", "--out must name a file, such as lr.png; got ''"),
        ("{tmp}", "must name a file"),
        ("{tmp}/folder.png", "must name a file"),
        ("{tmp}/nowhere/lr.png", "{tmp}/nowhere/lr.png"),
        ("{tmp}/file/lr.png", "{tmp}/file/lr.png"),
        ("{tmp}/lr.nonsense", "nonsense"),
        ("{tmp}/lr.pgf", "xelatex"),
        ("{tmp}/" + "x" * 300 + ".png", "too long"),
        ("{tmp}/read-only.png", "read-only.png"),
    ],
)
def test_a_picture_that_cannot_be_written_is_one_line_and_leaves_no_file(
    out: str,
    word: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    monkeypatch.setenv("PATH", "")  # Here is no LaTeX.
    if "read-only" in out:  # Permissions do not stop the superuser, who may run this.

        def refuse(path: pathlib.Path, _: bytes) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(pathlib.Path, "write_bytes", refuse)
    assert word.format(tmp=tmp_path) in failure(
        capsys, "plot", "constant(value=1)", "--out", out.format(tmp=tmp_path)
    )
    assert sorted(tmp_path.iterdir()) == before


def test_it_runs_as_a_module_and_escapes_what_the_terminal_cannot_show(tmp_path: pathlib.Path):
    out = tmp_path / "図.png"
    command = [sys.executable, "-m", "warmclip_jax", "plot", RUN, "--out", str(out)]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode("ascii").split() == [str(out).replace("図", r"\u56f3")]
    assert out.exists()


def test_the_reader_of_the_output_may_leave(monkeypatch: pytest.MonkeyPatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as left:
        monkeypatch.setattr(sys, "stdout", left)
        assert main(["plot", RUN]) == 0
        left.write("What Python still has to write at its exit goes nowhere.")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_an_output_that_is_full_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert "No space left" in failure(capsys, "plot")
