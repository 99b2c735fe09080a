"""A schedule is a value: its printed form, equality, hash, copies, tree and traces."""

import copy
import pickle
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests._schedules.catalogue import catalogue
from warmclip_jax._schedules._schedule import as_schedule
from warmclip_jax._values import Number, makes
from warmclip_jax._values._factories import Kind

SCHEDULES = {name: entry.schedule for name, entry in catalogue(100).items()}


@pytest.fixture(autouse=True)
def _its_own_registry(monkeypatch: pytest.MonkeyPatch):
    """The factories that a test makes end with it."""
    monkeypatch.setattr(Kind, "registry", dict(Kind.registry))


def linear(peak_value: Any = 1.0, warmup_steps: Any = 4, init_value: Any = 0.0) -> wc.Schedule:
    return wc.linear_warmup(peak_value=peak_value, warmup_steps=warmup_steps, init_value=init_value)


def test_repr_shows_what_was_said_with_fractions_resolved():
    schedule = wc.shift(
        wc.warmup_cosine_decay(
            peak_value=np.float32(0.5), total_steps=jnp.int32(25), warmup_fraction=0.1
        ),
        by=1,
    )
    assert repr(schedule) == (
        "shift(warmup_cosine_decay(peak_value=0.5, total_steps=25, warmup_steps=3, init_value=0.0, "
        "end_value=0.0, decay_from='warmup_end'), by=1)"
    )


def test_equality_goes_by_kind_and_numbers_and_not_by_how_they_were_said():
    assert (
        linear(1, 4) == linear(np.float64(1.0), jnp.int32(4)) == linear(jnp.float32(1), np.int8(4))
    )
    assert hash(linear(1, 4)) == hash(linear(np.float64(1.0), jnp.int32(4)))
    assert len({repr(schedule): schedule for schedule in SCHEDULES.values()}) == len(
        set(SCHEDULES.values())
    )
    assert linear() != wc.polynomial_warmup(peak_value=1.0, warmup_steps=4)
    assert linear() != linear(init_value=0.1)
    assert linear() != "linear_warmup(peak_value=1.0, warmup_steps=4, init_value=0.0)"
    run: Any = {"peak_value": 1.0, "total_steps": 10, "warmup_steps": 2}
    assert wc.warmup_cosine_decay(**run) != wc.warmup_cosine_decay(**run, decay_from="zero")
    assert wc.join([linear(), linear()], boundaries=[4]) != wc.join(
        [linear(), linear()], boundaries=[5]
    )
    theirs = optax.constant_schedule(0.1)
    assert wc.shift(theirs, by=1) == wc.shift(theirs, by=1)
    assert wc.shift(theirs, by=1) != wc.shift(optax.constant_schedule(0.1), by=1)


def test_it_cannot_be_changed():
    schedule = linear()
    with pytest.raises(AttributeError, match="immutable"):
        schedule.peak_value = 2.0  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match="immutable"):
        del schedule._arguments
    arguments: Any = schedule.arguments
    arguments["peak_value"] = 2.0
    assert schedule == linear()


def test_a_traced_number_has_no_equality_and_no_hash():
    @jax.jit
    def build(peak: jax.Array) -> jax.Array:
        with pytest.raises(TypeError, match="outside of jit"):
            hash(linear(peak))
        with pytest.raises(TypeError, match="outside of jit"):
            assert linear(peak) == linear()
        return peak

    build(jnp.float32(1))


# As a tree.


def test_its_leaves_are_its_numbers_which_rebuild_it_as_copies_do():
    for schedule in SCHEDULES.values():
        leaves, structure = jax.tree.flatten(schedule)
        assert all(isinstance(leaf, (int, float)) for leaf in leaves)
        assert jax.tree.unflatten(structure, leaves) == schedule
        assert copy.copy(schedule) == copy.deepcopy(schedule) == schedule


def test_tree_map_works_on_its_numbers_and_paths_name_them():
    doubled = jax.tree.map(
        lambda number: 2 * number,
        wc.with_warmup(wc.constant(value=0.5), warmup_steps=4, init_value=0.1),
    )
    assert doubled == wc.with_warmup(wc.constant(value=1.0), warmup_steps=8, init_value=0.2)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(doubled)]
    assert paths == [".schedule.value", ".warmup_steps", ".init_value"]


def test_as_a_jit_argument_it_is_traced_once_for_many_values():
    traces = 0

    @jax.jit
    def value(schedule: wc.Schedule) -> jax.Array:
        nonlocal traces
        traces += 1
        return schedule(3)

    for peak in (0.5, 1.0, 2.0):
        assert float(value(wc.with_warmup(wc.constant(value=peak), warmup_steps=6))) == peak / 2
    assert traces == 1
    value(wc.with_warmup(linear(), warmup_steps=6))
    assert traces == 2


def test_an_eager_call_is_compiled_once_for_all_numbers_and_counts():
    traces = 0

    @makes(wc.Schedule)
    def counted(
        *, height: Annotated[float, Number("a number", "Pass 1.", lambda _: True)]
    ) -> wc.Schedule:
        nonlocal traces
        traces += 1
        return as_schedule(lambda count: jnp.full(count.shape, height))

    for height in (0.0, 0.25, 0.5):
        for count in (-3, 2, np.int64(5), 2**40, 3.0):
            wc.with_warmup(counted(height=height), warmup_steps=4)(count)
    assert traces == 1


def test_it_can_be_jitted_differentiated_and_mapped_itself():
    assert float(jax.jit(linear())(3)) == 0.75
    assert jax.vmap(linear())(jnp.arange(3)).tolist() == [0.0, 0.25, 0.5]
    slopes = jax.grad(lambda schedule: schedule(1000))(
        wc.exponential_warmup(peak_value=2.0, timescale=1000)
    )
    assert slopes.arguments["peak_value"] == pytest.approx(1 - np.exp(-1), rel=1e-6)


# The machinery.


def test_a_new_curve_needs_its_function_and_nothing_else():
    rule = Number("a number above 0", "Pass 1.", lambda number: number > 0)

    @makes(wc.Schedule)
    def sawtooth(
        *, height: Annotated[float | jax.Array, rule], is_down: bool = False
    ) -> wc.Schedule:
        """Up and down."""
        return as_schedule(lambda count: jnp.where(count % 2 == int(is_down), 0.0, height))

    schedule = sawtooth(height=2.0)
    assert repr(schedule) == "sawtooth(height=2.0, is_down=False)"
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert schedule(jnp.arange(3)).tolist() == [0.0, 2.0, 0.0]
    assert schedule.arguments == {"height": 2.0, "is_down": False}
    with pytest.raises(
        ValueError, match=r"sawtooth: height must be a number above 0; got -1\. Pass 1\."
    ):
        sawtooth(height=-1)


def test_optax_strings_ours_together():
    joined: Any = optax.join_schedules([linear(), linear()], [4])
    assert [float(joined(count)) for count in (3, 5)] == [0.75, 0.25]
