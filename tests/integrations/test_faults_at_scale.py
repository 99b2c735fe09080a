"""A hundred thousand steps with faults of every kind: counts, parameters, records and report against an independent account.

The gradients are a table, so that NumPy can say of each call what has to be done about it: from
norms in float64 and the textbook form of the running bound. The table has no decision so close that
float32 may make it otherwise.
"""

import dataclasses
import functools
import itertools
import math
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests import reference
from warmclip_jax._clipping._coding import decoded

CALLS, PARTS, RECORD = 100_000, 4, 200
PARAMS: Any = {
    "blocks": [
        {"bias": jnp.full(2, 0.1), "kernel": jnp.ones((3, 2))},
        {"bias": jnp.full(2, 0.1), "kernel": jnp.ones((3, 2))},
    ],
    "embed": {"table": jnp.ones((4, 2))},
    "head": jnp.ones(4),
}
NAMES = [
    "blocks/0/bias",
    "blocks/0/kernel",
    "blocks/1/bias",
    "blocks/1/kernel",
    "embed/table",
    "head",
]
SIZES = [leaf.size for leaf in jax.tree.leaves(PARAMS)]
STARTS = np.cumsum([0, *SIZES])
#: The leaves of each group, by place; and what bounds it.
GROUPS = {"blocks": [0, 1, 2, 3], "embed": [4], "rest": [5]}
LABELS = wc.label_by_path({"blocks": "blocks/.*", "embed": "embed/.*"})
BOUNDS = {
    "blocks": wc.running_bound(),
    "embed": wc.running_bound(deviations=2.0, ceiling=8.0),
    "rest": 2.5,
}
RATE: Any = {"peak_value": 1e-3, "total_steps": CALLS, "warmup_steps": 1000}
SCHEDULE = wc.warmup_cosine_decay(**RATE)
#: What float32 may be off by in a logarithm near 1: that of a norm by a few roundings; that of a
#: running bound by more, since an error of its mean is made at each step and lost at the rate 0.01.
NORM_ERROR, BOUND_ERROR = 2.0**-23 * 3, 2.0**-23 * 2 * (0.5 / 0.01 + 4)
USUAL = {
    "ordinary": 0.95,
    "bad": 0.015,
    "spike": 0.01,
    "huge": 0.001,
    "zero": 0.006,
    "subnormal": 0.006,
    "idle": 0.012,
}


@dataclasses.dataclass
class Stream:
    """Gradients, one row a call, and what was put into them."""

    grads: np.ndarray  # float32 [calls, entries]
    kinds: np.ndarray  # str [calls]
    injected: dict[int, dict[str, float]]  # call -> leaf -> value or factor


@functools.cache
def stream() -> Stream:
    rng = np.random.default_rng(2)
    grads = rng.standard_normal((CALLS, STARTS[-1])) * np.exp(0.3 * rng.standard_normal((CALLS, 1)))
    kinds = rng.choice(list(USUAL), CALLS, p=list(USUAL.values()))
    kinds[:20] = "ordinary"  # so that something is usual
    injected = {}
    for call in np.flatnonzero(kinds != "ordinary"):
        row, kind = grads[call], kinds[call]
        if kind in ("zero", "subnormal"):
            row[:] = 0 if kind == "zero" else 1e-42
            continue
        if kind == "idle":
            row[STARTS[4] : STARTS[5]] = 0  # all of "embed"
            continue
        chosen = rng.choice(len(NAMES), rng.integers(1, 4), replace=False)
        values = {"bad": [np.nan, np.inf, -np.inf], "spike": [100.0, 1e4, 1e8], "huge": [3e38]}[
            kind
        ]
        injected[int(call)] = {NAMES[leaf]: float(rng.choice(values)) for leaf in sorted(chosen)}
        for leaf in chosen:
            part, value = slice(STARTS[leaf], STARTS[leaf + 1]), injected[int(call)][NAMES[leaf]]
            if kind == "spike":
                row[part] *= value
            elif kind == "huge":
                row[part] = value
            else:
                row[rng.integers(part.start, part.stop)] = value
    return Stream(grads.astype(np.float32), kinds, injected)


def as_tree(row: Any) -> Any:
    leaves, structure = jax.tree.flatten(PARAMS)
    parts = [
        row[start:stop].reshape(leaf.shape)
        for leaf, (start, stop) in zip(leaves, itertools.pairwise(STARTS), strict=True)
    ]
    return structure.unflatten(parts)


def optimizer(**options: Any) -> Any:
    return wc.pipeline(optax.adam, SCHEDULE, groups=LABELS, **options)


GUARDED = optimizer(
    max_norm=BOUNDS, skip_above=wc.running_bound(deviations=6.0), record=RECORD, record_leaves=True
)


