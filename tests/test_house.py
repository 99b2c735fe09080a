"""Where everything stands: rooms with doors, walls between them, short modules, and tests in the
same rooms.
"""

import ast
import graphlib
import io
import pathlib
import tokenize
from collections.abc import Iterator

TESTS = pathlib.Path(__file__).parent
PACKAGE = TESTS.parent / "warmclip_jax"

#: The rooms that each room may import from; the two front files may import from all.
MAY_USE = {
    "_values": set[str](),
    "_norms": {"_values"},
    "_schedules": {"_values"},
    "_clipping": {"_norms", "_values"},
    "_pipeline": {"_clipping", "_schedules", "_norms", "_values"},
    "_pictures": {"_pipeline", "_clipping", "_schedules", "_norms", "_values"},
    "_telemetry": {"_pipeline", "_clipping", "_schedules", "_norms", "_values", "_pictures"},
    "_adopting": {"_pipeline", "_clipping", "_schedules", "_norms", "_values"},
}
FRONT = {"__init__", "__main__"}
MOST_TOKENS, MOST_TOKENS_IN_ALL = 1700, 53_900

#: Modules whose tests stand in the file of the neighbour that they are a part of.
TESTED_BY = {
    "_pipeline/_rates": "_pipeline/test_pipeline.py",
    "_adopting/_parts": "_adopting/test_adopt.py",
    "_clipping/_applying": "_clipping/test_skipping.py",
    "_clipping/_coefficient": "_clipping/test_transformations.py",
    "_clipping/_scaling": "_clipping/test_transformations_derivatives.py",
    "_telemetry/_account": "_telemetry/test_report.py",
    "_telemetry/_usual": "_telemetry/test_advice.py",
    "_telemetry/_course": "_telemetry/test_report.py",
    "_telemetry/_runs": "_telemetry/test_report.py",
    "_telemetry/_trouble": "_telemetry/test_report.py",
    "_clipping/_ring": "_telemetry/test_records.py",
    "_clipping/_coding": "_clipping/test_leaf_record.py",
    "_clipping/_gate": "_clipping/test_transformations_derivatives.py",
    "_clipping/_guard": "_clipping/test_skipping.py",
    "_clipping/_limit": "_clipping/test_bounds.py",
    "_clipping/_rule": "_clipping/test_bounds.py",
    "_norms/_adding": "_norms/test_axes.py",
    "_norms/_leaves": "_norms/test_norm.py",
    "_norms/_range": "_norms/test_norm.py",
    "_clipping/_states": "_clipping/test_transformations_state.py",
    "_values/_factories": "_values/test_value.py",
    "_values/_function": "_values/test_messages.py",
    "_schedules/_arguments": "_values/test_rules.py",
    "_schedules/_recipes": "_schedules/test_curves.py",
    "_schedules/_transforms": "_schedules/test_curves.py",
}


def name_of(path: pathlib.Path) -> str:
    """`_norms/_axes` for that module's file, `_norms` for the door of that room."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")


MODULES = {name_of(path): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
ROOMS = set(MAY_USE)
DOORS = ROOMS & MODULES.keys()


def room(module: str) -> str:
    return module.split("/")[0]


def imports(module: str) -> Iterator[tuple[str, str]]:
    """What `module` imports of this package, at its top or inside of a function: from which module,
    and the name.
    """
    for node in ast.walk(ast.parse(MODULES[module])):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            if str(node.module).split(".")[0] == PACKAGE.name:
                source = "/".join(str(node.module).split(".")[1:]) or "__init__"
                yield from ((source, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (
                ("__init__", alias.name)
                for alias in node.names
                if alias.name.startswith(PACKAGE.name)
            )


def tokens(source: str) -> int:
    """The size of a module, without its docstrings, comments and layout."""
    layout = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, documented) and ast.get_docstring(node)
    ]
    docs = {
        line
        for node in nodes
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    made = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type not in layout and token.start[0] not in docs for token in made)


def subjects(path: pathlib.Path) -> set[str]:
    """The modules that a test file may be of: `_clipping/test_clip_groups.py` is of
    `_clipping/_clip`.
    """
    folder, words = path.parent.relative_to(TESTS), path.stem.removeprefix("test_").split("_")
    names = ("_".join(words[:length]) for length in range(1, len(words) + 1))
    return {
        (folder / form).as_posix() for name in names for form in (f"_{name}", f"__{name}__")
    } & set(MODULES)


TEST_FILES = [path for path in sorted(TESTS.rglob("test_*.py")) if path.parent.name in ROOMS]


def test_the_rooms_are_those_of_the_package():
    assert {room(module) for module in MODULES} == ROOMS | FRONT


def test_no_import_goes_through_a_wall():
    assert [
        f"{module} imports {name} from {source}"
        for module in MODULES
        for source, name in imports(module)
        if room(source)
        not in {room(module), *(ROOMS if module in FRONT else MAY_USE[room(module)])}
    ] == []


def test_every_import_from_another_room_goes_through_its_door():
    assert [
        f"{module} imports {name} from {source}"
        for module in MODULES
        for source, name in imports(module)
        if room(source) != room(module) and source != room(source)
    ] == []


def test_a_door_opens_with_one_sentence_and_shows_what_other_rooms_use():
    asked = {
        (source, name)
        for module in MODULES
        for source, name in imports(module)
        if source != room(module)
    }
    shown = {(door, name) for door in DOORS for _, name in imports(door)}
    assert shown == {(source, name) for source, name in asked if source in DOORS}
    assert [door for door in DOORS if '"""' not in MODULES[door].splitlines()[0][3:]] == []
    assert [
        door
        for door in DOORS
        for node in ast.parse(MODULES[door]).body[1:]
        if not isinstance(node, ast.ImportFrom)
    ] == []


def test_no_module_imports_itself_through_others():
    inside = {module: {source for source, _ in imports(module)} for module in MODULES}
    tuple(graphlib.TopologicalSorter(inside).static_order())


def test_no_module_is_too_long_to_read_at_once():
    sizes = {module: tokens(source) for module, source in MODULES.items()}
    assert [
        f"{module}: {size} tokens" for module, size in sizes.items() if size > MOST_TOKENS
    ] == []
    assert sum(sizes.values()) <= MOST_TOKENS_IN_ALL


def test_every_module_has_a_test_file_of_its_name_in_the_same_room():
    named = {module for path in TEST_FILES for module in subjects(path)}
    alone = {module for module in MODULES if module not in DOORS | FRONT}
    assert alone == named | set(TESTED_BY)
    assert [name for name in TESTED_BY.values() if not (TESTS / name).is_file()] == []
