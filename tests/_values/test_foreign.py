"""A function of another library inside of a schedule: called in the caller's context, and neither
kept nor compared.
"""

import dataclasses
import gc
import inspect
import math
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc

Function = Callable[[Any], Any]

DECAY = wc.cosine_decay(init_value=1.0, decay_steps=9)

#: Every way in which a schedule holds a function, beside what it computes from one.
HOLDERS: dict[str, tuple[Callable[[Function], wc.Schedule], Callable[[Function], Function]]] = {
    "shift": (lambda f: wc.shift(f, by=2), lambda f: lambda t: f(t + 2)),
    "repeat": (lambda f: wc.repeat(f, period=7), lambda f: lambda t: f(t % 7)),
    "stretch": (lambda f: wc.stretch(f, factor=3), lambda f: lambda t: f(t // 3)),
    "with_warmup": (
        lambda f: wc.with_warmup(f, warmup_steps=4),
        lambda f: lambda t: f(0) * t / 4 if t < 4 else f(t - 4),
    ),
    "join": (
        lambda f: wc.join([wc.constant(value=0.5), f], boundaries=[4]),
        lambda f: lambda t: 0.5 if t < 4 else f(t - 4),
    ),
    "product": (lambda f: 0.5 * wc.shift(f, by=0), lambda f: lambda t: 0.5 * f(t)),
    "minimum": (lambda f: wc.minimum(f, 0.3), lambda f: lambda t: min(f(t), 0.3)),
    "maximum": (lambda f: wc.maximum(0.3, f), lambda f: lambda t: max(f(t), 0.3)),
    "nested": (
        lambda f: wc.stretch(wc.join([f, wc.minimum(DECAY, f)], boundaries=[2]), factor=2),
        lambda f: lambda t: f(t // 2) if t // 2 < 2 else min((1 + np.cos(np.pi * min(t // 2 - 2, 9) / 9)) / 2, f(t // 2 - 2)),
    ),
}  # fmt: skip
NAMES = list(HOLDERS)


@dataclasses.dataclass
class Rate:
    """Unhashable, and equal to any other of the same rate, tracers included."""

    rate: Any

    def __call__(self, count: Any) -> Any:
        return self.rate / (1 + count / 10)


@pytest.mark.parametrize("name", NAMES)
def test_it_may_be_any_function_of_a_scalar_and_is_given_each_count_of_an_array(name: str):
    holder, meaning = HOLDERS[name]
    counts = np.arange(-2, 22, 3).reshape(2, 4)
    # Not elementwise: it looks a count up, and asks for a scalar.
    theirs = optax.cosine_onecycle_schedule(20, 0.8)
    seen: set[tuple[Any, ...]] = set()

    def function(count: Any) -> Any:
        seen.add((count.shape, count.dtype))
        return theirs(count)

    schedule, expected = (
        holder(function),
        meaning(lambda count: float(jnp.asarray(theirs(np.int32(count))))),
    )
    values = [[expected(max(count, 0)) for count in row] for row in counts.tolist()]
    for evaluate in (schedule, jax.jit(jax.vmap(schedule))):
        np.testing.assert_allclose(evaluate(jnp.asarray(counts)), values, rtol=1e-5, atol=1e-6)
    one_by_one = [[float(schedule(count)) for count in row] for row in counts.tolist()]
    np.testing.assert_allclose(one_by_one, values, rtol=1e-5, atol=1e-6)
    assert seen == {((), np.dtype(np.int32))}
    assert schedule(jnp.zeros((0, 2), jnp.int32)).shape == (0, 2)


@pytest.mark.parametrize("name", NAMES)
def test_the_derivative_by_a_number_that_it_closes_over_is_right_and_no_tracer_leaks(name: str):
    holder, meaning = HOLDERS[name]
    assert float(holder(Rate(0.1))(5)) == pytest.approx(meaning(Rate(0.1))(5))
    expected = (meaning(Rate(0.1 + 1e-4))(5) - meaning(Rate(0.1 - 1e-4))(5)) / 2e-4
    with jax.check_tracer_leaks():
        derivative = jax.jit(jax.grad(lambda rate: holder(Rate(rate))(jnp.arange(5, 6))[0]))
        assert float(derivative(0.1)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_function_that_cannot_be_traced_takes_scalar_counts(name: str):
    holder, meaning = HOLDERS[name]

    def interpolated(count: Any) -> float:
        return float(np.interp(int(count), [0, 10], [1.0, 0.1]))

    schedule = holder(interpolated)
    for count in (0, 5, np.int64(9)):
        assert float(schedule(count)) == pytest.approx(meaning(interpolated)(int(count)))
    with pytest.raises(jax.errors.ConcretizationTypeError):
        schedule(jnp.arange(3))


def references_to_used(holder: Callable[[Function], wc.Schedule]) -> list[weakref.ref[Any]]:
    """Of the method and of the callable object that two schedules held, which were called, hashed
    and printed.
    """

    class Method:
        def rate(self, count: Any) -> Any:
            return 0.1 * count

    method, rate = Method(), Rate(0.1)
    for function in (method.rate, rate):
        schedule = holder(function)
        schedule(3)
        hash(schedule)
        repr(schedule)
    return [weakref.ref(method), weakref.ref(rate)]


def test_it_dies_with_the_schedule():
    references = {name: references_to_used(holder) for name, (holder, _) in HOLDERS.items()}
    gc.collect()  # once: it takes a second among all that JAX keeps
    alive = [
        name
        for name, (method, rate) in references.items()
        if method() is not None or rate() is not None
    ]
    assert alive == []


def test_nothing_is_compiled_for_another_function():
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event)
    )
    for rate in (0.1, 0.2, 0.3):
        (0.5 * wc.shift(lambda count, rate=rate: rate, by=0))(2)
        if (
            rate == 0.1
        ):  # The operations of the package are compiled, once, and here something that is new.
            jax.jit(lambda x: x * 3.25)(2)
            assert any("compile" in event for event in compiled)
            compiled.clear()
    assert not [event for event in compiled if "compile" in event]


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: 0.1 * s, lambda s: s / 2])
def test_it_is_called_exactly_once_a_call_in_the_callers_trace(
    wrap: Callable[[wc.Schedule], wc.Schedule],
):
    noted: list[Any] = []

    def noting(count: Any) -> Any:
        noted.append(0.5 * count)
        return noted[-1]

    schedule = wrap(wc.shift(noting, by=0))
    noted.clear()

    @jax.jit
    def step(count: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = schedule(count)
        return value, noted[-1]

    value, note = step(jnp.int32(4))
    assert len(noted) == 1
    assert float(note) == 2.0
    assert float(value) == float(schedule(4)) != 0
    assert len(noted) == 2


def test_a_function_without_a_signature_is_called_as_it_is():
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(math.hypot)
    assert float(wc.shift(math.hypot, by=1)(2)) == 3.0


def test_two_schedules_are_equal_only_with_the_very_same_function():
    first, second = Rate(0.1), Rate(0.1)
    assert first == second
    assert wc.shift(first, by=1) == wc.shift(first, by=1)
    assert hash(wc.shift(first, by=1)) == hash(wc.shift(first, by=1))
    assert wc.shift(first, by=1) != wc.shift(second, by=1)
    assert jax.tree.structure(wc.shift(first, by=1)) != jax.tree.structure(wc.shift(second, by=1))
    assert wc.shift(first, by=1).arguments["schedule"] is first


def test_as_an_argument_of_jit_it_is_static_by_identity():
    traces = 0

    @jax.jit
    def value(schedule: wc.Schedule) -> jax.Array:
        nonlocal traces
        traces += 1
        return schedule(5)

    first, second = Rate(0.3), Rate(0.3)
    for by in (0, 5, 15):
        assert float(value(wc.shift(first, by=by))) == pytest.approx(0.3 / (1.5 + by / 10))
    assert traces == 1
    assert float(value(wc.shift(second, by=0))) == pytest.approx(0.2)
    assert traces == 2
    second.rate = 0.6  # which the program compiled for it does not see, as with any static argument
    assert float(value(wc.shift(second, by=0))) == pytest.approx(0.2)


def test_it_prints_pickles_where_it_can_and_is_named_where_it_cannot_be_read():
    schedule = wc.shift(optax.constant_schedule(0.1), by=1)
    assert "constant_schedule.<locals>.<lambda>" in repr(schedule)
    with pytest.raises(ValueError, match=r"cannot rebuild <function constant_schedule"):
        wc.parse(repr(schedule))
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(schedule)
    named = wc.shift(np.sqrt, by=1)
    assert pickle.loads(pickle.dumps(named)) == named
    dataclass = wc.shift(Rate(0.1), by=1)
    assert repr(dataclass) == "shift(Rate(rate=0.1), by=1)"
    with pytest.raises(ValueError, match="there is no 'Rate'"):
        wc.parse(repr(dataclass))


def test_a_function_inside_never_sees_a_negative_or_fractional_count():
    def value(scale: jax.Array, warmup: jax.Array) -> jax.Array:
        def square_root(count: jax.Array) -> jax.Array:
            assert count.dtype == jnp.int32
            return scale * jnp.sqrt(count.astype(jnp.float32) + 1)

        return wc.with_warmup(square_root, warmup_steps=warmup)(4)

    # The root of a negative number would be NaN: not in the value, which is not taken from it, but
    # in the derivative.
    assert float(jax.grad(value)(1.0, 10)) == pytest.approx(0.4)
    assert float(jax.jit(jax.grad(value))(1.0, 10.5)) == pytest.approx(4 / 10.5)