@functools.partial(jax.jit, static_argnums=0)
def trained(optimizer: Any, params: Any, state: Any, grads: Any) -> Any:
    """Parameters and state after a call for each row, and the bounds of each call."""

    def step(carry: Any, row: Any) -> Any:
        params, state = wc.apply_gradients(optimizer, *carry, grads=as_tree(row))
        return (params, state), state.clip_state.norm_bound

    return jax.lax.scan(step, (params, state), grads)


# The account: what has to be done about each call.


class Account:
    """Arrays over calls, in float64, from the table and from reference.py alone."""

    def __init__(self, grads: np.ndarray) -> None:
        seen = np.concatenate(reference.visible_parts(grads)).reshape(grads.shape)
        squares = np.square(seen)
        by_leaf = np.add.reduceat(squares, STARTS[:-1], axis=1)
        by_group = np.stack([by_leaf[:, leaves].sum(axis=1) for leaves in GROUPS.values()], axis=1)
        self.norms = np.sqrt(by_leaf.sum(axis=1))
        self.leaf_norms, self.group_norms = np.sqrt(by_leaf), np.sqrt(by_group)
        self.is_finite: Any = np.isfinite(grads).all(axis=1)
        self.margin = math.inf
        self._follow()
        self.taken: Any = self.is_finite & ~self.spiked
        self.skipped: Any = ~self.taken
        self.clipped = self.over & self.taken[:, None]  # each group of each call
        # A spike is clipped or skipped, finite, and has a leaf that stands out.
        self.is_spike = self.is_finite & self.stands_out & (self.skipped | self.clipped.any(axis=1))

    def _follow(self) -> None:
        calls = len(self.norms)
        self.skip_bounds, self.bounds = np.empty(calls), np.empty((calls, len(GROUPS)))
        self.over = np.empty((calls, len(GROUPS)), bool)
        self.spiked, self.stands_out = np.empty(calls, bool), np.empty(calls, bool)
        with np.errstate(divide="ignore"):
            logs, group_logs, leaf_logs = (
                np.log(self.norms),
                np.log(self.group_norms),
                np.log(self.leaf_norms),
            )
        skip = reference.RunningBound(deviations=6.0)
        groups = [
            reference.RunningBound(),
            reference.RunningBound(deviations=2.0, ceiling=8.0),
            None,
        ]
        leaves = [reference.RunningBound() for _ in NAMES]
        for call, (log, of_groups, of_leaves) in enumerate(
            zip(logs.tolist(), group_logs.tolist(), leaf_logs.tolist(), strict=True)
        ):
            self.skip_bounds[call] = math.exp(skip.log_bound)
            self.spiked[call] = self._is_over(log, skip.log_bound)
            for place, (history, group_log) in enumerate(zip(groups, of_groups, strict=True)):
                bound = history.log_bound if history else math.log(2.5)
                error = BOUND_ERROR if history else NORM_ERROR
                self.bounds[call, place], self.over[call, place] = (
                    math.exp(bound),
                    self._is_over(group_log, bound, error),
                )
                if history:
                    history.teach(group_log)
            usual = [
                history.mean + 6 * history.deviation if history.count else math.inf
                for history in leaves
            ]
            self.stands_out[call] = any(map(self._is_over, of_leaves, usual))
            skip.teach(log)
            for history, leaf_log in zip(leaves, of_leaves, strict=True):
                history.teach(leaf_log)

    def _is_over(self, log: float, bound: float, error: float = BOUND_ERROR) -> bool:
        self.margin = min(
            self.margin, abs(log - bound) / error if math.isfinite(bound) else math.inf
        )
        return log > bound

    def coefs(self, calls: slice) -> np.ndarray:
        with np.errstate(divide="ignore"):
            smallest = np.minimum(1, self.bounds[calls] / self.group_norms[calls]).min(axis=1)
        return np.where(self.skipped[calls], 0, smallest)

    def last(self, which: np.ndarray, until: int) -> int:
        """The last call before `until` for which `which` holds."""
        return int(np.flatnonzero(which[:until])[-1])


@functools.cache
def account() -> Account:
    return Account(stream().grads)


def test_no_decision_is_so_close_that_float32_may_make_it_otherwise():
    assert account().margin > 2


# The run, in parts, each of which goes on from a copy that was on the host.


@functools.cache
def run() -> list[Any]:
    """After each part: parameters, state, and the bounds of its calls."""
    made: list[Any] = []
    carried = PARAMS, GUARDED.init(PARAMS)
    for grads in np.split(stream().grads, PARTS):
        carried, bounds = trained(GUARDED, *jax.device_put(jax.device_get(carried)), grads)
        made.append((*carried, decoded(np.asarray(bounds))))
    return made


each_part = pytest.mark.parametrize("part", range(PARTS))


def calls_after(part: int) -> int:
    return (part + 1) * CALLS // PARTS


