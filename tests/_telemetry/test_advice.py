"""What a report concludes: each sentence in a run where it is true, and in none where it is not."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import warmclip_jax as wc

PARAMS = {"embed": jnp.ones(40), "layer": {"w": jnp.ones(8), "b": jnp.ones(4)}, "head": jnp.ones(6)}
BOUND = wc.running_bound(deviations=6.0)
FULL: dict[str, Any] = {"record": 128, "record_leaves": True}
SKIPS: dict[str, Any] = {**FULL, "skip_above": BOUND, "skip_value_above": BOUND}


class Night(NamedTuple):
    """A run: its optimizer, and what happens at a call to ordinary gradients and an ordinary loss."""

    optimizer: Any
    happens: Callable[[int, Any, float], tuple[Any, float]]
    calls: int = 200


def scaled(grads: Any, factor: float) -> Any:
    return jax.tree.map(lambda leaf: leaf * factor, grads)


def quiet(call: int, grads: Any, loss: float) -> tuple[Any, float]:
    return grads, loss


def nan_and_spike(call: int, grads: Any, loss: float) -> tuple[Any, float]:
    if call == 121:
        grads["head"][1] = np.nan
    if call == 160:
        grads["layer"]["w"] *= 1000
        loss = 4.5
    return grads, loss


def nan_for_ever(call: int, grads: Any, loss: float) -> tuple[Any, float]:
    return (scaled(grads, np.nan) if call >= 150 else grads), loss


def nan_once(call: int, grads: Any, loss: float) -> tuple[Any, float]:
    return (scaled(grads, np.nan) if call == 121 else grads), loss


def spikes_at_the_end(call: int, grads: Any, loss: float) -> tuple[Any, float]:
    return scaled(grads, 100 if call >= 198 else 1), loss


def grows(call: int, grads: Any, loss: float) -> tuple[Any, float]:
    return scaled(grads, 1.03**call), loss


def grows_to_inf(call: int, grads: Any, loss: float) -> tuple[Any, float]:
    return scaled(grads, np.inf if call == 199 else 1.05**call), loss


def poisoned(call: int, grads: Any, loss: float) -> tuple[Any, float]:
    return scaled(grads, 3 if call % 50 == 49 else 1), loss


def loses_then_skips(call: int, grads: Any, loss: float) -> tuple[Any, float]:
    return scaled(grads, 100 if call == 199 else 1), loss + (5 if call >= 190 else 0)


def loses_number(call: int, grads: Any, loss: float) -> tuple[Any, float]:
    return grads, {150: np.nan, 151: np.inf}.get(call, loss)


def overflows(call: int, grads: Any, loss: float) -> tuple[Any, float]:
    return grads, np.inf if call == 150 else loss


def frozen(call: int, grads: Any, loss: float) -> tuple[Any, float]:
    return grads | {"head": 0 * grads["head"]}, loss


NIGHTS = {
    "good": Night(wc.pipeline(optax.adam, 0.1, max_norm=5.0, **SKIPS), quiet),
    "NaN and spike": Night(wc.pipeline(optax.adam, 0.1, max_norm=1.5, **SKIPS), nan_and_spike),
    "no bounds": Night(wc.pipeline(optax.adam, 0.1, max_norm=None, **FULL), nan_and_spike),
    "NaN for ever": Night(wc.pipeline(optax.adam, 0.1, **SKIPS), nan_for_ever),
    "NaN once, everywhere": Night(wc.pipeline(optax.adam, 0.1, max_norm=5.0, **SKIPS), nan_once),
    "skipping": Night(wc.pipeline(optax.adam, 0.1, max_norm=5.0, **SKIPS), spikes_at_the_end),
    "growing": Night(wc.pipeline(optax.adam, 0.1, max_norm=None, **FULL), grows),
    "growing to inf": Night(wc.pipeline(optax.adam, 0.1, max_norm=None, **FULL), grows_to_inf),
    "poisoned": Night(wc.pipeline(optax.adam, 0.1, max_norm=None, **FULL), poisoned),
    "loss of NaN": Night(wc.pipeline(optax.adam, 0.1, max_norm=5.0, **FULL), loses_number),
    "loss of inf": Night(wc.pipeline(optax.adam, 0.1, max_norm=5.0, **FULL), overflows),
    "poisoned, skipped": Night(wc.pipeline(optax.adam, 0.1, max_norm=None, **SKIPS), poisoned),
    "losing, then skipping": Night(
        wc.pipeline(optax.adam, 0.1, max_norm=5.0, **FULL, skip_above=BOUND), loses_then_skips
    ),
    "resumed with another rate": Night(
        wc.pipeline(
            optax.adam, wc.piecewise_constant(values=[0.01, 0.1], boundaries=[100]), **FULL
        ),
        quiet,
    ),
    "warming up": Night(
        wc.pipeline(
            optax.adam, wc.polynomial_warmup(peak_value=0.1, warmup_steps=50, power=4.0), **FULL
        ),
        quiet,
        calls=60,
    ),
    "frozen head": Night(wc.pipeline(optax.adam, 0.1, max_norm=5.0, **FULL), frozen),
    "clips most": Night(wc.pipeline(optax.adam, 0.1, max_norm=0.1, **FULL), quiet),
    "in MultiSteps": Night(
        optax.MultiSteps(wc.pipeline(optax.adam, 0.1, **FULL), 2).gradient_transformation(),
        nan_and_spike,
    ),
    "guarded MultiSteps": Night(
        wc.skip_nonfinite(optax.MultiSteps(wc.pipeline(optax.adam, 0.1), 2), **FULL),
        nan_and_spike,
    ),
}
#: Each sentence, and the nights that it is told of; of all others it must not be.
SENTENCES = {
    "No call had a NaN or inf.": {
        *("good", "skipping", "growing", "poisoned", "frozen head", "clips most"),
        *("poisoned, skipped", "losing, then skipping", "resumed with another rate", "warming up"),
        "guarded MultiSteps",  # of the pipeline inside
    },
    "  Leaves with NaN, 1 of 4: head": {
        *("NaN and spike", "no bounds", "in MultiSteps", "guarded MultiSteps"),
    },
    "  NaN spreads backwards": {"NaN for ever", "NaN once, everywhere"},
    "  Finite leaves: 3. The loss was finite too: look at the backward pass.": {
        *("NaN and spike", "no bounds", "in MultiSteps", "guarded MultiSteps"),
    },
    "  All leaves were finite, the loss was not.": {"loss of NaN", "loss of inf"},
    'under jax.config.update("jax_debug_nans", True)': {
        *("NaN and spike", "no bounds", "NaN for ever", "NaN once, everywhere"),
        *("in MultiSteps", "guarded MultiSteps", "loss of NaN"),
    },
    'under jax.config.update("jax_debug_infs", True)': {"loss of inf"},
    "Last spike of the loss: call 160, step 159, skipped. Loss 4.5, usual 2, over its bound of": {
        "NaN and spike"
    },
    "  Leaves with inf, 4 of 4": {"growing to inf"},
    "Last spike: call 160": {"NaN and spike", "no bounds", "guarded MultiSteps"},
    "Last spike of the loss: call 160": {
        *("NaN and spike", "no bounds", "guarded MultiSteps"),
    },
    "Last quiet call before the trouble: call 159": {
        *("NaN and spike", "no bounds", "guarded MultiSteps"),
    },
    "Last quiet call before the trouble: call 149, step 150": {
        *("NaN for ever", "loss of NaN", "loss of inf"),
    },
    "No update was taken in the trouble: checkpoints written since are sound.": {
        *("NaN and spike", "NaN once, everywhere", "skipping", "poisoned, skipped"),
        *("loss of NaN", "loss of inf"),
    },
    "Updates taken in the trouble: 1. If the loss stays worse": {
        *("no bounds", "guarded MultiSteps", "poisoned"),
    },
    "Updates taken in the trouble: 9. If the loss stays worse": {"losing, then skipping"},
    "  No leaf was finite: look at the loss and its inputs first.": {
        *("NaN once, everywhere", "growing to inf"),
    },
    "The learning rate rose from 0.01 to 0.1 at call 100": {"resumed with another rate"},
    "  Skipped: 99, 149, 199, every 50 calls.": {"poisoned, skipped"},
    "Of each run, the first 16 are recorded.": {"NaN for ever", "in MultiSteps"},
    "Every leaf was bad in the first call of the run, and is now": {"NaN for ever"},
    "The batch of call 199, run again before the next update, must give the norm": {"skipping"},
    "The norm grew over the record, from a median of": {"growing", "growing to inf"},
    "Leaves whose gradient was always zero, 1 of 4: head.": {"frozen head"},
    "The bound clips most calls": {"clips most"},
    "Last call over a bound": set(),
    "All since call 60 were bad: a NaN stays in the sums of an optax.MultiSteps": {"in MultiSteps"},
    "Share of the square of the last norm: embed": {
        *(set(NIGHTS) - {"NaN for ever", "in MultiSteps", "growing to inf"}),
    },
}


@functools.cache
def report_of(name: str) -> str:
    night, rng = NIGHTS[name], np.random.default_rng(0)
    update = jax.jit(
        lambda grads, state, loss: night.optimizer.update(grads, state, PARAMS, value=loss)[1]
    )
    state = night.optimizer.init(PARAMS)
    for call in range(night.calls):
        grads = jax.tree.map(
            lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32), PARAMS
        )
        grads, loss = night.happens(call, grads, 2 + 0.02 * rng.standard_normal())
        grads = jax.tree.map(np.float32, grads)
        state = update(grads, state, np.float32(loss))
    return wc.report(state)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_is_told_of_the_nights_it_is_true_of_and_of_no_other(sentence: str):
    told = {name for name in NIGHTS if any(sentence in line for line in lines(name))}
    assert told == SENTENCES[sentence]


def lines(name: str) -> list[str]:
    return report_of(name).splitlines()


def test_a_good_night_is_told_in_8_lines_and_a_bad_one_in_25():
    assert len(lines("good")) <= 8
    assert max(len(lines(name)) for name in NIGHTS if "MultiSteps" not in name) <= 25


def test_the_three_largest_calls_name_a_batch_that_comes_again():
    (line,) = [line for line in lines("poisoned") if "largest" in line]
    assert all(f"at call {call}" in line for call in (99, 149, 199))


def test_the_norm_to_be_reproduced_has_all_its_digits():
    optimizer: Any = wc.skip_nonfinite(optax.sgd(0.1), above=1.0)
    _, state = optimizer.update(jnp.array([0.1, 33.3]), optimizer.init(jnp.ones(2)))
    norm = wc.global_norm(jnp.array([0.1, 33.3]))
    (line,) = [line for line in wc.report(state).splitlines() if "must give the norm" in line]
    assert np.float32(line.split("norm ")[1].split(" again")[0]) == norm


@pytest.mark.parametrize(("steps", "is_told"), [(2, False), (0, True), (50, True)])
def test_a_train_state_whose_step_is_another_is_told(steps: int, is_told: bool):
    train = TrainState.create(
        apply_fn=lambda: None, params={"w": jnp.ones(2)}, tx=wc.pipeline(optax.adam, 0.1)
    )
    for _ in range(2):
        train = train.apply_gradients(grads={"w": jnp.ones(2)})
    text = wc.report(train.replace(step=steps))
    assert (f"The train state counts {steps} steps, the optimizer 2 calls" in text) == is_told
