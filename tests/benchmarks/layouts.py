"""Prints the tables on device layouts of the README beside this file: `python -m tests.benchmarks.layouts`.

The targets are those whose compilers are installed: `pip install 'jax[tpu]'`, `pip install
'jax[cuda12]'`.
"""

import importlib.util
import json
import math
import os
import subprocess

# Before jax is imported: it reads them once.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import warmclip_jax as wc
from tests.integrations import aot_worker

GATHERS = (
    "all-gather",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "reduce-scatter",
)
COMPILERS = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin")}


def peers():
    """The norm of a replicated bias and a kernel in eight shards, taken inside of `shard_map` in
    three ways; and the truth.
    """
    tree = {"kernel": jnp.ones((8, 8)), "bias": 2 * jnp.ones(9)}
    specs = {"kernel": P("devices"), "bias": P()}

    def norms(tree):
        local = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))
        naive = jnp.sqrt(jax.lax.psum(local, "devices"))
        return optax.tree.norm(tree)[None], naive[None], wc.global_norm(tree)[None]

    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    by_optax, naive, ours = jax.shard_map(
        norms, mesh=mesh, in_specs=(specs,), out_specs=P("devices")
    )(tree)
    truth = math.sqrt(
        sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in tree.values())
    )
    return {
        "optax": float(by_optax[0]),
        "one psum over everything": float(naive[0]),
        "ours": float(ours[0]),
        "truth": truth,
    }


def compiled(target):
    """The facts of the step with each clip, by its name."""
    names = list(aot_worker.optimizers())
    command, environment = aot_worker.command(target, *names)
    run = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return dict(
        zip(
            names,
            (json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")),
            strict=True,
        )
    )


def communications(*operations):
    """How many of these operations a program has, of what `communicated` found there."""
    return lambda communicated: str(
        sum(len(communicated.get(operation, ())) for operation in operations)
    )


#: Title of a column; of which programs; what of each; and as which text.
COLUMNS = (
    (
        "all-reduces",
        ("none", "optax", "ours", "groups"),
        "communicated",
        communications("all-reduce"),
    ),
    ("gathers", ("ours", "pipeline", "groups"), "communicated", communications(*GATHERS)),
    ("fusions", ("none", "bare", "optax", "ours", "pipeline", "groups"), "fusions", str),
    (
        "GB accessed by a device",
        ("none", "optax", "ours", "pipeline", "groups"),
        "bytes_accessed",
        lambda size: f"{size / 1e9:.2f}",
    ),
    (
        "MB of temporaries",
        ("optax", "ours", "optax_skip", "pipeline", "groups"),
        "temporary_bytes",
        lambda size: f"{size / 1e6:,.0f}",
    ),
    (
        "compile seconds",
        ("none", "optax", "ours", "pipeline"),
        "seconds",
        lambda seconds: f"{seconds:.1f}",
    ),
)


def main():
    print("| norm of a replicated bias and a kernel in 8 shards, inside `shard_map` | |\n|---|---|")
    for name, norm in peers().items():
        print(f"| {name} | {norm:.4f} |")
    print(f"\nAdamW over {len(aot_worker.gpt2_like(1))} leaves:\n")
    titles = [f"{title}: {', '.join(names)}" for title, names, _, _ in COLUMNS]
    print(f"| target | mesh | {' | '.join(titles)} |\n|---|---|{'---|' * len(titles)}")
    for name, target in aot_worker.TARGETS.items():
        if any(importlib.util.find_spec(module) for module in COMPILERS[target.platform]):
            facts = compiled(target)
            cells = [
                ", ".join(text(facts[of][key]) for of in names) for _, names, key, text in COLUMNS
            ]
            print(
                f"| {name} | {' x '.join(map(str, target.mesh))} | {' | '.join(cells)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
