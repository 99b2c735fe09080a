"""Prints the README's tables on device layouts: `python -m tests.benchmarks.layouts`.

The targets are those whose compilers are installed: `pip install 'jax[tpu]'`, `pip install 'jax[cuda12]'`.
"""

import importlib.util
import json
import math
import os
import subprocess

# Before jax is imported: it reads them once.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import warmclip_jax as wc
from tests import aot_worker

GATHERS = ("all-gather", "all-to-all", "collective-permute", "collective-broadcast", "reduce-scatter")
COMPILERS = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin")}


def peers():
    """The norm of a replicated bias and a kernel in eight shards, taken inside of `shard_map` in three ways; and the truth."""
    tree = {"kernel": jnp.ones((8, 8)), "bias": 2 * jnp.ones(9)}
    specs = {"kernel": P("devices"), "bias": P()}

    def norms(tree):
        local = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))
        naive = jnp.sqrt(jax.lax.psum(local, "devices"))
        return optax.tree.norm(tree)[None], naive[None], wc.global_norm(tree)[None]

    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    by_optax, naive, ours = jax.shard_map(norms, mesh=mesh, in_specs=(specs,), out_specs=P("devices"))(tree)
    truth = math.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in tree.values()))
    return {"optax": float(by_optax[0]), "one psum over everything": float(naive[0]), "ours": float(ours[0]), "truth": truth}


def compiled(target):
    """The facts of the step without a clip, with optax's and with ours."""
    command, environment = aot_worker.command(target, "none", "optax", "ours")
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def count(facts, *operations):
    return sum(len(facts["communicated"].get(operation, ())) for operation in operations)


def gigabytes(accessed):
    """What the compiler reckons that a program reads and writes; not every compiler says."""
    return "-" if accessed is None else f"{accessed / 1e9:.2f}"


def main():
    print("| norm of a replicated bias and a kernel in 8 shards, inside `shard_map` | |\n|---|---|")
    for name, norm in peers().items():
        print(f"| {name} | {norm:.4f} |")
    leaves = len(aot_worker.gpt2_like(1))
    print(
        "\n| target | mesh | leaves | all-reduces of scalars added (optax) | gathers | fusions: none, optax, ours "
        "| compile seconds: none, optax, ours | GB accessed by a device: none, optax, ours |\n|---|---|---|---|---|---|---|---|"
    )
    for name, target in aot_worker.TARGETS.items():
        if not any(importlib.util.find_spec(module) for module in COMPILERS[target.platform]):
            continue
        plain, by_optax, ours = three = compiled(target)
        added, added_by_optax = (count(facts, "all-reduce") - count(plain, "all-reduce") for facts in (ours, by_optax))
        fusions, seconds = ", ".join(str(f["fusions"]) for f in three), ", ".join(f"{f['seconds']:.1f}" for f in three)
        accessed = ", ".join(gigabytes(f["bytes_accessed"]) for f in three)
        mesh, gathers = " x ".join(map(str, target.mesh)), count(ours, *GATHERS)
        print(
            f"| {name} | {mesh} | {leaves} | {added} ({added_by_optax}) | {gathers} | {fusions} | {seconds} | {accessed} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
