"""Schedules that hypothesis draws: those of the catalogue, nested in each other to a given depth with
numbers of every dtype.
"""

from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

import warmclip_jax as wc
from tests._schedules.catalogue import catalogue

#: Few digits, so that every dtype below says the same number.
DECIMALS = st.builds(
    lambda digits, power: float(f"{digits}e{power}"), st.integers(-9999, 9999), st.integers(-8, -2)
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


def is_short(number: float) -> bool:
    """Whether every dtype says the same number."""
    return isinstance(number, int) or float(str(np.float32(number))) == number


#: Schedules with no other inside, long and short.
CURVES = [
    entry.schedule
    for length in (20, 1000, 2_000_000_000)
    for entry in catalogue(length).values()
    if all(map(is_short, jax.tree.leaves(entry.schedule)))
    and not entry.schedule.arguments.keys() & {"schedule", "schedules", "operands"}
]


def nested(depth: int) -> st.SearchStrategy[wc.Schedule]:
    """A schedule of schedules, at most `depth` deep."""
    if depth == 0:
        return st.sampled_from(CURVES)
    inner = nested(depth - 1)
    operands = st.lists(st.one_of(inner, VALUES), min_size=1, max_size=3)
    return st.one_of(
        st.sampled_from(CURVES),
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
