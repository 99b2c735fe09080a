"""Processes that share eight devices evenly, and talk over loopback."""

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
def processes(
    module: str, logs: pathlib.Path, *arguments: list[Any]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A worker for each list of arguments of a module; none of them outlives the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    count = len(arguments)
    flags = os.environ.get("XLA_FLAGS", "")  # of which the last one counts
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={DEVICES // count}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    workers = []
    try:
        for process, own in enumerate(arguments):
            command = [sys.executable, "-m", f"tests.integrations.{module}"]
            with (logs / f"{process}.log").open("wb") as log:
                workers.append(
                    subprocess.Popen(
                        [*map(str, [*command, address, f"{process}/{count}", *own])],
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


def join(address: str, process: str, patience: int = 100) -> None:
    """What a worker does first, as process "0/2" of two: it finds the others.

    Whoever is not heard of for `patience` seconds is dead, and all others end: gloo itself waits
    for ever.
    """
    own, count = map(int, process.split("/"))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address,
        num_processes=count,
        process_id=own,
        initialization_timeout=60,
        heartbeat_timeout_seconds=patience,
        shutdown_timeout_seconds=30,
    )
    assert jax.device_count() == DEVICES
