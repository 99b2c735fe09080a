"""What a report concludes: each sentence in a run where it is true, and in none where it is not."""

import functools
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


GUARDED = wc.pipeline(optax.adam, 0.1, max_norm=5.0, **SKIPS)
CLIPPED = wc.pipeline(optax.adam, 0.1, max_norm=5.0, **FULL)
FREE = wc.pipeline(optax.adam, 0.1, max_norm=None, **FULL)
#: Where a leaf stands among all, as `jax.tree.leaves` orders them.
HEAD, W = 1, 3
ALL, AT = slice(None), np.arange(200)[:, None]


class Night(NamedTuple):
    """A run: what multiplies ordinary gradients at some calls and leaves, and other losses."""

    optimizer: Any
    scales: tuple[Any, ...] = ()
    losses: tuple[Any, ...] = ()
    calls: int = 200


SPIKE = (((121, HEAD), np.nan), ((160, W), 1000)), ((160, 4.5),)
NIGHTS = {
    "good": Night(GUARDED),
    "NaN and spike": Night(GUARDED, *SPIKE),
    "no bounds": Night(FREE, *SPIKE),
    "NaN for ever": Night(GUARDED, ((slice(150, None), np.nan),)),
    "NaN once, everywhere": Night(GUARDED, ((121, np.nan),)),
    "skipping": Night(GUARDED, ((slice(198, None), 100),)),
    "growing": Night(FREE, ((ALL, 1.03**AT),)),
    "growing to inf": Night(FREE, ((ALL, 1.05**AT), (199, np.inf))),
    "poisoned": Night(FREE, ((slice(49, None, 50), 3),)),
    "loss of NaN": Night(CLIPPED, (), ((150, np.nan), (151, np.inf))),
    "loss of inf": Night(CLIPPED, (), ((150, np.inf),)),
    "poisoned, skipped": Night(GUARDED, ((slice(49, None, 50), 3),)),
    "losing, then skipping": Night(
        wc.pipeline(optax.adam, 0.1, max_norm=5.0, **FULL, skip_above=BOUND),
        ((199, 100),),
        ((slice(190, None), 7.0),),
    ),
    "resumed with another rate": Night(
        wc.pipeline(
            optax.adam, wc.piecewise_constant(values=[0.01, 0.1], boundaries=[100]), **FULL
        ),
    ),
    "warming up": Night(
        wc.pipeline(
            optax.adam, wc.polynomial_warmup(peak_value=0.1, warmup_steps=50, power=4.0), **FULL
        ),
        calls=60,
    ),
    "frozen head": Night(CLIPPED, (((ALL, HEAD), 0),)),
    "clips most": Night(wc.pipeline(optax.adam, 0.1, max_norm=0.1, **FULL)),
    "in MultiSteps": Night(
        optax.MultiSteps(wc.pipeline(optax.adam, 0.1, **FULL), 2).gradient_transformation(), *SPIKE
    ),
    "guarded MultiSteps": Night(
        wc.skip_nonfinite(optax.MultiSteps(wc.pipeline(optax.adam, 0.1), 2), **FULL), *SPIKE
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
def run(optimizer: Any) -> Any:
    """From gradients and losses of calls to the state after them."""

    def at_call(state: Any, batch: Any) -> Any:
        grads, loss = batch
        return optimizer.update(grads, state, PARAMS, value=loss)[1], None

    return jax.jit(lambda *calls: jax.lax.scan(at_call, optimizer.init(PARAMS), calls)[0])


@functools.cache
def lines(name: str) -> list[str]:
    night, rng = NIGHTS[name], np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(PARAMS)
    scales = np.ones((night.calls, len(leaves)))
    losses = 2 + 0.02 * rng.standard_normal(night.calls)
    for numbers, changes in ((scales, night.scales), (losses, night.losses)):
        for where, number in changes:
            numbers[where] = number
    grads = structure.unflatten(
        np.float32(0.1 * rng.standard_normal((night.calls, *leaf.shape)) * scale[:, None])
        for leaf, scale in zip(leaves, scales.T, strict=True)
    )
    return wc.report(run(night.optimizer)(grads, np.float32(losses))).splitlines()


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_is_told_of_the_nights_it_is_true_of_and_of_no_other(sentence: str):
    told = {name for name in NIGHTS if any(sentence in line for line in lines(name))}
    assert told == SENTENCES[sentence]


def test_a_good_night_is_told_in_8_lines_and_a_bad_one_in_25():
    assert len(lines("good")) <= 8
    assert max(len(lines(name)) for name in NIGHTS if "MultiSteps" not in name) <= 25
    assert max(map(len, lines("NaN and spike"))) <= 140


def test_the_three_largest_calls_name_a_batch_that_comes_again():
    (line,) = [line for line in lines("poisoned") if "largest" in line]
    assert all(f"at call {call}" in line for call in (99, 149, 199))


def test_the_norm_to_be_reproduced_has_all_its_digits():
    optimizer: Any = wc.skip_nonfinite(optax.sgd(0.1), above=1.0)
    grads = jnp.array([0.1, 33.3])
    _, state = jax.jit(optimizer.update)(grads, optimizer.init(grads))
    norm = wc.global_norm(grads)
    (line,) = [line for line in wc.report(state).splitlines() if "must give the norm" in line]
    assert np.float32(line.split("norm ")[1].split(" again")[0]) == norm


def test_a_train_state_whose_step_is_another_is_told():
    train = TrainState.create(
        apply_fn=lambda: None, params={"w": jnp.ones(2)}, tx=wc.pipeline(optax.adam, 0.1)
    )
    step = jax.jit(lambda train: train.apply_gradients(grads=train.params))
    train = step(step(train))
    for steps in (0, 2, 50):
        told = f"The train state counts {steps} steps, the optimizer 2 calls"
        assert (told in wc.report(train.replace(step=steps))) == (steps != 2)
