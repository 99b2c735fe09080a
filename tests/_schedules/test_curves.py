"""Every curve against its formula in float64, at two lengths; and what a schedule promises for
every count.
"""

import functools
import itertools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import warmclip_jax as wc
from tests._schedules.catalogue import Entry, catalogue

pytestmark = pytest.mark.usefixtures("strict_dtypes")

INT32_MAX = 2**31 - 1
LENGTHS = (100, 2_000_000_000)
NAMES = list(catalogue(100))
MONOTONE_NAMES = [name for name in NAMES if catalogue(100)[name].is_smooth]


def ulp(value: float) -> float:
    return float(np.spacing(np.float32(value)))


def resolution(entry: Entry, values: Any) -> np.ndarray:
    """The ulp of each value. An exponential's argument is rounded too, which counts the more the
    further it is from the peak.
    """
    values = np.asarray(values, np.float32)
    spacing = np.spacing(np.abs(values)).astype(np.float64)
    if entry.schedule.arguments.keys() & {"decay_rate"}:
        spacing *= 1 + np.abs(np.log(np.maximum(values, 1e-38) / entry.peak))
    return spacing


#: Of most arrays of counts, so that one compilation of a curve serves them all.
SIZE = 1024


def counts_of(entry: Entry) -> np.ndarray:
    """The boundaries and 1,000 steps at random, as int32."""
    random = np.random.default_rng(0).integers(0, min(2 * entry.end, INT32_MAX), 1000)
    return padded(np.clip(np.concatenate([entry.boundaries(), random]), -(2**31), INT32_MAX), SIZE)


def padded(counts: np.ndarray, size: int) -> np.ndarray:
    """The counts in order, and the last of them until there are `size`."""
    counts = np.unique(counts)
    return np.pad(counts, (0, size - counts.size), mode="edge").astype(np.int32)


# Against the numbers of other systems, worked out by hand.

