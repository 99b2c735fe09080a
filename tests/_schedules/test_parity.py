"""The same recipe elsewhere: what each system computes, and the call that gives it here.

The formulas are in `elsewhere.py`; the rows of the guide's own tables are held by
`test_readme.py` and `test_migration.py`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests._schedules import elsewhere
from tests._schedules.elsewhere import END, PEAK, D, T, W

RUN: Any = {"peak_value": PEAK, "total_steps": T, "warmup_steps": W}
DECAY: Any = {"init_value": PEAK, "decay_steps": T}
MEGATRON: Any = RUN | {"init_value": 1e-5, "end_value": END}
WARMUP = wc.linear_warmup(peak_value=PEAK, warmup_steps=W)
STABLE: dict[str, Any] = {"linear": "linear", "cosine": "cosine", "minus_sqrt": "one_minus_sqrt"}
STABLE |= {"exponential": "exponential"}
RSQRT = wc.inverse_sqrt_decay(init_value=PEAK, timescale=50)
#: Flat for W steps, then the inverse square root of the step.
EASYLM = wc.shift(wc.inverse_sqrt_decay(init_value=PEAK / 0.01 / math.sqrt(W), timescale=W), by=-W)


def levanter(timescale: int) -> wc.Schedule:
    """The root of the step after a warm-up, with a floor that the warm-up is spared."""
    root = wc.inverse_sqrt_decay(init_value=PEAK, timescale=timescale)
    decay = wc.join([WARMUP, wc.shift(root, by=W - timescale)], boundaries=[W])
    return wc.maximum(decay, wc.minimum(END, WARMUP))


def imagenet(epochs: int, warmup: int) -> wc.Schedule:
    """By epochs of 7 steps: 66 // 9, since the loader drops the last batch of each."""
    loader: Any = {"dataset_size": 66, "batch_size": 9, "drop_remainder": True}
    return wc.warmup_cosine_decay(
        peak_value=PEAK,
        total_steps=wc.steps(epochs=epochs, **loader),
        warmup_steps=wc.steps(epochs=warmup, **loader),
    )


