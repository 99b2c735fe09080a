"""Every curve against its formula in float64, at two lengths; and what a schedule promises for
every count.
"""

import functools
import itertools
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import warmclip_jax as wc
from tests import reference
from tests._schedules.catalogue import Entry, catalogue

pytestmark = pytest.mark.usefixtures("strict_dtypes")

INT32_MAX = 2**31 - 1
SHORT, LONG = catalogue(100), catalogue(2_000_000_000)
EVERY_CURVE = pytest.mark.parametrize("name", SHORT)


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
SIZE = 4096


def counts_of(entry: Entry) -> np.ndarray:
    """The boundaries and 1,000 steps at random, as int32."""
    random = np.random.default_rng(0).integers(0, min(2 * entry.end, INT32_MAX), 1000)
    return padded(np.concatenate([entry.boundaries(), random]))


def padded(counts: Any, size: int = SIZE) -> np.ndarray:
    """The counts in order, and the last of them until there are `size`."""
    counts = np.unique(np.clip(counts, -(2**31), INT32_MAX))
    return np.pad(counts, (0, size - counts.size), mode="edge").astype(np.int32)


# Against the formula in float64.


@EVERY_CURVE
def test_a_value_is_the_formula_to_4_ulp_of_the_peak_and_never_outside_of_its_ends(name: str):
    for entry in (SHORT[name], LONG[name]):
        counts, arguments = counts_of(entry), entry.schedule.arguments
        values = np.asarray(entry.schedule(counts), np.float64)
        ends = [number for key, number in arguments.items() if key.endswith("_value")]
        if ends and "schedule" not in arguments:
            low = min(ends) if len(ends) > 1 else 0.0  # of exponential_warmup
            assert values.min() >= np.float32(low)
            assert values.max() <= np.float32(max(ends))
        error = np.abs(values - entry.formula(counts))
        worst = int(np.argmax(error))
        assert error[worst] <= 4 * ulp(entry.peak), counts[worst]


@pytest.mark.usefixtures("x64")
@EVERY_CURVE
def test_under_x64_a_value_is_the_formula_to_float64(name: str):
    counts = counts_of(LONG[name])
    values = LONG[name].schedule(counts)
    assert values.dtype == jnp.float64
    # 1 - t / D in the formula itself loses a few ulp of 1; a power of 1000 makes a thousand of
    # each.
    allowed = 2000 * np.spacing(LONG[name].peak)
    np.testing.assert_allclose(values, LONG[name].formula(counts), rtol=0, atol=allowed)


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


@pytest.mark.parametrize("name", [name for name, entry in SHORT.items() if entry.is_smooth])
def test_a_curve_moves_one_way_between_its_seams_in_every_single_step(name: str):
    for entry in (SHORT[name], LONG[name]):
        seams = [0, *(min(seam, INT32_MAX - 1) for seam in entry.seams)]
        for start, stop in itertools.pairwise(seams):
            # The first and last steps, and some in a row from everywhere.
            starts = np.unique(np.linspace(start, stop, 40).astype(np.int64))
            counts = np.concatenate([begin + np.arange(-50, 50) for begin in starts])
            counts = padded(np.clip(counts, start, stop - 1))
            values = np.asarray(entry.schedule(counts), np.float64)
            exact = entry.formula(counts)
            moved, should = np.diff(values), np.abs(np.diff(exact))
            assert not np.any(moved * np.sign(exact[-1] - exact[0]) < 0)
            # As far as float32 can show it, less the rounding of the formula itself.
            visible = should > 8 * resolution(entry, np.maximum(values[1:], values[:-1]))
            assert np.all(moved[visible & (should > 1e-15 * entry.peak)] != 0)


def test_no_curve_is_compiled_with_the_inverse_root_that_goes_up_and_down_on_some_cpus():
    roots = [entry.schedule for name, entry in SHORT.items() if "sqrt" in name]
    program: Any = jax.jit(lambda count: [schedule(count) for schedule in roots])
    text = program.lower(jnp.arange(8)).compile().as_text()
    assert "sqrt(" in text
    assert "rsqrt(" not in text


def test_the_ends_are_exactly_the_values_that_were_given():
    low, high = 10.0 ** np.random.default_rng(0).uniform(-6, 1, (2, 10_000)).astype(np.float32)

    @jax.vmap
    def ends(low: jax.Array, high: jax.Array) -> Any:
        up = wc.linear_warmup(peak_value=high, warmup_steps=10, init_value=low)
        down = wc.polynomial_decay(init_value=high, decay_steps=10, end_value=low)
        return up(0), up(10), down(10), down(0)

    np.testing.assert_array_equal(jax.jit(ends)(low, high), [low, high, low, high])


@EVERY_CURVE
def test_a_value_is_finite_for_every_count_and_constant_outside_of_the_run(name: str):
    schedule = SHORT[name].schedule
    # Beside the counts that they act as.
    odd = {np.nan: 0, np.inf: INT32_MAX, -np.inf: 0, 1e30: INT32_MAX, -1e30: 0, 3e9: INT32_MAX}
    odd |= {2.0**31: INT32_MAX, -(2.0**31): 0, 2.5: 2}
    rest = (0, SIZE - len(odd))
    values = schedule(np.pad(np.array([*odd], np.float64), rest))
    assert np.all(np.isfinite(values))
    np.testing.assert_array_equal(values, schedule(np.pad(np.array([*odd.values()]), rest)))


