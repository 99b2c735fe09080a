"""The rule of the running bound against its formula in float64, its promises on any stream, and the
ways to run it.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import reference
from warmclip_jax._clipping._history import (
    History,
    bound_from,
    deviations_above,
    init_history,
    log_of,
    taught,
)
from warmclip_jax._clipping._rule import Rule
from warmclip_jax._norms._norm import scaled_norm
from warmclip_jax._norms._range import ScaledNorm

pytestmark = pytest.mark.usefixtures("strict_dtypes")

CLIP, SKIP = Rule(3.0, 1 - 0.99, None), Rule(6.0, 1 - 0.99, None)
LARGEST, SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
#: An error of the mean is made once a step and lost at the rate 0.01; the bound is rounded a few
#: times more.
ROUNDINGS = 0.5 / 0.01 + 4


def step(
    history: History, norm: jax.Array, rule: Rule = CLIP
) -> tuple[History, tuple[jax.Array, jax.Array]]:
    """What a clip does at each call: decide with the old history, then teach it. Returns the bound
    and whether it is over.
    """
    scaled = ScaledNorm.of(norm)
    bound = bound_from(history, rule, jnp.int32(0))
    return taught(history, *log_of(scaled), rule), (
        bound,
        ~(scaled.mantissa <= bound * scaled.scale),
    )


@functools.partial(jax.jit, static_argnames="rule")
def follow(
    norms: Any, history: History, rule: Rule = CLIP
) -> tuple[History, tuple[jax.Array, jax.Array]]:
    """A stream along the first axis; others are groups."""
    return jax.lax.scan(lambda carry, norm: step(carry, norm, rule), history, norms)


def followed(norms: Any, rule: Rule = CLIP) -> tuple[History, np.ndarray, np.ndarray]:
    norms = np.asarray(norms, np.float32)
    history, (bounds, over) = follow(norms, init_history(norms.shape[1:]), rule)
    return history, np.asarray(bounds), np.asarray(over)


def logarithm(norm: Any) -> float:
    """For the reference; float32's subnormals are zero on CPU."""
    return math.log(norm) if SMALLEST <= norm < math.inf else math.nan


