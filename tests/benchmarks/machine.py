"""What the numbers were measured on, without a name or a date."""

import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "jax-cuda12-plugin", "libtpu", "optax", "numpy", "torch", "tensorflow")
PACKAGES += ("keras", "warmclip-jax")


def cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def accelerator() -> Any:
    """The GPU or TPU that JAX computes on; None where that is the CPU."""
    device = jax.devices()[0]
    return None if device.platform == "cpu" else device


def peak_megabytes() -> float | None:
    """The most that was in use on the accelerator since the process began; None where nobody counts."""
    device = accelerator()
    stats = device.memory_stats() if device else None
    return stats["peak_bytes_in_use"] / 1e6 if stats and "peak_bytes_in_use" in stats else None


def facts() -> dict[str, Any]:
    device = accelerator()
    return {
        "accelerator": device.device_kind if device else None,
        "processor": _processor(),
        "cpus": cpus(),
        "memory_gigabytes": round(_memory() / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def version(package: str) -> str | None:
    """The version of an installed package. None where it is not there."""
    for distribution in (package, f"{package}-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
