"""Bounds in use: what a pipeline with running and scheduled bounds does at each call of a run,
against a loop in NumPy.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests import reference
from tests.cases import case
from tests.trees import assert_same_bits

CALLS = 240


def stream(seed: int) -> np.ndarray:
    """Lognormal norms with spikes, collapses, a lasting change, and calls that are NaN, inf or
    zero.
    """
    rng = np.random.default_rng(seed)
    norms = np.exp(rng.normal(0, 0.4, CALLS))
    norms[CALLS // 2 :] *= 5
    at = rng.permutation(np.arange(5, CALLS))
    norms[at[:8]] *= 40
    norms[at[8:12]] /= 1000
    for place, value in zip(at[12:21], [math.nan, math.inf, 0.0] * 3, strict=True):
        norms[place] = value
    return norms.astype(np.float32)


def direction(size: int) -> np.ndarray:
    entries = np.random.default_rng(size).standard_normal(size)
    return entries / np.sqrt(np.sum(entries**2))


def gradients(norm: Any) -> dict[str, Any]:
    """Two leaves, of which one has 0.6 and the other 0.8 of the norm."""
    return {
        "a": norm * jnp.asarray(0.6 * direction(5), jnp.float32),
        "b": norm * jnp.asarray(0.8 * direction(7), jnp.float32),
    }


PARAMS = {"a": np.zeros(5, np.float32), "b": np.zeros(7, np.float32)}
CLIP_CEILING = wc.polynomial_decay(init_value=4.0, end_value=1.0, decay_steps=100)
SKIP_CEILING = wc.polynomial_decay(init_value=9.0, end_value=30.0, decay_steps=200)


def built(**options: Any) -> Any:
    return wc.pipeline(
        optax.sgd, 1.0, **{"max_norm": None, "record": CALLS, "record_leaves": True, **options}
    )


def call(optimizer: Any, state: Any, norm: Any) -> Any:
    """The state after a call, and the norms of what it did to each leaf."""
    updates, state = optimizer.update(gradients(norm), state, PARAMS)
    return state, wc.leaf_norms(updates)


@functools.partial(jax.jit, static_argnums=0)
def scanned(optimizer: Any, state: Any, norms: Any) -> Any:
    return jax.lax.scan(lambda state, norm: call(optimizer, state, norm), state, norms)


def log_of(norm: float) -> float:
    return math.log(norm) if 0 < norm < math.inf else -math.inf if norm == 0 else math.nan


class Expected:
    """The run in float64: what each call does, with `max_norm` and `skip_above` as functions of the
    history and a count.
    """

    def __init__(self, clip: Any, skip: Any, groups: dict[str, float]):
        self.clips = [clip() for _ in groups]
        self.skip, self.groups, self.updates = skip(), groups, 0

    def call(self, number: int, norm: float) -> tuple[bool, float, list[float], list[float]]:
        """Whether it is skipped, the bound of that, the bounds of groups, and the coefficients."""
        log, above = log_of(norm), self.skip.at(number)
        skipped = not math.isfinite(norm) or log > above
        bounds = [clip.at(self.updates) for clip in self.clips]
        logs = [log + math.log(part) for part in self.groups.values()]
        # Of no norm the rest is not defined, and a norm of 0 is not clipped.
        coefs = [
            math.exp(min(0.0, bound - each)) if each > -math.inf else 1.0
            for bound, each in zip(bounds, logs, strict=True)
        ]
        self.skip.teach(log)
        for clip, each in zip(self.clips, logs, strict=True):
            clip.teach(each)
        self.updates += not skipped
        return skipped, above, bounds, coefs


class Running(reference.RunningBound):
    def __init__(self, schedule: Any = None, **options: Any):
        super().__init__(**options)
        self.schedule = schedule

    def at(self, count: int) -> float:
        if self.schedule is not None:
            self.ceiling = float(np.asarray(self.schedule(count)))
        return self.log_bound


class Scheduled:
    def __init__(self, schedule: Any):
        self.schedule = schedule

    def at(self, count: int) -> float:
        return math.log(self.schedule(count))

    def teach(self, log_norm: float) -> None:
        pass


def polynomial(count: int, start: float, end: float, steps: int) -> float:
    return float(
        reference.polynomial_decay(count, init_value=start, end_value=end, decay_steps=steps)
    )


def clip_ceiling(count: int) -> float:
    return polynomial(count, 4.0, 1.0, 100)


def skip_ceiling(count: int) -> float:
    return polynomial(count, 9.0, 30.0, 200)


#: A pipeline, and what its clips and its skip are in float64.
RUNS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "running": (
        {"max_norm": wc.running_bound(), "skip_above": wc.running_bound(deviations=6.0)},
        Running,
        functools.partial(Running, deviations=6.0),
    ),
    "scheduled": (
        {"max_norm": CLIP_CEILING, "skip_above": SKIP_CEILING},
        functools.partial(Scheduled, clip_ceiling),
        functools.partial(Scheduled, skip_ceiling),
    ),
    "ceilings": (
        {
            "max_norm": wc.running_bound(deviations=2.0, ceiling=CLIP_CEILING, decay=0.95),
            "skip_above": wc.running_bound(deviations=5.0, ceiling=SKIP_CEILING),
        },
        functools.partial(Running, clip_ceiling, deviations=2.0, decay=0.95),
        functools.partial(Running, skip_ceiling, deviations=5.0),
    ),
}


@pytest.mark.parametrize("grouped", [False, True], ids=["whole", "groups"])
@pytest.mark.parametrize("name", RUNS)
def test_every_call_does_what_the_rule_says(name, grouped):
    options, clip, skip = RUNS[name]
    parts = {"a": 0.6, "b": 0.8} if grouped else {"": 1.0}
    optimizer = built(**options, groups={"a": "a", "b": "b"} if grouped else None)
    for seed in range(3):
        norms = stream(seed)
        state, done = scanned(optimizer, optimizer.init(PARAMS), norms)
        expected = Expected(clip, skip, parts)
        calls = [expected.call(call, norm) for call, norm in enumerate(norms.astype(np.float64))]
        skipped, above, bounds, coefs = (np.array(each) for each in zip(*calls, strict=True))
        rows, close = wc.records(state), functools.partial(np.testing.assert_allclose, rtol=1e-4)
        with case(seed=seed):
            np.testing.assert_array_equal(rows["skipped"], skipped)
            close(rows["skip_bound"], np.exp(above))
            if not grouped:
                close(rows["max_norm"], np.exp(bounds[:, 0]))
            for group, (leaf, share) in enumerate([("a", 0.6), ("b", 0.8)]):
                coef = coefs[:, group if grouped else 0]
                close(done[leaf], np.where(skipped, 0, coef * share * norms))
            known = wc.metrics(state)
            assert int(known["skipped_count"]) == np.sum(skipped) > 8
            clipped = np.sum(~skipped & (np.min(coefs, axis=1) < 1))
            assert abs(int(known["clipped_count"]) - clipped) <= 1
            assert int(known["step"]) == CALLS - np.sum(skipped)
            if grouped:
                of_groups = np.asarray(state.clip_state.group_clipped_count)
                assert of_groups.max() <= int(known["clipped_count"])


def test_a_loop_a_scan_and_a_run_resumed_in_the_middle_are_the_same_to_the_bit():
    optimizer = built(**RUNS["ceilings"][0], groups=wc.label_by_path())
    norms = stream(7)[:60]
    whole, done = scanned(optimizer, optimizer.init(PARAMS), norms)
    half, first = scanned(optimizer, optimizer.init(PARAMS), norms[:30])
    resumed, second = scanned(optimizer, jax.tree.map(jnp.copy, half), norms[30:])
    assert_same_bits(
        (resumed, jax.tree.map(lambda *parts: jnp.concatenate(parts), first, second)), (whole, done)
    )
    step = jax.jit(functools.partial(call, optimizer), donate_argnums=0)
    state = optimizer.init(PARAMS)
    for norm in norms:
        state, _ = step(state, norm)
    # XLA may contract other products in a loop than in a single step.
    for looped, at_once in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(looped, at_once, rtol=1e-5, atol=1e-6)


def test_runs_side_by_side_are_single_runs_and_may_differ_in_their_deviations():
    def run(deviations: Any, ceiling: Any, norms: Any) -> Any:
        bound = wc.running_bound(deviations=deviations, ceiling=ceiling)
        optimizer = built(
            max_norm=bound, skip_above=wc.running_bound(deviations=2 * deviations), groups="all"
        )
        return jax.lax.scan(
            lambda state, norm: call(optimizer, state, norm), optimizer.init(PARAMS), norms
        )

    deviations, ceilings = jnp.float32([1.0, 3.0, 6.0]), jnp.float32([1.0, 100.0, 2.0])
    norms = np.stack([stream(seed)[:80] for seed in range(3)])
    together = jax.jit(jax.vmap(run))(deviations, ceilings, norms)
    single = jax.jit(run)
    for place in range(3):
        alone = single(deviations[place], ceilings[place], norms[place])
        for one, all_of_them in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(all_of_them[place], one, rtol=1e-5, atol=1e-6)


def test_a_guard_of_another_optimizer_decides_by_the_same_rule():
    guard: Any = wc.skip_nonfinite(
        optax.sgd(1.0), above=wc.running_bound(deviations=6.0), record=CALLS
    )
    pipeline = built(max_norm=None, skip_above=wc.running_bound(deviations=6.0))
    norms = stream(1)
    (guarded, _), (piped, _) = (
        scanned(optimizer, optimizer.init(PARAMS), norms) for optimizer in (guard, pipeline)
    )
    for field in ("skipped_count", "consecutive_skips", "last_skipped_call", "above_bound"):
        np.testing.assert_array_equal(getattr(guarded, field), getattr(piped, field))
    np.testing.assert_array_equal(wc.records(guarded)["skipped"], wc.records(piped)["skipped"])


def test_a_fixed_bound_of_skipping_skips_what_is_above_it_and_not_what_is_at_it():
    for bound, skipped in (
        (1.0, [False, False, False, True, True]),
        (0.0, [False, True, True, True, True]),
        (math.inf, [False] * 5),
    ):
        guard: Any = wc.skip_nonfinite(optax.sgd(1.0), above=bound)
        got = []
        state = guard.init(np.zeros(1, np.float32))
        for entry in (0.0, 0.5, 1.0, 1.0000001, 3e38):
            before = int(state.skipped_count)
            _, state = guard.update(np.full(1, entry, np.float32), state)
            got.append(int(state.skipped_count) > before)
        assert got == skipped, bound
