"""The mutants tool, on a toy package with a test that is missing; and the list of mutants that
change nothing.
"""

import ast
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
    assert run(toy, "--passed") == 0  # and says of each that it was killed


@pytest.mark.parametrize(
    ("listed", "fault"), [(TIE, "no reason"), ("_gone.x: 0 -> 1\n  It did.", "there is no mutant")]
)
def test_a_listed_mutant_must_exist_and_have_a_reason(toy: pathlib.Path, listed: str, fault: str):
    (toy / mutants.EQUIVALENT).write_text(listed, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{fault}.*{listed.splitlines()[0]}"):
        run(toy)


def test_a_seed_draws_the_same_mutants_again(toy: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[list[str]] = []
    monkeypatch.setattr(
        mutants,
        "results",
        lambda chosen, *_, **__: (
            drawn.append([m.name for m in chosen]) or [(m, "killed") for m in chosen]
        ),
    )
    for seed in ("a", "a", "b", "c", "d"):
        (toy / "results").unlink(missing_ok=True)
        run(toy, "--drawn", "1", "--seed", seed)
    assert drawn[0] == drawn[1]
    assert len({*map(tuple, drawn)}) > 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = a <= b", ["x = a < b"]),
        ("x = a < (b)", ["x = a <= (b)"]),
        ("x = a is not b", ["x = a is  b"]),
        ("x = a not in b", ["x = a  in b"]),
        ("x = a is b", ["x = a is not b"]),
        (
            "x = (a and b) or not c",
            ["x = (a and b) and not c", "x = (a or b) or not c", "x = (a and b) or  c"],
        ),
        ("x = -a ** 5", ["x = +a ** 5", "x = -a * 5", "x = -a ** 6"]),
        (
            "x = [1, True, 0, 100, 2.5]",
            [
                "x = [0, True, 0, 100, 2.5]",
                "x = [1, False, 0, 100, 2.5]",
                "x = [1, True, 1, 100, 2.5]",
            ],
        ),
        (
            "x = max(a, jnp.minimum(b))",
            ["x = min(a, jnp.minimum(b))", "x = max(a, jnp.maximum(b))"],
        ),
        (
            "C = Choice(('on', 'off'))",
            ["C = Choice((\"off\", 'off'))", "C = Choice(('on', \"on\"))"],
        ),
        (
            "def é(*a: int | None, b: int = 2) -> int | None: 'a < b'",
            ["def é(*a: int | None, b: int = 3) -> int | None: 'a < b'"],
        ),
        ("x = zip(é, *b, strict=True), f'{1 + 1}'  # 1 < 2", []),
    ],
)
def test_one_token_is_changed_at_a_time(before: str, after: list[str]):
    source = before.encode()
    made = mutants.changes(source, mutants.policies_of([source]))
    assert sorted(
        (source[:start] + new.encode() + source[end:]).decode() for start, end, new in made
    ) == sorted(after)


def test_every_mutant_of_the_package_is_python_and_its_module_has_tests():
    made = mutants.mutants(mutants.ROOT / mutants.PACKAGE)
    assert len(made) > 500
    for mutant in made.values():
        source = (mutants.ROOT / mutants.PACKAGE / f"{mutant.module}.py").read_bytes()
        ast.parse(source[: mutant.start] + mutant.new.encode() + source[mutant.end :])
    assert all(map(mutants.tests_of, {mutant.module for mutant in made.values()}))


def test_the_list_of_mutants_that_change_nothing_is_right():
    text = (mutants.ROOT / mutants.EQUIVALENT).read_text("utf-8")
    assert mutants.equivalent(text, mutants.mutants(mutants.ROOT / mutants.PACKAGE)) is not None
