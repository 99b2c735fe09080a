"""Tests of the tests: each module with one token changed, run against the test files that bear its name.

Run: `python -m tests.mutants [MODULE ...] [--workers 2] [--results FILE]`. Results are kept in the
file, and asked for again where the module or its tests have changed. Each mutant runs in a copy of
the checkout. One that no test notices is a survivor: a test is missing, or the change makes no
difference. The latter stand in `equivalent_mutants.txt`: the
name of the mutant in a line, and below it, indented, why it makes none.
"""

import argparse
import ast
import collections
import concurrent.futures
import functools
import hashlib
import itertools
import json
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tokenize
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

ROOT, PACKAGE, EQUIVALENT = (
    pathlib.Path(__file__).parents[1],
    "warmclip_jax",
    "tests/equivalent_mutants.txt",
)
#: Seconds for the tests of a mutant, where it is not known how long they take without a change.
PATIENCE = 300
PARTS = ("_norms/", "_clipping/", "_schedules/", "_pipeline/")
#: Test files that a module is tested by beside those of its name.
ALSO = {
    "_clipping/_bounds": ["_clipping/test_loss.py"],
    "_clipping/_transformations": ["_clipping/test_clip_groups.py"],
    "_clipping/_coefficient": [
        "_clipping/test_clip_groups.py",
        "_clipping/test_every_16_bit.py",
        "integrations/test_modes.py",
    ],
    "_norms/_adding": [
        "_norms/test_frame.py",
        "_norms/test_sums.py",
        "_clipping/test_clip_meshes.py",
    ],
    "_norms/_frame": [
        "_clipping/test_clip_cost.py",
        "_norms/test_leaf_norms.py",
        "_norms/test_norm.py",
        "_norms/test_axes.py",
        "_norms/test_sums.py",
    ],
    "_norms/_range": ["_norms/test_sums.py", "_clipping/test_transformations.py"],
    "_norms/_second_pass": [
        "_norms/test_frame.py",
        "_norms/test_sums.py",
        "_norms/test_norm.py",
        "_norms/test_axes.py",
    ],
    "_norms/_leaves": ["_norms/test_leaf_norms.py"],
    "_norms/_norm": ["_clipping/test_transformations_bounds.py"],
    "_clipping/_clip": ["_clipping/test_transformations.py"],
    "_clipping/_coding": ["_telemetry/test_metrics.py", "_clipping/test_loss.py"],
    "_clipping/_gate": ["_clipping/test_skipping.py"],
    "_clipping/_groups": ["_clipping/test_clip_groups.py"],
    "_clipping/_history": ["_clipping/test_bounds_in_use.py", "_telemetry/test_metrics.py"],
    "_clipping/_leaf_record": ["_telemetry/test_records.py"],
    "_clipping/_loss_history": ["_clipping/test_loss.py", "_telemetry/test_report.py"],
    "_clipping/_skipping": [
        "_clipping/test_bounds_in_use.py",
        "_clipping/test_leaf_record.py",
        "_telemetry/test_records.py",
        "integrations/test_states.py",
    ],
    "_clipping/_ring": ["_telemetry/test_report.py", "_telemetry/test_figure.py"],
    "_clipping/_scaling": ["_clipping/test_transformations.py"],
    "_clipping/_selecting": ["_clipping/test_skipping.py", "integrations/test_memory.py"],
    "_clipping/_guard": [
        "_clipping/test_loss.py",
        "_clipping/test_bounds_in_use.py",
        "_telemetry/test_records.py",
    ],
    "_clipping/_states": [
        "_telemetry/test_metrics.py",
        "_telemetry/test_records.py",
        "integrations/test_states.py",
    ],
    "_norms/_sums": [
        "_norms/test_frame.py",
        "_norms/test_leaf_norms.py",
        "_norms/test_norm.py",
        "_norms/test_axes.py",
        "_clipping/test_clip_meshes.py",
    ],
    "_pipeline/_pipeline": ["_telemetry/test_records.py", "_clipping/test_skipping.py"],
    "_pipeline/_rates": ["integrations/test_telemetry.py", "_telemetry/test_metrics.py"],
    "_schedules/_arguments": [
        "_schedules/test_curves.py",
        "_schedules/test_alike.py",
        "_values/test_foreign.py",
    ],
    "_schedules/_exponential": ["_values/test_rules.py", "_schedules/test_curves.py"],
    "_schedules/_recipes": ["_values/test_rules.py"],
    "_schedules/_schedule": [
        "_values/test_rules.py",
        "_values/test_foreign.py",
        "_values/test_value.py",
    ],
    "_schedules/_shares": ["_schedules/test_units.py", "_schedules/test_curves.py"],
}
BOTH_WAYS = {"<": "<=", ">": ">=", "==": "!=", "+": "-", "*": "/", "&": "|", "and": "or"}
BOTH_WAYS |= {"min": "max", "minimum": "maximum", "any": "all", "True": "False"}
SWAPS = BOTH_WAYS | {new: old for old, new in BOTH_WAYS.items()}
SWAPS |= {"//": "*", "%": "*", "**": "*", "is": "is not", "in": "not in", "not": "", "~": ""}


