"""Rows that people ask for: each as one would write it, beside the formula of whoever published it.

The guide quotes them; `wc.` is left out here as in the text that `parse` reads.
"""

import ast
import math
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc

PEAK, LOW, W, T = 3e-3, 3e-5, 20, 400
K, NOW = 150, 230

S = wc.warmup_cosine_decay(peak_value=PEAK, total_steps=T, warmup_steps=W)
TRIANGLE = wc.repeat(
    wc.join(
        [
            wc.linear_warmup(peak_value=1.0, warmup_steps=W),
            wc.polynomial_decay(init_value=1.0, decay_steps=W),
        ],
        boundaries=[W],
    ),
    period=2 * W,
)
SCOPE = {name: getattr(wc, name) for name in wc.__all__} | {
    "peak": PEAK, "low": LOW, "W": W, "T": T, "k": K, "now": NOW, "s": S, "triangle": TRIANGLE,
    "cosine": wc.cosine_decay(init_value=PEAK, decay_steps=100), "weight_decay": 0.1, "D": 50,
}  # fmt: skip


def cosine_run(step: float) -> float:
    if step < W:
        return PEAK * step / W
    return PEAK * (1 + math.cos(math.pi * min((step - W) / (T - W), 1))) / 2


def triangle(step: int) -> float:
    """Smith 2017, figure 2: from 0 to 1 in W steps and back."""
    cycle = math.floor(1 + step / (2 * W))
    return max(0.0, 1 - abs(step / W - 2 * cycle + 1))


def one_cycle(step: int, *, start: float, top: float, end: float) -> float:
    """PyTorch's OneCycleLR with cosines: its first phase ends at step 0.3 * T - 1, its last at T - 1."""

    def between(left: float, right: float, share: float) -> float:
        return right + (left - right) / 2 * (1 + math.cos(math.pi * share))

    middle, last = 0.3 * T - 1, T - 1
    if step <= middle:
        return between(start, top, step / middle)
    return between(top, end, (min(step, last) - middle) / (last - middle))


def wsd_s(step: int) -> float:
    """Wen et al. 2024: three periods that decay over their last 20 steps, each from the peak."""
    if step < W:
        return PEAK * step / W
    inside = step % 100
    # Between the peak and a tenth of it, linear in the inverse of the rate.
    share = max(inside - 80, 0) / 20
    return 1 / ((1 - share) / PEAK + share / (0.1 * PEAK))


def granite(step: int) -> float:
    """Shen et al. 2024: min(peak, beta * a * n ** -0.51), n tokens in, beta the batch in sequences."""
    rate = min(PEAK, 128 * 4.6 * (max(step, 1) * 128 * 4096) ** -0.51)
    return rate * min(step / W, 1)


def olmo_power(step: int) -> float:
    """OLMo-core's PowerLR with b = -0.51 and a linear tail of 50 steps."""
    if step <= W:
        return PEAK * step / W
    start = T - 50
    if step >= start:
        return PEAK * (start / W) ** -0.51 * max(T - step, 0) / 50
    return PEAK * (step / W) ** -0.51


def modded_nanogpt(step: int) -> float:
    """Its rate grows with the batch in stages, and mixes with a tenth over the last 60 %."""
    x = min(step / T, 1)
    stage = (1.0, 1.52, 1.73)[min(int(3 * x), 2)]
    share = min((1 - x) / 0.6, 1)
    return stage * share + 0.1 * (1 - share)


def nanochat(step: int) -> float:
    return PEAK * (1.0 if step <= T - 80 else max(T - step, 0) / 80)


