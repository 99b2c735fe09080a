"""The arithmetic under the curves where a curve cannot show it: as separate operations, as on machines that fuse none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from warmclip_jax._schedules import _shares

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.mark.parametrize("is_fused", [False, True])
def test_between_stays_between_and_ends_exactly_however_it_is_rounded(is_fused: bool):
    rng = np.random.default_rng(0)
    origin, target = jnp.asarray(10 ** rng.uniform(-3, 0, (2, 500_000)), jnp.float32)
    # A series can round to a little more than 1.
    weight = 1 - jnp.asarray(rng.integers(-2, 4, 500_000), jnp.float32) * jnp.float32(2**-24)
    naive = origin + (target - origin) * weight
    low, high = jnp.minimum(origin, target), jnp.maximum(origin, target)
    assert jnp.any((naive < low) | (naive > high))  # What there is to guard against.
    value = (jax.jit(_shares.between) if is_fused else _shares.between)(origin, target, weight)
    assert jnp.all((value >= low) & (value <= high))
    assert jnp.all((value == target) | (weight < 1))


@pytest.mark.parametrize("start", [1e-6, 1e-3, 0.01, 0.1, 0.3, 0.6931, 1.0, 5.0])
def test_saturation_never_falls_from_one_float_to_the_next(start: float):
    first = int(np.float32(start).view(np.int32))
    periods = jnp.asarray(np.arange(first, first + 500_000, dtype=np.int32).view(np.float32))
    assert np.all(np.diff(np.asarray(_shares.saturation(periods))) >= 0)
    np.testing.assert_allclose(_shares.saturation(periods), -np.expm1(-np.asarray(periods, np.float64)), rtol=4 * 2**-23)


@pytest.mark.parametrize("start", [1e-6, 1e-3, 0.01, 0.1, 0.3, 0.6])
def test_a_sine_squared_never_falls_from_one_float_to_the_next(start: float):
    first = int(np.float32(start).view(np.int32))
    share = jnp.asarray(np.arange(first, first + 500_000, dtype=np.int32).view(np.float32))
    values = np.asarray(_shares.half_cosine(share, 1 - share))
    assert np.all(np.diff(values) >= 0)
    exact = np.sin(np.pi / 2 * np.asarray(share, np.float64)) ** 2
    np.testing.assert_allclose(values, exact, rtol=4 * 2**-23)