def lognormal(
    seed: int, steps: int, shape: tuple[int, ...] = (), sd: float = 0.5, spikes: float = 0.003
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logs = sd * rng.standard_normal((steps, *shape))
    logs += np.where(
        rng.random(logs.shape) < spikes, rng.uniform(math.log(10), math.log(100), logs.shape), 0
    )
    return np.exp(logs)


def streams(steps: int) -> dict[str, np.ndarray]:
    ordinary = functools.partial(lognormal, steps=steps)
    at = np.arange(steps)
    some = np.random.default_rng(0).random(steps)
    return {
        "narrow": ordinary(1, sd=0.2),
        "usual": ordinary(2),
        "wide": ordinary(3, sd=0.8),
        "equal": np.full(steps, 0.7),
        "equal, then 0.1 % more": np.where(at < steps // 2, 1, 1.001),
        "a lasting rise": ordinary(4) * np.where(at < steps // 2, 1, 1000),
        "a lasting fall": ordinary(5) * np.where(at < steps // 2, 1, 1e-3),
        "a slow fall": ordinary(6) * np.geomspace(10, 0.1, steps),
        "half zeros": np.where(some < 0.5, 0, ordinary(7)),
        "some near zero": np.where(some < 0.01, 1e-7, ordinary(8)),
        "NaN and inf": np.where(
            some < 0.02, math.nan, np.where(some > 0.98, math.inf, ordinary(9))
        ),
        "subnormals": np.where(some < 0.2, 1e-42, ordinary(10)),
        "tiny": 2e-36 * ordinary(11),
        "huge": 1e33 * ordinary(12),
    }


@pytest.fixture(scope="module")
def by_name() -> dict[str, np.ndarray]:
    return {name: stream.astype(np.float32) for name, stream in streams(2_000).items()}


@pytest.mark.parametrize(("rule", "deviations"), [(CLIP, 3.0), (SKIP, 6.0)])
def test_float32_decides_as_the_formula_does_in_float64_but_for_ties(
    rule: Rule, deviations: float, by_name: dict[str, np.ndarray]
):
    history, bounds, over = followed(np.stack(list(by_name.values()), axis=1), rule)
    for group, (name, stream) in enumerate(by_name.items()):
        expected = reference.RunningBound(deviations=deviations)
        largest = 1 + max(
            abs(logarithm(norm)) for norm in stream if not math.isnan(logarithm(norm))
        )
        tolerance = float(np.finfo(np.float32).eps) * largest * ROUNDINGS
        for at, norm in enumerate(stream):
            log_bound, log_norm = expected.log_bound, logarithm(norm)
            if math.isfinite(log_bound):
                assert abs(math.log(bounds[at, group]) - log_bound) < tolerance, (name, at)
            if abs(log_norm - log_bound) > tolerance:
                assert over[at, group] == (log_norm > log_bound), (name, at)
            expected.teach(log_norm)
        assert history.norms_taught[group] == expected.count, name
        np.testing.assert_allclose(
            history.log_mean[group], expected.mean, rtol=0, atol=tolerance, err_msg=name
        )
        np.testing.assert_allclose(
            history.log_variance[group], expected.variance, rtol=ROUNDINGS * 2e-6, err_msg=name
        )


def test_the_first_norm_is_not_bounded_and_the_second_at_exp_of_half_the_deviations():
    _, bounds, over = followed([[7.0, 7.0], [7.0 * 4.48, 7.0 * 4.49]])
    np.testing.assert_array_equal(bounds[0], np.inf)
    np.testing.assert_allclose(bounds[1], 7 * math.exp(1.5), rtol=1e-6)
    assert over.tolist() == [[False, False], [False, True]]


def test_the_bound_on_equal_norms_falls_to_1_35_times_them_and_never_below():
    norms = np.array([SMALLEST, 1e-20, 0.3, 1.0, 7.0, 1e20, LARGEST / 1.5], np.float32)
    _, bounds, over = followed(np.tile(norms, (1_500, 1)))
    assert not over.any()
    error = np.finfo(np.float32).eps * (1 + np.abs(np.log(norms))) * ROUNDINGS
    assert np.all(bounds.min(axis=0) >= norms * math.exp(0.3) * (1 - error))
    np.testing.assert_allclose(bounds[-1] / norms, math.exp(0.3), rtol=1e-4)


BITS = st.integers(0, 2**31 - 1).map(lambda bits: float(np.int32(bits).view(np.float32)))
NORMS = st.lists(
    st.one_of(BITS, st.sampled_from([0.0, math.nan, math.inf, 1e-42, SMALLEST, LARGEST, 1.0])),
    min_size=1,
    max_size=60,
)


@given(norms=NORMS)
@example(norms=[0.0] * 60)
@example(norms=[math.nan, math.inf, 1.0, math.inf])
@example(norms=[SMALLEST, LARGEST] * 30)
@settings(max_examples=300)
def test_every_stream_leaves_the_history_finite_and_is_decided_as_in_float64(norms: list[float]):
    padded = np.full(60, np.nan, np.float32)  # one length compiles once; NaN teaches nothing
    padded[: len(norms)] = norms
    history, bounds, over = followed(padded)
    assert all(np.isfinite(field) for field in history)
    assert history.log_variance >= 0
    assert (bounds > 0).all()
    expected = reference.RunningBound()
    for norm, is_over in zip(padded, over, strict=True):
        log_bound, log_norm = expected.log_bound, logarithm(norm)
        tolerance = float(np.finfo(np.float32).eps) * (100 + abs(log_bound)) * ROUNDINGS
        # A bound past float32's largest number is inf there.
        if abs(log_norm - log_bound) > tolerance and log_bound < math.log(LARGEST):
            assert is_over == (log_norm > log_bound)
        expected.teach(log_norm)
    assert history.norms_taught == expected.count


@given(seed=st.integers(0, 2**32 - 1), up=st.booleans())
@settings(max_examples=25)
def test_after_any_lasting_shift_at_most_an_eighth_of_3000_steps_are_acted_on(seed: int, up: bool):
    before, after, groups = 500, 3_000, 32
    rng = np.random.default_rng(seed)
    logs = rng.uniform(0, 1, groups) * rng.standard_normal((before + after, groups))
    logs[before:] += rng.uniform(math.log(1.1), math.log(1e6), groups) * (1 if up else -1)
    acted_on = followed(np.exp(logs))[2][before:].sum(axis=0)
    assert acted_on.max() <= after / 8


def test_without_a_ceiling_even_norms_that_jump_to_float32s_largest_are_followed():
    norms = np.where(np.arange(4_000) < 500, SMALLEST, LARGEST / 2)
    assert followed(norms)[2].sum() < 200


def test_a_norm_that_float32_cannot_hold_teaches_its_logarithm():
    history = init_history()
    for exponent in (120, 127):  # the norms of 4096 such entries are 64 times as large
        history = taught(
            history, *log_of(scaled_norm(jnp.full(4096, 2.0**exponent, jnp.float32))), CLIP
        )
    expected = reference.RunningBound()
    for exponent in (126, 133):
        expected.teach(exponent * math.log(2))
    assert history.norms_taught == 2
    np.testing.assert_allclose(history.log_mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(history.log_variance, expected.variance, rtol=1e-5)
    tiny = log_of(scaled_norm(jnp.full(4, SMALLEST, jnp.float32)))
    np.testing.assert_allclose(tiny[0], math.log(2 * SMALLEST), rtol=1e-6)


@pytest.mark.parametrize("norm", [0.0, np.inf, np.nan, SMALLEST / 4])
def test_the_logarithm_of_a_norm_that_teaches_nothing_is_0_and_so_is_its_slope(norm: float):
    def logarithm(norm: jax.Array) -> jax.Array:
        return log_of(ScaledNorm.of(norm))[0]

    assert (
        float(logarithm(jnp.float32(norm))) == float(jax.grad(logarithm)(jnp.float32(norm))) == 0.0
    )
    # Not even on the way, in what is not used: jax_debug_infs would stop there.
    with jax.debug_infs(norm == 0):
        logarithm(jnp.float32(norm))


def test_deviations_are_counted_above_the_mean_of_what_is_known():
    known = History(
        log_mean=jnp.float32(1.0), log_variance=jnp.float32(0.25), norms_taught=jnp.int32(1)
    )
    for history, log_norm, usable, expected in [
        (known, 2.5, True, 3.0),
        (known, 1.0, True, 0.0),
        (known, -4.0, True, 0.0),
        (known, 2.5, False, 0.0),
        (init_history(), 2.5, True, 0.0),
    ]:
        assert (
            float(deviations_above(history, jnp.float32(log_norm), jnp.bool_(usable))) == expected
        )


# The ways to run it: in a loop, a scan, a map and side by side are test_bounds_in_use.py.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64])
@pytest.mark.usefixtures("x64")
def test_the_history_keeps_its_dtypes_under_x64_and_after_a_cast(dtype: Any):
    history = init_history(dtype=dtype)
    for norm in (jnp.float64(2), jnp.float64(3), jnp.float32(jnp.nan)):
        after = taught(history, *log_of(ScaledNorm.of(norm)), CLIP)
        assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, history)
        history = after
    whole = jax.tree.map(lambda field: field.astype(dtype), history)
    after = taught(whole, *log_of(ScaledNorm.of(jnp.float32(2))), CLIP)
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, whole)
    bound = bound_from(history, CLIP, jnp.int32(0))
    assert bound.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    expected = reference.RunningBound()
    expected.teach(math.log(2))
    expected.teach(math.log(3))
    np.testing.assert_allclose(
        math.log(bound), expected.log_bound, rtol=4 * float(jnp.finfo(dtype).eps)
    )


def test_the_number_of_norms_stops_at_int32s_largest():
    full = init_history()._replace(norms_taught=jnp.int32(2**31 - 1))
    after = step(full, jnp.float32(1))[0]
    assert after.norms_taught == 2**31 - 1
    np.testing.assert_allclose(
        after.log_variance, 0.99 * 0.25, rtol=1e-6
    )  # the rate, not a third of a small count


@pytest.mark.parametrize("rule", [CLIP, Rule(math.inf, 0.01, lambda count: 2.0)])
def test_derivatives_through_the_history_are_finite(rule: Rule):
    @jax.jit
    def slopes(norms: jax.Array, variance: jax.Array) -> Any:
        def last_bound(norms: jax.Array, mean: jax.Array) -> jax.Array:
            history = History(mean, variance, jnp.int32(9))
            for norm in norms:
                history, _ = step(history, norm, rule)
            return bound_from(history, rule, jnp.int32(0))

        return jax.grad(last_bound, argnums=(0, 1))(norms, jnp.float32(0))

    for norms in ([0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]):
        for variance in (0.0, 0.25):
            found = slopes(jnp.float32(norms), jnp.float32(variance))
            assert all(np.isfinite(slope).all() for slope in found), (norms, variance)
