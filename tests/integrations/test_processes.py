"""Training in two real processes, in shards, is training in one."""

import pathlib

import numpy as np

from tests.integrations import process_worker
from tests.integrations.two_processes import two_processes


def test_two_processes_compute_in_shards_what_one_does(tmp_path: pathlib.Path):
    # Without shards, and from checkpoints, two processes run in test_layouts.py.
    alone = process_worker.train()
    out = [tmp_path / f"{process}.npz" for process in range(2)]
    with two_processes("process_worker", tmp_path, [out[0]], [out[1]]) as workers:
        codes = [worker.wait(timeout=240) for worker in workers]
    assert codes == [0, 0], (tmp_path / "0.log").read_text() + (tmp_path / "1.log").read_text()
    first, second = (dict(np.load(path)) for path in out)
    assert set(first) == set(alone)
    for name, value in first.items():
        assert value.dtype == alone[name].dtype
        np.testing.assert_array_equal(second[name], value, err_msg=name)
        if np.issubdtype(value.dtype, np.integer):
            np.testing.assert_array_equal(value, alone[name], err_msg=name)
        else:
            # Sums over eight devices in another order: a few roundings of float32, once for each
            # step.
            rtol = process_worker.STEPS * 8 * float(np.finfo(value.dtype).eps)
            size = np.max(np.abs(value[np.isfinite(value)]), initial=0)
            np.testing.assert_allclose(
                value, alone[name], rtol=rtol, atol=rtol * size, err_msg=name
            )
    # The third of four batches was bad on one device, and was left out on all of them.
    assert first["skipped_count"].tolist() == [0, 0, 1, 1]
    assert first["step"].tolist() == [1, 2, 2, 3]
