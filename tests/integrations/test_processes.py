"""Training over several real processes, which talk over loopback, is training in one."""

import contextlib
import functools
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.integrations import process_worker

ROOT = pathlib.Path(__file__).parents[2]
#: A whole run takes seconds; a busy machine may take a few times as long.
SECONDS = 120


@contextlib.contextmanager
def started(processes, out, entries, steps=process_worker.STEPS):
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
                ",".join(entries),
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


trained_in_one_process = functools.cache(process_worker.train)


@pytest.mark.parametrize(
    ("processes", "entries"), [(2, ["jit"]), (4, ["shard_map"])], ids=["2", "4"]
)
def test_several_processes_compute_what_one_does(processes, entries, tmp_path):
    in_one_process = {
        f"{entry}/{name}": v
        for entry in entries
        for name, v in trained_in_one_process(entry).items()
    }
    with started(processes, tmp_path, entries) as workers:
        assert ended(workers, SECONDS) == [0] * processes, logs(tmp_path)
    results = [dict(np.load(tmp_path / f"{process}.npz")) for process in range(processes)]
    assert set(results[0]) == set(in_one_process)
    for name, value in results[0].items():
        expected = in_one_process[name]
        assert value.dtype == expected.dtype
        for other in results[1:]:
            np.testing.assert_array_equal(other[name], value, err_msg=name)
        if np.issubdtype(value.dtype, np.integer):
            np.testing.assert_array_equal(value, expected, err_msg=name)
        else:
            # Sums over eight devices in another order: a few roundings of float32, once for each
            # step.
            rtol = process_worker.STEPS * 8 * float(np.finfo(value.dtype).eps)
            atol = rtol * float(np.nanmax(np.abs(expected)))
            np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol, err_msg=name)
    for entry in entries:
        # The third of four batches was bad on one device, and was left out on all of them.
        assert results[0][f"{entry}/skipped_count"].tolist() == [0, 0, 1, 1]
        assert results[0][f"{entry}/step"].tolist() == [1, 2, 2, 3]


@pytest.mark.parametrize(
    ("signal_name", "lost"),
    [("SIGKILL", 0), ("SIGSTOP", 1)],
    ids=["coordinator_killed", "other_falls_silent"],
)
def test_processes_that_lose_one_end_with_an_error_in_bounded_time(signal_name, lost, tmp_path):
    with started(2, tmp_path, ["jit"], steps=10**6) as workers:
        deadline = time.monotonic() + SECONDS
        while b"step 3" not in (tmp_path / "1.log").read_bytes():
            assert time.monotonic() < deadline, logs(tmp_path)
            assert [worker.poll() for worker in workers] == [None, None], logs(tmp_path)
            time.sleep(0.1)
        workers[lost].send_signal(signal.Signals[signal_name])
        # In the middle of a sum over all devices the other one waits for it; the missing heartbeat
        # ends that.
        (code,) = ended([workers[1 - lost]], 12 * process_worker.HEARTBEAT_SECONDS)
        assert code not in (None, 0), logs(tmp_path)