def test_eager_jitted_and_among_other_operations_agree_to_2_ulp_and_scalars_with_arrays():
    every_count = {name: counts_of(entry) for name, entry in SHORT.items()}

    @jax.jit
    def together(counts: dict[str, jax.Array]) -> Any:
        values = {name: entry.schedule(counts[name]) for name, entry in SHORT.items()}
        return values, {name: jnp.float32(1) - value for name, value in values.items()}

    # In one program, in arrays of another shape.
    jitted, less = together(
        {name: counts.reshape(-1, 4, 2) for name, counts in every_count.items()}
    )
    for name, entry in SHORT.items():
        counts, eager = every_count[name], entry.schedule(every_count[name])
        assert (jitted[name].shape, jitted[name].dtype) == ((SIZE // 8, 4, 2), jnp.float32)
        eager = np.asarray(eager, np.float64)
        apart = np.abs(np.asarray(jitted[name], np.float64).ravel() - eager)
        allowed = np.minimum(2 * ulp(entry.peak), 4 * resolution(entry, eager))
        assert np.all(apart <= allowed), name
        assert np.all(np.abs(np.ravel(less[name]) - (1 - eager)) <= 2 * ulp(1.0)), name
        for count in {*entry.boundaries().tolist()} - {-(2**31)}:
            value = entry.schedule(count)
            assert (value.shape, value.dtype) == ((), jnp.float32)
            there = eager[np.searchsorted(counts, max(count, counts[0]))]
            assert abs(float(value) - there) <= 4 * resolution(entry, there), (name, count)


# Under transformations.


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None))
def sweep(schedule: wc.Schedule, counts: jax.Array) -> jax.Array:
    """Compiled once for all schedules of one kind and the same options."""
    return schedule(counts)


@EVERY_CURVE
def test_a_stacked_schedule_sweeps_under_vmap(name: str):
    schedules = [catalogue(length)[name].schedule for length in (100, 110, 1000)]
    stacked = jax.tree.map(lambda *numbers: np.stack(numbers), *schedules)
    counts = padded(np.arange(0, 1100, 13))
    # A stacked rate is float32: 0.977 ** 1000 is then off by a thousand roundings.
    rtol = 1e-4 if "near 1" in name else 1e-6
    for values, schedule in zip(sweep(stacked, counts), schedules, strict=True):
        np.testing.assert_allclose(values, schedule(counts), rtol=rtol, atol=ulp(0.3))


def test_a_schedule_runs_inside_scan_and_shard_map():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    schedules = [SHORT[name].schedule for name in ("join of many alike", "total")]
    schedules += [wc.warmup_cosine_decay(peak_value=1.0, total_steps=16, warmup_steps=4)]

    def every(count: jax.Array) -> list[jax.Array]:
        return [schedule(count) for schedule in schedules]

    @jax.jit
    def both_ways(counts: jax.Array) -> Any:
        _, scanned = jax.lax.scan(
            lambda count, _: (count + 1, every(count)), jnp.int32(0), length=16
        )
        return scanned, jax.shard_map(every, mesh=mesh, in_specs=spec, out_specs=spec)(counts)

    scanned, mapped = both_ways(jnp.arange(16))
    for index, schedule in enumerate(schedules):
        expected = schedule(jnp.arange(16))
        np.testing.assert_allclose(scanned[index], expected, rtol=2.5e-7)
        np.testing.assert_allclose(mapped[index], expected, rtol=2.5e-7)


def test_every_curve_lowers_for_cpu_gpu_and_tpu():
    schedules = [entry.schedule for entry in SHORT.values()]
    everything = jax.jit(lambda count: [schedule(count) for schedule in schedules])
    exported = jax.export.export(everything, platforms=["cpu", "cuda", "tpu"])(
        jax.ShapeDtypeStruct((), jnp.int32)
    )
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    assert {str(aval) for aval in exported.out_avals} == {"float32[]"}


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0))
def derivative(schedule: wc.Schedule, count: jax.Array) -> wc.Schedule:
    """The derivative by every number; compiled once for one kind and the same options."""
    return jax.grad(lambda schedule: schedule(count))(schedule)


#: Where steps become counts of another schedule, or a length of none, a formula has no slope.
FLAT = ("shift", "with_warmup", "join", "repeat", "stretch", "warmup_stable_decay without a decay")


@EVERY_CURVE
def test_the_derivative_by_every_number_is_finite_at_every_boundary_and_the_formulas_slope(
    name: str,
):
    entry = SHORT[name]
    slopes = derivative(jax.tree.map(float, entry.schedule), padded(entry.boundaries(), 24))
    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.all(np.isfinite(leaf)), (jax.tree_util.keystr(path), leaf)
    if name.startswith(FLAT):
        return

    numbers, structure = jax.tree.flatten(jax.tree.map(float, catalogue(1000)[name].schedule))
    counts = padded([37, 250, 777, 951], 24)
    slopes = jax.tree.leaves(derivative(jax.tree.unflatten(structure, numbers), counts))
    for index, number in enumerate(numbers):
        step = 1e-5 * (abs(number) or 0.1)

        def moved(by: float, index: int = index) -> np.ndarray:
            changed = [*numbers[:index], numbers[index] + by, *numbers[index + 1 :]]
            return reference.of(jax.tree.unflatten(structure, changed), counts)

        slope = (moved(step) - moved(-step)) / (2 * step)
        np.testing.assert_allclose(slopes[index], slope, rtol=1e-4, atol=1e-9, err_msg=str(index))


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


def test_the_derivative_by_the_power_of_a_straight_line_is_that_of_the_formula():
    # d/dp share ** p at p = 1 is share * log(share).
    slope = jax.grad(
        lambda power: wc.polynomial_decay(init_value=1.0, decay_steps=10, power=power)(5)
    )(1.0)
    assert float(slope) == pytest.approx(0.5 * np.log(0.5), rel=1e-6)
