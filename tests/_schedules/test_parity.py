"""The same recipe elsewhere: what each system computes, and the call that gives it here.

The formulas are in `elsewhere.py`. Where ours is another curve on purpose, the row says
from which step on, and why; the test holds that too.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests._schedules import elsewhere
from tests._schedules.elsewhere import END, PEAK, D, T, W


class Row(NamedTuple):
    system: str
    source: str
    theirs: Callable[[int], float]
    ours: wc.Schedule
    differs_from: int | None = None  # The first step at which ours is another curve.
    because: str = ""


RUN: Any = {"peak_value": PEAK, "total_steps": T, "warmup_steps": W}
HF = "transformers/optimization.py"
LEVANTER = "levanter/optim/config.py, lr_scheduler"
MEGATRON = "megatron/core/optimizer_param_scheduler.py, get_lr"
#: Flat for W steps, then the inverse square root of the step.
EASYLM = wc.shift(wc.inverse_sqrt_decay(init_value=PEAK / 0.01 / math.sqrt(W), timescale=W), by=-W)
RSQRT = wc.inverse_sqrt_decay(init_value=PEAK, timescale=W)
WSD: dict[str, Any] = {
    "linear": "linear",
    "cosine": "cosine",
    "exponential": "exponential",
    "minus_sqrt": "one_minus_sqrt",
}

TABLE = [
    Row(
        "BERT",
        "optimization.py, create_optimizer",
        elsewhere.bert,
        wc.warmup_polynomial_decay(**RUN, decay_from="zero"),
    ),
    Row(
        "tf-models, WarmUp(power=2)",
        "official/nlp/optimization.py, WarmUp",
        elsewhere.tf_models,
        # The decay's clock runs under the warm-up, and it is shifted to where the warm-up ends.
        wc.join(
            [
                wc.polynomial_warmup(peak_value=PEAK, warmup_steps=W, power=2.0),
                wc.shift(wc.polynomial_decay(init_value=PEAK, decay_steps=T), by=W),
            ],
            boundaries=[W],
        ),
    ),
    *(
        Row(
            f"TensorFlow, PolynomialDecay(cycle={cycle})",
            "keras.optimizers.schedules.PolynomialDecay",
            lambda step, cycle=cycle: elsewhere.tensorflow(step, cycle=cycle),
            wc.polynomial_decay(
                init_value=PEAK, decay_steps=T, end_value=END, power=2.0, cycle=cycle
            ),
        )
        for cycle in (False, True)
    ),
    Row(
        "Keras, CosineDecay(warmup_target=...)",
        "keras.optimizers.schedules.CosineDecay",
        elsewhere.keras_cosine,
        wc.warmup_cosine_decay(**RUN, end_value=END),
    ),
    *(
        Row(
            f"Keras, ExponentialDecay(staircase={staircase})",
            "keras.optimizers.schedules.ExponentialDecay",
            lambda step, staircase=staircase: elsewhere.keras_exponential(
                step, staircase=staircase
            ),
            wc.exponential_decay(
                init_value=PEAK, decay_steps=30, decay_rate=0.9, staircase=staircase
            ),
        )
        for staircase in (False, True)
    ),
    Row("HF transformers, linear", HF, elsewhere.hf_linear, wc.warmup_polynomial_decay(**RUN)),
    Row(
        "HF transformers, cosine",
        HF,
        elsewhere.hf_cosine,
        wc.warmup_cosine_decay(**RUN),
        T + 1,
        "theirs rises again after T",
    ),
    Row(
        "HF transformers, polynomial",
        HF,
        elsewhere.hf_polynomial,
        wc.warmup_polynomial_decay(**RUN, power=2.0, end_value=END),
    ),
    Row(
        "HF transformers, inverse_sqrt",
        HF,
        lambda step: elsewhere.hf_inverse_sqrt(step, 40),
        wc.with_warmup(wc.inverse_sqrt_decay(init_value=PEAK, timescale=40), warmup_steps=W),
    ),
    Row(
        "HF transformers, warmup_stable_decay",
        HF,
        elsewhere.hf_stable,
        wc.warmup_stable_decay(**RUN, decay_steps=20, end_value=END, decay_shape="cosine"),
    ),
    Row(
        "PyTorch, SequentialLR([LinearLR(0.1), PolynomialLR(power=0.9)])",
        "torch.optim.lr_scheduler",
        elsewhere.pytorch,
        wc.warmup_polynomial_decay(**RUN, init_value=0.1 * PEAK, power=0.9),
    ),
    Row(
        "t5x, constant * linear_warmup * rsqrt_decay",
        "t5x/utils.py, create_learning_rate_scheduler",
        elsewhere.t5x,
        wc.with_warmup(
            wc.inverse_sqrt_decay(init_value=0.5 / math.sqrt(W), timescale=W),
            warmup_steps=W,
            init_value=1e-8,
        ),
    ),
    Row(
        "big_vision, rsqrt",
        "big_vision/utils.py, create_learning_rate_schedule",
        elsewhere.big_vision,
        wc.with_warmup(wc.inverse_sqrt_decay(init_value=PEAK, timescale=50), warmup_steps=W),
    ),
    Row(
        "Megatron-LM, linear",
        MEGATRON,
        lambda step: elsewhere.megatron(step, "linear"),
        wc.warmup_polynomial_decay(**RUN, init_value=1e-5, end_value=END),
    ),
    Row(
        "Megatron-LM, cosine",
        MEGATRON,
        lambda step: elsewhere.megatron(step, "cosine"),
        wc.warmup_cosine_decay(**RUN, init_value=1e-5, end_value=END),
    ),
    Row(
        "Megatron-LM, inverse-square-root",
        MEGATRON,
        lambda step: elsewhere.megatron(step, "inverse-square-root"),
        wc.with_warmup(RSQRT, warmup_steps=W, init_value=1e-5),
        T + 1,
        "theirs drops to min_lr at once after T; ours has no length",
    ),
    *(
        Row(
            f"Megatron-LM, WSD {theirs}",
            MEGATRON,
            lambda step, theirs=theirs: elsewhere.megatron(step, f"WSD {theirs}"),
            wc.warmup_stable_decay(
                **RUN, init_value=1e-5, decay_steps=20, end_value=END, decay_shape=ours
            ),
        )
        for theirs, ours in WSD.items()
    ),
    Row(
        "torchtitan, warm-up of (s + 1) / W",
        "torchtitan/components/lr_scheduler.py, linear_warmup_linear_decay",
        elsewhere.torchtitan,
        wc.join(
            [
                wc.shift(wc.linear_warmup(peak_value=PEAK, warmup_steps=W), by=1),
                wc.polynomial_decay(init_value=PEAK, decay_steps=D),
            ],
            boundaries=[W],
        ),
        T + 1,
        "theirs goes below zero after T",
    ),
    Row(
        "nanoGPT, warm-up of (s + 1) / (W + 1)",
        "train.py, get_lr",
        elsewhere.nanogpt,
        wc.join(
            [
                wc.shift(wc.linear_warmup(peak_value=PEAK, warmup_steps=W + 1), by=1),
                wc.cosine_decay(init_value=PEAK, decay_steps=D, end_value=END),
            ],
            boundaries=[W],
        ),
    ),
    Row(
        "MiniCPM, WSD with 0.5 ** ((s - S) / T)",
        "Hu et al. 2024, section 4.2",
        elsewhere.minicpm,
        wc.join(
            [
                wc.linear_warmup(peak_value=PEAK, warmup_steps=W),
                wc.exponential_decay(init_value=PEAK, decay_steps=20, decay_rate=0.5),
            ],
            boundaries=[T],
        ),
    ),
    Row(
        "big_vision, stair",
        "big_vision/utils.py, create_learning_rate_schedule",
        elsewhere.big_vision_stair,
        wc.piecewise_constant(values=[PEAK, 0.1 * PEAK, 0.01 * PEAK], boundaries=[30, 60])
        * wc.linear_warmup(peak_value=1.0, warmup_steps=W),
    ),
    Row(
        "big_vision, rsqrt with a cooldown",
        "big_vision/utils.py, create_learning_rate_schedule",
        lambda step: elsewhere.big_vision_cooldown(step, 20),
        wc.with_warmup(wc.inverse_sqrt_decay(init_value=PEAK, timescale=50), warmup_steps=W)
        * wc.shift(wc.polynomial_decay(init_value=1.0, decay_steps=20), by=-(T - 20)),
        T + 1,
        "theirs goes below zero after T",
    ),
    *(
        Row(
            f"Levanter, inv_sqrt with its timescale, {timescale}",
            "levanter/optim/config.py, _inv_sqrt_decay_schedule",
            lambda step, timescale=timescale: elsewhere.levanter_inverse_sqrt(step, timescale),
            wc.maximum(
                wc.join(
                    [
                        wc.linear_warmup(peak_value=PEAK, warmup_steps=W),
                        wc.shift(
                            wc.inverse_sqrt_decay(init_value=PEAK, timescale=timescale),
                            by=W - timescale,
                        ),
                    ],
                    boundaries=[W],
                ),
                wc.minimum(END, wc.linear_warmup(peak_value=PEAK, warmup_steps=W)),
            ),
        )
        for timescale in (4, 50)  # theirs is 10,000 always: shorter than the warm-up, or longer
    ),
    Row(
        "Levanter, linear after a stable phase",
        LEVANTER,
        lambda step: elsewhere.levanter(step, stable=30),
        wc.warmup_stable_decay(**RUN, decay_steps=T - W - 30, end_value=END),
    ),
    Row(
        "Levanter, constant with a cooldown",
        LEVANTER,
        lambda step: elsewhere.levanter(step, cooldown=20),
        wc.warmup_stable_decay(**RUN, decay_steps=20, end_value=END),
    ),
    Row(
        "MaxText, cosine to T",
        "MaxText/maxtext_utils.py, create_learning_rate_schedule",
        elsewhere.maxtext_to_the_end,
        wc.join(
            [wc.warmup_cosine_decay(**RUN, end_value=END), wc.constant(value=0.0)], boundaries=[T]
        ),
    ),
    Row(
        "MaxText, cosine to T - 1",
        "MaxText/maxtext_utils.py, create_learning_rate_schedule",
        elsewhere.maxtext,
        wc.join(
            [
                wc.linear_warmup(peak_value=PEAK, warmup_steps=W - 1),
                wc.cosine_decay(init_value=PEAK, decay_steps=D - 1, end_value=END),
                wc.constant(value=0.0),
            ],
            boundaries=[W, T],
        ),
    ),
    Row(
        "EasyLM, PaLM's rate",
        "EasyLM/optimizers.py, PalmOptimizerFactory",
        elsewhere.easylm_rate,
        EASYLM,
    ),
    Row(
        "EasyLM, PaLM's weight decay of the square of the rate",
        "EasyLM/optimizers.py, PalmOptimizerFactory",
        elsewhere.easylm_weight_decay,
        1e-2 / 1e-4 * EASYLM * EASYLM,
    ),
    Row(
        "purejaxrl, count // (minibatches * epochs)",
        "purejaxrl/ppo.py, linear_schedule",
        lambda step: max(0.0, elsewhere.purejaxrl(step, 4, 3, T // 12)),
        wc.stretch(wc.polynomial_decay(init_value=PEAK, decay_steps=T // 12), factor=4 * 3),
    ),
    Row(
        "flax, lm1b and gemma",
        "examples/lm1b/train.py and examples/gemma/train.py, create_learning_rate_schedule",
        elsewhere.flax_rsqrt,
        wc.with_warmup(RSQRT, warmup_steps=W),
    ),
    *(
        Row(
            f"flax, ImageNet's cosine by epochs, {warmup} of {epochs}",
            "examples/imagenet/train.py, create_learning_rate_fn",
            lambda step, epochs=epochs, warmup=warmup: elsewhere.flax_cosine(
                step, 7, warmup, epochs
            ),
            wc.warmup_cosine_decay(
                peak_value=PEAK,
                # 66 // 9 is 7: the loader drops the last batch of every epoch.
                total_steps=wc.steps(
                    epochs=epochs, dataset_size=66, batch_size=9, drop_remainder=True
                ),
                warmup_steps=wc.steps(
                    epochs=warmup, dataset_size=66, batch_size=9, drop_remainder=True
                ),
            ),
        )
        for epochs, warmup in ((14, 3), (100, 5))
    ),
    Row(
        "flax, stepped schedule of ImageNet",
        "flax/training/lr_schedule.py, create_stepped_learning_rate_schedule",
        lambda step: elsewhere.flax_stepped(step, 2),
        # Theirs moves one step after a boundary.
        wc.piecewise_constant(
            values=PEAK * np.array([1.0, 0.1, 0.01, 0.001]),
            boundaries=2 * np.array([30, 60, 80]) + 1,
        )
        * wc.linear_warmup(peak_value=1.0, warmup_steps=10),
    ),
    Row(
        "SGDR, restarts that grow by T_mult = 2",
        "Loshchilov & Hutter 2017, section 3",
        lambda step: elsewhere.sgdr(step, 20),
        wc.join(
            [
                wc.cosine_decay(init_value=PEAK, decay_steps=20 * 2**k, end_value=END)
                for k in range(4)
            ],
            boundaries=[20, 60, 140],
        ),
    ),
]


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("row", TABLE, ids=[row.system for row in TABLE])
def test_our_call_gives_the_numbers_of_their_formula(row: Row):
    steps = np.arange(3 * T)
    theirs, ours = np.array([row.theirs(int(step)) for step in steps]), np.asarray(row.ours(steps))
    same, other = slice(0, row.differs_from), slice(row.differs_from, None)
    # 4 ulp of the peak: 1.5e-7 of the largest value, 1e-5 of the smallest but zero.
    peak = np.spacing(np.float32(theirs[same].max()))
    np.testing.assert_allclose(ours[same], theirs[same], rtol=0, atol=4 * peak)
    if row.differs_from is not None:
        assert row.because
        # At once; theirs may cross ours again later.
        assert np.all(np.abs(theirs - ours)[other][:20] > 1e-4 * PEAK)
        assert np.all(ours[other] >= 0)
        assert np.all(np.diff(ours[other]) <= 0)


def test_shares_and_epochs_become_other_numbers_of_steps_elsewhere():
    # MaxText and Levanter cut off, big_vision rounds to the nearest and halves to even.
    assert (int(0.145 * 100), round(0.145 * 100), wc.steps(fraction=0.145, total_steps=100)) == (
        14,
        14,
        15,
    )
    assert (int(0.1 * 1005), round(0.1 * 1005), wc.steps(fraction=0.1, total_steps=1005)) == (
        100,
        100,
        101,
    )
    # Epochs: big_vision to the nearest, the data loader of flax drops the rest of each, ours makes
    # a step of what is left.
    assert round(3 * 1001 / 33) == wc.steps(epochs=3, dataset_size=1001, batch_size=33) == 91
    assert (round(1001 / 32), wc.steps(epochs=1, dataset_size=1001, batch_size=32)) == (31, 32)
    assert wc.steps(epochs=3, dataset_size=1001, batch_size=32, drop_remainder=True) == 3 * (
        1001 // 32
    )


SMALL = 4 * float(np.spacing(np.float32(PEAK)))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            optax.polynomial_schedule(PEAK, END, 0.9, T),
            wc.polynomial_decay(init_value=PEAK, decay_steps=T, end_value=END, power=0.9),
        ),
        (
            optax.cosine_decay_schedule(PEAK, T, END / PEAK),
            wc.cosine_decay(init_value=PEAK, decay_steps=T, end_value=END),
        ),
        (
            optax.exponential_decay(PEAK, 30, 0.5),
            wc.exponential_decay(init_value=PEAK, decay_steps=30, decay_rate=0.5),
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
    ids=[
        "polynomial",
        "cosine",
        "exponential",
        "warmup_exponential",
        "sgdr",
    ],
)
def test_optax_gives_the_same(theirs: optax.Schedule, ours: wc.Schedule):
    steps = jnp.arange(3 * T)
    np.testing.assert_allclose(
        ours(steps), np.array([theirs(step) for step in steps]), rtol=1e-6, atol=SMALL
    )
