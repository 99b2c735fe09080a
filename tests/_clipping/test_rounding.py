import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from warmclip_jax._clipping import _rounding


@pytest.fixture(params=["bits", "conversion"])
def unless(request, monkeypatch):
    """Both forms: that of this CPU, and that of accelerators."""
    if request.param == "conversion":
        monkeypatch.setattr(
            jax.lax, "platform_dependent", lambda *operands, default, **_: default(*operands)
        )
    # A function of its own: what was traced for one form would serve the other.
    return jax.jit(lambda *parts: _rounding._in_bfloat16(*parts))


#: Each of the 65,536 bfloat16 numbers.
EVERY = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)


def every_upper_half(lower):
    """Each of the 65,536 bfloat16 numbers, as float32 with these lower bits."""
    return (np.arange(2**16, dtype=np.uint32) << 16 | np.uint32(lower)).view(np.float32)


@pytest.mark.parametrize("lower", [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1234, 0xC0DE])
def test_every_normal_float32_is_rounded_half_to_even(unless, lower):
    scaled = every_upper_half(lower)
    scaled = scaled[np.isfinite(scaled) & (np.abs(scaled) >= np.finfo(np.float32).tiny)]
    with np.errstate(over="ignore"):  # the largest round to inf
        expected = scaled.astype(ml_dtypes.bfloat16)
    got = unless(jnp.asarray(False), jnp.zeros(scaled.shape, jnp.bfloat16), scaled)
    np.testing.assert_array_equal(np.asarray(got).view(np.uint16), expected.view(np.uint16))


#: The bits of float64 below those of bfloat16: 45, of which float32 keeps the upper 16.
TIE = 2**44


@pytest.mark.parametrize(
    "lower", [0, TIE - 2**29, TIE - 1, TIE, TIE + 1, TIE + 2**28, TIE + 2**29, 2 * TIE - 1]
)
def test_every_normal_float64_is_rounded_to_float32_and_then_to_bfloat16(unless, lower):
    normal = EVERY[np.isin(EVERY.view(np.uint16) & 0x7F80, [0, 0x7F80], invert=True)]
    scaled = (normal.astype(np.float64).view(np.uint64) + np.uint64(lower)).view(np.float64)
    with np.errstate(over="ignore"):  # the largest round to inf
        expected = scaled.astype(np.float32).astype(ml_dtypes.bfloat16)
    with jax.enable_x64(True):
        got = unless(jnp.asarray(False), jnp.zeros(scaled.shape, jnp.bfloat16), scaled)
    np.testing.assert_array_equal(np.asarray(got).view(np.uint16), expected.view(np.uint16))


def test_inf_stays_inf_and_nan_stays_nan(unless):
    bad = every_upper_half(0)
    bad = bad[~np.isfinite(bad)]
    got = np.asarray(
        unless(jnp.asarray(False), jnp.zeros(bad.shape, jnp.bfloat16), bad).astype(jnp.float32)
    )
    np.testing.assert_array_equal(np.isnan(got), np.isnan(bad))
    np.testing.assert_array_equal(got[~np.isnan(bad)], bad[~np.isnan(bad)])


def test_what_is_unchanged_keeps_every_bit(unless, request):
    got = np.asarray(unless(jnp.asarray(True), EVERY, jnp.full(EVERY.shape, jnp.nan, jnp.float32)))
    # On this CPU a select of bfloat16 goes through float32, where a NaN loses its payload.
    # Accelerators select bits.
    nan = (EVERY.view(np.uint16) & 0x7FFF) > 0x7F80
    exact = (
        ~nan
        if request.node.callspec.params["unless"] == "conversion"
        else np.ones(EVERY.shape, bool)
    )
    np.testing.assert_array_equal(got.view(np.uint16)[exact], EVERY.view(np.uint16)[exact])
    assert np.all((got.view(np.uint16)[nan] & 0x7FFF) > 0x7F80)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_other_dtypes_are_converted(dtype):
    leaf, scaled = jnp.ones(2, dtype), jnp.asarray([0.1, 70000.0])
    for unchanged, expected in ((True, leaf), (False, scaled.astype(dtype))):
        np.testing.assert_array_equal(
            _rounding.unless(jnp.asarray(unchanged), leaf, scaled), expected
        )
