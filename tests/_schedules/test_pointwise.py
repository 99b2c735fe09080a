"""Products, minima, maxima and stretches against NumPy's float64, and products past what floats
hold.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

import warmclip_jax as wc

pytestmark = pytest.mark.usefixtures("strict_dtypes")

INT32_MAX = 2**31 - 1
COUNTS = np.unique(
    np.clip(
        np.concatenate([np.arange(200), 2 ** np.arange(31), 3 ** np.arange(20), [INT32_MAX]]),
        0,
        INT32_MAX,
    )
)
DECAY = wc.cosine_decay(init_value=0.3, decay_steps=100)


class Both(NamedTuple):
    """A schedule, and what it is in float64 over the values of the curves inside, which have tests
    of their own.
    """

    schedule: Any
    exact: Callable[[np.ndarray], np.ndarray]


def curve(schedule: wc.Schedule) -> Both:
    return Both(schedule, lambda counts: np.asarray(schedule(counts), np.float64))


def number(value: float) -> Both:
    return Both(value, lambda counts: np.full(counts.shape, np.float32(value), np.float64))


LEAVES = st.one_of(
    st.sampled_from([0.1, 0.7, 3.0, -0.3, 0.0]).map(number),
    st.sampled_from([10, 150, 2**24 + 3, INT32_MAX]).flatmap(
        lambda n: st.sampled_from(
            [
                wc.linear_warmup(peak_value=0.3, warmup_steps=n),
                wc.cosine_decay(init_value=0.9, decay_steps=n, end_value=-0.1),
                wc.inverse_sqrt_decay(init_value=0.7, timescale=float(n)),
                wc.piecewise_constant(values=[2.0, 0.1], boundaries=[n]),
            ]
        ).map(curve)
    ),
)


def combined(name: str, left: Both, right: Both) -> Both:
    operation: Any = {"product": np.multiply, "minimum": np.minimum, "maximum": np.maximum}[name]
    return Both(
        getattr(wc, name)(left.schedule, right.schedule),
        lambda counts: operation(left.exact(counts), right.exact(counts)),
    )


def stretched(inner: Both, factor: int) -> Both:
    if not callable(inner.schedule):
        return inner
    return Both(
        wc.stretch(inner.schedule, factor=factor), lambda counts: inner.exact(counts // factor)
    )


def nested(depth: int) -> st.SearchStrategy[Both]:
    """At most 2**depth curves, so that 4 ulp are room enough for every product's half."""
    if depth == 0:
        return LEAVES
    inner = nested(depth - 1)
    return st.one_of(
        st.builds(combined, st.sampled_from(["product", "minimum", "maximum"]), inner, inner),
        st.builds(stretched, inner, st.sampled_from([1, 3, 1000, INT32_MAX])),
    )


@hypothesis.settings(max_examples=40, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(nested(3))
def test_nestings_are_numpys_float64_to_4_ulp_at_every_magnitude_of_the_count(both: Both):
    schedule = both.schedule
    if isinstance(schedule, wc.Schedule):
        np.testing.assert_allclose(
            schedule(COUNTS), both.exact(COUNTS), rtol=4 * 2.0**-24, atol=1e-37
        )


def test_a_product_is_clamped_at_the_largest_number_and_never_nan():
    largest = float(np.finfo(np.float32).max)
    for operands, value in (
        ((1e38, 1e38), largest),
        ((1e38, -1e38), -largest),
        ((1e38, 1e38, 0.0), 0.0),
        ((DECAY, 1e38, 1e38), largest),
        ((1e-38, 1e-38), 0.0),
        ((5.0,), 5.0),
    ):
        assert float(wc.product(*operands)(0)) == np.float32(value)
        slopes = jax.grad(lambda schedule: schedule(0))(
            jax.tree.map(float, wc.product(*map(float, operands[-1:])))
        )
        assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(slopes))
    with jax.enable_x64(True):
        assert float(wc.product(1e38, 1e38)(0)) == pytest.approx(1e76, rel=1e-15)
