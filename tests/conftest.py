"""Eight CPU devices, strict rank promotion and a repeatable hypothesis for every test."""

import gc
import importlib.metadata
import os
from typing import Any

# Before jax is imported: it reads them once. Half of the time that the tests take would be XLA's, at
# code that runs once: no optimization by LLVM, no threads for it, and the older emitter of fused
# loops, which there is up to jax 0.11. `.ci/run` tests numbers and costs as users compile, too.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
        "--xla_cpu_use_fusion_emitters=false"
        if not os.environ.get("AS_USERS_COMPILE")
        and [int(part) for part in importlib.metadata.version("jax").split(".")[:2]] < [0, 12]
        else "",
    )
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes many objects and few cycles: looking for these is a tenth of its time.
gc.set_threshold(50_000, 20, 50)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--processes",
        type=int,
        default=2,
        choices=(2, 4, 8),
        help="how many real processes train together in test_processes.py (default: %(default)s)",
    )


def pytest_report_header() -> list[str]:
    packages = ["jax", "jaxlib", "optax", "chex", "flax", "equinox", "dm-haiku", "orbax-checkpoint"]
    packages += ["numpy", "hypothesis", "matplotlib"]
    return ["packages: " + ", ".join(f"{name} {_version(name)}" for name in packages)]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@pytest.fixture
def strict_dtypes():
    """Our code alone under strict dtype promotion; optax's own optimizers do not all pass it."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory):
    """What is compiled alike again, in this process or in one that it starts, is compiled once: JAX
    keeps it in a folder. Each worker has a folder of its own: JAX writes such files in place, where
    another process could read half of one.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return  # Who runs the tests has a folder for several runs, as tests/mutants.py does.
    folder = str(tmp_path_factory.mktemp("compiled"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()  # Collecting the tests may have settled that there is none.


@pytest.fixture
def as_on(monkeypatch: pytest.MonkeyPatch):
    """`as_on("gpu", devices=1)`: the norm takes the form that it has there; the arithmetic stays
    that of CPUs.
    """

    def choose(platform: str, devices: int) -> None:
        def platform_dependent(*operands: Any, default: Any, **forms: Any) -> Any:
            return forms.get(platform, default)(*operands)

        monkeypatch.setattr(jax.lax, "platform_dependent", platform_dependent)
        monkeypatch.setattr(jax, "device_count", lambda: devices)
        jax.clear_caches()  # of what was traced for other forms

    yield choose
    jax.clear_caches()
