"""Epochs, examples, tokens and fractions as optimizer steps, with what accumulation and repeated
updates make of them.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"examples": 1001, "batch_size": 100}, 11),
        ({"examples": 0, "batch_size": 100}, 0),
        ({"examples": 10**20, "batch_size": 3}, (10**20 + 2) // 3),  # Not through floats.
        ({"epochs": 3, "dataset_size": 1000, "batch_size": 32}, 94),  # 93.75, not 3 * ceil(31.25).
        ({"epochs": 0.3, "dataset_size": 10, "batch_size": 1}, 3),
        ({"epochs": 0.1, "dataset_size": 30, "batch_size": 1}, 3),  # 0.1 * 30 is above 3 in floats.
        (
            {"tokens": 300e9, "batch_size": 512, "sequence_length": 2048},
            286103,
        ),  # GPT-3's 300 B: 286102.29 batches of 2**20.
        ({"tokens": 1, "batch_size": 512, "sequence_length": 2048}, 1),
        ({"examples": 1001, "batch_size": 10, "accumulation": 4}, 26),
        ({"examples": 1001, "batch_size": 100, "updates_per_batch": 6}, 66),
        ({"fraction": 0.1, "total_steps": 25}, 3),
        ({"fraction": 0.06, "total_steps": 10**10}, 600_000_000),
        ({"fraction": np.float32(0.145), "total_steps": np.int32(100)}, 15),
        ({"fraction": 0.1, "total_steps": 10**15}, 10**14),
        # Data loaders that drop the last batch of every epoch.
        ({"epochs": 3, "dataset_size": 1000, "batch_size": 32, "drop_remainder": True}, 3 * 31),
        (
            {"epochs": 2.5, "dataset_size": 1000, "batch_size": 32, "drop_remainder": True},
            2 * 31 + 15,
        ),
        (
            {
                "epochs": 3,
                "dataset_size": 1000,
                "batch_size": 32,
                "accumulation": 4,
                "drop_remainder": True,
            },
            93 // 4,
        ),
        (
            {
                "epochs": 2,
                "dataset_size": 1000,
                "batch_size": 32,
                "updates_per_batch": 6,
                "drop_remainder": True,
            },
            62 * 6,
        ),
        ({"epochs": 9, "dataset_size": 31, "batch_size": 32, "drop_remainder": True}, 0),
        ({"examples": 1001, "batch_size": 100, "drop_remainder": True}, 10),
        (
            {
                "tokens": 2 * 512 * 2048 - 1,
                "batch_size": 512,
                "sequence_length": 2048,
                "drop_remainder": True,
            },
            1,
        ),
    ],
)
def test_steps_are_what_the_arithmetic_says(arguments: dict[str, Any], expected: int):
    result = wc.steps(**arguments)
    assert (result, type(result)) == (expected, int)


def test_a_fraction_is_its_decimal_and_rounds_halves_up_for_every_thousandth_of_every_length():
    for total in (7, 100, 250, 1000, 1235):
        for thousandths in range(1001):
            exact = (2 * thousandths * total + 1000) // 2000
            assert wc.steps(fraction=thousandths / 1000, total_steps=total) == exact
            assert wc.steps(fraction=np.float32(thousandths / 1000), total_steps=total) == exact


@pytest.mark.parametrize("fraction", [0.0, 0.06, 0.1, 0.3, 0.5, 0.145])
def test_a_fraction_is_the_warm_up_of_the_same_fraction(fraction: float):
    schedule = wc.warmup_polynomial_decay(
        peak_value=1.0, total_steps=1300, warmup_fraction=fraction
    )
    assert schedule.arguments["warmup_steps"] == wc.steps(fraction=fraction, total_steps=1300)


@pytest.mark.parametrize(
    ("b2", "expected"),
    [(0.999, 2000), (0.99, 200), (0.95, 40), (0.98, 100), (0.0, 2), (0.9999, 20000)],
)
def test_the_untuned_warm_up_is_the_formula_on_the_digits_given(b2: float, expected: int):
    assert wc.untuned_warmup_steps(b2) == expected


def test_the_untuned_warm_up_of_a_traced_b2_goes_into_a_schedule():
    def rate(b2: Any) -> jax.Array:
        return wc.linear_warmup(peak_value=1.0, warmup_steps=wc.untuned_warmup_steps(b2))(10)

    assert jax.vmap(rate)(jnp.array([0.5, 0.75])).tolist() == [1.0, 1.0]
    assert float(jax.jit(rate)(0.95)) == pytest.approx(0.25, rel=0.03)


def test_under_multi_steps_a_schedule_advances_once_for_each_accumulated_step():
    # Four batches of 10 examples a step: after 80 examples two steps are done, and the third is at
    # rate schedule(2).
    schedule = wc.linear_warmup(
        peak_value=1.0, warmup_steps=wc.steps(examples=400, batch_size=10, accumulation=4)
    )
    optimizer = optax.MultiSteps(wc.pipeline(optax.sgd, schedule, max_norm=None), 4)
    state = optimizer.init(jnp.zeros(()))
    update: Any = jax.jit(optimizer.update)
    rates: list[float] = []
    for _ in range(12):
        updates, state = update(jnp.ones(()), state, jnp.zeros(()))
        rates.append(-float(updates))
    assert rates == pytest.approx(
        list(itertools.chain(*([0.0, 0.0, 0.0, step / 10] for step in range(3))))
    )
