"""Many parts that differ in their numbers alone: one program of stacked numbers, and the values of
each part by itself.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests import reference

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def cosines(many: int) -> list[wc.Schedule]:
    return [wc.cosine_decay(init_value=1 + i / 8, decay_steps=100 + i) for i in range(many)]


def table(many: int) -> wc.Schedule:
    values = np.random.default_rng(0).uniform(size=many + 1).astype(np.float32)
    return wc.piecewise_constant(values=values, boundaries=range(7, 7 * many + 1, 7))


def joined(many: int) -> wc.Schedule:
    return wc.join(cosines(many), boundaries=range(7, 7 * many, 7))


def in_turn(many: int) -> wc.Schedule:
    """Parts of four kinds, tables and lengths past int32 among them, in turn."""
    kinds = [
        lambda i: wc.cosine_decay(init_value=1 + i / 8, decay_steps=100 + i),
        lambda i: wc.constant(value=i / 8),
        lambda i: table(3 + i % 2),
        lambda i: wc.linear_warmup(peak_value=1.0, warmup_steps=3e9 if i % 3 else 5),
    ]
    parts = [kinds[i % 4](i) for i in range(many)]
    return wc.join(parts, boundaries=range(7, 7 * many, 7))


@pytest.mark.parametrize("build", [table, joined, in_turn])
def test_a_thousand_parts_are_each_the_one_that_was_given(build: Any):
    schedule = build(1000)
    counts = np.append(np.arange(7100), [2**24 + 1, 2**31 - 1])
    ulp = np.spacing(np.float32(reference.largest(schedule)))
    for values in (schedule(counts), jax.jit(schedule)(counts)):
        np.testing.assert_allclose(values, reference.of(schedule, counts), rtol=0, atol=4 * ulp)
    for count in (0, 6, 7, 3500, 2**31 - 1):
        assert abs(float(schedule(count)) - reference.of(schedule, count)) <= 4 * ulp
    assert wc.parse(repr(schedule)) == schedule


@pytest.mark.parametrize("build", [table, joined, in_turn, lambda n: sum(cosines(n))])
def test_a_program_of_a_thousand_parts_is_hardly_longer_than_one_of_a_few(build: Any):
    few, many = (str(jax.make_jaxpr(build(n))(3)).count("=") for n in (8, 1000))
    assert many < 2 * few  # A sum is of halves of halves.


def test_a_sum_of_hundreds_is_one_total_and_right():
    schedules = cosines(300)
    total: Any = sum(schedules)
    assert total == wc.total(0.0, *schedules)
    counts = np.arange(500)
    np.testing.assert_allclose(
        total(counts), reference.of(total, counts), rtol=0, atol=2 * np.spacing(np.float32(6000))
    )


def test_the_derivative_reaches_every_number_of_every_part():
    schedule = jax.tree.map(
        float, wc.join([*cosines(5), table(3), table(3)], boundaries=range(7, 48, 7))
    )
    parts = schedule.arguments["schedules"]
    slopes = jax.jit(jax.grad(lambda schedule: jnp.sum(schedule(jnp.arange(49)))))(schedule)
    alone = jax.jit(jax.grad(lambda parts: sum(jnp.sum(part(jnp.arange(7))) for part in parts)))
    ours, theirs = map(jax.tree.leaves, (slopes.arguments["schedules"], alone(parts)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_stacked_tables_and_parts_sweep_under_vmap():
    for build in (table, joined, in_turn):
        entries = [build(6), jax.tree.map(lambda number: 2 * number, build(6))]
        stacked = jax.tree.map(lambda *numbers: np.stack(numbers), *entries)
        swept = jax.jit(jax.vmap(lambda schedule: schedule(jnp.arange(60))))(stacked)
        for values, entry in zip(swept, entries, strict=True):
            np.testing.assert_allclose(values, entry(np.arange(60)), rtol=1e-6, atol=1e-6)


def test_a_foreign_part_is_called_for_itself_and_need_not_be_traceable():
    def looked_up(count: Any) -> float:
        return [0.5, 0.25][int(count) % 2]

    parts = [*cosines(3), looked_up, *cosines(2), optax.constant_schedule(0.75)]
    schedule = wc.join(parts, boundaries=[5, 10, 15, 20, 25, 30])
    for count in range(0, 35, 2):
        part, alone = parts[count // 5], count % 5 if count < 30 else count - 30
        assert float(schedule(count)) == pytest.approx(float(part(np.int32(alone))), rel=1e-6)


def test_a_stacked_schedule_called_outside_of_vmap_is_an_error_that_says_so():
    stacked = jax.tree.map(lambda *n: np.stack(n), *cosines(3))
    for schedule in (stacked, 2 * stacked, wc.join([stacked], boundaries=[])):
        for call in (schedule, jax.jit(schedule)):
            with pytest.raises(
                ValueError, match=r"^Schedule: .* has the shape \(3,\)\) is called under vmap"
            ):
                call(np.arange(3))
    table_of_arrays = jax.tree.map(lambda *n: jnp.stack(n), table(3), table(3))
    with pytest.raises(ValueError, match=r"values\[0\] has the shape \(2,\)"):
        table_of_arrays(3)
    with pytest.raises(ValueError, match="is called under vmap"):
        jax.jit(lambda schedule: schedule(3))(stacked)
    with pytest.raises(ValueError, match="is called under vmap"):
        jax.vmap(stacked)(jnp.arange(3))


def test_what_is_kept_of_a_call_is_neither_a_tracer_nor_of_another_precision():
    schedule = 0.1 * joined(5)
    assert schedule(3).dtype == jnp.float32
    with jax.enable_x64(True):
        np.testing.assert_allclose(schedule(3), reference.of(schedule, 3), rtol=1e-14)
    assert schedule(3).dtype == jnp.float32

    def value(number: jax.Array) -> jax.Array:
        traced = number * joined(5)
        jax.lax.scan(lambda carry, _: (carry, traced(3)), 0, length=2)
        return traced(3)

    with jax.check_tracer_leaks():
        assert float(jax.jit(value)(0.1)) == pytest.approx(float(schedule(3)))
