import importlib.metadata
import inspect
import pathlib
import pkgutil
import typing

import jax
import jax.numpy as jnp
import optax
import pytest

import warmclip_jax as wc

PUBLIC = [getattr(wc, name) for name in wc.__all__]


def test_all_is_sorted_and_is_what_the_package_shows():
    shown = [
        name
        for name, value in vars(wc).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    ]
    assert sorted(shown) == sorted(wc.__all__)
    assert list(wc.__all__) == sorted(wc.__all__)


def test_every_module_is_private():
    modules = [module.name for module in pkgutil.iter_modules(wc.__path__)]
    assert [name for name in modules if not name.startswith("_")] == []


def test_the_version_is_that_of_the_installed_package():
    assert importlib.metadata.version("warmclip-jax") == wc.__version__


@pytest.mark.parametrize("public", PUBLIC, ids=wc.__all__)
def test_every_public_name_is_documented(public):
    assert (inspect.getdoc(public) or "").strip()


FUNCTIONS = [value for value in PUBLIC if inspect.isfunction(value)]


@pytest.mark.parametrize("function", FUNCTIONS, ids=[function.__name__ for function in FUNCTIONS])
def test_every_function_says_what_it_takes_returns_and_raises_and_shows_an_example(function):
    doc = inspect.getdoc(function) or ""
    for part in ("Args:", "Returns:", "Raises:", ">>> "):
        assert part in doc
    for name in inspect.signature(function).parameters:
        assert f"{name}:" in doc or f"{name}`" in doc, name


@pytest.mark.parametrize("function", FUNCTIONS, ids=[function.__name__ for function in FUNCTIONS])
def test_every_argument_and_result_has_a_type(function):
    # Not get_type_hints: optax's own types name things that are not to be found where they are
    # used.
    types = inspect.get_annotations(function)
    assert list(types) == [*inspect.signature(function).parameters, "return"]
    assert not any(isinstance(annotation, str) for annotation in types.values())


@pytest.mark.parametrize("state", [wc.ClipState, wc.SkipState, wc.PipelineState])
def test_every_field_of_a_state_has_a_type(state):
    assert list(inspect.get_annotations(state)) == list(state._fields)


def test_a_factory_says_at_run_time_too_that_it_returns_a_schedule():
    hints = typing.get_type_hints(wc.linear_warmup)
    assert list(hints) == ["peak_value", "warmup_steps", "init_value", "return"]
    assert hints["return"] is wc.Schedule


def test_options_are_keyword_only():
    operands = {
        "b2",
        "text",
        "schedule",
        "schedules",
        "tree",
        "max_norm",
        "optimizer",
        "inner",
        "params",
        "opt_state",
        "grads",
        "groups",
        "patterns",
    }
    for function in FUNCTIONS:
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                assert name in operands, f"{function.__name__}({name})"


def test_the_pipeline_lowers_for_cpus_gpus_and_tpus():
    optimizer = wc.pipeline(optax.adamw, wc.linear_warmup(peak_value=0.1, warmup_steps=10))
    params = {"w": jnp.ones((8, 8)), "b": jnp.ones(3, jnp.bfloat16)}

    def step(params, opt_state, grads):
        params, opt_state = wc.apply_gradients(optimizer, params, opt_state, grads=grads)
        return params, wc.metrics(opt_state)

    exported = jax.export.export(jax.jit(step), platforms=["cpu", "cuda", "tpu"])(
        params, optimizer.init(params), params
    )
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}


def test_the_package_holds_its_licence_changelog_and_type_marker():
    package = pathlib.Path(wc.__file__).parent
    assert (package / "py.typed").is_file()
    assert wc.__version__ in (package / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "Apache License" in (
        importlib.metadata.distribution("warmclip-jax").read_text("licenses/LICENSE") or ""
    )
