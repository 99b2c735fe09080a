"""What each rule takes, concrete and traced, and what it makes of a number."""

import math
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import warmclip_jax as wc
from warmclip_jax._schedules import _arguments
from warmclip_jax._values import _rules as checks

DECAY = wc.linear_warmup(peak_value=1.0, warmup_steps=4)
GOOD: dict[Callable[..., wc.Schedule], dict[str, Any]] = {
    wc.constant: {"value": 0.1},
    wc.linear_warmup: {"peak_value": 0.1, "warmup_steps": 10},
    wc.polynomial_warmup: {"peak_value": 0.1, "warmup_steps": 10, "power": 2.0},
    wc.exponential_warmup: {"peak_value": 0.1, "timescale": 10.0},
    wc.polynomial_decay: {"init_value": 0.1, "decay_steps": 10},
    wc.cosine_decay: {"init_value": 0.1, "decay_steps": 10},
    wc.exponential_decay: {"init_value": 0.1, "decay_steps": 10, "decay_rate": 0.5},
    wc.inverse_sqrt_decay: {"init_value": 0.1, "timescale": 10.0},
    wc.inverse_power_decay: {"init_value": 0.1, "timescale": 10.0, "power": 0.7},
    wc.warmup_polynomial_decay: {"peak_value": 0.1, "total_steps": 100, "warmup_steps": 10},
    wc.warmup_cosine_decay: {"peak_value": 0.1, "total_steps": 100, "warmup_steps": 10},
    wc.warmup_stable_decay: {
        "peak_value": 0.1,
        "total_steps": 100,
        "warmup_steps": 10,
        "decay_steps": 20,
    },
    wc.with_warmup: {"schedule": DECAY, "warmup_steps": 10},
    wc.join: {"schedules": [DECAY, DECAY, DECAY], "boundaries": [10, 20]},
    wc.repeat: {"schedule": DECAY, "period": 10},
    wc.shift: {"schedule": DECAY, "by": 1},
    wc.stretch: {"schedule": DECAY, "factor": 2},
    wc.piecewise_constant: {"values": [0.1, 0.2, 0.3], "boundaries": [10, 20]},
}


def of(factory: Callable[..., wc.Schedule], **changed: Any) -> wc.Schedule:
    return factory(**{**GOOD[factory], **changed})


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("factory", GOOD)
def test_every_number_can_be_traced_and_gives_the_same_values(factory: Callable[..., wc.Schedule]):
    counts, schedule = jnp.arange(0, 120, 7), of(factory)
    arguments = {
        name: value
        for name, value in schedule.arguments.items()
        if not isinstance(value, (str, bool))
    }
    # Through the constructor, so that each check sees a tracer.
    rebuilt = jax.jit(lambda arguments: factory(**arguments)(counts))
    np.testing.assert_allclose(rebuilt(arguments), schedule(counts), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("annotation", "inside", "outside"),
    [
        (_arguments.Finite, [0, 1e38, -1e38], [1.01e38, -1.01e38]),
        (_arguments.Steps, [0, 2**40], [-1, 0.5]),
        (_arguments.PositiveSteps, [1, 2**40], [0, 1.5]),
        (_arguments.SignedSteps, [0, 2**31 - 1, 1 - 2**31], [2**31, -(2**31), 0.5]),
        (_arguments.Timescale, [1e-3, 2.5], [0, -1]),
        (_arguments.Power, [1e-3, 2.5], [0, -1]),
        (_arguments.Fraction, [0, 0.999], [1, -1e-3]),
    ],
)
def test_a_rule_holds_up_to_its_limits(annotation: Any, inside: list[float], outside: list[float]):
    rule = typing.get_args(annotation)[-1]
    assert [rule.check("number", number) for number in inside] == inside
    for number in outside:
        with pytest.raises(ValueError, match="number must be"):
            rule.check("number", number)


def test_a_rule_between_arguments_waits_for_those_that_are_traced():
    def rate(total: Any) -> Any:
        return wc.warmup_stable_decay(
            peak_value=1.0, total_steps=total, warmup_steps=2, decay_steps=4
        )(3)

    assert float(jax.jit(rate)(10)) == float(rate(10)) == 1.0
    steps = jax.jit(
        lambda boundaries: wc.piecewise_constant(values=[1.0, 2.0, 3.0], boundaries=boundaries)(4)
    )
    assert [float(steps(boundaries)) for boundaries in ([2, 5], [2, 3], [5, 7])] == [2.0, 3.0, 1.0]
    half = jax.jit(
        lambda last: wc.piecewise_constant(values=[1.0, 2.0, 3.0], boundaries=[2, last])(4)
    )
    assert [float(half(last)) for last in (5, 3)] == [2.0, 3.0]
    with pytest.raises(
        ValueError, match="decay_steps must be at most what warmup_steps=2 leaves of total_steps=5"
    ):
        rate(5)


@pytest.mark.parametrize(
    "number",
    [3, 3.0, np.int8(3), np.uint64(3), np.float16(3), jnp.int32(3), jnp.bfloat16(3), np.array(3)],
)
def test_a_number_of_any_dtype_is_kept_as_a_python_number(number: Any):
    assert repr(wc.linear_warmup(peak_value=number, warmup_steps=number)) == (
        "linear_warmup(peak_value=3.0, warmup_steps=3, init_value=0.0)"
    )


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64])
def test_a_number_is_the_shortest_decimal_of_its_dtype(dtype: Any):
    for decimal in (0.1, 0.3, 1e-4, 0.9, 5.0, 60000.0):
        for number in (dtype(decimal), np.asarray(dtype(decimal)), jnp.asarray(dtype(decimal))):
            assert checks.as_number(number) == float(
                dtype(decimal) if number.dtype.itemsize == 8 else decimal
            )
    for number in np.random.default_rng(0).uniform(1e-4, 10, 300).astype(dtype):
        decimal = checks.as_number(number)
        digits = len(np.format_float_scientific(decimal, trim="-").split("e")[0].replace(".", ""))
        assert dtype(decimal) == number
        assert digits == 1 or dtype(float(f"{float(number):.{digits - 2}e}")) != number


def test_a_traced_length_past_int32_does_not_wrap_around():
    def value(length: Any) -> jax.Array:
        return wc.linear_warmup(peak_value=1.0, warmup_steps=length)(2**30)

    assert float(jax.jit(value)(jnp.uint32(2**32 - 2**8))) == pytest.approx(0.25, rel=1e-6)
    with jax.enable_x64(True):
        assert float(jax.jit(value)(5_000_000_000)) == pytest.approx(2**30 / 5e9, rel=1e-12)


def test_finite_means_finite_in_the_dtype_it_is_computed_in():
    rule = checks.Number("a finite number", "Pass a smaller one.", math.isfinite)
    with pytest.raises(ValueError, match="finite"):
        rule.check("value", 1e39)
    with jax.enable_x64(True):
        assert rule.check("value", 1e39) == 1e39
