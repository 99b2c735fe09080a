"""What the ported steps are held to: the same losses, rates and norms, and the same steps left out."""

from typing import Any, NamedTuple

import numpy as np


class Told(NamedTuple):
    """What one side says after each call: of the last call, but the rate, which is that of the last
    update.
    """

    loss: Any
    norm: Any
    rate: Any
    skipped: Any


def stacked(told: list[Told]) -> Told:
    return Told(*(np.asarray(values, np.float64) for values in zip(*told, strict=True)))


def assert_alike(ours: Told, theirs: Told, *, rtol: float = 2e-5) -> None:
    """Both runs, call by call. `rtol` is what some roundings of float32 grow to in as many updates."""
    np.testing.assert_array_equal(ours.skipped, theirs.skipped)
    for name in ("loss", "norm"):
        np.testing.assert_allclose(
            getattr(ours, name), getattr(theirs, name), rtol=rtol, err_msg=name
        )
    peak = np.nanmax(theirs.rate, axis=-1, keepdims=True)  # of each run
    assert np.all(np.abs(ours.rate - theirs.rate) <= 4 * np.spacing(peak.astype(np.float32))), (
        ours.rate,
        theirs.rate,
    )
