"""Every curve against its formula in float64, at every length; and what a schedule promises for
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
import optax
import pytest

import warmclip_jax as wc
from tests import quick
from tests._schedules.catalogue import Entry, catalogue


@pytest.fixture(autouse=True)
def _strict_dtypes_but_for_optax(request: pytest.FixtureRequest):
    if "optax" not in request.node.name:
        request.getfixturevalue("strict_dtypes")


INT32_MAX = 2**31 - 1
LENGTHS = (100, 100_003, 2**24 + 3, 2_000_000_000)
NAMES = list(catalogue(100))
TRANSFORMS = ("shift", "stretch", "with_warmup", "join", "repeat")
MONOTONE_NAMES = [name for name in NAMES if catalogue(100)[name].is_smooth]


def ulp(value: float) -> float:
    return float(np.spacing(np.float32(value)))


def resolution(entry: Entry, values: Any) -> np.ndarray:
    """The ulp of each value. An exponential's argument is rounded too, which counts the more the
    further it has fallen.
    """
    values = np.asarray(values, np.float32)
    spacing = np.spacing(np.abs(values)).astype(np.float64)
    if entry.schedule.arguments.keys() & {"decay_rate"}:
        spacing *= 1 + np.abs(np.log(np.maximum(values, 1e-38) / entry.peak))
    return spacing


#: Of most arrays of counts, so that one compilation of a curve serves them all.
SIZE = 1020


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
GOLDEN: dict[str, tuple[wc.Schedule, tuple[float, ...]]] = {
    "decay clock from the end of the warm-up": (
        wc.warmup_polynomial_decay(peak_value=1.0, total_steps=100, warmup_steps=10),
        (0, 0.1, 0.9, 1, 89 / 90, 1 / 90, 0, 0, 0),
    ),
    "decay clock from zero, as BERT": (
        wc.warmup_polynomial_decay(
            peak_value=1.0, total_steps=100, warmup_steps=10, decay_from="zero"
        ),
        (0, 0.1, 0.9, 0.9, 0.89, 0.01, 0, 0, 0),
    ),
    "TensorFlow's cycle": (
        wc.polynomial_decay(init_value=1.0, decay_steps=100, cycle=True),
        (1, 0.99, 0.91, 0.9, 0.89, 0.01, 0, 99 / 200, 0),
    ),
    "cosine after the warm-up": (
        wc.warmup_cosine_decay(peak_value=1.0, total_steps=100, warmup_steps=10),
        (0, 0.1, 0.9, 1, 0.9996954135, 0.0003045865, 0, 0, 0),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_curve_gives_the_numbers_worked_out_by_hand(name: str):
    schedule, values = GOLDEN[name]
    np.testing.assert_allclose(schedule(np.array(GOLDEN_STEPS)), values, rtol=1e-6, atol=0)


def test_tensorflows_cycle_restarts_lower_after_each_multiple():
    schedule = wc.polynomial_decay(init_value=0.05, decay_steps=10, end_value=0.001, cycle=True)
    values = [
        0.05,
        0.0255,
        0.001,
        0.02305,
        0.01325,
        0.001,
        0.0157,
    ]  # (0.049 * 9/20, 0.049 * 5/20, 0, 0.049 * 9/30) + 0.001
    np.testing.assert_allclose(schedule(np.array([0, 5, 10, 11, 15, 20, 21])), values, rtol=1e-6)


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
@pytest.mark.parametrize("length", [LENGTHS[0], LENGTHS[-1]])
@pytest.mark.parametrize("name", NAMES)
def test_under_x64_a_value_is_the_formula_to_float64(name: str, length: int):
    entry = catalogue(length)[name]
    counts = counts_of(entry)
    values = entry.schedule(counts)
    assert values.dtype == jnp.float64
    # 1 - t / D in the formula itself loses a few ulp of 1; a power of 1000 makes a thousand of
    # each.
    np.testing.assert_allclose(
        values, entry.formula(counts), rtol=0, atol=2000 * np.spacing(entry.peak)
    )


@pytest.mark.parametrize("length", [2**31, 5_000_000_000, 2.0**31, 5e9, 1e30])
def test_a_length_beyond_int32_is_the_formula_to_4_ulp_of_the_peak(length: float):
    counts = np.array([0, 1, 2**24, 10**9, INT32_MAX])
    for schedule, value in (
        (wc.linear_warmup(peak_value=1.0, warmup_steps=length), counts / length),
        (wc.polynomial_decay(init_value=1.0, decay_steps=length), 1 - counts / length),
        (wc.polynomial_decay(init_value=1.0, decay_steps=length, cycle=True), 1 - counts / length),
        (
            wc.warmup_polynomial_decay(peak_value=1.0, total_steps=length, warmup_steps=0),
            1 - counts / length,
        ),
        (
            wc.exponential_decay(
                init_value=1.0, decay_steps=length, decay_rate=0.5, staircase=True
            ),
            np.ones(5),
        ),
        (
            wc.repeat(wc.linear_warmup(peak_value=1.0, warmup_steps=INT32_MAX), period=length),
            counts / INT32_MAX,
        ),
    ):
        np.testing.assert_allclose(
            schedule(counts), value, rtol=0, atol=4 * ulp(1.0), err_msg=repr(schedule)
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


@pytest.mark.parametrize("kind", [list, tuple, np.array, jnp.asarray])
def test_boundaries_values_and_schedules_may_be_any_sequence(kind: Any):
    steps = wc.piecewise_constant(values=kind([1.0, 0.5, 0.25]), boundaries=kind([3, 5]))
    assert steps == wc.piecewise_constant(values=[1.0, 0.5, 0.25], boundaries=[3, 5])
    assert steps(np.arange(7)).tolist() == [1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    levels: Any = [wc.constant(value=value) for value in (1.0, 0.5, 0.25)]
    schedules = np.array(levels) if kind in (np.array, jnp.asarray) else kind(levels)
    assert wc.join(schedules, boundaries=kind([3, 5])) == wc.join(levels, boundaries=[3, 5])
    traced = jax.jit(
        lambda at: wc.piecewise_constant(values=kind([1.0, 0.5, 0.25]), boundaries=at)(
            jnp.arange(7)
        )
    )
    assert traced(jnp.array([3, 5])).tolist() == [1, 1, 1, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("rate", [0.9999, 0.999999, 1 - 1e-9])
def test_a_decay_rate_near_1_keeps_the_digits_that_float32_cannot_hold(rate: float):
    schedule = wc.join(
        [wc.exponential_decay(init_value=1.0, decay_steps=1, decay_rate=rate)], boundaries=[]
    )
    count = round(1 / (1 - rate))
    assert abs(float(schedule(count)) - rate**count) <= 4 * ulp(1.0)
    assert abs(float(jax.jit(lambda count: schedule(count))(count)) - rate**count) <= 4 * ulp(1.0)


OPTAX: dict[str, tuple[wc.Schedule, optax.Schedule]] = {
    "constant": (wc.constant(value=0.1), optax.constant_schedule(0.1)),
    "linear_warmup": (
        wc.linear_warmup(peak_value=0.3, warmup_steps=64, init_value=0.1),
        optax.linear_schedule(0.1, 0.3, 64),
    ),
    "polynomial_warmup": (
        wc.polynomial_warmup(peak_value=0.0, warmup_steps=64, init_value=0.5),
        optax.polynomial_schedule(0.5, 0.0, 1.0, 64),
    ),
    "polynomial_decay": (
        wc.polynomial_decay(init_value=0.3, decay_steps=64, end_value=0.1, power=2.5),
        optax.polynomial_schedule(0.3, 0.1, 2.5, 64),
    ),
    "cosine_decay": (
        wc.cosine_decay(init_value=0.3, decay_steps=64, end_value=0.03),
        optax.cosine_decay_schedule(0.3, 64, alpha=0.1),
    ),
    "exponential_decay": (
        wc.exponential_decay(init_value=0.3, decay_steps=16, decay_rate=0.5, end_value=0.02),
        optax.exponential_decay(0.3, 16, 0.5, end_value=0.02),
    ),
    "exponential_decay in steps": (
        wc.exponential_decay(init_value=0.3, decay_steps=16, decay_rate=0.5, staircase=True),
        optax.exponential_decay(0.3, 16, 0.5, staircase=True),
    ),
    "warmup_cosine_decay": (
        wc.warmup_cosine_decay(
            peak_value=0.3, total_steps=64, warmup_steps=8, init_value=0.1, end_value=0.03
        ),
        optax.warmup_cosine_decay_schedule(0.1, 0.3, 8, 64, end_value=0.03),
    ),
    "warmup_polynomial_decay": (
        wc.warmup_polynomial_decay(peak_value=0.3, total_steps=64, warmup_steps=8),
        optax.join_schedules(
            [optax.linear_schedule(0.0, 0.3, 8), optax.linear_schedule(0.3, 0.0, 56)], [8]
        ),
    ),
    "join": (
        wc.join([optax.linear_schedule(0.0, 0.3, 8), optax.constant_schedule(0.1)], boundaries=[8]),
        optax.join_schedules(
            [optax.linear_schedule(0.0, 0.3, 8), optax.constant_schedule(0.1)], [8]
        ),
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_a_curve_gives_optaxs_numbers_where_the_definitions_agree(name: str):
    ours, theirs = OPTAX[name]
    counts = np.arange(100)
    values = np.array([theirs(jnp.int32(count)) for count in counts])
    # Their 1 - t / D is off by an ulp of 1, which is the floor of what they can say about a small
    # value.
    np.testing.assert_allclose(ours(counts), values, rtol=1e-6, atol=2 * ulp(float(values.max())))


# For every count.


@pytest.mark.parametrize("length", [LENGTHS[0], *LENGTHS[2:]])
@pytest.mark.parametrize("name", MONOTONE_NAMES)
def test_a_curve_moves_one_way_between_its_seams_in_every_single_step(name: str, length: int):
    entry = catalogue(length)[name]
    seams = [0, *(min(seam, INT32_MAX - 1) for seam in entry.seams)]
    for start, stop in itertools.pairwise(seams):
        # The first and last steps, and some in a row from everywhere.
        starts = np.unique(np.linspace(start, stop, 40).astype(np.int64))
        counts = np.concatenate([begin + np.arange(-50, 50) for begin in starts])
        counts = padded(np.clip(counts, start, stop - 1), 4000)
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
    for schedule in (
        wc.polynomial_warmup(peak_value=high, warmup_steps=length, init_value=low, power=power),
        wc.polynomial_decay(init_value=high, decay_steps=length, end_value=low, power=power),
        wc.polynomial_decay(
            init_value=low, decay_steps=length, end_value=high, power=power, cycle=True
        ),
        wc.cosine_decay(init_value=high, decay_steps=length, end_value=low),
        wc.exponential_decay(init_value=high, decay_steps=length, decay_rate=0.01, end_value=low),
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
    entry = catalogue(1000)[name]
    odd = np.array(
        [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, 2.0**31, INT32_MAX, -(2.0**31), 2.5], np.float64
    )
    values = np.asarray(entry.schedule(np.pad(odd, (0, SIZE - odd.size))))[: odd.size]
    assert np.all(np.isfinite(values))
    first, last = entry.schedule(0), entry.schedule(INT32_MAX)
    np.testing.assert_array_equal(
        values,
        np.array([first, last, first, last, first, last, last, last, first, entry.schedule(2)]),
    )


@pytest.mark.parametrize("name", NAMES)
def test_eager_and_jitted_agree_to_2_ulp(name: str):
    entry = catalogue(100)[name]
    jitted = jax.jit(entry.schedule)
    among_others = jax.jit(lambda count: jnp.float32(1) - entry.schedule(count))
    for count in {int(count) for count in entry.boundaries()}:
        eager, step = entry.schedule(count), jnp.int32(max(count, -(2**31)))
        assert abs(float(jitted(step)) - float(eager)) <= 2 * resolution(entry, eager), count
        assert abs(float(among_others(step)) - (1 - float(eager))) <= 2 * ulp(1.0), count


@pytest.mark.parametrize("name", NAMES)
def test_an_array_of_counts_is_one_call_with_the_shape_of_the_array(name: str):
    entry = catalogue(100)[name]
    counts = np.arange(-2, 110, 7).reshape(4, 4)
    values = entry.schedule(jnp.asarray(counts))
    assert (values.shape, values.dtype) == ((4, 4), jnp.float32)
    one_by_one = np.array([[entry.schedule(int(count)) for count in row] for row in counts])
    np.testing.assert_allclose(values, one_by_one, rtol=0, atol=2 * ulp(entry.peak))


# Under transformations.


def test_vmap_over_64_triples_is_one_trace_and_equals_the_loop():
    rng = np.random.default_rng(0)
    peaks = rng.uniform(1e-5, 1.0, 64).astype(np.float32)
    warmups = rng.integers(0, 50, 64).astype(np.int32)
    totals = (warmups + rng.integers(1, 100, 64)).astype(np.int32)
    traces = 0

    @jax.jit
    @jax.vmap
    def sweep(peak: jax.Array, warmup: jax.Array, total: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return wc.warmup_polynomial_decay(peak_value=peak, total_steps=total, warmup_steps=warmup)(
            jnp.arange(160)
        )

    swept = sweep(peaks, warmups, totals)
    sweep(peaks / 2, warmups, totals)
    assert traces == 1
    for values, peak, warmup, total in zip(swept, peaks, warmups, totals, strict=True):
        schedule = wc.warmup_polynomial_decay(
            peak_value=peak, total_steps=total, warmup_steps=warmup
        )
        np.testing.assert_allclose(values, schedule(jnp.arange(160)), rtol=2.5e-7, atol=0)  # 2 ulp.


sweep = jax.vmap(lambda schedule, counts: schedule(counts), in_axes=(0, None))
#: Compiled once for all schedules of one kind and the same options, as `derivative` is.
jitted_sweep = jax.jit(sweep)


def stacked_like(name: str) -> tuple[list[wc.Schedule], Any]:
    schedules = [catalogue(length)[name].schedule for length in (100, 110, 1000)]
    return schedules, jax.tree.map(
        lambda *numbers: np.stack([np.asarray(number) for number in numbers]), *schedules
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_stacked_schedule_sweeps_under_vmap(name: str):
    schedules, stacked = stacked_like(name)
    counts = padded(np.arange(0, 1100, 13), SIZE)
    for values, schedule in zip(jitted_sweep(stacked, counts), schedules, strict=True):
        # A stacked rate is float32: 0.977 ** 1000 is then off by a thousand roundings.
        rtol = 1e-4 if "near 1" in name else 1e-6
        np.testing.assert_allclose(values, schedule(counts), rtol=rtol, atol=ulp(0.3))


@pytest.mark.parametrize("name", ["polynomial_decay 1.0", "join"])
def test_vmap_outside_of_jit_sweeps_too(name: str):
    _, stacked = stacked_like(name)
    counts = padded(np.arange(0, 1100, 13), SIZE)
    np.testing.assert_allclose(
        sweep(stacked, counts), jitted_sweep(stacked, counts), rtol=1e-6, atol=ulp(0.3)
    )


def test_a_schedule_runs_inside_scan_and_shard_map():
    schedule = wc.warmup_cosine_decay(peak_value=1.0, total_steps=16, warmup_steps=4)
    expected = schedule(jnp.arange(16))
    _, scanned = jax.lax.scan(
        lambda count, _: (count + 1, schedule(count)), jnp.int32(0), length=16
    )
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
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


@quick.jit
def derivative(schedule: wc.Schedule, count: jax.Array) -> wc.Schedule:
    """The derivative by every number."""
    return jax.grad(lambda schedule: schedule(count))(schedule)


def in_floats(schedule: wc.Schedule) -> wc.Schedule:
    """The schedule with all its numbers as floats, steps included."""
    return jax.tree.map(lambda number: jnp.asarray(number).astype(float), schedule)


@pytest.mark.parametrize("name", NAMES)
def test_the_derivative_by_every_number_is_finite_at_every_boundary(name: str):
    entry = catalogue(100)[name]
    schedule = in_floats(entry.schedule)
    for count in {int(count) for count in entry.boundaries()}:
        slopes = derivative(schedule, jnp.int32(max(count, -(2**31))))
        for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
            assert np.isfinite(leaf), f"{jax.tree_util.keystr(path)} at {count}"


@quick.jit
@functools.partial(jax.grad, argnums=(0, 1, 2, 3))
def slopes_of_numbers(peak: Any, warmup: Any, total: Any, power: Any, count: Any) -> jax.Array:
    return wc.warmup_polynomial_decay(
        peak_value=peak, total_steps=total, warmup_steps=warmup, power=power
    )(count)


@pytest.mark.parametrize("power", [0.0, 1e-3, 0.5, 1.0, 2.0, 4.0, 50.0])
@pytest.mark.parametrize("warmup", [0.0, 10.0])
def test_the_derivative_is_finite_for_degenerate_numbers(power: float, warmup: float):
    for count in (-5, 0, 1, 9, 10, 11, 99, 100, 101, INT32_MAX):
        for total in (100.0, 10.0):
            assert np.all(np.isfinite(slopes_of_numbers(1.0, warmup, total, power, count))), (
                count,
                total,
            )


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
    schedule = in_floats(entry.schedule)
    leaves, structure = jax.tree.flatten(schedule)
    for count in (37, 250, 777, 951):
        slopes = jax.tree.leaves(derivative(schedule, jnp.int32(count)))
        for index, leaf in enumerate(leaves):
            step = 1e-5 * max(abs(float(leaf)), 1e-1)
            around = [
                [*leaves[:index], leaf + sign * step, *leaves[index + 1 :]] for sign in (1, -1)
            ]
            above, below = (
                float(jax.tree.unflatten(structure, numbers)(count)) for numbers in around
            )
            slope = (above - below) / (2 * step)
            assert float(slopes[index]) == pytest.approx(slope, rel=1e-4, abs=1e-9), (index, count)


def test_the_derivative_by_the_power_of_a_straight_line_is_that_of_the_formula():
    # d/dp share ** p at p = 1 is share * log(share).
    slope = jax.grad(
        lambda power: wc.polynomial_decay(init_value=1.0, decay_steps=10, power=power)(5)
    )(1.0)
    assert float(slope) == pytest.approx(0.5 * np.log(0.5), rel=1e-6)
