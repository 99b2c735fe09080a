"""What a real compiler makes of one training step.

Run: `python -m tests.integrations.aot_worker PLATFORM TOPOLOGY FSDP TENSOR WIDTH CLIP...`.

Prints a line of JSON for each CLIP, a name in `optimizers()`. No accelerator is needed, only its
compiler. It runs in a process of its own, because the environment of a process decides which
compilers it has.
"""

import json
import math
import os
import pathlib
import re
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import warmclip_jax as wc
from tests.benchmarks.jax_steps import scaled_by_one_coefficient

H100 = pathlib.Path(__file__).with_name("h100_target.txtpb")
LAYERS = 2


class Target(NamedTuple):
    """Devices to compile for, and a width of the model that gives each of them about a gigabyte of
    gradients.
    """

    platform: str
    topology: str
    mesh: tuple[int, int]  # fully sharded x tensor parallel
    width: int


TARGETS = {
    "TPU v5e:16x16": Target("tpu", "v5e:16x16", (32, 8), 65536),
    "TPU v4:8x8x8": Target("tpu", "v4:8x8x8", (128, 8), 131072),
    "TPU v5p:16x16x16": Target("tpu", "v5p:16x16x16", (512, 8), 196608),
    "TPU v6e:4x4": Target("tpu", "v6e:4x4", (8, 2), 16384),
    "1 H100": Target("cuda", "1x1x1", (1, 1), 4096),
    "8 H100": Target("cuda", "1x1x8", (4, 2), 8192),
    "128 H100": Target("cuda", "2x8x8", (16, 8), 32768),
}
#: What the process needs before it starts.
ENVIRONMENT = {
    "tpu": {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "XLA_FLAGS": ""},
    "cuda": {
        "CUDA_VISIBLE_DEVICES": "-1",
        "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false",
    },
    "cpu": {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
}


def gpt2_like(width):
    """Shapes and shardings of a decoder's parameters, by name."""
    column, row, whole, part = P("fsdp", "tp"), P("tp", "fsdp"), P(), P("tp")
    tree = {
        "wte": ((50304, width), row),
        "wpe": ((1024, width), P(None, "fsdp")),
        "ln_f": ((width,), whole),
    }
    for layer in range(LAYERS):
        block = {
            "ln_1": ((width,), whole),
            "attention": ((width, 3 * width), column),
            "attention_bias": ((3 * width,), part),
            "projection": ((width, width), row),
            "projection_bias": ((width,), whole),
            "ln_2": ((width,), whole),
            "up": ((width, 4 * width), column),
            "up_bias": ((4 * width,), part),
            "down": ((4 * width, width), row),
            "down_bias": ((width,), whole),
        }
        tree |= {f"block_{layer}/{name}": leaf for name, leaf in block.items()}
    return tree


def optimizers():
    schedule = wc.warmup_cosine_decay(peak_value=1e-3, total_steps=1000, warmup_steps=100)
    plain = optax.adamw(schedule)
    by_optax = optax.chain(optax.clip_by_global_norm(1.0), plain)
    spikes = wc.running_bound(deviations=6.0)
    return {
        "none": plain,
        "bare": optax.chain(scaled_by_one_coefficient(1.0), plain),
        "optax": by_optax,
        "ours": optax.chain(wc.clip_by_global_norm(1.0), plain),
        # Where bad steps are left out:
        "optax_skip": optax.apply_if_finite(by_optax, 5),
        "pipeline": wc.pipeline(optax.adamw, schedule),
        # Everything: a group for each leaf, bounds that follow them, the norm of all and the loss,
        # and all that can be recorded.
        "groups": wc.pipeline(
            optax.adamw,
            schedule,
            max_norm=wc.running_bound(ceiling=1.0),
            groups=wc.label_by_path(),
            skip_above=spikes,
            skip_value_above=spikes,
            record=256,
            record_leaves=True,
        ),
    }


def lowered(clip, devices, shape, width):
    """The whole optimizer step, donated; ours with their metrics."""
    optimizer = optimizers()[clip]
    mesh = Mesh(np.array(devices).reshape(shape), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
    tree = gpt2_like(width)
    specs = {name: spec for name, (_, spec) in tree.items()}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, (shape, _) in tree.items()}
    state = jax.eval_shape(optimizer.init, params)
    # Moments lie as their parameters do. `optax.tree.map_params` would not pass through the states
    # of groups.
    state_specs = jax.tree.map_with_path(
        lambda path, _: specs.get(getattr(path[-1], "key", ""), P()), state
    )
    shardings: Any = jax.tree.map(lambda spec: NamedSharding(mesh, spec), (specs, state_specs))

    def placed(shapes, shardings):
        return jax.tree.map(
            lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, shardings
        )

    def step(params, opt_state, grads, loss):
        extra = {"value": loss} if clip == "groups" else {}
        params, opt_state = wc.apply_gradients(optimizer, params, opt_state, grads=grads, **extra)
        return (
            params,
            opt_state,
            wc.metrics(opt_state) if clip in ("ours", "pipeline", "groups") else {},
        )

    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(*shardings, None))
    params, state = placed(params, shardings[0]), placed(state, shardings[1])
    loss = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, P()))
    return jitted.lower(params, state, params, loss)


