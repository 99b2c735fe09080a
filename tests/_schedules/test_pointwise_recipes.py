"""The guide's recipes of schedules: rates by group and by layer, restarts that grow or fall, a decay
that follows the rate.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc

PARAMS = {
    "embedding": jnp.ones(3),
    "layers": [{"w": jnp.ones(2)} for _ in range(4)],
    "head": jnp.ones(2),
}


def rates_used(
    optimizer: optax.GradientTransformationExtraArgs, steps: int
) -> list[dict[str, float]]:
    """What SGD moves each leaf by, over gradients of one: its rate."""
    opt_state, rates = optimizer.init(PARAMS), []
    for _ in range(steps):
        updates, opt_state = jax.jit(optimizer.update)(
            jax.tree.map(jnp.ones_like, PARAMS), opt_state, PARAMS
        )
        moved = jax.tree_util.tree_leaves_with_path(updates)
        rates.append(
            {
                jax.tree_util.keystr(path, simple=True, separator="/"): -float(leaf[0])
                for path, leaf in moved
            }
        )
    return rates


def test_each_group_has_its_factor_times_one_schedule():
    schedule = wc.linear_warmup(peak_value=1e-3, warmup_steps=4)
    factors = {"embedding": 0.1, "layers": 1.0, "head": 10.0}
    optimizer = wc.pipeline(
        lambda rate: optax.partition(
            {label: optax.sgd(factor * rate) for label, factor in factors.items()}, by_name
        ),
        schedule,
        max_norm=None,
    )
    for step, rates in enumerate(rates_used(optimizer, 6)):
        for path, rate in rates.items():
            assert rate == pytest.approx(
                factors[path.partition("/")[0]] * float(schedule(step)), rel=1e-6
            )


def test_each_layer_learns_slower_than_the_one_above_it():
    schedule, depth, decay = (
        wc.linear_warmup(peak_value=1e-3, warmup_steps=4),
        len(PARAMS["layers"]),
        0.75,
    )
    factors = {f"layers/{layer}": decay ** (depth - layer) for layer in range(depth)}
    factors |= {"embedding": decay ** (depth + 1), "head": 1.0}
    optimizer = wc.pipeline(
        lambda rate: optax.partition(
            {label: optax.sgd(factor * rate) for label, factor in factors.items()}, by_layer
        ),
        schedule,
        max_norm=None,
    )
    for step, rates in enumerate(rates_used(optimizer, 6)):
        assert rates["layers/0/w"] == pytest.approx(0.75**4 * float(schedule(step)), rel=1e-6)
        assert rates["layers/3/w"] == pytest.approx(0.75 * float(schedule(step)), rel=1e-6)
        assert rates["embedding"] == pytest.approx(0.75**5 * float(schedule(step)), rel=1e-6)
        assert rates["head"] == pytest.approx(float(schedule(step)), rel=1e-6)


def by_name(params: optax.Params) -> optax.Params:
    parts: Any = params
    return {name: jax.tree.map(lambda _, name=name: name, part) for name, part in parts.items()}


def by_layer(params: optax.Params) -> optax.Params:
    def label(path: tuple[jax.tree_util.KeyPath, ...], _: jax.Array) -> str:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return "/".join(names[:2]) if names[0] == "layers" else names[0]

    return jax.tree_util.tree_map_with_path(label, params)


def test_restarts_may_grow_or_fall():
    counts = np.arange(700)
    grow = wc.join(
        [wc.cosine_decay(init_value=1.0, decay_steps=100 * 2**k) for k in range(3)],
        boundaries=[100, 300],
    )
    fall = wc.repeat(
        wc.cosine_decay(init_value=1.0, decay_steps=100), period=100
    ) * wc.exponential_decay(init_value=1.0, decay_steps=100, decay_rate=0.5, staircase=True)

    def cosine(share: np.ndarray) -> np.ndarray:
        return (1 + np.cos(np.pi * share)) / 2

    starts, lengths = np.array([0, 100, 300]), np.array([100, 200, 400])
    turn = np.searchsorted(starts, counts, side="right") - 1
    np.testing.assert_allclose(
        grow(counts), cosine((counts - starts[turn]) / lengths[turn]), rtol=0, atol=4 * 2.0**-23
    )
    np.testing.assert_allclose(
        fall(counts), cosine(counts % 100 / 100) * 0.5 ** (counts // 100), rtol=0, atol=4 * 2.0**-23
    )


def test_weight_decay_follows_the_rate():
    schedule = wc.linear_warmup(peak_value=1e-3, warmup_steps=4)
    wanted = 0.1 * schedule / 1e-3  # 0.1 at the peak
    np.testing.assert_allclose(
        wanted(np.arange(6)), 0.1 * np.minimum(np.arange(6) / 4, 1), rtol=1e-6
    )
