"""The mutants tool, on a toy package with a test that is missing."""

import pathlib
from typing import Any

import pytest

from tests import mutants

SMALL = """
def larger(one: int | None, other: int) -> int:
    return one if one > other else other


def half(number: int) -> int:
    return number // 2
"""
TESTS = """
from toy._norms._small import half, larger


def test_small():
    assert (larger(1, 2), larger(2, 1), half(4)) == (2, 2, 2)
"""
TIE, HALF = "_small.larger: > -> >=", "_small.half: "


@pytest.fixture
def toy(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    for name, text in {
        "toy/_norms/_small.py": SMALL,
        "tests/test_small.py": TESTS,
        mutants.EQUIVALENT: "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "PACKAGE", "toy")
    monkeypatch.setattr(mutants, "tests_of", lambda module: ["tests/test_small.py"])
    return tmp_path


def run(toy: pathlib.Path, *arguments: str) -> int:
    return mutants.main([*arguments, "--results", str(toy / "results")])


def test_a_change_that_no_test_notices_survives_until_it_is_listed(
    toy: pathlib.Path, capsys: Any, monkeypatch: Any
):
    assert run(toy) == 1
    told = capsys.readouterr().out.splitlines()
    assert sorted(told[:3]) == [
        f"killed: {HALF}// -> *",
        f"killed: {HALF}2 -> 3",
        f"survived: {TIE}",
    ]
    assert told[3:] == ["3 mutants, 1 survived", TIE]
    assert (toy / "toy/_norms/_small.py").read_text("utf-8") == SMALL

    # What is known is not run again.
    monkeypatch.setattr(mutants, "result", None)
    assert run(toy) == 1
    assert capsys.readouterr().out.splitlines() == ["3 mutants, 1 survived", TIE]
    (toy / mutants.EQUIVALENT).write_text(
        f"{TIE}\n  Of two equal numbers either is the larger.\n", encoding="utf-8"
    )
    assert run(toy) == 0
    assert capsys.readouterr().out == "2 mutants, 0 survived\n"


def test_tests_that_fail_without_a_change_are_an_error(toy: pathlib.Path):
    (toy / "tests/test_small.py").write_text("assert False", encoding="utf-8")
    with pytest.raises(
        RuntimeError,
        match=r"_norms/_small: its tests must pass without a change; got \['tests/test_small",
    ):
        run(toy)


def test_a_listed_mutant_must_exist_and_have_a_reason(toy: pathlib.Path):
    listed = f"{TIE}\n_gone.x: 0 -> 1\n  It did.\n"
    (toy / mutants.EQUIVALENT).write_text(listed, encoding="utf-8")
    with pytest.raises(
        ValueError, match=rf"no reason below \['{TIE}.*no mutant \['_gone.x: 0 -> 1"
    ):
        run(toy)


CHANGED = {
    "x = a < (b)": ["x = a <= (b)"],
    "x = a is not b": ["x = a is  b"],
    "x = a not in b": ["x = a  in b"],
    "x = (a and b) or not c": [
        "x = (a and b) and not c",
        "x = (a or b) or not c",
        "x = (a and b) or  c",
    ],
    "x = -a ** 5": ["x = +a ** 5", "x = -a * 5", "x = -a ** 6"],
    "x = [1, True, 100, 2.5]": ["x = [0, True, 100, 2.5]", "x = [1, False, 100, 2.5]"],
    "x = max(a, jnp.minimum(b))": ["x = min(a, jnp.minimum(b))", "x = max(a, jnp.maximum(b))"],
    "C = Choice(('on', 'off'))": ["C = Choice((\"off\", 'off'))", "C = Choice(('on', \"on\"))"],
    "def é(a: int | None, b: int = 2): 'a < b'": ["def é(a: int | None, b: int = 3): 'a < b'"],
    "x = zip(é, *b, strict=True), f'{1 + 1}'  # 1 < 2": [],
}


@pytest.mark.parametrize("before", CHANGED)
def test_one_token_is_changed_at_a_time(before: str):
    source = before.encode()
    made = mutants.changes(source, mutants.policies_of([source]))
    assert sorted(
        (source[:start] + new.encode() + source[end:]).decode() for start, end, new in made
    ) == sorted(CHANGED[before])


def test_every_module_with_mutants_has_tests_and_every_listed_mutant_is_there():
    made = mutants.mutants(mutants.ROOT / mutants.PACKAGE)
    assert len(made) > 500
    mutants.equivalent((mutants.ROOT / mutants.EQUIVALENT).read_text("utf-8"), made)
    modules = {mutant.module for mutant in made.values()}
    # Beside its own examples and the messages.
    assert [module for module in sorted(modules) if len(mutants.tests_of(module)) < 3] == []