GOLDEN_STEPS = (0, 1, 9, 10, 11, 99, 100, 101, 200)
RUN: Any = {"peak_value": 1.0, "total_steps": 100, "warmup_steps": 10}
GOLDEN: dict[str, tuple[wc.Schedule, tuple[float, ...]]] = {
    "decay clock from the end of the warm-up": (
        wc.warmup_polynomial_decay(**RUN),
        (0, 0.1, 0.9, 1, 89 / 90, 1 / 90, 0, 0, 0),
    ),
    "decay clock from zero, as BERT": (
        wc.warmup_polynomial_decay(**RUN, decay_from="zero"),
        (0, 0.1, 0.9, 0.9, 0.89, 0.01, 0, 0, 0),
    ),
    "TensorFlow's cycle": (
        wc.polynomial_decay(init_value=1.0, decay_steps=100, cycle=True),
        (1, 0.99, 0.91, 0.9, 0.89, 0.01, 0, 99 / 200, 0),
    ),
    "a decay that ends": (
        wc.polynomial_decay(init_value=1.0, decay_steps=100),
        (1, 0.99, 0.91, 0.9, 0.89, 0.01, 0, 0, 0),
    ),
    "a decay of one step": (
        wc.warmup_stable_decay(**RUN, decay_steps=1),
        (0, 0.1, 0.9, 1, 1, 1, 0, 0, 0),
    ),
    "a boundary at step 0": (
        wc.piecewise_constant(values=[3.0, 1.0, 0.5], boundaries=[0, 10]),
        (1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5),
    ),
    "cosine after the warm-up": (
        wc.warmup_cosine_decay(**RUN),
        (0, 0.1, 0.9, 1, 0.9996954135, 0.0003045865, 0, 0, 0),
    ),
    "inverse time": (
        wc.inverse_power_decay(init_value=1.0, timescale=100, power=1.0),
        (1, 100 / 101, 100 / 109, 100 / 110, 100 / 111, 100 / 199, 0.5, 100 / 201, 1 / 3),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_curve_gives_the_numbers_worked_out_by_hand(name: str):
    schedule, values = GOLDEN[name]
    np.testing.assert_allclose(schedule(np.array(GOLDEN_STEPS)), values, rtol=1e-6, atol=0)


# Against the formula in float64.


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", NAMES)
def test_a_value_is_the_formula_to_4_ulp_of_the_peak_at_every_boundary_and_1000_random_counts(
    name: str, length: int
):
    entry = catalogue(length)[name]
    counts = counts_of(entry)
    error = np.abs(np.asarray(entry.schedule(counts), np.float64) - entry.formula(counts))
    worst = int(np.argmax(error))
    assert error[worst] <= 4 * ulp(entry.peak), (
        f"{error[worst] / ulp(entry.peak):.1f} ulp at count {counts[worst]}"
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_under_x64_a_value_is_the_formula_to_float64(name: str):
    entry = catalogue(LENGTHS[-1])[name]
    counts = counts_of(entry)
    values = entry.schedule(counts)
    assert values.dtype == jnp.float64
    # 1 - t / D in the formula itself loses a few ulp of 1; a power of 1000 makes a thousand of
    # each.
    np.testing.assert_allclose(
        values, entry.formula(counts), rtol=0, atol=2000 * np.spacing(entry.peak)
    )


@pytest.mark.parametrize("length", [2**31, 5e9, 1e30])
def test_a_length_beyond_int32_is_the_formula_and_rounds_no_count(length: float):
    counts = np.array([0, 1, 2**24 + 1, 10**9, INT32_MAX])
    line = wc.linear_warmup(peak_value=1.0, warmup_steps=length)
    steps = wc.piecewise_constant(values=[0, 1, 2, 3, 4], boundaries=[1, 2**24 + 1, 10**9, length])
    stairs: Any = {"init_value": 1.0, "decay_steps": length, "staircase": True}
    for schedule, values in (
        (line, counts / length),
        (wc.polynomial_decay(init_value=1.0, decay_steps=length), 1 - counts / length),
        (wc.polynomial_decay(init_value=1.0, decay_steps=length, cycle=True), 1 - counts / length),
        (
            wc.warmup_polynomial_decay(peak_value=1.0, total_steps=length, warmup_steps=0),
            1 - counts / length,
        ),
        (wc.exponential_decay(**stairs, decay_rate=0.5), [1] * 5),
        (wc.exponential_decay(**stairs, decay_rate=2.0, end_value=3.0), [1] * 5),
        (steps, [0, 1, 2, 3, 3]),
        (wc.repeat(steps, period=length), [0, 1, 2, 3, 3]),
        (wc.stretch(steps, factor=length), [0] * 5),
        (wc.with_warmup(line, warmup_steps=length), [0] * 5),
        (wc.join([steps, line, line], boundaries=[2**30, length]), [0, 1, 2, 3, 2**30 / length]),
    ):
        np.testing.assert_allclose(
            schedule(counts), values, rtol=0, atol=4 * ulp(1.0), err_msg=repr(schedule)
        )


@pytest.mark.parametrize("total", [2**31, 10**12, 10**15])
def test_a_length_that_a_fraction_makes_may_be_past_int32(total: int):
    run: Any = {"peak_value": 1.0, "total_steps": total, "warmup_fraction": 0.75}
    for schedule in (
        wc.warmup_cosine_decay(**run),
        wc.warmup_polynomial_decay(**run, decay_from="zero"),
        wc.warmup_stable_decay(**run, decay_fraction=0.25),
    ):
        assert schedule.arguments["warmup_steps"] == total * 3 // 4
        for count in (5, 2**30):
            assert float(schedule(count)) == pytest.approx(count / (0.75 * total), rel=1e-6)
        assert wc.parse(repr(schedule)) == schedule


@pytest.mark.parametrize("rate", [0.9999, 0.999999, 1 - 1e-9])
def test_a_decay_rate_near_1_keeps_the_digits_that_float32_cannot_hold(rate: float):
    decay = wc.exponential_decay(init_value=1.0, decay_steps=1, decay_rate=rate)
    count = round(1 / (1 - rate))
    for schedule in (decay, wc.shift(decay, by=0), jax.jit(lambda count: decay(count))):
        assert abs(float(schedule(count)) - rate**count) <= 4 * ulp(1.0)


# For every count.


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", MONOTONE_NAMES)
def test_a_curve_moves_one_way_between_its_seams_in_every_single_step(name: str, length: int):
    entry = catalogue(length)[name]
    seams = [0, *(min(seam, INT32_MAX - 1) for seam in entry.seams)]
    for start, stop in itertools.pairwise(seams):
        # The first and last steps, and some in a row from everywhere.
        starts = np.unique(np.linspace(start, stop, 40).astype(np.int64))
        counts = np.concatenate([begin + np.arange(-50, 50) for begin in starts])
        counts = padded(np.clip(counts, start, stop - 1), 4 * SIZE)
        values = np.asarray(entry.schedule(counts), np.float64)
        exact = entry.formula(counts)
        moved, should = np.diff(values), np.diff(exact)
        assert not np.any(moved * np.sign(exact[-1] - exact[0]) < 0), name
        # As far as float32 can show it, less the rounding of the formula itself.
        visible = (np.abs(should) > 8 * resolution(entry, np.maximum(values[1:], values[:-1]))) & (
            np.abs(should) > 1e-15 * entry.peak
        )
        assert np.all(moved[visible] != 0), name


@pytest.mark.parametrize("name", [name for name in MONOTONE_NAMES if "sqrt" in name])
def test_no_curve_is_compiled_with_the_inverse_root_that_goes_up_and_down_on_some_cpus(name: str):
    compiled: Any = jax.jit(catalogue(LENGTHS[0])[name].schedule).lower(jnp.arange(8)).compile()
    text = compiled.as_text()
    assert "sqrt(" in text
    assert "rsqrt(" not in text


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    low=st.floats(0, 1, width=32, allow_subnormal=False),
    high=st.floats(0, 1, width=32, allow_subnormal=False),
    length=st.integers(2, INT32_MAX),
    power=st.floats(0.01, 2000.0),
    where=st.lists(st.floats(-0.1, 1.5), min_size=1, max_size=20),
)
def test_a_value_is_never_outside_of_its_two_ends_by_one_ulp(
    low: float, high: float, length: int, power: float, where: Any
):
    low, high = min(low, high), max(low, high)
    counts = np.resize(np.clip(np.array(where) * length, -(2.0**31), INT32_MAX), 20)
    run: Any = {
        "peak_value": high,
        "total_steps": length,
        "warmup_steps": length // 2,
        "init_value": low,
        "end_value": low,
    }
    fall: Any = {"init_value": high, "decay_steps": length, "end_value": low}
    rise: Any = {"init_value": low, "decay_steps": length, "end_value": high}
    for schedule in (
        wc.polynomial_warmup(peak_value=high, warmup_steps=length, init_value=low, power=power),
        wc.polynomial_decay(**fall, power=power),
        wc.polynomial_decay(**rise, power=power, cycle=True),
        wc.cosine_decay(**fall),
        wc.exponential_decay(**fall, decay_rate=0.01),
        *([wc.exponential_decay(**rise, decay_rate=100.0)] if 0 < low < high else []),
        wc.inverse_power_decay(init_value=high, timescale=length, power=power, end_value=low),
        wc.warmup_polynomial_decay(**run, power=power),
        wc.warmup_cosine_decay(**run, decay_from="zero"),
        *(
            wc.warmup_stable_decay(**run, decay_steps=length - length // 2, decay_shape=shape)
            for shape in ("linear", "cosine", "one_minus_sqrt", "exponential")
        ),
    ):
        values = np.asarray(schedule(counts))
        assert values.min() >= np.float32(low), schedule
        assert values.max() <= np.float32(high), schedule


def test_the_ends_are_exactly_the_values_that_were_given():
    rng = np.random.default_rng(0)
    for low, high in (10.0 ** rng.uniform(-6, 1, (200, 2))).astype(np.float32):
        up = wc.linear_warmup(peak_value=high, warmup_steps=10, init_value=low)
        down = wc.polynomial_decay(init_value=high, decay_steps=10, end_value=low)
        assert [float(up(0)), float(up(10)), float(down(0)), float(down(10))] == [
            low,
            high,
            high,
            low,
        ]


@pytest.mark.parametrize("name", NAMES)
def test_a_value_is_finite_for_every_count_and_constant_outside_of_the_run(name: str):
    schedule = catalogue(1000)[name].schedule
    # Beside the counts that they act as.
    odd = {np.nan: 0, np.inf: INT32_MAX, -np.inf: 0, 1e30: INT32_MAX, -1e30: 0, 3e9: INT32_MAX}
    odd |= {2.0**31: INT32_MAX, -(2.0**31): 0, 2.5: 2}
    values = schedule(np.pad(np.array([*odd], np.float64), (0, SIZE - len(odd))))
    assert np.all(np.isfinite(values))
    np.testing.assert_array_equal(
        values, schedule(np.pad(np.array([*odd.values()]), (0, SIZE - len(odd))))
    )


@pytest.mark.parametrize("name", NAMES)
def test_eager_jitted_and_among_other_operations_agree_to_2_ulp_and_scalars_with_arrays(name: str):
    entry = catalogue(100)[name]
    counts = counts_of(entry)
    eager = np.asarray(entry.schedule(counts), np.float64)
    jitted, less = jax.jit(
        lambda count: (entry.schedule(count), jnp.float32(1) - entry.schedule(count))
    )(counts)
    assert (jitted.shape, jitted.dtype) == ((SIZE,), jnp.float32)
    apart = np.abs(np.asarray(jitted, np.float64) - eager)
    assert np.all(apart <= np.minimum(2 * ulp(entry.peak), 4 * resolution(entry, eager)))
    assert np.all(np.abs(np.asarray(less, np.float64) - (1 - eager)) <= 2 * ulp(1.0))
    for count in {*entry.boundaries().tolist()} - {-(2**31)}:
        value = entry.schedule(count)
        assert (value.shape, value.dtype) == ((), jnp.float32)
        there = eager[np.searchsorted(counts, max(count, counts[0]))]
        assert abs(float(value) - there) <= 4 * resolution(entry, there), count


KINDS = {entry.schedule.kind: name for name, entry in catalogue(100).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_of_counts_gives_an_array_of_its_shape(kind: str):
    schedule = catalogue(100)[KINDS[kind]].schedule
    counts = np.arange(-2, 110, 7).reshape(4, 2, 2)
    row = np.pad(counts.ravel(), (0, SIZE - counts.size), mode="edge")
    np.testing.assert_array_equal(
        schedule(counts), schedule(row)[: counts.size].reshape(counts.shape)
    )


# Under transformations.


sweep = jax.vmap(lambda schedule, counts: schedule(counts), in_axes=(0, None))
#: Compiled once for all schedules of one kind and the same options, as `derivative` is.
jitted_sweep = jax.jit(sweep)


@pytest.mark.parametrize("name", NAMES)
def test_a_stacked_schedule_sweeps_under_vmap(name: str):
    schedules = [catalogue(length)[name].schedule for length in (100, 110, 1000)]
    stacked = jax.tree.map(lambda *numbers: np.stack(numbers), *schedules)
    counts = padded(np.arange(0, 1100, 13), SIZE)
    swept = jitted_sweep(stacked, counts)
    for values, schedule in zip(swept, schedules, strict=True):
        # A stacked rate is float32: 0.977 ** 1000 is then off by a thousand roundings.
        rtol = 1e-4 if "near 1" in name else 1e-6
        np.testing.assert_allclose(values, schedule(counts), rtol=rtol, atol=ulp(0.3))
    if name == "join":  # Once without jit.
        np.testing.assert_allclose(sweep(stacked, counts), swept, rtol=1e-6, atol=ulp(0.3))


def test_a_schedule_runs_inside_scan_and_shard_map():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    for schedule in (
        wc.warmup_cosine_decay(peak_value=1.0, total_steps=16, warmup_steps=4),
        catalogue(100)["join of many alike"].schedule,
        catalogue(100)["total"].schedule,
    ):
        expected = schedule(jnp.arange(16))
        _, scanned = jax.lax.scan(
            lambda count, _, schedule=schedule: (count + 1, schedule(count)),
            jnp.int32(0),
            length=16,
        )
        mapped = jax.shard_map(schedule, mesh=mesh, in_specs=spec, out_specs=spec)(jnp.arange(16))
        np.testing.assert_allclose(scanned, expected, rtol=2.5e-7)
        np.testing.assert_allclose(mapped, expected, rtol=2.5e-7)


def test_every_curve_lowers_for_cpu_gpu_and_tpu():
    schedules = [entry.schedule for entry in catalogue(100).values()]
    everything = jax.jit(lambda count: [schedule(count) for schedule in schedules])
    exported = jax.export.export(everything, platforms=["cpu", "cuda", "tpu"])(
        jax.ShapeDtypeStruct((), jnp.int32)
    )
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    assert {str(aval) for aval in exported.out_avals} == {"float32[]"}


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0))
def derivative(schedule: wc.Schedule, count: jax.Array) -> wc.Schedule:
    """The derivative by every number."""
    return jax.grad(lambda schedule: schedule(count))(schedule)


def in_floats(schedule: wc.Schedule) -> wc.Schedule:
    """The schedule with all its numbers as floats, steps included."""
    return jax.tree.map(lambda number: jnp.asarray(number).astype(float), schedule)


@pytest.mark.parametrize("name", NAMES)
def test_the_derivative_by_every_number_is_finite_at_every_boundary(name: str):
    entry = catalogue(100)[name]
    counts = padded(entry.boundaries(), 24)
    slopes = derivative(in_floats(entry.schedule), counts)
    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.all(np.isfinite(leaf)), (jax.tree_util.keystr(path), counts, leaf)


@jax.jit
@functools.partial(jax.grad, argnums=(0, 1, 2, 3))
def slopes_of_numbers(peak: Any, warmup: Any, total: Any, power: Any, count: Any) -> jax.Array:
    return wc.warmup_polynomial_decay(
        peak_value=peak, total_steps=total, warmup_steps=warmup, power=power
    )(count)


@pytest.mark.parametrize("power", [0.0, 1e-3, 0.5, 1.0, 2.0, 4.0, 50.0])
def test_the_derivative_is_finite_for_degenerate_numbers(power: float):
    for count in (-5, 0, 1, 9, 10, 11, 99, 100, 101, INT32_MAX):
        for warmup, total in itertools.product((0.0, 10.0), (100.0, 10.0)):
            slopes = slopes_of_numbers(1.0, warmup, total, power, count)
            assert np.all(np.isfinite(slopes)), (count, warmup, total)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in NAMES
        if not name.startswith(("shift", "with_warmup", "join", "repeat", "stretch"))
    ],
)
def test_the_derivative_by_every_number_is_its_slope(name: str):
    entry = catalogue(1000)[name]
    schedule, counts = in_floats(entry.schedule), jnp.int32([37, 250, 777, 951])
    leaves, structure = jax.tree.flatten(schedule)
    slopes = jax.tree.leaves(derivative(schedule, counts))
    for index, leaf in enumerate(leaves):
        step = 1e-5 * (abs(float(leaf)) or 0.1)
        around = [[*leaves[:index], leaf + sign * step, *leaves[index + 1 :]] for sign in (1, -1)]
        above, below = (jax.tree.unflatten(structure, numbers)(counts) for numbers in around)
        slope = (above - below) / (2 * step)
        np.testing.assert_allclose(slopes[index], slope, rtol=1e-4, atol=1e-9, err_msg=str(index))


def test_the_derivative_by_the_power_of_a_straight_line_is_that_of_the_formula():
    # d/dp share ** p at p = 1 is share * log(share).
    slope = jax.grad(
        lambda power: wc.polynomial_decay(init_value=1.0, decay_steps=10, power=power)(5)
    )(1.0)
    assert float(slope) == pytest.approx(0.5 * np.log(0.5), rel=1e-6)
