import pathlib
import re

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_the_python_examples_run_in_order_as_they_are_pasted(capsys):
    names = {}
    with jax.numpy_rank_promotion("allow"):
        for language, code in BLOCKS:
            if language == "python":
                exec(code, names)
    assert "learning_rate" in capsys.readouterr().out
    assert abs(names["params"]["w"]).max() < 3.0


def test_the_first_complete_example_ends_by_line_40_and_starts_by_line_30():
    lines = README.splitlines()
    start = lines.index("```python")
    assert start < 30
    assert lines.index("```", start) < 40


def test_the_gate_runs_the_test_command_of_the_readme():
    (command,) = [
        line
        for line in README.splitlines()
        if line.startswith("python3 -m venv") and "pytest" in line
    ]
    assert re.search(
        r"grep -E '(.*)' README.md", (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    )
    (pattern,) = re.findall(
        r"grep -E '(.*)' README.md", (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    )
    assert [line for line in README.splitlines() if re.search(pattern, line)] == [command]


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"(?:tests|colabs|warmclip_jax)/[\w/.]+\.\w+", README)))
)
def test_every_file_that_is_named_is_there(path):
    assert (ROOT / path).is_file()


def test_it_is_short():
    assert len(README.splitlines()) <= 260
