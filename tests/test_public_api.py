"""The public names: what the package shows, and that each is documented, typed and called by name."""

import importlib.metadata
import inspect
import pathlib
import pkgutil
import re
import typing

import jax
import jax.numpy as jnp
import optax

import warmclip_jax as wc
from tests._schedules.catalogue import catalogue
from tests._values.test_rules import GOOD

FUNCTIONS = {name: value for name in wc.__all__ if inspect.isfunction(value := getattr(wc, name))}
#: What may be given by position: what a function is about. All else is an option.
OPERANDS = {"b2", "text", "schedule", "schedules", "tree", "max_norm", "optimizer", "inner"}
OPERANDS |= {"params", "opt_state", "grads", "new", "old", "groups", "patterns", "path"}


def test_all_is_sorted_and_is_what_the_package_shows():
    shown = [
        name
        for name, value in vars(wc).items()
        if not (name.startswith("_") or inspect.ismodule(value))
    ]
    assert sorted(shown) == list(wc.__all__) == sorted(wc.__all__)
    modules = [module.name for module in pkgutil.iter_modules(wc.__path__)]
    assert [name for name in modules if not name.startswith("_")] == []


def test_every_name_is_documented_and_every_function_to_the_end():
    wrong = [name for name in wc.__all__ if not (inspect.getdoc(getattr(wc, name)) or "").strip()]
    for name, function in FUNCTIONS.items():
        doc = inspect.getdoc(function) or ""
        parts = ("Args:", "Returns:", "Raises:", ">>> ")
        wrong += [f"{name}: {part}" for part in parts if part not in doc]
        wrong += [
            f"{name}: {argument}"
            for argument in inspect.signature(function).parameters
            if f"{argument}:" not in doc and f"{argument}`" not in doc
        ]
    assert wrong == []


def test_every_argument_and_result_has_a_type():
    # Not get_type_hints: optax's own types name things that are not to be found where they are
    # used.
    wrong = []
    for name, function in FUNCTIONS.items():
        types = inspect.get_annotations(function)
        if [*types] != [*inspect.signature(function).parameters, "return"]:
            wrong.append(name)
        wrong += [name for annotation in types.values() if isinstance(annotation, str)]
    assert wrong == []
    hints = typing.get_type_hints(wc.linear_warmup)  # of what a decorator returns
    assert list(hints) == ["peak_value", "warmup_steps", "init_value", "return"]
    assert hints["return"] is wc.Schedule


def test_every_schedule_is_in_the_tables_that_all_tests_of_schedules_go_through():
    returned = {
        name: inspect.get_annotations(function)["return"] for name, function in FUNCTIONS.items()
    }
    schedules = {name for name, kind in returned.items() if kind is wc.Schedule}
    of_schedules_alone = {"minimum", "maximum", "product", "total"}
    in_catalogue = {entry.schedule.kind for entry in catalogue(100).values()}
    with_arguments = {factory.__name__ for factory in GOOD}
    assert schedules == in_catalogue == with_arguments | of_schedules_alone


def test_the_packages_help_names_every_function_by_its_purpose():
    named = re.findall(r"`(\w+)`", wc.__doc__ or "")
    assert sorted(named) == sorted(FUNCTIONS)


def test_help_begins_with_the_names_and_defaults_alone():
    assert str(inspect.signature(wc.apply_gradients)) == (
        "(optimizer, params, opt_state, *, grads, **extra)"
    )
    assert [name for name in FUNCTIONS if ": " in str(inspect.signature(FUNCTIONS[name]))] == []


def test_options_are_keyword_only():
    assert [
        f"{name}({argument})"
        for name, function in FUNCTIONS.items()
        for argument, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and argument not in OPERANDS
    ] == []


def test_the_pipeline_lowers_for_cpus_gpus_and_tpus():
    optimizer = wc.pipeline(optax.adamw, wc.linear_warmup(peak_value=0.1, warmup_steps=10))
    params = {"w": jnp.ones((8, 8)), "b": jnp.ones(3, jnp.bfloat16)}

    def step(params, opt_state, grads):
        params, opt_state = wc.apply_gradients(optimizer, params, opt_state, grads=grads)
        return params, wc.metrics(opt_state)

    platforms = ["cpu", "cuda", "tpu"]
    exported = jax.export.export(jax.jit(step), platforms=platforms)(
        params, optimizer.init(params), params
    )
    assert list(exported.platforms) == platforms


def test_the_installed_package_holds_its_version_licence_changelog_and_type_marker():
    package = pathlib.Path(wc.__file__).parent
    assert importlib.metadata.version("warmclip-jax") == wc.__version__
    assert (package / "py.typed").is_file()
    assert wc.__version__ in (package / "CHANGELOG.md").read_text(encoding="utf-8")
    distribution = importlib.metadata.distribution("warmclip-jax")
    assert "Apache License" in (distribution.read_text("licenses/LICENSE") or "")
