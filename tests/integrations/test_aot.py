"""What the compilers of real TPUs and GPUs make of the whole optimizer step: clip, AdamW, schedule and metrics.

No accelerator is needed, only its compiler, in an environment of its own:

    python3 -m venv .venv-tpu && .venv-tpu/bin/pip install 'jax[tpu]' '.[test]' &&
    .venv-tpu/bin/python -m pytest -m aot
    python3 -m venv .venv-gpu && .venv-gpu/bin/pip install 'jax[cuda12]' '.[test]' &&
    .venv-gpu/bin/python -m pytest -m aot

libtpu is 0.6 GB, the CUDA wheels are 3 GB. What is not installed is skipped.
"""

import functools
import importlib.util
import json
import subprocess

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.integrations import aot_worker

PLUGINS = {"tpu": ("libtpu",), "cuda": ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")}
#: An all-reduce, whoever asks for it, has up to 6 MiB of its own on a TPU, 9 MiB where it is of the
#: norms of all leaves; the smallest kernel has 32 MiB on each device.
SCRATCH = {"tpu": 10 * 2**20, "cuda": 2**20}


def installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


@functools.cache
def compiled(name):
    """The facts of the programs without a clip, with optax's, with ours, and with ours by groups
    and all that it records.
    """
    target = aot_worker.TARGETS[name]
    if not any(map(installed, PLUGINS[target.platform])):
        pytest.skip(
            f"no compiler for {name}: pip install "
            f"'jax[{'tpu' if target.platform == 'tpu' else 'cuda12'}]'"
        )
    command, environment = aot_worker.command(target, "none", "optax", "pipeline", "groups")
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


on_every_target = pytest.mark.parametrize("name", aot_worker.TARGETS)


@pytest.mark.aot
@on_every_target
def test_the_devices_exchange_scalars_alone(name):
    # At most the sums of all leaves at all scales, on GPUs of all shapes; where leaves have norms of
    # their own, of all leaves along each axis of the mesh. The smallest leaf is a thousand times as
    # large.
    leaves = aot_worker.gpt2_like(64).values()
    is_gpu = aot_worker.TARGETS[name].platform == "cuda"
    different = {shape for shape, _ in leaves} if is_gpu else leaves
    sums = len(different), 2 * len(leaves) if is_gpu else len(leaves)
    plain, _, *both = compiled(name)
    assert plain["communicated"] == {}
    for ours, most in zip(both, sums, strict=True):
        assert sum(sum(sizes) for sizes in ours["communicated"].values()) <= 3 * most, ours[
            "communicated"
        ]


@pytest.mark.aot
@on_every_target
def test_there_is_one_all_reduce_for_each_set_of_axes_and_nothing_else(name):
    # Sharded over (fsdp, tp) and over (tp, fsdp) is the same set to us; the compiler numbers its
    # devices differently.
    ways = {spec for _, spec in aot_worker.gpt2_like(1).values()} - {P()}
    _, by_optax, *both = compiled(name)
    for ours in both:
        assert set(ours["communicated"]) <= {"all-reduce"}
        number = len(ours["communicated"].get("all-reduce", []))
        assert number <= min(len(ways), len(by_optax["communicated"].get("all-reduce", [])))


@pytest.mark.aot
@on_every_target
def test_nothing_goes_through_the_host_and_nothing_is_float64(name):
    for facts in compiled(name):
        assert facts["host_traffic"] == []
        assert facts["f64"] == 0


@pytest.mark.aot
@pytest.mark.parametrize("name", [name for name in aot_worker.TARGETS if name.startswith("TPU")])
def test_on_tpus_nothing_loops_and_every_custom_call_is_known(name):
    # None of these is a call. One says of a gather that its indices are in bounds: it puts the norms of
    # leaves, one number each, into the order of the leaves. The other takes two parts of a gradient
    # that were fetched into fast memory one after the other for one; optax's clip has it too.
    known = {"AssumeGatherIndicesInBound", "ConcatBitcast"}
    for facts in compiled(name):
        assert facts["loops"] == 0
        assert set(facts["custom_calls"]) <= known


@pytest.mark.aot
@on_every_target
def test_clip_skip_and_metrics_keep_no_second_gradient_alive(name):
    plain, _, *both = compiled(name)
    for ours, kibibytes in zip(both, (16, 32), strict=True):
        assert (
            ours["temporary_bytes"]
            <= plain["temporary_bytes"] + SCRATCH[aot_worker.TARGETS[name].platform]
        )
        # What is kept from step to step: the numbers of the state, each in a tile of its own; a row
        # for each recorded call.
        assert ours["argument_bytes"] <= plain["argument_bytes"] + kibibytes * 1024


@pytest.mark.aot
@on_every_target
def test_a_gradient_is_read_once_for_the_norm(name):
    plain, by_optax, *both = compiled(name)
    added_by_optax, *each = (
        facts["bytes_accessed"] - plain["bytes_accessed"] for facts in (by_optax, *both)
    )
    # Copies into fast memory count as reads and writes too, and with a norm for each leaf TPUs make
    # more of them.
    for added, factor in zip(each, (1.35, 1.6), strict=True):
        assert 0 < added < factor * added_by_optax


def test_a_gather_of_a_gradient_and_a_call_to_the_host_would_be_seen():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))

    def bad(leaf):
        jax.debug.print("{}", leaf[0, 0])
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, P())), jnp.sum(leaf)

    text = jax.jit(bad).lower(sharded).compile().as_text()
    assert aot_worker.communicated(text)["all-gather"] == [64 * 16]
    assert aot_worker.communicated(text)["all-reduce"] == [1]
    assert aot_worker.host_traffic(text)
