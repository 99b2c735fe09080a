import pathlib
import re

import jax

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


def test_it_is_short_and_its_first_complete_example_begins_early():
    lines = README.splitlines()
    start = lines.index("```python")
    assert (start < 30, lines.index("```", start) < 45, len(lines) < 300) == (True,) * 3


def test_the_gate_runs_the_test_command_of_the_readme():
    (pattern,) = re.findall(r"grep -E '(.*)' README.md", (ROOT / ".ci/run").read_text("utf-8"))
    (command,) = [line for line in README.splitlines() if re.search(pattern, line)]
    assert command.endswith("python -m pytest -q -n auto")


def test_every_file_that_is_named_is_there():
    named = set(re.findall(r"(?:tests|colabs|warmclip_jax)/[\w/.]+\.\w+", README))
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []
