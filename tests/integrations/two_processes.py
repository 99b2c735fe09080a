"""Two processes with half of the devices each, which talk over loopback."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax

ROOT = pathlib.Path(__file__).parents[2]
DEVICES = 8


@contextlib.contextmanager
def two_processes(
    module: str, logs: pathlib.Path, first: list[Any], second: list[Any]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Workers that run a module with arguments of their own; none of them outlives the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // 2}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    workers = []
    try:
        for process, arguments in enumerate((first, second)):
            command = [sys.executable, "-m", f"tests.integrations.{module}", address, process]
            with (logs / f"{process}.log").open("wb") as log:
                workers.append(
                    subprocess.Popen(
                        [*map(str, [*command, *arguments])],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def join(address: str, process: str) -> None:
    """What a worker does first: it finds the other one."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address,
        num_processes=2,
        process_id=int(process),
        initialization_timeout=60,
        shutdown_timeout_seconds=30,
    )
    assert jax.device_count() == DEVICES