@each_part
def test_every_count_is_that_of_the_account(part: int):
    expected, calls = account(), calls_after(part)
    _, state, _ = run()[part]
    skipped, clipped = expected.skipped[:calls], expected.clipped[:calls]
    in_a_row = calls - 1 - expected.last(expected.taken, calls)
    counts = {
        "calls": calls,
        "step": int(expected.taken[:calls].sum()),
        "clipped_count": int(clipped.any(axis=1).sum()),
        "nonfinite_count": calls - int(expected.is_finite[:calls].sum()),
        "skipped_count": int(skipped.sum()),
        "consecutive_skips": in_a_row,
        "last_skipped_call": expected.last(expected.skipped, calls),
    }
    known = wc.metrics(state)
    assert {name: int(known[name]) for name in counts} == counts
    assert state.clip_state.group_clipped_count.tolist() == clipped.sum(axis=0).tolist()
    # The optimizer saw the updates alone.
    assert int(optax.tree.get(state.inner_state[0], "count")) == counts["step"]
    assert counts["consecutive_skips"] < 10 < 1000 < counts["clipped_count"]


@each_part
def test_the_bounds_are_those_of_the_account(part: int):
    bounds = run()[part][2]
    expected = account().bounds[calls_after(part) - len(bounds) : calls_after(part)]
    np.testing.assert_allclose(bounds, expected, rtol=BOUND_ERROR, atol=0)


@each_part
def test_the_record_is_the_log_of_the_last_calls(part: int):
    expected, calls = account(), calls_after(part)
    last, known = slice(calls - RECORD, calls), wc.records(run()[part][1])
    skipped, steps = expected.skipped[last], np.cumsum(expected.taken)[last]
    assert known["call"].tolist() == list(range(calls - RECORD, calls))
    assert known["step"].tolist() == steps.tolist()
    assert known["skipped"].tolist() == skipped.tolist()
    assert skipped.any()
    finite = expected.is_finite[last]
    np.testing.assert_array_equal(
        np.isfinite(known["grad_norm"]), finite & (expected.norms[last] < 2.0**128)
    )
    seen = np.isfinite(known["grad_norm"])
    np.testing.assert_allclose(
        known["grad_norm"][seen], expected.norms[last][seen], rtol=NORM_ERROR
    )
    np.testing.assert_allclose(known["skip_bound"], expected.skip_bounds[last], rtol=BOUND_ERROR)
    np.testing.assert_allclose(known["clip_coef"], expected.coefs(last), rtol=2 * BOUND_ERROR)
    rates = reference.warmup_cosine_decay(steps - 1, **RATE)
    np.testing.assert_array_equal(np.isnan(known["learning_rate"]), skipped)
    np.testing.assert_allclose(
        known["learning_rate"][~skipped], rates[~skipped], rtol=0, atol=1e-3 * 4 * 2.0**-24
    )


@each_part
def test_the_report_names_exactly_the_leaves_that_something_was_put_into(part: int):
    expected, calls = account(), calls_after(part)
    text = wc.report(run()[part][1])
    bad, spike = expected.last(~expected.is_finite, calls), expected.last(expected.is_spike, calls)
    assert f"\nLast call with NaN or inf: call {bad}" in text
    assert f"There were {calls - expected.is_finite[:calls].sum()} such calls in all." in text
    told = {
        kind: names.split(", ")
        for kind, names in re.findall(r"Leaves with (NaN|inf), \d of 6: (.*)", text)
    }
    injected = stream().injected[bad]
    kinds = {name: "NaN" if math.isnan(value) else "inf" for name, value in injected.items()}
    assert told == {
        kind: [name for name in kinds if kinds[name] == kind] for kind in set(kinds.values())
    }
    assert f"\n  Finite leaves: {6 - len(injected)}.\n" in text

    assert f"\nLast spike: call {spike}" in text
    ranked = [
        line.split() for line in text.split("times usual       norm  leaf\n")[1].splitlines()[:5]
    ]
    assert {name for ratio, _, name in ranked if float(ratio) > 20} == set(stream().injected[spike])
    for _, norm, name in ranked:
        np.testing.assert_allclose(
            float(norm), expected.leaf_norms[spike, NAMES.index(name)], rtol=0.006
        )  # three digits
    assert f"Record: calls {calls - RECORD} to {calls - 1}.\n" in text


def test_the_parameters_are_those_of_a_run_without_the_skipped_calls():
    taken = account().taken
    bounds = np.concatenate([bounds for _, _, bounds in run()])[taken]
    # Skipped calls teach a running bound. So the other run is given the bounds of this one, as
    # schedules of its updates.
    table = jnp.asarray(bounds)
    rules = {
        label: functools.partial(lambda count, place: table[count, place], place=place)
        for place, label in enumerate(GROUPS)
    }
    (params, state), _ = trained(
        optimizer(max_norm=rules),
        PARAMS,
        optimizer(max_norm=rules).init(PARAMS),
        stream().grads[taken],
    )
    got_params, got_state, _ = run()[-1]
    chex.assert_trees_all_equal(got_params, params)
    chex.assert_trees_all_equal(got_state.inner_state, state.inner_state)
    assert int(state.skipped_count) == 0
    assert not np.array_equal(params["head"], PARAMS["head"])