#: Theirs, and ours.
TABLE: dict[str, tuple[Callable[[int], float], wc.Schedule]] = {
    "BERT": (elsewhere.bert, wc.warmup_polynomial_decay(**RUN, decay_from="zero")),
    "tf-models, WarmUp(power=2)": (
        elsewhere.tf_models,
        # The decay's clock runs under the warm-up, and it is shifted to where the warm-up ends.
        wc.join(
            [
                wc.polynomial_warmup(peak_value=PEAK, warmup_steps=W, power=2.0),
                wc.shift(wc.polynomial_decay(**DECAY), by=W),
            ],
            boundaries=[W],
        ),
    ),
    "TensorFlow, PolynomialDecay(cycle=True)": (
        lambda step: elsewhere.tensorflow(step, cycle=True),
        wc.polynomial_decay(**DECAY, end_value=END, power=2.0, cycle=True),
    ),
    "Keras, ExponentialDecay(staircase=True)": (
        elsewhere.keras_stairs,
        wc.exponential_decay(init_value=PEAK, decay_steps=30, decay_rate=0.9, staircase=True),
    ),
    "HF transformers, polynomial": (
        elsewhere.hf_polynomial,
        wc.warmup_polynomial_decay(**RUN, power=2.0, end_value=END),
    ),
    "HF transformers, inverse_sqrt": (
        lambda step: elsewhere.hf_inverse_sqrt(step, 50),
        wc.with_warmup(RSQRT, warmup_steps=W),
    ),
    "t5x, constant * linear_warmup * rsqrt_decay": (
        elsewhere.t5x,
        wc.with_warmup(
            wc.inverse_sqrt_decay(init_value=0.5 / math.sqrt(W), timescale=W),
            warmup_steps=W,
            init_value=1e-8,
        ),
    ),
    "Megatron-LM, linear": (
        lambda step: elsewhere.megatron(step, "linear"),
        wc.warmup_polynomial_decay(**MEGATRON),
    ),
    "Megatron-LM, cosine": (
        lambda step: elsewhere.megatron(step, "cosine"),
        wc.warmup_cosine_decay(**MEGATRON),
    ),
    **{
        f"Megatron-LM, WSD {theirs}": (
            lambda step, theirs=theirs: elsewhere.megatron(step, f"WSD {theirs}"),
            wc.warmup_stable_decay(**MEGATRON, decay_steps=20, decay_shape=ours),
        )
        for theirs, ours in STABLE.items()
    },
    "torchtitan, warm-up of (s + 1) / W": (
        elsewhere.torchtitan,
        wc.join(
            [
                wc.shift(WARMUP, by=1),
                wc.polynomial_decay(init_value=PEAK, decay_steps=D),
            ],
            boundaries=[W],
        ),
    ),
    "nanoGPT, warm-up of (s + 1) / (W + 1)": (
        elsewhere.nanogpt,
        wc.join(
            [
                wc.shift(wc.linear_warmup(peak_value=PEAK, warmup_steps=W + 1), by=1),
                wc.cosine_decay(init_value=PEAK, decay_steps=D, end_value=END),
            ],
            boundaries=[W],
        ),
    ),
    "MiniCPM, WSD with 0.5 ** ((s - S) / T)": (
        elsewhere.minicpm,
        wc.join(
            [WARMUP, wc.exponential_decay(init_value=PEAK, decay_steps=20, decay_rate=0.5)],
            boundaries=[T],
        ),
    ),
    **{
        f"Levanter, inv_sqrt with its timescale, {timescale}": (
            lambda step, timescale=timescale: elsewhere.levanter_inverse_sqrt(step, timescale),
            levanter(timescale),
        )
        for timescale in (4, 50)  # theirs is 10,000 always: shorter than the warm-up, or longer
    },
    "EasyLM, PaLM's weight decay of the square of the rate": (
        lambda step: 100 * elsewhere.easylm_rate(step) ** 2,
        100 * EASYLM * EASYLM,
    ),
    **{
        f"flax, ImageNet's cosine by epochs, {warmup} of {epochs}": (
            lambda step, warmup=warmup, epochs=epochs: elsewhere.flax_cosine(
                step, 7, warmup, epochs
            ),
            imagenet(epochs, warmup),
        )
        for epochs, warmup in ((14, 3), (100, 5))
    },
    "flax, stepped schedule of ImageNet": (
        lambda step: elsewhere.flax_stepped(step, 2),
        # Theirs moves one step after a boundary.
        wc.piecewise_constant(
            values=PEAK * np.array([1.0, 0.1, 0.01, 0.001]),
            boundaries=2 * np.array([30, 60, 80]) + 1,
        )
        * wc.linear_warmup(peak_value=1.0, warmup_steps=10),
    ),
}


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("name", TABLE)
def test_our_call_gives_the_numbers_of_their_formula(name: str):
    formula, ours = TABLE[name]
    steps = np.arange(3 * T)
    theirs = np.array([formula(int(step)) for step in steps])
    # 4 ulp of the peak: 1.5e-7 of the largest value, 1e-5 of the smallest but zero.
    peak = np.spacing(np.float32(theirs.max()))
    np.testing.assert_allclose(ours(steps), theirs, rtol=0, atol=4 * peak)


def test_shares_and_epochs_become_other_numbers_of_steps_elsewhere():
    # Levanter cuts off, big_vision rounds to the nearest and halves to even.
    for share, total, theirs in ((0.145, 100, 14), (0.1, 1005, 100)):
        assert int(share * total) == round(share * total) == theirs
        assert wc.steps(fraction=share, total_steps=total) == theirs + 1
    # Epochs: big_vision to the nearest, ours makes a step of what is left.
    assert round(1001 / 32) == 31
    assert wc.steps(epochs=1, dataset_size=1001, batch_size=32) == 32


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            optax.polynomial_schedule(PEAK, END, 0.9, T),
            wc.polynomial_decay(**DECAY, end_value=END, power=0.9),
        ),
        (
            optax.cosine_decay_schedule(PEAK, T, END / PEAK),
            wc.cosine_decay(**DECAY, end_value=END),
        ),
        (
            optax.warmup_exponential_decay_schedule(0.0, PEAK, W, 30, 0.5),
            wc.with_warmup(
                wc.exponential_decay(init_value=PEAK, decay_steps=30, decay_rate=0.5),
                warmup_steps=W,
            ),
        ),
        (
            optax.sgdr_schedule(
                [{"init_value": END, "peak_value": PEAK, "decay_steps": 40, "warmup_steps": 10}] * 8
            ),
            wc.repeat(
                wc.warmup_cosine_decay(
                    peak_value=PEAK, total_steps=40, warmup_steps=10, init_value=END
                ),
                period=40,
            ),
        ),
    ],
    ids=["polynomial", "cosine", "warmup_exponential", "sgdr"],
)
def test_optax_gives_the_same(theirs: optax.Schedule, ours: wc.Schedule):
    steps = jnp.arange(3 * T)
    expected = np.array([theirs(step) for step in steps])
    closest = 4 * float(np.spacing(np.float32(PEAK)))
    np.testing.assert_allclose(ours(steps), expected, rtol=1e-6, atol=closest)
