"""big_vision's optimizer: a chain of a clip, moments, rate, weight decay and schedule, with part of the parameters frozen.

There: the clip, the moments and the rate are masked to what is trained, so that frozen gradients do
not count in the norm. Weight decay is added after the rate and before the schedule: the schedule's
shape scales `wd`, the rate does not. A `grad_clip_norm` of 0 or none clips nothing.

Here: `optax.masked` around one pipeline. `optax.adamw` scales weight decay by the rate, so `wd /
lr` gives the same; `max_norm=None` clips nothing.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests.integrations.ported.agreement import Told, assert_alike, stacked
from tests.problem import FEATURES, TARGETS

LR, WD, WARMUP, TOTAL, BAD = 3e-2, 1e-2, 3, 12, 5
TRAINED, FROZEN = {"stem": False, "head": True}, {"stem": True, "head": False}
PARAMS = {
    "stem": jnp.linspace(-1.0, 1.0, 36).reshape(6, 6),
    "head": jnp.linspace(0.5, -0.5, 24).reshape(6, 4),
}


def shape(count: Any) -> Any:
    progress = jnp.clip((count - WARMUP) / (TOTAL - WARMUP), 0.0, 1.0)
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress)) * jnp.minimum(1.0, count / WARMUP)


def theirs(max_norm: float | None) -> Any:
    clip = (
        optax.masked(optax.clip_by_global_norm(max_norm), TRAINED) if max_norm else optax.identity()
    )
    chain = optax.chain(
        clip,
        optax.masked(optax.scale_by_adam(), TRAINED),
        optax.scale(LR),
        optax.add_decayed_weights(WD, TRAINED),
        optax.masked(optax.scale_by_schedule(shape), TRAINED),
        optax.masked(optax.set_to_zero(), FROZEN),
        optax.scale(-1.0),
    )
    return optax.apply_if_finite(chain, max_consecutive_errors=5)


def ours(max_norm: float | None) -> Any:
    schedule = wc.warmup_cosine_decay(peak_value=LR, total_steps=TOTAL, warmup_steps=WARMUP)
    adamw = functools.partial(optax.adamw, weight_decay=WD / LR)
    pipeline = wc.pipeline(adamw, schedule, max_norm=max_norm)
    return optax.chain(optax.masked(pipeline, TRAINED), optax.masked(optax.set_to_zero(), FROZEN))


def loss_of(params: Any, features: jax.Array) -> jax.Array:
    return jnp.mean((jnp.tanh(features @ params["stem"]) @ params["head"] - TARGETS) ** 2)


def tell_theirs(state: Any, grads: Any) -> Any:
    rate = LR * shape(optax.tree.get(state, "ScaleByScheduleState").count - 1)
    return optax.tree.norm(grads["head"]), rate, state.notfinite_count > 0


def tell_ours(state: Any, grads: Any) -> Any:
    del grads
    known = wc.metrics(state)
    return known["grad_norm"], known["learning_rate"], known["consecutive_skips"] > 0


def train(optimizer: Any, tell: Any) -> tuple[Any, Told]:
    @jax.jit
    def step(params: Any, state: Any, features: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, features)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, Told(loss, *tell(state, grads))

    params, state, told = PARAMS, optimizer.init(PARAMS), []
    for call in range(TOTAL + 3):
        params, state, each = step(
            params, state, FEATURES.at[0, 0].set(jnp.nan) if call == BAD else FEATURES
        )
        told.append(each)
    return params, stacked(told)


@pytest.mark.parametrize("max_norm", [1.8, None], ids=["clipped", "off"])
def test_losses_norms_and_rates_are_those_of_the_chain_and_what_is_frozen_stays(
    max_norm: float | None,
):
    # There 0 is off.
    their_params, their_told = train(theirs(max_norm or 0.0), tell_theirs)
    our_params, our_told = train(ours(max_norm), tell_ours)
    assert_alike(our_told, their_told)
    np.testing.assert_array_equal(our_params["stem"], PARAMS["stem"])
    np.testing.assert_allclose(our_params["head"], their_params["head"], rtol=2e-5, atol=2e-6)
    assert our_told.skipped.tolist() == [float(call == BAD) for call in range(TOTAL + 3)]
    # Some steps are clipped and some are not: Adam would not see a constant factor.
    assert np.nanmin(our_told.norm) < 1.8 < np.nanmax(our_told.norm)


def test_zero_here_is_a_bound_and_stops_the_moments():
    params, _ = train(ours(0.0), tell_ours)
    without_decay = jax.tree.map(lambda new, old: new / old, params["head"], PARAMS["head"])
    # Nothing but the decay of weights is left: the same factor for every entry.
    np.testing.assert_allclose(without_decay, without_decay[0, 0], rtol=1e-5)
    assert without_decay[0, 0] < 1
