"""Schedules that hypothesis draws: curves with numbers of every dtype, nested in each other to a
given depth.
"""

from typing import Any

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np

import warmclip_jax as wc

#: Few digits, so that every dtype below says the same number.
DECIMALS = st.builds(
    lambda digits, power: float(f"{digits}e{power}"), st.integers(-9999, 9999), st.integers(-8, -2)
)
POSITIVE = st.builds(
    lambda digits, power: float(f"{digits}e{power}"), st.integers(1, 9999), st.integers(-6, -2)
)
STEPS = st.one_of(st.integers(0, 2000), st.integers(0, 2**31 - 1), st.just(5_000_000_000))
LENGTHS = STEPS.map(lambda steps: max(steps, 1))


def numbers(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The same numbers as Python, NumPy and JAX write them."""

    def written(number: Any, kind: Any) -> Any:
        if isinstance(number, float):
            return kind(number)
        return {
            float: int,
            np.float32: np.int64,
            jnp.float32: jnp.int32 if number < 2**31 else int,
        }[kind](number)

    return st.tuples(values, st.sampled_from([float, np.float32, jnp.float32])).map(
        lambda pair: written(*pair)
    )


VALUES = numbers(DECIMALS)


@st.composite
def curves(draw: st.DrawFn) -> wc.Schedule:
    """A schedule with no other inside."""
    value, power = draw(VALUES), draw(numbers(POSITIVE))
    steps, length = draw(numbers(STEPS)), draw(numbers(LENGTHS))
    total = draw(st.integers(10, 10**6))
    run: Any = {"peak_value": value, "total_steps": total, "end_value": draw(VALUES)}
    run |= (
        {"warmup_steps": total // 4}
        if draw(st.booleans())
        else {"warmup_fraction": draw(st.sampled_from([0.145, 0.25]))}
    )
    clock: Any = draw(st.sampled_from(["warmup_end", "zero"]))
    shape: Any = draw(st.sampled_from(["linear", "cosine", "one_minus_sqrt", "exponential"]))
    low, high = sorted([draw(POSITIVE), draw(POSITIVE)])
    rate = draw(st.sampled_from([0.5, 0.9999, 1.0, 2.0]))
    ends = (low, high + 1) if rate > 1 else (high, low)
    boundaries = sorted(draw(st.sets(st.integers(0, 10**6), max_size=3)))
    values = draw(st.lists(DECIMALS, min_size=len(boundaries) + 1, max_size=len(boundaries) + 1))
    array = draw(st.sampled_from([list, tuple, np.array]))
    return draw(
        st.sampled_from(
            [
                lambda: wc.constant(value=value),
                lambda: wc.linear_warmup(peak_value=value, warmup_steps=steps),
                lambda: wc.polynomial_warmup(peak_value=value, warmup_steps=steps, power=power),
                lambda: wc.exponential_warmup(peak_value=value, timescale=power),
                lambda: wc.polynomial_decay(
                    init_value=value, decay_steps=length, power=power, cycle=clock == "zero"
                ),
                lambda: wc.cosine_decay(
                    init_value=value, decay_steps=length, end_value=run["end_value"]
                ),
                lambda: wc.exponential_decay(
                    init_value=ends[0],
                    decay_steps=length,
                    decay_rate=rate,
                    end_value=ends[1],
                    staircase=clock == "zero",
                ),
                lambda: wc.inverse_sqrt_decay(
                    init_value=value, timescale=power, end_value=run["end_value"]
                ),
                lambda: wc.inverse_power_decay(
                    init_value=value, timescale=total, power=power, end_value=run["end_value"]
                ),
                lambda: wc.piecewise_constant(values=array(values), boundaries=array(boundaries)),
                lambda: wc.warmup_polynomial_decay(**run, power=power, decay_from=clock),
                lambda: wc.warmup_cosine_decay(**run, decay_from=clock),
                lambda: wc.warmup_stable_decay(**run, decay_fraction=0.145, decay_shape=shape),
            ]
        )
    )()


def nested(depth: int) -> st.SearchStrategy[wc.Schedule]:
    """A schedule of schedules, at most `depth` deep."""
    if depth == 0:
        return curves()
    inner = nested(depth - 1)
    operands = st.lists(st.one_of(inner, VALUES), min_size=1, max_size=3)
    return st.one_of(
        curves(),
        st.builds(
            lambda s, n, v: wc.with_warmup(s, warmup_steps=n, init_value=v),
            inner,
            numbers(STEPS),
            VALUES,
        ),
        st.builds(lambda s, n: wc.repeat(s, period=n), inner, numbers(LENGTHS)),
        st.builds(lambda s, n: wc.shift(s, by=n), inner, st.integers(-(2**31) + 1, 2**31 - 1)),
        st.builds(lambda s, n: wc.stretch(s, factor=n), inner, numbers(LENGTHS)),
        st.builds(
            lambda a, b, n: wc.join([a, b], boundaries=np.array([n])),
            inner,
            inner,
            st.integers(0, 10**6),
        ),
        st.builds(
            lambda combine, many: combine(*many),
            st.sampled_from([wc.product, wc.total, wc.minimum, wc.maximum]),
            operands,
        ),
        st.builds(lambda s, v: v * s / 2, inner, VALUES),
        st.builds(lambda s, t, v: v - s + t, inner, inner, VALUES),
        st.builds(lambda s: -s, inner),
    )