#: What it is, how it is written, and what it is at a step.
ROWS: dict[str, tuple[str, Callable[[int], float]]] = {
    "Cool down from here, over D steps": (
        "join([s, polynomial_decay(init_value=float(s(now)), decay_steps=D)], boundaries=[now])",
        lambda t: cosine_run(t) if t < NOW else cosine_run(NOW) * max(0, 1 - (t - NOW) / 50),
    ),
    "Warm up again after a restart at step k, to where the schedule is then": (
        "with_warmup(shift(s, by=k), warmup_steps=W)",
        lambda t: cosine_run(K) * t / W if t < W else cosine_run(K + t - W),
    ),
    "Warm up again after a restart at step k, and lose no step": (
        "linear_warmup(peak_value=1.0, warmup_steps=W) * shift(s, by=k)",
        lambda t: min(t / W, 1) * cosine_run(K + t),
    ),
    "One-cycle: the rate": (
        "join([cosine_decay(init_value=peak / 25, decay_steps=119, end_value=peak), "
        "cosine_decay(init_value=peak, decay_steps=280, end_value=peak / 25e4)], boundaries=[119])",
        lambda t: one_cycle(t, start=PEAK / 25, top=PEAK, end=PEAK / 25e4),
    ),
    "One-cycle: the momentum, the other way": (
        "join([cosine_decay(init_value=0.95, decay_steps=119, end_value=0.85), "
        "cosine_decay(init_value=0.85, decay_steps=280, end_value=0.95)], boundaries=[119])",
        lambda t: one_cycle(t, start=0.95, top=0.85, end=0.95),
    ),
    "Cyclical rates: triangular": (
        "low + (peak - low) * triangle",
        lambda t: LOW + (PEAK - LOW) * triangle(t),
    ),
    "Cyclical rates: triangular2": (
        "low + (peak - low) * triangle * exponential_decay("
        "init_value=1.0, decay_steps=2 * W, decay_rate=0.5, staircase=True)",
        lambda t: LOW + (PEAK - LOW) * triangle(t) * 0.5 ** (t // (2 * W)),
    ),
    "Cyclical rates: exp_range": (
        "low + (peak - low) * triangle * exponential_decay("
        "init_value=1.0, decay_steps=1, decay_rate=0.994)",
        lambda t: LOW + (PEAK - LOW) * triangle(t) * 0.994**t,
    ),
    "nanochat: the rate": (
        "warmup_stable_decay(peak_value=peak, total_steps=T, warmup_steps=0, decay_steps=80)",
        nanochat,
    ),
    "nanochat: Muon's momentum": (
        "linear_warmup(peak_value=0.95, warmup_steps=300, init_value=0.85)",
        lambda t: (1 - min(t / 300, 1)) * 0.85 + min(t / 300, 1) * 0.95,
    ),
    "nanochat: the weight decay": (
        "polynomial_decay(init_value=0.2, decay_steps=T)",
        lambda t: 0.2 * max(1 - t / T, 0),
    ),
    "DeepSeek's steps": (
        "linear_warmup(peak_value=1.0, warmup_steps=W) * piecewise_constant("
        "values=[peak, 0.316 * peak, 0.1 * peak], boundaries=[320, 360])",
        lambda t: min(t / W, 1) * PEAK * (1.0 if t < 320 else 0.316 if t < 360 else 0.1),
    ),
    "WSD-S: the peak again after each decay": (
        "linear_warmup(peak_value=1.0, warmup_steps=W) * repeat(shift(inverse_power_decay("
        "init_value=peak, timescale=20 / 9, power=1.0), by=-80), period=100)",
        wsd_s,
    ),
    "Granite's power scheduler": (
        "linear_warmup(peak_value=1.0, warmup_steps=W) * minimum(peak, shift(inverse_power_decay("
        "init_value=128 * 4.6 * (128 * 4096) ** -0.51, timescale=1, power=0.51), by=-1))",
        granite,
    ),
    "OLMo-core, PowerLR": (
        "join([with_warmup(inverse_power_decay(init_value=peak, timescale=W, power=0.51), "
        "warmup_steps=W), polynomial_decay(init_value=peak * ((T - 50) / W) ** -0.51, "
        "decay_steps=50)], boundaries=[T - 50])",
        olmo_power,
    ),
    "OLMo-core, InvSqrtWithWarmup with a floor": (
        "with_warmup(inverse_sqrt_decay("
        "init_value=peak, timescale=W, end_value=0.1 * peak), warmup_steps=W)",
        lambda t: PEAK * t / W if t < W else PEAK * (0.1 + 0.9 * math.sqrt(W / t)),
    ),
    "Keras, InverseTimeDecay(decay_steps=30, decay_rate=0.5)": (
        "inverse_power_decay(init_value=peak, timescale=30 / 0.5, power=1.0)",
        lambda t: PEAK / (1 + 0.5 * t / 30),
    ),
    "Keras, InverseTimeDecay(decay_steps=30, decay_rate=0.5, staircase=True)": (
        "stretch(inverse_power_decay(init_value=peak, timescale=1 / 0.5, power=1.0), factor=30)",
        lambda t: PEAK / (1 + 0.5 * (t // 30)),
    ),
    "Hands-on ML's power scheduling, lr / (1 + t / s) ** c": (
        "inverse_power_decay(init_value=peak, timescale=40, power=1.5)",
        lambda t: PEAK / (1 + t / 40) ** 1.5,
    ),
    "modded-nanogpt's mixture of stages and a floor, as a factor": (
        "stages * share + 0.1 * (1 - share)",
        modded_nanogpt,
    ),
    "An EMA's decay, min(d, (1 + t) / (10 + t))": (
        "minimum(0.999, 1 - inverse_power_decay(init_value=0.9, timescale=10, power=1.0))",
        lambda t: min(0.999, (1 + t) / (10 + t)),
    ),
    "An EMA's decay, 1 - (1 + t / g) ** -p": (
        "1 - inverse_power_decay(init_value=1.0, timescale=2.0, power=0.75)",
        lambda t: 1 - (1 + t / 2) ** -0.75,
    ),
    "BYOL's EMA, from 0.996 to 1": (
        "1 - cosine_decay(init_value=0.004, decay_steps=T)",
        lambda t: 1 - 0.004 * (math.cos(math.pi * min(t / T, 1)) + 1) / 2,
    ),
    "Adafactor's b2, 1 - (t + 1) ** -0.8": (
        "1 - inverse_power_decay(init_value=1.0, timescale=1, power=0.8)",
        lambda t: 1 - (t + 1) ** -0.8,
    ),
    "AdamC's weight decay, which follows the rate": (
        "weight_decay * (s / peak)",
        lambda t: 0.1 * (cosine_run(t) / PEAK),
    ),
    "Restarts that grow": (
        "join([cosine_decay(init_value=peak, decay_steps=100 * 2**n) for n in range(3)], "
        "boundaries=[100, 300])",
        lambda t: next(
            PEAK * (1 + math.cos(math.pi * min((t - start) / length, 1))) / 2
            for start, length in ((300, 400), (100, 200), (0, 100))
            if t >= start
        ),
    ),
    "Restarts that fall": (
        "repeat(cosine, period=100) * exponential_decay("
        "init_value=1.0, decay_steps=100, decay_rate=0.5, staircase=True)",
        lambda t: PEAK * (1 + math.cos(math.pi * (t % 100) / 100)) / 2 * 0.5 ** (t // 100),
    ),
    "Five epochs of warm-up and ninety in all": (
        "warmup_cosine_decay(peak_value=peak, "
        "total_steps=steps(epochs=90, dataset_size=130, batch_size=32, drop_remainder=True), "
        "warmup_steps=steps(epochs=5, dataset_size=130, batch_size=32, drop_remainder=True))",
        lambda t: cosine_run(t) if t < W else PEAK * (1 + math.cos(math.pi * min((t - 20) / 340, 1))) / 2,
    ),
}  # fmt: skip
SHARE = wc.warmup_stable_decay(peak_value=1.0, total_steps=T, warmup_steps=0, decay_fraction=0.6)
SCOPE |= {
    "share": SHARE,
    "stages": wc.piecewise_constant(values=[1.0, 1.52, 1.73], boundaries=[134, 267]),
}


def written(name: str) -> wc.Schedule:
    return eval(ROWS[name][0], dict(SCOPE))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_its_formula_to_4_ulp_over_the_whole_run(name: str):
    steps = np.arange(2 * T)
    exact = np.array([ROWS[name][1](int(step)) for step in steps])
    np.testing.assert_allclose(
        written(name)(steps), exact, rtol=0, atol=4 * np.spacing(np.float32(exact.max()))
    )
    assert wc.parse(repr(written(name))) == written(name)


#: What the guide tells among its recipes, with numbers of its own.
AMONG_RECIPES = (
    "Cool",
    "Warm up again",
    "One-cycle",
    "DeepSeek",
    "AdamC",
    "Restarts",
    "Five epochs",
)


def test_the_guide_quotes_the_rows():
    guide = (pathlib.Path(__file__).parents[2] / "colabs/README.md").read_text(encoding="utf-8")
    rows = {name: code for name, (code, _) in ROWS.items() if not name.startswith(AMONG_RECIPES)}
    assert [name for name, code in rows.items() if f"| {name} | `{code}` |" not in guide] == []


def test_rows_are_the_same_in_another_process():
    sent = pickle.dumps([written(name) for name in ROWS])
    program = (
        "import pickle, sys; schedules = pickle.load(sys.stdin.buffer); "
        "print(repr([(repr(s), s([0, 57, 399]).tolist()) for s in schedules]))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=sent, capture_output=True, check=True)
    expected = [(repr(written(name)), written(name)([0, 57, 399]).tolist()) for name in ROWS]
    assert ast.literal_eval(done.stdout.decode()) == expected


# Rows that take an optimizer.

PARAMS: Any = {
    "embedding": jnp.ones(3),
    "layers": [{"w": jnp.ones(2)} for _ in range(4)],
    "head": jnp.ones(2),
}
DEPTH = len(PARAMS["layers"])
BY_GROUP = {"embedding": 0.1, "layers": 1.0, "head": 10.0}
BY_LAYER = {f"layers/{layer}": 0.75 ** (DEPTH - layer) for layer in range(DEPTH)}
BY_LAYER |= {"embedding": 0.75 ** (DEPTH + 1), "head": 1.0}


@pytest.mark.parametrize("factors", [BY_GROUP, BY_LAYER], ids=["by group", "by layer"])
def test_each_group_or_layer_has_its_factor_times_one_schedule(factors: dict[str, float]):
    schedule = wc.linear_warmup(peak_value=1e-3, warmup_steps=4)
    labels = wc.label_by_path({label: f"{label}(/.*)?" for label in factors})
    optimizer = wc.pipeline(
        lambda rate: optax.partition(
            {label: optax.sgd(factor * rate) for label, factor in factors.items()}, labels
        ),
        schedule,
        max_norm=None,
    )
    opt_state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
    for step in range(6):
        updates, opt_state = update(jax.tree.map(jnp.ones_like, PARAMS), opt_state, PARAMS)
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            (factor,) = (factors[label] for label in factors if name.startswith(label))
            assert -float(leaf[0]) == pytest.approx(factor * float(schedule(step)), rel=1e-6)


def loss(params: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(params)) / 2


def test_a_range_test_is_one_vmap_over_rates():
    def last_loss(rate: jax.Array) -> jax.Array:
        optimizer = wc.pipeline(optax.sgd, wc.constant(value=rate), max_norm=None)
        params = jnp.ones(3)

        def step(carry: Any, _: Any) -> Any:
            params, opt_state = carry
            return wc.apply_gradients(optimizer, params, opt_state, grads=jax.grad(loss)(params)), 0

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=8)
        return loss(params)

    rates = jnp.array([0.01, 0.1, 1.0, 3.0])
    # SGD on a parabola: each step multiplies the parameters by 1 - rate.
    np.testing.assert_allclose(
        jax.vmap(last_loss)(rates), 1.5 * (1 - rates) ** 16, rtol=1e-4, atol=1e-6
    )


def test_a_range_test_is_one_run_of_growing_rates_with_the_record():
    growing = wc.exponential_decay(init_value=1e-3, decay_steps=9, decay_rate=10.0, end_value=100.0)
    optimizer = wc.pipeline(optax.sgd, growing, max_norm=None, record=64)

    @jax.jit
    def step(params: jax.Array, opt_state: optax.OptState) -> Any:
        curved = jnp.array([1.0, 0.7, 0.4])
        value, grads = jax.value_and_grad(lambda params: loss(curved * params))(params)
        return wc.apply_gradients(optimizer, params, opt_state, grads=grads, value=value)

    params, opt_state = jnp.ones(3), optimizer.init(jnp.ones(3))
    for _ in range(46):
        params, opt_state = step(params, opt_state)
    record = wc.records(opt_state)
    np.testing.assert_allclose(record["learning_rate"], growing(np.arange(46)), rtol=1e-6)
    # It falls until the rate is too large for the curvature, and then grows without end.
    best = int(np.argmin(record["value"]))
    assert 9 < best < 45
    assert not record["value"][-1] <= record["value"][0]
