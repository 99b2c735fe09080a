"""Every kind of schedule at any length, with the steps at which it changes its course."""

from typing import Any, NamedTuple

import numpy as np

import warmclip_jax as wc
from tests import reference


class Entry(NamedTuple):
    schedule: wc.Schedule
    seams: tuple[int, ...]
    is_smooth: bool = True  # Monotone from one seam to the next.

    def formula(self, count: Any) -> np.ndarray:
        return reference.of(self.schedule, count)

    @property
    def peak(self) -> float:
        return reference.largest(self.schedule)

    @property
    def end(self) -> int:
        return self.seams[-1]

    def boundaries(self) -> np.ndarray:
        """Every seam with the step before and after, and the ends of what a count can be."""
        near = [seam + offset for seam in (0, *self.seams) for offset in (-1, 0, 1)]
        return np.array([-(2**31), -5, *near, 2**31 - 1])


def catalogue(length: int) -> dict[str, Entry]:
    """One entry for each curve, for each value of its options, and for the hardest values of its
    numbers.
    """
    n, w, d = length, length // 10, length // 5
    rise: Any = {"peak_value": 0.3, "warmup_steps": n}
    fall: Any = {"init_value": 0.3, "decay_steps": n}
    endless: Any = {"init_value": 0.3, "timescale": n / 7}
    run: Any = {"peak_value": 3e-4, "total_steps": n, "warmup_steps": w, "end_value": 1e-5}
    cosine = wc.cosine_decay(init_value=0.3, decay_steps=n - w)
    line = wc.linear_warmup(**rise)
    steps = wc.piecewise_constant(values=[0.1, 0.3, 0.01], boundaries=[w, n])
    stable = {
        shape: wc.warmup_stable_decay(**run, decay_steps=d, decay_shape=shape)
        for shape in ("linear", "cosine", "one_minus_sqrt", "exponential")
    }
    entries = {
        "constant": Entry(wc.constant(value=0.1), (1,)),
        "linear_warmup": Entry(line, (n,)),
        "linear_warmup from 0.1": Entry(wc.linear_warmup(**rise, init_value=0.1), (n,)),
        "linear_warmup downwards": Entry(wc.linear_warmup(**rise, init_value=0.35), (n,)),
        "exponential_warmup": Entry(wc.exponential_warmup(peak_value=0.3, timescale=n / 3), (n,)),
        "cosine_decay": Entry(wc.cosine_decay(**fall, end_value=0.01), (n // 2, n)),
        "exponential_decay": Entry(
            wc.exponential_decay(init_value=0.3, decay_steps=n // 10, decay_rate=0.3), (n,)
        ),
        "exponential_decay to a floor": Entry(
            wc.exponential_decay(**fall, decay_rate=0.5, end_value=0.1), (2 * n,)
        ),
        "exponential_decay by a rate near 1": Entry(
            wc.exponential_decay(init_value=0.3, decay_steps=1, decay_rate=float(0.1 ** (1 / n))),
            (n,),
        ),
        "exponential_decay that grows": Entry(
            wc.exponential_decay(
                init_value=1e-7, decay_steps=n // 10, decay_rate=10.0, end_value=1.0
            ),
            (7 * (n // 10), n),
        ),
        "exponential_decay in steps": Entry(
            wc.exponential_decay(
                init_value=0.3, decay_steps=n // 3, decay_rate=0.9, staircase=True
            ),
            (n // 3, n),
        ),
        "piecewise_constant": Entry(steps, (w, n), is_smooth=False),
        "inverse_sqrt_decay": Entry(wc.inverse_sqrt_decay(**endless), (n,)),
        "inverse_sqrt_decay to a floor": Entry(
            wc.inverse_sqrt_decay(**endless, end_value=0.1), (n,)
        ),
        "polynomial_decay that cycles": Entry(
            wc.polynomial_decay(init_value=0.05, decay_steps=n, end_value=0.001, cycle=True),
            (n, 2 * n, 7 * n),
            is_smooth=False,
        ),
        "warmup_polynomial_decay without a warm-up": Entry(
            wc.warmup_polynomial_decay(peak_value=0.3, total_steps=n, warmup_steps=0), (n,)
        ),
        "warmup_stable_decay without a decay": Entry(
            wc.warmup_stable_decay(**run, decay_steps=0), (w, n)
        ),
        "with_warmup": Entry(wc.with_warmup(cosine, warmup_steps=w, init_value=0.01), (w, n)),
        "join": Entry(
            wc.join([wc.constant(value=0.1), cosine, line], boundaries=[w, 2 * w]),
            (w, 2 * w, 2 * w + n),
            is_smooth=False,
        ),
        "join of many alike": Entry(
            wc.join([line, cosine, steps, steps, cosine], boundaries=[w, 2 * w, 3 * w, 4 * w]),
            (w, 2 * w, 3 * w, 4 * w, 4 * w + n),
            is_smooth=False,
        ),
        "repeat": Entry(wc.repeat(cosine, period=n // 3), (n // 3, n), is_smooth=False),
        "stretch": Entry(wc.stretch(cosine, factor=3), (3, n, min(3 * n, 2**31 - 3))),
        "product": Entry(0.5 * cosine * wc.constant(value=0.1), (n,)),
        "total": Entry(1 - line - cosine, (n - w, n), is_smooth=False),
        "minimum": Entry(wc.minimum(cosine, 0.2), (n,)),
        "maximum": Entry(wc.maximum(0.01, cosine), (n,)),
        "shift onwards": Entry(wc.shift(cosine, by=w), (n,)),
        "shift back": Entry(wc.shift(cosine, by=-w), (w, n + w)),
        **{f"warmup_stable_decay {shape}": Entry(s, (w, n - d, n)) for shape, s in stable.items()},
    }
    for power in (0.5, 0.9, 1.0, 2.0, 3.7, 50.0, 1000.0):
        entries[f"polynomial_warmup {power}"] = Entry(
            wc.polynomial_warmup(**rise, init_value=0.01, power=power), (n,)
        )
        entries[f"polynomial_decay {power}"] = Entry(
            wc.polynomial_decay(**fall, end_value=0.01, power=power), (n,)
        )
        entries[f"inverse_power_decay {power}"] = Entry(
            wc.inverse_power_decay(**endless, end_value=0.01, power=power), (n,)
        )
    for clock in ("warmup_end", "zero"):
        for power in (0.5, 2.0):
            entries[f"warmup_polynomial_decay {clock} {power}"] = Entry(
                wc.warmup_polynomial_decay(**run, power=power, decay_from=clock), (w, n)
            )
        entries[f"warmup_cosine_decay {clock}"] = Entry(
            wc.warmup_cosine_decay(**run, decay_from=clock), (w, n)
        )
    for shape in ("one_minus_sqrt", "exponential"):
        entries[f"warmup_stable_decay {shape} to zero"] = Entry(
            wc.warmup_stable_decay(
                peak_value=0.3, total_steps=n, warmup_steps=w, decay_steps=d, decay_shape=shape
            ),
            (w, n - d, n),
        )
    return entries
