"""purejaxrl's PPO update: epochs of minibatches in one `scan`, under `vmap` over seeds and learning rates.

There: clip by 0.5, Adam with eps 1e-5, and a rate that falls by `count // (minibatches * epochs)`,
so that it stays through all updates of a batch. The rate is a traced number of the sweep; what was
used is not logged, nor is the norm.

Here: `wc.stretch` holds each value of `wc.polynomial_decay` for so many updates; the peak may be
traced as well. The pipeline counts updates, skipped minibatches not among them, as
`optax.apply_if_finite` around the chain does.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import warmclip_jax as wc

UPDATES, EPOCHS, MINIBATCHES, STEPS = 4, 2, 2, 12
MAX_NORM, CLIP = 0.5, 0.2
RATES = jnp.array([3e-3, 2e-2, 5e-2])
#: The batch in which the second seed alone meets a NaN.
BAD_SEED, BAD_UPDATE = 1, 2


class Told(NamedTuple):
    """What one side says after each call: of the last call, but the rate, which is that of the last
    update.
    """

    loss: Any
    norm: Any
    rate: Any
    skipped: Any


@pytest.fixture(autouse=True)
def _their_layers_promote_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


class ActorCritic(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        hidden = jnp.tanh(nn.Dense(8)(x))
        return nn.Dense(2)(hidden), nn.Dense(1)(hidden)[..., 0]


NETWORK = ActorCritic()


def log_prob(logits: Any, actions: Any) -> Any:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), actions[..., None], axis=-1)[..., 0]


def drawn() -> dict[str, np.ndarray]:
    """For each seed and batch what an environment and a shuffle would draw; in the bad batch one
    number is NaN.
    """
    rng = np.random.default_rng(0)
    each = len(RATES), UPDATES
    orders = rng.permuted(np.broadcast_to(np.arange(STEPS), (*each, EPOCHS, STEPS)), axis=-1)
    observed = rng.standard_normal((*each, STEPS, 3)).astype(np.float32)
    observed[BAD_SEED, BAD_UPDATE, 0, 0] = np.nan
    return {"x": observed, "action": rng.integers(0, 2, (*each, STEPS)), "order": orders}


def rollout(params: Any, x: Any, action: Any) -> dict[str, Any]:
    """A batch of a game of one step, in which the action has to be the sign of the first number."""
    logits, values = NETWORK.apply(params, x)
    rewards = 1.0 * (action == (x[:, 0] > 0))
    made = {"x": x, "action": action, "log_prob": log_prob(logits, action), "value": values}
    return made | {"advantage": rewards - values, "target": rewards}


def loss_of(params: Any, batch: dict[str, Any]) -> Any:
    logits, value = NETWORK.apply(params, batch["x"])
    ratio = jnp.exp(log_prob(logits, batch["action"]) - batch["log_prob"])
    advantage = batch["advantage"]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    actor = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage).mean()
    near = batch["value"] + jnp.clip(value - batch["value"], -CLIP, CLIP)
    critic = 0.5 * jnp.maximum((value - batch["target"]) ** 2, (near - batch["target"]) ** 2).mean()
    entropy = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=-1).mean()
    return actor + 0.5 * critic - 0.01 * entropy


def train(make: Any, tell: Any) -> tuple[Any, Told]:
    """A run for each seed and rate in one program: `make(rate)` is the optimizer, `tell` says what
    its state knows.
    """

    def run(seed: Any, rate: Any, batches: Any) -> Any:
        params = NETWORK.init(jax.random.key(seed), jnp.zeros(3))
        state = TrainState.create(apply_fn=NETWORK.apply, params=params, tx=make(rate))

        def minibatch(state: Any, batch: Any) -> Any:
            loss, grads = jax.value_and_grad(loss_of)(state.params, batch)
            state = state.apply_gradients(grads=grads)
            return state, tell(rate, loss, grads, state.opt_state)

        def epoch(carry: Any, order: Any) -> Any:
            state, batch = carry
            shuffled = jax.tree.map(
                lambda leaf: leaf[order].reshape(MINIBATCHES, -1, *leaf.shape[1:]), batch
            )
            state, told = jax.lax.scan(minibatch, state, shuffled)
            return (state, batch), told

        def update(state: Any, batch: Any) -> Any:
            made = rollout(state.params, batch["x"], batch["action"])
            (state, _), told = jax.lax.scan(epoch, (state, made), batch["order"])
            return state, told

        state, told = jax.lax.scan(update, state.replace(step=jnp.int32(0)), batches)
        return state.params, jax.tree.map(jnp.ravel, told)

    params, told = jax.jit(jax.vmap(run))(jnp.arange(len(RATES)), RATES, drawn())
    return params, Told(*(np.asarray(values, np.float64) for values in told))


def their_rate(rate: Any, count: Any) -> Any:
    return rate * (1.0 - (count // (MINIBATCHES * EPOCHS)) / UPDATES)


def theirs() -> tuple[Any, Told]:
    def make(rate: Any) -> Any:
        adam = optax.adam(functools.partial(their_rate, rate), eps=1e-5)
        return optax.apply_if_finite(
            optax.chain(optax.clip_by_global_norm(MAX_NORM), adam), max_consecutive_errors=10
        )

    def tell(rate: Any, loss: Any, grads: Any, state: Any) -> Told:
        count = state.inner_state[1][0].count - 1  # of Adam, after the update
        return Told(
            loss, optax.tree.norm(grads), their_rate(rate, count), state.notfinite_count > 0
        )

    return train(make, tell)


def ours() -> tuple[Any, Told]:
    def make(rate: Any) -> Any:
        per_batch = wc.polynomial_decay(init_value=rate, decay_steps=UPDATES)
        schedule = wc.stretch(per_batch, factor=MINIBATCHES * EPOCHS)
        return wc.pipeline(functools.partial(optax.adam, eps=1e-5), schedule, max_norm=MAX_NORM)

    def tell(rate: Any, loss: Any, grads: Any, state: Any) -> Told:
        del rate, grads
        known = wc.metrics(state)
        return Told(
            loss, known["grad_norm"], known["learning_rate"], known["consecutive_skips"] > 0
        )

    return train(make, tell)


def test_losses_norms_and_rates_of_every_seed_and_rate_are_those_of_optax():
    (their_params, their_told), (our_params, our_told) = theirs(), ours()
    # Some roundings of float32 in as many updates.
    np.testing.assert_array_equal(our_told.skipped, their_told.skipped)
    np.testing.assert_allclose(our_told.loss, their_told.loss, rtol=2e-5)
    np.testing.assert_allclose(our_told.norm, their_told.norm, rtol=2e-5)
    peak = np.nanmax(their_told.rate, axis=-1, keepdims=True).astype(np.float32)  # of each run
    assert np.all(np.abs(our_told.rate - their_told.rate) <= 4 * np.spacing(peak))
    for mine, other in zip(jax.tree.leaves(our_params), jax.tree.leaves(their_params), strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-5, atol=2e-6)
    # The bad batch costs its minibatches with the NaN, one in each epoch, and no other seed.
    assert np.sum(our_told.skipped, axis=1).tolist() == [0, EPOCHS, 0]
    # One value for all updates of a batch, then the next.
    held = np.unique(our_told.rate[0].round(9), return_counts=True)[1]
    assert held.tolist() == [MINIBATCHES * EPOCHS] * UPDATES
    np.testing.assert_allclose(
        our_told.rate[0, ::4], RATES[0] * np.array([1, 0.75, 0.5, 0.25]), rtol=1e-6
    )
    assert np.nanmin(our_told.norm) < MAX_NORM < np.nanmax(our_told.norm)