class Mutant(NamedTuple):
    """A module with one token changed. Its name holds no line number: it stays when other lines
    change.
    """

    module: str
    name: str
    start: int  # in the bytes of the module
    end: int
    new: str


def changes(source: bytes, policies: dict[str, str]) -> Iterator[tuple[int, int, str]]:
    """Start, end and replacement of each token that is changed. Annotations, messages and the
    `strict` of `zip` stay.
    """
    lines = source.splitlines(keepends=True)
    begins = [0, *itertools.accumulate(map(len, lines))]
    tokens = [
        (begins[token.start[0] - 1] + len(token.line[: token.start[1]].encode()), token.string)
        for token in tokenize.tokenize(iter([*lines, b""]).__next__)
    ]

    def span(node: Any) -> tuple[int, int]:
        return begins[node.lineno - 1] + node.col_offset, begins[
            node.end_lineno - 1
        ] + node.end_col_offset

    def operators(first: int, last: int) -> list[tuple[int, int, str]]:
        words = [(start, text) for start, text in tokens if first <= start < last and text in SWAPS]
        words.sort(key=lambda word: word[1] != "not")  # which goes from `is not` and `not in`
        return [(start, start + len(text), SWAPS[text]) for start, text in words[:1]]

    def of(node: Any) -> Iterator[tuple[int, int, str]]:
        match node:
            case ast.BinOp(left=left, right=right):
                yield from operators(span(left)[1], span(right)[0])
            case ast.Compare(left=left, comparators=others) | ast.BoolOp(values=[left, *others]):
                for one, other in itertools.pairwise([left, *others]):
                    yield from operators(span(one)[1], span(other)[0])
            case ast.UnaryOp(operand=operand):
                yield from operators(span(node)[0], span(operand)[0])
            case ast.Constant(value=int(value)) if isinstance(value, bool) or value < 100:
                yield (
                    *span(node),
                    SWAPS.get(str(value), str(1 - value if value in (0, 1) else value + 1)),
                )
            case ast.Constant(value=str(value)) if value in policies:
                yield *span(node), f'"{policies[value]}"'
            case ast.Attribute(attr=name) | ast.Name(id=name) if name in SWAPS:
                yield span(node)[1] - len(name), span(node)[1], SWAPS[name]
        for field, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                is_kept = (
                    field in ("annotation", "returns") or getattr(child, "arg", "") == "strict"
                )
                if isinstance(child, ast.AST) and not (is_kept or isinstance(child, ast.JoinedStr)):
                    yield from of(child)

    yield from sorted(of(ast.parse(source)))


@functools.cache
def owner(tree: ast.Module, line: int) -> str:
    """What a line belongs to: functions and classes, outermost first, or the name that it defines;
    "" for neither.
    """
    names: list[str] = []
    node: Any
    for node in ast.walk(tree):
        decorators = getattr(node, "decorator_list", [])
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node in tree.body:
            first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
            if first <= line <= (node.end_lineno or 0):
                names += [
                    getattr(node, "name", None)
                    or ast.unparse(getattr(node, "targets", [ast.Name("")])[0])
                ]
    return ".".join(filter(None, names))


def policies_of(sources: Iterable[bytes]) -> dict[str, str]:
    """Each string that a `Choice((...))` allows, and another one of it."""
    made: dict[str, str] = {}
    for node in itertools.chain.from_iterable(ast.walk(ast.parse(source)) for source in sources):
        match node:
            case ast.Call(func=ast.Name(id="Choice"), args=[ast.Tuple() as allowed]):
                choice = ast.literal_eval(allowed)
                made |= {
                    one: choice[index - 1]
                    for index, one in enumerate(choice)
                    if isinstance(one, str)
                }
    return made


def mutants(package: pathlib.Path) -> dict[str, Mutant]:
    """Every mutant by name: `module.function: old -> new`, numbered where a function has several of one name.

    Neither a formatter nor another folder changes a name.
    """
    sources = {
        path.relative_to(package).with_suffix("").as_posix(): path.read_bytes()
        for path in package.rglob("*.py")
    }
    trees = {module: ast.parse(source) for module, source in sources.items()}
    policies, made = policies_of(sources.values()), dict[str, Mutant]()
    for module, source in sorted(sources.items()):
        seen = collections.Counter[str]()
        for start, end, new in changes(source, policies) if module.startswith(PARTS) else ():
            within = owner(trees[module], source.count(b"\n", 0, start) + 1)
            name = f"{pathlib.Path(module).name}.{within}: {source[start:end].decode()} -> {new or 'nothing'}"
            seen[name] += 1
            name += f" ({seen[name]})" if seen[name] > 1 else ""
            made[name] = Mutant(module, name, start, end, new)
    return made