def communicated(text):
    """`{operation: [numbers in each]}` for every operation of a compiled program that moves data
    between devices.
    """
    found = {}
    pattern = r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)(?:-start)?\("
    for shapes, operation in re.findall(pattern, text):
        sizes = [
            math.prod(map(int, filter(None, dims.split(","))))
            for dims in re.findall(r"\w\[([\d,]*)\]", shapes)
        ]
        found.setdefault(operation, []).append(max(sizes))
    return found


def host_traffic(text):
    """What of a compiled program talks to the host: feeds, host memory, callbacks."""
    return re.findall(
        r" (?:infeed|outfeed|send|recv)(?:-done)?\(|S\(5\)|custom_call_target=\"[^\"]*(?:[Cc]allback|[Hh]ost)[^\"]*\"",
        text,
    )


def bytes_accessed(compiled):
    """What XLA reckons that a program reads and writes."""
    analysis = compiled.cost_analysis()
    if analysis is None:
        # The compiler of a GPU that is not there leaves it to us, and nothing public does it for
        # what is compiled.
        from jaxlib import _jax  # pyright: ignore[reportAttributeAccessIssue]

        (module,) = compiled.runtime_executable().hlo_modules()
        analysis = _jax.hlo_module_cost_analysis(jax.local_devices(backend="cpu")[0].client, module)
    return analysis["bytes accessed"]


def facts(compiled, seconds):
    text = compiled.as_text()
    memory = compiled.memory_analysis()
    entry = text[text.index("\nENTRY") :]
    return {
        "communicated": communicated(text),
        "host_traffic": host_traffic(text),
        "custom_calls": re.findall(r"custom_call_target=\"([^\"]*)\"", text),
        "loops": len(re.findall(r" while\(", text)),
        "f64": len(re.findall(r"\bf64\[", text)),
        "fusions": len(re.findall(r" fusion\(", entry)),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "bytes_accessed": bytes_accessed(compiled),
        "seconds": seconds,
    }


def devices_of(platform, topology):
    if platform == "cpu":
        return jax.devices()
    options = (
        {"target_config": H100.read_text(), "topology": topology}
        if platform == "cuda"
        else {"topology_name": topology}
    )
    return topologies.get_topology_desc(platform=platform, **options).devices


def main(platform, topology, fsdp, tensor, width, *clips):
    devices = devices_of(platform, topology)
    for clip in clips:
        start = time.monotonic()
        compiled = lowered(clip, devices, (int(fsdp), int(tensor)), int(width)).compile()
        print(json.dumps({"clip": clip, **facts(compiled, time.monotonic() - start)}), flush=True)


def command(target, *clips):
    """Arguments and environment of the process that compiles for `target`."""
    arguments = [target.platform, target.topology, *target.mesh, target.width, *clips]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **ENVIRONMENT[target.platform]}
    return [
        sys.executable,
        "-m",
        "tests.integrations.aot_worker",
        *map(str, arguments),
    ], environment


if __name__ == "__main__":
    main(*sys.argv[1:])
