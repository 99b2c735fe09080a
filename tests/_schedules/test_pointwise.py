"""Products, sums, minima and maxima: nestings of everything against NumPy's float64, what cancels,
and numbers past what floats hold.
"""

import os
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import warmclip_jax as wc
from tests import reference
from tests._schedules.nestings import nested

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
LARGEST = float(np.finfo(np.float32).max)
EVERY_CHECK: Any = list(hypothesis.HealthCheck)


@hypothesis.settings(max_examples=12, suppress_health_check=EVERY_CHECK)
@hypothesis.given(nested(4))
def test_nestings_are_the_formula_to_4_ulp_of_the_range_and_sums_of_their_largest_part(
    schedule: wc.Schedule,
):
    largest = np.float32(max(reference.largest(schedule), 1e-30))
    np.testing.assert_allclose(
        schedule(COUNTS), reference.of(schedule, COUNTS), rtol=0, atol=4 * np.spacing(largest)
    )


#: Operands, their product and their total.
CLAMPED: Any = [
    ((1e38, 1e38), LARGEST, 2e38),
    ((1e38, -1e38), -LARGEST, 0.0),
    ((1e38,) * 4, LARGEST, LARGEST),
    ((-1e38,) * 5, -LARGEST, -LARGEST),
    ((1e38, 1e38, 0.0), 0.0, 2e38),
    # Past the largest number and back again.
    ((*[1e38] * 4, *[-1e38] * 3), -LARGEST, 1e38),
    ((DECAY, 1e38, 1e38), LARGEST, 2e38),
    ((1e-38, 1e-38), 0.0, 2e-38),
    ((5.0,), 5.0, 5.0),
]


def test_a_product_or_sum_is_clamped_at_the_largest_number_and_never_nan():
    totals = []
    for operands, product, total in CLAMPED:
        totals.append(wc.total(*operands))
        for schedule, value in ((wc.product(*operands), product), (totals[-1], total)):
            assert float(schedule(0)) == pytest.approx(np.float32(value), rel=2e-7)
    slopes = jax.jit(jax.grad(lambda totals: sum(schedule(0) for schedule in totals)))
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(slopes(jax.tree.map(float, totals))))


def test_a_product_goes_as_far_as_its_dtype():
    with jax.enable_x64(True):
        assert float(wc.product(1e38, 1e38)(0)) == pytest.approx(1e76, rel=1e-15)


#: One whose values no compiler rounds; and one whose equal parts it rounds alike where it optimizes.
CANCELLING = {
    "rounded nowhere": wc.linear_warmup(peak_value=0.75, warmup_steps=128),
    "rounded alike": pytest.param(
        DECAY,
        marks=pytest.mark.skipif(
            "--xla_backend_optimization_level=0" in os.environ["XLA_FLAGS"],
            reason="equal parts are computed alike where code is optimized: AS_USERS_COMPILE=1",
        ),
    ),
}


@pytest.mark.parametrize("decay", CANCELLING.values(), ids=CANCELLING)
def test_what_cancels_in_a_sum_leaves_nothing_in_any_order_eager_and_jitted(decay):
    tiny, line = wc.constant(value=1e-9), wc.linear_warmup(peak_value=0.1, warmup_steps=100)
    counts = jnp.arange(150)
    pairs: Any = (
        (decay - decay, 0 * tiny),
        (0.1 * decay * line - 0.1 * decay * line, 0 * tiny),
        (tiny + (decay - decay), tiny),
        (decay + tiny - decay, tiny),
        (1.0 + tiny - 1.0, tiny),
        (sum([tiny, *[decay] * 9, *[-decay] * 9]), tiny),
        (wc.shift(line - 0.1, by=100), 0 * tiny),
    )
    for schedule, exact in pairs:
        for evaluate in (schedule, jax.jit(schedule)):
            np.testing.assert_array_equal(evaluate(counts), exact(counts), repr(schedule))


def test_a_sum_of_two_is_the_float_sum_to_the_last_bit():
    rng = np.random.default_rng(0)
    for left, right in rng.normal(size=(50, 2)).astype(np.float32) * np.array(
        [1, 1e-3], np.float32
    ):
        summed = wc.total(left, right)(0), (wc.constant(value=left) - right)(0)
        assert tuple(map(np.float32, summed)) == (left + right, left - right)