def equivalent(text: str, made: dict[str, Mutant]) -> set[str]:
    """The names in a list of mutants that change nothing. Raises ValueError where some are not
    there, or have no reason.
    """
    lines = list(filter(str.strip, text.splitlines()))
    names = [line for line in lines if not line.startswith(" ")]
    without = [one for one, after in itertools.pairwise([*lines, ""]) if not after.startswith("  ")]
    gone, bare = sorted({*names} - {*made}), [line for line in without if line in names]
    if gone or bare:
        raise ValueError(f"{EQUIVALENT}: no reason below {bare}, no mutant {gone}")
    return {*names}


def tests_of(module: str) -> list[str]:
    """The test files of a module, as test_house.py knows them, and those whose name goes on:
    `test_clipping_bounds.py`; and its own examples.
    """
    from tests import test_house as house  # it reads the package where it is imported

    others = [house.TESTED_BY[module]] if module in house.TESTED_BY else []
    others += [*ALSO.get(module, []), "_values/test_messages.py"]
    patterns = [name.replace(".py", "*.py") for name in others]
    named = [path for pattern in patterns for path in sorted(house.TESTS.glob(pattern))]
    by_name = [path for path in house.TEST_FILES if module in house.subjects(path)]
    paths = (path.relative_to(ROOT).as_posix() for path in (*by_name, *named))
    return [f"{PACKAGE}/{module}.py", *dict.fromkeys(paths)]


def result(
    copies: queue.SimpleQueue[pathlib.Path],
    mutant: Mutant,
    tests: list[str],
    patience: float | None,
) -> str:
    """What the tests make of a mutant in a copy of the checkout: `"killed"`, `"survived"`, or
    `"endless"`, after seconds.
    """
    copy = copies.get()
    path = copy / PACKAGE / f"{mutant.module}.py"
    source = path.read_bytes()
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    # What a mutant leaves as it was is compiled once: two to three times faster.
    environment |= {
        "JAX_COMPILATION_CACHE_DIR": str(copy / ".compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    try:
        path.write_bytes(source[: mutant.start] + mutant.new.encode() + source[mutant.end :])
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, timeout=patience, check=False
        )
        return "killed" if done.returncode else "survived"
    except subprocess.TimeoutExpired:
        return "endless"
    finally:
        path.write_bytes(source)
        copies.put(copy)


def results(
    chosen: list[Mutant], workers: int, tests: dict[str, list[str]]
) -> Iterator[tuple[Mutant, str]]:
    """Mutants with their results, as they come. Raises RuntimeError where the tests of a module
    fail without a change.
    """
    patience, copies = (
        collections.defaultdict[str, float](lambda: PATIENCE),
        queue.SimpleQueue[pathlib.Path](),
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):
        for copy in (pathlib.Path(folder, str(worker)) for worker in range(workers)):
            copies.put(
                shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
            )
        for module in sorted({mutant.module for mutant in chosen}):
            started = time.monotonic()
            if (
                not tests[module]
                or result(copies, Mutant(module, "", 0, 0, ""), tests[module], None) != "survived"
            ):
                raise RuntimeError(
                    f"{module}: its tests must pass without a change; got {tests[module]}"
                )
            patience[module] = 60 + 5 * (time.monotonic() - started)
        futures = {
            pool.submit(result, copies, each, tests[each.module], patience[each.module]): each
            for each in chosen
        }
        try:
            yield from (
                (futures[future], future.result())
                for future in concurrent.futures.as_completed(futures)
            )
        finally:
            pool.shutdown(cancel_futures=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", help="such as _norms/_norm; all, if there are none")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / ".mutants.jsonl")
    options = parser.parse_args(arguments)
    made = mutants(ROOT / PACKAGE)
    unchanged = equivalent((ROOT / EQUIVALENT).read_text("utf-8"), made)
    names = [
        name
        for name in made
        if name not in unchanged and made[name].module in (options.modules or [made[name].module])
    ]
    tests = {module: tests_of(module) for module in {made[name].module for name in names}}
    texts = {module: [(ROOT / file).read_bytes() for file in tests[module]] for module in tests}
    stamps = {
        module: hashlib.sha256(b"".join(parts)).hexdigest() for module, parts in texts.items()
    }
    options.results.touch()
    seen = {
        tuple(key): found
        for *key, found in map(json.loads, options.results.read_text("utf-8").splitlines())
    }
    wanted = [made[name] for name in names if (name, stamps[made[name].module]) not in seen]
    for mutant, found in results(wanted, options.workers, tests):
        seen[key := (mutant.name, stamps[mutant.module])] = found
        with options.results.open("a", encoding="utf-8") as file:
            print(json.dumps([*key, found]), file=file)
        print(f"{found}: {mutant.name}", flush=True)
    survivors = [name for name in names if seen[name, stamps[made[name].module]] == "survived"]
    print(f"{len(names)} mutants, {len(survivors)} survived", *survivors, sep="\n")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
