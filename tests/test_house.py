"""Where everything has its place: imports run one way, each module is short and says its purpose, tests mirror the folders."""

import ast
import graphlib
import pathlib
import re

import pytest

TESTS = pathlib.Path(__file__).parent
PACKAGE = TESTS.parent / "warmclip_jax"

#: From the front door down. A module imports from its own layer or from those below; what is not named here is ground floor.
FRONT = {"__init__", "__main__"}
GALLERY = {"_metrics", "_records", "_report", "_finding", "_links", "_adopting", "_pictures"}
HALL = {"_pipeline", "_rates"}
WINGS = {"_schedules", "_gradients"}
LAYERS = (FRONT, GALLERY, HALL, WINGS)

LONGEST = 250

#: Modules whose tests stand in the file of the neighbour that they are a part of.
TESTED_BY = {
    "_rates": "test_pipeline.py",
    "_links": "test_adopting.py",
    "_gradients/_applying": "_gradients/test_skipping.py",
    "_gradients/_coefficient": "_gradients/test_clipping.py",
    "_gradients/_leaves": "_gradients/test_norm.py",
    "_gradients/_states": "_gradients/test_clipping_state.py",
    "_schedules/_arguments": "test_checks.py",
    "_schedules/_recipes": "_schedules/test_curves.py",
    "_schedules/_transforms": "_schedules/test_curves.py",
}
#: Test files whose subject is the package as a whole.
OF_THE_WHOLE = {
    "house",
    "mutants",
    "packaging",
    "properties",
    "public_api",
    "readme",
    "_schedules/parity",
    "_gradients/every_16_bit",
}


def name_of(path: pathlib.Path) -> str:
    """`_gradients/_norm` for that module's file."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


MODULES = {name_of(path): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
FOLDERS = {name for name in MODULES if name.endswith("/__init__")}
each_module = pytest.mark.parametrize("module", MODULES)


def imports(module: str) -> set[str]:
    """The modules of this package that `module` imports, at its top or inside of a function."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module])):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            dotted = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        else:
            continue
        found |= {resolved(name.split(".")[1:]) for name in dotted if name.split(".")[0] == "warmclip_jax"}
    return found - {module}


def resolved(parts: list[str]) -> str:
    """The module that an import of `parts` reads: the longest beginning of it that is one."""
    for length in range(len(parts), 0, -1):
        path = "/".join(parts[:length])
        for name in (path, f"{path}/__init__"):
            if name in MODULES:
                return name
    return "__init__"


def room(module: str) -> str:
    return module.split("/")[0]


def layer(module: str) -> int:
    return next((index for index, rooms in enumerate(LAYERS) if room(module) in rooms), len(LAYERS))


def test_the_layers_are_those_of_the_package():
    assert {room(module) for module in MODULES} >= FRONT | HALL | WINGS
    assert "_gradients/_axes" in imports("_gradients/_norm")
    assert imports("__init__") >= {"_pipeline", "_gradients/_norm"}


@each_module
def test_imports_run_down_and_never_from_wing_to_wing(module: str):
    for other in imports(module):
        assert layer(other) >= layer(module), f"{module} imports {other}, which is above it"
        assert room(other) == room(module) or not {room(other), room(module)} <= WINGS, f"{module} imports the wing of {other}"


def test_no_module_imports_itself_through_others():
    tuple(graphlib.TopologicalSorter({module: imports(module) for module in MODULES}).static_order())


@each_module
def test_the_docstring_opens_with_one_sentence_that_says_the_purpose(module: str):
    first, *rest = (ast.get_docstring(ast.parse(MODULES[module])) or "").splitlines()
    assert re.fullmatch(r"[A-Z`](?:[^.!?]|[.!?](?!\s|$))+\.", first), first
    assert not rest or rest[0] == "", "the first sentence has a line of its own"


@pytest.mark.parametrize("module", sorted(FOLDERS))
def test_a_folder_opens_with_one_sentence_and_no_code(module: str):
    assert len(ast.parse(MODULES[module]).body) == 1
    assert MODULES[module].count("\n") == 1


@each_module
def test_no_module_is_too_long_to_read_at_once(module: str):
    assert len(MODULES[module].splitlines()) <= LONGEST


def subjects(path: pathlib.Path) -> set[str]:
    """The modules that a test file may be of: `_gradients/test_clipping_derivatives.py` is of `_gradients/_clipping`."""
    folder, words = path.parent.relative_to(TESTS), path.stem.removeprefix("test_").split("_")
    names = ("_".join(words[:length]) for length in range(1, len(words) + 1))
    return {(folder / form).as_posix() for name in names for form in (f"_{name}", f"__{name}__")} & set(MODULES)


TEST_FILES = [
    path for path in sorted(TESTS.rglob("test_*.py")) if path.parent == TESTS or path.parent.name in {room(f) for f in FOLDERS}
]


@each_module
def test_every_module_has_a_test_file_of_its_name(module: str):
    if module in FOLDERS or module == "__init__":
        return
    if module in TESTED_BY:
        assert (TESTS / TESTED_BY[module]).is_file()
        assert not any(module in subjects(path) for path in TEST_FILES), f"strike {module} from TESTED_BY"
    else:
        assert any(module in subjects(path) for path in TEST_FILES), f"no test file is named after {module}"


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_every_test_file_is_named_after_a_module_or_is_of_the_whole(path: pathlib.Path):
    name = (path.parent.relative_to(TESTS) / path.stem.removeprefix("test_")).as_posix()
    assert (name in OF_THE_WHOLE) != bool(subjects(path))
