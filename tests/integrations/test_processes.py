"""Training over several real processes, which talk over loopback, is training in one."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np

from tests.integrations import process_worker

ROOT = pathlib.Path(__file__).parents[2]
#: A whole run takes seconds; a busy machine may take a few times as long.
SECONDS = 120


@contextlib.contextmanager
def started(processes, out, entry, steps=process_worker.STEPS):
    """Workers that train together, none of which outlives the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    devices = process_worker.DEVICES // processes
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    workers = []
    try:
        for process in range(processes):
            arguments = [
                address,
                processes,
                process,
                out / f"{process}.npz",
                entry,
                steps,
            ]
            with open(out / f"{process}.log", "wb") as log:
                workers.append(
                    subprocess.Popen(
                        [
                            sys.executable,
                            "-m",
                            "tests.integrations.process_worker",
                            *map(str, arguments),
                        ],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        yield workers
    finally:
        for worker in workers:
            worker.kill()  # ends a stopped one too
            worker.wait()


def logs(out):
    return "\n".join(
        f"--- {path.name}\n{path.read_text(errors='replace')}" for path in sorted(out.glob("*.log"))
    )


def ended(workers, seconds):
    """The exit codes of the workers, None for one that is still there after `seconds`."""
    deadline = time.monotonic() + seconds
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(max(deadline - time.monotonic(), 0))
    return [worker.poll() for worker in workers]


def test_two_processes_compute_in_shards_what_one_does(tmp_path):
    # Without shards, and from checkpoints, two processes run in test_layouts.py.
    entry, processes = "shard_map", 2
    in_one_process = process_worker.train(entry)
    with started(processes, tmp_path, entry) as workers:
        assert ended(workers, SECONDS) == [0] * processes, logs(tmp_path)
    first, second = (dict(np.load(tmp_path / f"{process}.npz")) for process in range(processes))
    assert set(first) == set(in_one_process)
    for name, value in first.items():
        expected = in_one_process[name]
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(second[name], value, err_msg=name)
        if np.issubdtype(value.dtype, np.integer):
            np.testing.assert_array_equal(value, expected, err_msg=name)
        else:
            # Sums over eight devices in another order: a few roundings of float32, once for each
            # step.
            rtol = process_worker.STEPS * 8 * float(np.finfo(value.dtype).eps)
            size = np.abs(expected, where=np.isfinite(expected), out=np.zeros_like(expected))
            atol = rtol * float(np.max(size))
            np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol, err_msg=name)
    # The third of four batches was bad on one device, and was left out on all of them.
    assert first["skipped_count"].tolist() == [0, 0, 1, 1]
    assert first["step"].tolist() == [1, 2, 2, 3]


def test_a_process_that_loses_the_other_ends_with_an_error_in_bounded_time(tmp_path):
    with started(2, tmp_path, "jit", steps=10**6) as workers:
        deadline = time.monotonic() + SECONDS
        while b"step 3" not in (tmp_path / "1.log").read_bytes():
            assert time.monotonic() < deadline, logs(tmp_path)
            assert [worker.poll() for worker in workers] == [None, None], logs(tmp_path)
            time.sleep(0.1)
        workers[0].send_signal(signal.SIGKILL)  # which coordinates
        # In the middle of a sum over all devices the other one waits for it; the missing heartbeat
        # ends that.
        (code,) = ended(workers[1:], 12 * process_worker.HEARTBEAT_SECONDS)
        assert code not in (None, 0), logs(tmp_path)
