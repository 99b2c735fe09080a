"""Prints the table on device layouts of the README beside this file: `python -m tests.benchmarks.layouts`.

The targets are those whose compilers are installed: `pip install 'jax[tpu]'`, `pip install
'jax[cuda12]'`.
"""

import importlib.util
import json
import subprocess
from typing import Any

from tests.integrations import aot_worker

COMPILERS = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin")}
CLIPS = ("none", "bare", "optax", "ours", "optax_skip", "pipeline")


def compiled(target: aot_worker.Target) -> dict[str, dict[str, Any]]:
    """The facts of the step with each clip, by its name."""
    command, environment = aot_worker.command(target, *CLIPS)
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = (json.loads(line) for line in run.stdout.splitlines() if line.startswith("{"))
    return dict(zip(CLIPS, lines, strict=True))


def all_reduces(facts: dict[str, Any]) -> str:
    return str(len(facts["communicated"].get("all-reduce", ())))


def gathers(facts: dict[str, Any]) -> str:
    """How often a program moves data between devices in another way."""
    others = facts["communicated"].items()
    return str(sum(len(sizes) for operation, sizes in others if operation != "all-reduce"))


#: Title of a column; of which programs; and what of each, as text.
COLUMNS: dict[str, tuple[tuple[str, ...], Any]] = {
    "all-reduces": (("optax", "ours"), all_reduces),
    "gathers": (("ours",), gathers),
    "kernels": (("none", "bare", "optax", "ours"), lambda facts: str(facts["fusions"])),
    "GB accessed": (
        ("none", "optax", "ours"),
        lambda facts: f"{facts['bytes_accessed'] / 1e9:.2f}",
    ),
    "MB of temporaries": (
        ("optax_skip", "pipeline"),
        lambda facts: f"{facts['temporary_bytes'] / 1e6:,.0f}",
    ),
}


def main() -> None:
    titles = [f"{title}: {', '.join(clips)}" for title, (clips, _) in COLUMNS.items()]
    print(f"| target | mesh | {' | '.join(titles)} |\n|---|---|{'---|' * len(titles)}")
    for name, target in aot_worker.TARGETS.items():
        if any(importlib.util.find_spec(module) for module in COMPILERS[target.platform]):
            facts = compiled(target)
            cells = [
                ", ".join(text(facts[clip]) for clip in clips) for clips, text in COLUMNS.values()
            ]
            mesh = " x ".join(map(str, target.mesh))
            print(f"| {name} | {mesh} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
