"""The running bound on losses against its formula in float64, and what it promises on any stream."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from warmclip_jax._clipping._loss_history import (
    LossHistory,
    init_loss_history,
    loss_bound_from,
    loss_deviations_above,
    loss_taught,
)
from warmclip_jax._clipping._rule import Rule

pytestmark = pytest.mark.usefixtures("strict_dtypes")

SKIP = Rule(6.0, 1 - 0.99, None)
EPS = float(np.finfo(np.float32).eps)


def step(history: LossHistory, loss: jax.Array) -> tuple[LossHistory, tuple[jax.Array, jax.Array]]:
    """Decides with the old history, then teaches it. Returns the bound and whether it is over."""
    bound = loss_bound_from(history, SKIP, jnp.int32(0))
    return loss_taught(history, loss, jnp.isfinite(loss), SKIP), (bound, ~(loss <= bound))


@jax.jit
def follow(losses: Any, history: LossHistory) -> Any:
    return jax.lax.scan(step, history, losses)


def followed(losses: Any) -> tuple[LossHistory, np.ndarray, np.ndarray]:
    """Of streams of one length along the first axis; others are runs."""
    losses = np.asarray(losses, np.float32)
    history, (bounds, over) = follow(losses, init_loss_history(losses.shape[1:]))
    return history, np.asarray(bounds), np.asarray(over)


def streams(steps: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    at, noise = np.arange(steps), rng.standard_normal(steps)
    curve = 2 + 8 * np.exp(-at / 300)
    spikes = np.where(rng.random(steps) < 0.005, 15, 0)
    return {
        "falling": curve * (1 + 0.02 * (noise + spikes)),
        "noisy": curve * (1 + 0.1 * (noise + spikes)),
        "heavy tails": 2 + np.abs(rng.standard_t(2, steps)),
        "around zero": noise + spikes,
        "far below zero": -1000 + noise + spikes,
        "constant": np.full(steps, 2.0),
        "zero until the first reward": np.where(at < steps // 2, 0, 1 + 0.1 * noise),
        "NaN first": np.where((at < 5) | (at % 97 == 0), np.nan, 2 + 0.1 * noise),
        "inf in between": np.where(at % 101 == 7, -np.inf, 2 + 0.1 * noise),
        "tiny": 1e-30 * (2 + 0.1 * noise),
        "huge": 1e30 * (2 + 0.1 * noise),
        "huge and negative": -1e30 * (2 + 0.1 * noise),
        "a slow rise": 1 + at / 1000 + 0.05 * noise,
        "a lasting rise": (2 + 0.05 * noise) * np.where(at < steps // 2, 1, 10),
        "a lasting fall": (2 + 0.05 * noise) * np.where(at < steps // 2, 1, 1e-3),
        "rare and positive": np.where(rng.random(steps) < 0.04, rng.random(steps), 0),
        "a sum of squares": 1e-3 * noise**2,
    }


def test_float32_decides_as_the_formula_does_in_float64_but_for_ties():
    by_name = {name: stream.astype(np.float32) for name, stream in streams(1_500).items()}
    history, bounds, over = followed(np.stack(list(by_name.values()), axis=1))
    for run, (name, stream) in enumerate(by_name.items()):
        expected = reference.RunningLossBound()
        for at, loss in enumerate(stream.tolist()):
            bound = expected.bound
            # An error of the mean is made once a step, and lost at the rate 0.01.
            tolerance = 60 * EPS * (abs(expected.mean) + 6 * expected.floor)
            if math.isfinite(bound):
                assert abs(bounds[at, run] - bound) <= tolerance, (name, at)
                if math.isfinite(loss) and abs(loss - bound) > tolerance:
                    assert over[at, run] == (loss > bound), (name, at)
            expected.teach(loss)
        assert history.losses_taught[run] == expected.count, name
        np.testing.assert_allclose(history.loss_deviation[run], expected.deviation, rtol=1e-3)


@pytest.mark.parametrize(
    ("before", "after", "most"),
    [
        *((1, times, 450) for times in (1.1, 2, 10, 1e3, 1e6)),
        (2, 2.5, 450),
        (-1000, 0, 450),
        (0, 1, 0),
        (1, 1e-3, 0),
        *((1, times, 2_700) for times in (1e30, 3e38)),
        *((-times, times, 2_700) for times in (1e30, 3e38)),
    ],
)
def test_every_lasting_jump_is_followed(before: float, after: float, most: int):
    history, _, over = followed(np.where(np.arange(3_500) < 500, before, after))
    assert over[:500].sum() == 0
    assert over.sum() <= most
    assert over[500] == (most > 0)
    assert all(np.isfinite(field) for field in history)


def test_ordinary_losses_raise_no_alarm_and_spikes_are_caught():
    by_name = streams(4_000)
    names = ("falling", "noisy", "around zero")
    _, _, over = followed(np.stack([by_name[name] for name in names], axis=1))
    rng = np.random.default_rng(0)
    rng.standard_normal(4_000)
    spikes = rng.random(4_000) < 0.005
    # The first losses around zero say little of how far the next may go.
    assert over[~spikes][10:].sum() == 0
    # Some are hidden while the curve still falls steeply.
    caught = over[spikes].mean(axis=0)
    assert caught.min() > 0.5
    assert caught[names.index("around zero")] > 0.9


def test_nothing_teaches_that_is_not_finite_and_types_stay():
    history = followed([1.0, 2.0])[0]
    for loss in (math.nan, math.inf, -math.inf):
        after = loss_taught(history, jnp.float32(loss), jnp.bool_(False), SKIP)
        jax.tree.map(np.testing.assert_array_equal, after, history)
    cast = LossHistory(
        history.loss_mean.astype(jnp.bfloat16),
        history.loss_deviation.astype(jnp.bfloat16),
        history.losses_taught,
    )
    after = loss_taught(cast, jnp.float32(2), jnp.bool_(True), SKIP)
    assert [field.dtype for field in after] == [field.dtype for field in cast]
    full = history._replace(losses_taught=jnp.int32(2**31 - 1))
    assert loss_taught(full, jnp.float32(1), jnp.bool_(True), SKIP).losses_taught == 2**31 - 1


def test_a_ceiling_holds_before_the_first_loss_and_after():
    rule = SKIP._replace(ceiling=lambda count: 4 - count)
    bound = functools.partial(loss_bound_from, rule=rule)
    assert bound(init_loss_history(), count=jnp.int32(0)) == 4.0
    history = followed([1.0, 1.0])[0]
    assert bound(history, count=jnp.int32(0)) < 4.0
    assert bound(history, count=jnp.int32(3)) == 1.0
    assert loss_bound_from(init_loss_history(), SKIP, jnp.int32(0)) == math.inf


@pytest.mark.parametrize(
    ("mean", "deviation", "seen", "loss", "expected"),
    [
        (2.0, 0.5, 9, 4.0, 4.0),
        (2.0, 0.5, 9, 1.0, 0.0),  # below the usual one
        (-3.0, 0.5, 9, -1.0, 4.0),
        (2.0, 0.001, 9, 2.1, 5.0),  # a deviation counts as a hundredth of the mean at least
        (2.0, 0.5, 0, 4.0, 0.0),  # none is usual yet
        (0.0, 0.0, 9, 4.0, 0.0),
        (2.0, 0.5, 9, math.nan, 0.0),
        (2.0, 0.5, 9, math.inf, 0.0),
    ],
)
def test_a_loss_stands_out_by_its_distance_above_the_mean_in_deviations(
    mean, deviation, seen, loss, expected
):
    history = LossHistory(jnp.float32(mean), jnp.float32(deviation), jnp.int32(seen))
    found = loss_deviations_above(history, jnp.float32(loss))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
