"""What a schedule is to others: an operand of products, an integer for those who need one, a call
of microseconds.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc

pytestmark = pytest.mark.usefixtures("strict_dtypes")

DECAY = wc.cosine_decay(init_value=0.3, decay_steps=100)


@pytest.mark.parametrize(
    ("built", "same"),
    [
        (lambda: 2 * DECAY, lambda: wc.product(2.0, DECAY)),
        (lambda: DECAY * 2, lambda: wc.product(DECAY, 2.0)),
        (lambda: np.float32(0.1) * DECAY, lambda: wc.product(0.1, DECAY)),
        (lambda: DECAY * np.array(0.5), lambda: wc.product(DECAY, 0.5)),
        (lambda: jnp.float32(0.1) * DECAY, lambda: wc.product(0.1, DECAY)),
        (lambda: DECAY + 0.1 * DECAY - 0.5, lambda: wc.total(DECAY, 0.1 * DECAY, -0.5)),
        (lambda: DECAY / 4, lambda: wc.product(DECAY, 0.25)),
        (lambda: DECAY / np.float32(0.1), lambda: wc.product(DECAY, 10.0)),
        (lambda: np.float32(0.1) + DECAY, lambda: wc.total(0.1, DECAY)),
        (lambda: DECAY - np.uint8(3), lambda: wc.total(DECAY, -3.0)),
        (lambda: np.array(3) - DECAY, lambda: wc.total(3.0, wc.product(-1.0, DECAY))),
        (lambda: -DECAY, lambda: wc.product(-1.0, DECAY)),
        (lambda: wc.total(wc.total(DECAY, 1), 2), lambda: wc.total(DECAY, 1, 2)),
        (
            lambda: DECAY - (2 + DECAY),
            lambda: wc.total(DECAY, wc.product(-1.0, wc.total(2.0, DECAY))),
        ),
    ],
)
def test_an_operator_builds_the_product_or_the_total(
    built: Callable[[], Any], same: Callable[[], wc.Schedule]
):
    assert built() == same()
    assert isinstance(built(), wc.Schedule)


def test_operators_take_functions_of_other_libraries_and_tracers_on_either_side():
    theirs = optax.constant_schedule(0.5)
    assert float((DECAY * theirs)(0)) == float((theirs * DECAY)(0)) == np.float32(0.15)
    assert float((theirs - DECAY)(0)) == float(-(DECAY - theirs)(0)) == pytest.approx(0.2)

    def values(number: Any) -> list[jax.Array]:
        built = (number * DECAY, DECAY * number, DECAY / number)
        built += (number + DECAY, DECAY + number, number - DECAY, DECAY - number)
        return [schedule(0) for schedule in built]

    for number in (jnp.float32(2), jnp.uint8(2), 2):
        exact = [0.6, 0.6, 0.15, 2.3, 2.3, 1.7, -1.7]
        np.testing.assert_allclose(jax.jit(values)(number), exact, rtol=1e-6)
    slopes = [0.3, 0.3, -0.075, 1, 1, 1, -1]
    np.testing.assert_allclose(jax.jacobian(values)(2.0), slopes, rtol=1e-6)


def test_multi_steps_takes_an_integer_made_of_a_schedule():
    schedule = wc.piecewise_constant(values=[1, 3], boundaries=[2])
    optimizer = optax.MultiSteps(optax.sgd(1.0), lambda step: schedule(step).astype(jnp.int32))
    state = optimizer.init(jnp.zeros(()))
    moved = []
    for _ in range(8):
        with jax.numpy_dtype_promotion("standard"):  # which optax needs
            updates, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
        moved.append(float(jnp.asarray(updates)))
    assert moved == [-1, -1, 0, 0, -1, 0, 0, -1]


def test_a_schedule_called_in_float32_before_is_float64_under_x64_and_float32_again():
    rate = wc.piecewise_constant(values=[0.1, 0.2], boundaries=[10])
    assert float(rate(0)) == np.float32(0.1)
    with jax.enable_x64(True):
        assert float(rate(0)) == 0.1
    assert float(rate(0)) == np.float32(0.1)


def test_a_schedule_of_some_traced_numbers_is_called_in_a_loop_and_after_it():
    @jax.jit
    def run(peak: jax.Array) -> Any:
        decay = wc.exponential_decay(init_value=peak, decay_steps=10, decay_rate=0.5)
        _, inside = jax.lax.scan(lambda count, _: (count + 10, decay(count)), 0, length=2)
        return *inside, decay(20)

    np.testing.assert_allclose(run(1.0), [1, 0.5, 0.25], rtol=1e-6)
