"""Every kind of schedule at any length, beside its textbook formula and the steps at which it
changes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import warmclip_jax as wc
from tests import reference


class Entry(NamedTuple):
    schedule: wc.Schedule
    formula: Callable[[Any], np.ndarray]
    seams: tuple[int, ...]
    peak: float
    is_smooth: bool = True  # Monotone from one seam to the next.

    @property
    def end(self) -> int:
        return self.seams[-1]

    def boundaries(self) -> np.ndarray:
        """Every seam with the step before and after, and the ends of what a count can be."""
        near = [seam + offset for seam in (0, *self.seams) for offset in (-1, 0, 1)]
        return np.array([-(2**31), -5, *near, 2**31 - 1])


def entry(
    factory: Callable[..., wc.Schedule],
    seams: tuple[int, ...],
    *,
    is_smooth: bool = True,
    **arguments: Any,
) -> Entry:
    formula = getattr(reference, factory.__name__)
    peak = max(
        np.max(np.abs(arguments.get(name, 0.0)))
        for name in ("peak_value", "init_value", "value", "values", "end_value")
    )
    return Entry(
        factory(**arguments), lambda count: formula(count, **arguments), seams, peak, is_smooth
    )


def catalogue(length: int) -> dict[str, Entry]:
    """One entry for each curve, for each value of its options, and for the hardest values of its
    numbers.
    """
    n, w, d = length, length // 10, length // 5
    run = {"peak_value": 3e-4, "total_steps": n, "warmup_steps": w}
    entries = {
        "constant": entry(wc.constant, (1,), value=0.1),
        "linear_warmup": entry(wc.linear_warmup, (n,), peak_value=0.3, warmup_steps=n),
        "linear_warmup from 0.1": entry(
            wc.linear_warmup, (n,), peak_value=0.7, warmup_steps=n, init_value=0.1
        ),
        "linear_warmup downwards": entry(
            wc.linear_warmup, (n,), peak_value=0.1, warmup_steps=n, init_value=0.15
        ),
        "exponential_warmup": entry(wc.exponential_warmup, (n,), peak_value=0.3, timescale=n / 3),
        "cosine_decay": entry(
            wc.cosine_decay, (n // 2, n), init_value=0.3, decay_steps=n, end_value=0.01
        ),
        "exponential_decay": entry(
            wc.exponential_decay, (n,), init_value=0.3, decay_steps=n // 10, decay_rate=0.3
        ),
        "exponential_decay to a floor": entry(
            wc.exponential_decay,
            (2 * n,),
            init_value=0.3,
            decay_steps=n,
            decay_rate=0.5,
            end_value=0.1,
        ),
        "exponential_decay by a rate near 1": entry(
            wc.exponential_decay,
            (n,),
            init_value=0.3,
            decay_steps=1,
            decay_rate=float(0.1 ** (1 / n)),
        ),
        "exponential_decay that grows": entry(
            wc.exponential_decay,
            (n - 1, n),
            init_value=0.1,
            decay_steps=n,
            decay_rate=3.0,
            end_value=0.3,
        ),
        "exponential_decay in steps": entry(
            wc.exponential_decay,
            (n // 3, n),
            init_value=0.3,
            decay_steps=n // 3,
            decay_rate=0.9,
            staircase=True,
        ),
        "piecewise_constant": entry(
            wc.piecewise_constant,
            (w, n),
            values=[0.1, 0.3, 0.01],
            boundaries=[w, n],
            is_smooth=False,
        ),
        "inverse_sqrt_decay": entry(wc.inverse_sqrt_decay, (n,), init_value=0.3, timescale=n / 7),
        "polynomial_decay that cycles": entry(
            wc.polynomial_decay,
            (n, 2 * n, 7 * n),
            init_value=0.05,
            decay_steps=n,
            end_value=0.001,
            cycle=True,
            is_smooth=False,
        ),
    }
    for power in (0.5, 0.9, 1.0, 2.0, 3.7, 50.0, 1000.0):
        entries[f"polynomial_warmup {power}"] = entry(
            wc.polynomial_warmup, (n,), peak_value=0.3, warmup_steps=n, init_value=0.01, power=power
        )
        entries[f"polynomial_decay {power}"] = entry(
            wc.polynomial_decay, (n,), init_value=0.3, decay_steps=n, end_value=0.01, power=power
        )
    for clock in ("warmup_end", "zero"):
        for power in (0.5, 1.0, 2.0):
            entries[f"warmup_polynomial_decay {clock} {power}"] = entry(
                wc.warmup_polynomial_decay,
                (w, n),
                **run,
                end_value=1e-5,
                power=power,
                decay_from=clock,
            )
        entries[f"warmup_cosine_decay {clock}"] = entry(
            wc.warmup_cosine_decay, (w, n), **run, end_value=1e-5, decay_from=clock
        )
    entries["warmup_polynomial_decay without a warm-up"] = entry(
        wc.warmup_polynomial_decay, (n,), peak_value=0.3, total_steps=n, warmup_steps=0
    )
    for shape in ("linear", "cosine", "one_minus_sqrt", "exponential"):
        entries[f"warmup_stable_decay {shape}"] = entry(
            wc.warmup_stable_decay,
            (w, n - d, n),
            **run,
            decay_steps=d,
            end_value=1e-5,
            decay_shape=shape,
        )
    for shape in ("one_minus_sqrt", "exponential"):
        entries[f"warmup_stable_decay {shape} to zero"] = entry(
            wc.warmup_stable_decay, (w, n - d, n), **run, decay_steps=d, decay_shape=shape
        )
    return entries | _transforms(n, w)


def _transforms(n: int, w: int) -> dict[str, Entry]:
    decay = wc.cosine_decay(init_value=0.3, decay_steps=n - w)

    def cosine(count: Any) -> np.ndarray:
        return reference.cosine_decay(count, init_value=0.3, decay_steps=n - w)

    def warmed(count: Any) -> np.ndarray:
        count = _clock(count)
        rising = reference.linear_warmup(count, peak_value=0.3, warmup_steps=w, init_value=0.01)
        return np.where(count < w, rising, cosine(count - w))

    def joined(count: Any) -> np.ndarray:
        count = _clock(count)
        return np.where(count < w, 0.1, np.where(count < 2 * w, cosine(count - w), reference.linear_warmup(
            count - 2 * w, peak_value=0.3, warmup_steps=n)))  # fmt: skip

    return {
        "with_warmup": Entry(
            wc.with_warmup(decay, warmup_steps=w, init_value=0.01), warmed, (w, n), 0.3
        ),
        "join": Entry(
            wc.join(
                [wc.constant(value=0.1), decay, wc.linear_warmup(peak_value=0.3, warmup_steps=n)],
                boundaries=[w, 2 * w],
            ),
            joined,
            (w, 2 * w, 2 * w + n),
            0.3,
            is_smooth=False,
        ),
        "repeat": Entry(
            wc.repeat(decay, period=n // 3),
            lambda count: cosine(_clock(count) % (n // 3)),
            (n // 3, n),
            0.3,
            is_smooth=False,
        ),
        "stretch": Entry(
            wc.stretch(decay, factor=3),
            lambda count: cosine(_clock(count) // 3),
            (3, n, min(3 * n, 2**31 - 3)),
            0.3,
        ),
        "product": Entry(
            0.5 * decay * wc.constant(value=0.1), lambda count: 0.05 * cosine(count), (n,), 0.015
        ),
        "minimum": Entry(
            wc.minimum(decay, 0.2), lambda count: np.minimum(cosine(count), 0.2), (n,), 0.3
        ),
        "maximum": Entry(
            wc.maximum(0.01, decay), lambda count: np.maximum(cosine(count), 0.01), (n,), 0.3
        ),
        "shift onwards": Entry(
            wc.shift(decay, by=w), lambda count: cosine(_clock(count) + w), (n,), 0.3
        ),
        "shift back": Entry(
            wc.shift(decay, by=-w), lambda count: cosine(_clock(count) - w), (w, n + w), 0.3
        ),
    }


def _clock(count: Any) -> np.ndarray:
    return np.maximum(np.asarray(count, np.int64), 0)
