"""`report`: a NaN, an inf and a spike are found by call and leaf, from the state alone, and nothing
else is.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import warmclip_jax as wc

PARAMS = {
    "blocks": [
        {"kernel": jnp.ones((8, 3))},
        {"kernel": jnp.full((16,), 0.2), "bias": jnp.full((8,), 0.1)},
    ],
    "embed": {"table": jnp.full((8, 5), 2.0)},
    "head": jnp.full((8,), 0.5),
}
NAMES = ["blocks/0/kernel", "blocks/1/bias", "blocks/1/kernel", "embed/table", "head"]
CALLS = 150
RECORDED: dict[str, Any] = {"record": CALLS, "record_leaves": True}
SKIP = wc.running_bound(deviations=6.0)
PIPELINE = wc.pipeline(optax.adam, 0.1, max_norm=wc.running_bound(), skip_above=SKIP, **RECORDED)
ACCUMULATED: Any = wc.skip_nonfinite(
    optax.MultiSteps(wc.pipeline(optax.sgd, 0.1), 3), above=SKIP, **RECORDED
)
NOTHING = {"bad_call": -1, "bad_leaf": 0, "value": 0.0, "spike_call": -1, "spike_leaf": 0}


def gradients(call: Any, injected: Any) -> Any:
    """Noise around the parameters, with a value in one leaf at one call and one leaf multiplied at
    another.
    """
    leaves, structure = jax.tree.flatten(PARAMS)
    noise = jnp.exp(
        0.2 * jax.random.normal(jax.random.fold_in(jax.random.key(0), call), (len(leaves),))
    )
    made = []
    for place, leaf in enumerate(leaves):
        is_spike = (call == injected["spike_call"]) & (place == injected["spike_leaf"])
        is_bad = (call == injected["bad_call"]) & (place == injected["bad_leaf"])
        leaf = leaf * noise[place] * jnp.where(is_spike, 1e4, 1.0)
        made.append(
            jnp.where(
                is_bad & (jnp.arange(leaf.size) == leaf.size // 2).reshape(leaf.shape),
                injected["value"],
                leaf,
            )
        )
    return structure.unflatten(made)


def scanned(optimizer: Any, calls: int, injected: Any) -> Any:
    def body(state: Any, call: jax.Array) -> Any:
        return optimizer.update(gradients(call, injected), state, PARAMS)[1], None

    return jax.lax.scan(body, optimizer.init(PARAMS), jnp.arange(calls))[0]


@jax.jit
def in_shards(injected: Any) -> Any:
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def body(state: Any, call: jax.Array) -> Any:
        shards = PartitionSpec("d")

        @functools.partial(
            jax.shard_map,
            mesh=mesh,
            in_specs=(shards, PartitionSpec(), shards),
            out_specs=PartitionSpec(),
        )
        def update(grads: Any, state: Any, params: Any) -> Any:
            return clip.update(grads, state, params)[1]

        return update(gradients(call, injected), state, PARAMS), None

    clip = wc.skip_nonfinite(optax.identity(), above=SKIP, **RECORDED)
    return jax.lax.scan(body, clip.init(PARAMS), jnp.arange(CALLS))[0]


RUNS: dict[str, tuple[int, Any]] = {
    "MultiSteps": (CALLS, jax.jit(functools.partial(scanned, ACCUMULATED, CALLS))),
    "shards": (CALLS, in_shards),
    "long": (10_000, jax.jit(functools.partial(scanned, PIPELINE, 10_000))),
}


@pytest.mark.parametrize("name", RUNS)
def test_what_was_injected_is_found_by_leaf_and_call_from_the_state_alone(name: str):
    calls, run = RUNS[name]
    rng = np.random.default_rng(len(name))
    for value, kind in ((np.nan, "NaN"), (-np.inf, "inf")):
        # Among the last calls, which the ring has; and after a few, so that something is usual.
        bad, spike = (
            int(call) for call in rng.choice(np.arange(20, CALLS), 2, replace=False) + calls - CALLS
        )
        bad_leaf, spike_leaf = (int(leaf) for leaf in rng.integers(len(NAMES), size=2))
        injected = {
            "bad_call": bad,
            "bad_leaf": bad_leaf,
            "value": value,
            "spike_call": spike,
            "spike_leaf": spike_leaf,
        }
        state = run(injected)
        text = wc.report(state)
        assert (
            f"Last call with NaN or inf: call {bad}, step {bad - (spike < bad)}, skipped.\n" in text
        )
        assert f"\n  Leaves with {kind}, 1 of 5: {NAMES[bad_leaf]}\n  Finite leaves: 4.\n" in text
        assert f"\nLast spike: call {spike}, step {spike - (bad < spike)}, skipped. Norm " in text
        ranked = text.split("times usual       norm  leaf\n")[1].splitlines()
        assert ranked[0].endswith(f" {NAMES[spike_leaf]}")
        assert float(ranked[0].split()[0]) > 1000 > 3 > float(ranked[1].split()[0])
        known = wc.records(state)
        assert known["call"][known["skipped"]].tolist() == sorted([bad, spike])
        assert known["call"][~np.isfinite(known["grad_norm"])].tolist() == [bad]


@pytest.mark.parametrize("name", RUNS)
def test_nothing_is_found_where_nothing_was_injected(name: str):
    text = wc.report(RUNS[name][1](NOTHING))
    assert "No call had a NaN or inf.\n" in text
    assert not re.search("spike|Leaves|[Ss]kipped: [1-9]", text)


def grads_like(**changed: float) -> dict[str, jax.Array]:
    return {name: jnp.full(2, 0.5) * changed.get(name, 1.0) for name in ("a", "b", "c")}


@functools.cache
def pipeline(**options: Any) -> Any:
    return wc.pipeline(optax.sgd, 0.1, **options)


@functools.cache
def update(optimizer: Any) -> Any:
    return jax.jit(optimizer.update)


def after(optimizer: Any, stream: list[Any], values: Any = None) -> Any:
    state = optimizer.init(stream[0])
    for grads, value in zip(stream, values or [None] * len(stream), strict=True):
        given = {} if value is None else {"value": jnp.float32(value)}
        _, state = update(optimizer)(grads, state, grads, **given)
    return state


def told(optimizer: Any, stream: list[Any], values: Any = None) -> str:
    return wc.report(after(optimizer, stream, values))


USUAL, BAD = [grads_like()] * 10, grads_like(a=np.nan)


def test_a_spike_is_still_told_after_many_calls_that_were_clipped_as_usual():
    clip = pipeline(max_norm=0.5, record=4, record_leaves=True)
    text = told(clip, [*USUAL, grads_like(b=100.0), *USUAL])
    assert "Last spike: call 10. Norm 70.7.\n" in text
    ranked = re.search(r"leaf\n +(\S+) +70\.7  b\n +1 +0\.707  [ac]\n", text)
    # The spike itself has moved what is usual for its leaf a little.
    assert ranked
    assert 50 < float(ranked[1]) <= 100
    assert "Clipped: 21 calls, 100.0%." in text


def test_a_clipped_call_without_a_leaf_that_stands_out_is_no_spike():
    text = told(pipeline(max_norm=0.5, record=4, record_leaves=True), USUAL)
    assert (
        "Last call over a bound: call 9, step 10, multiplied by 0.408. Norm 1.22, over the bound "
        "of 0.5.\n" in text
    )
    assert "spike" not in text


def test_runs_of_skips_and_a_run_that_stands_still_are_told():
    good = grads_like()
    stream = [*USUAL, BAD, good, BAD, BAD, good, BAD, BAD, BAD]
    text = told(pipeline(record=64), stream)
    assert text.startswith(
        "Calls: 18, numbered from 0. Updates: 12. Skipped: 6, the last at call 17.\nAll of the "
        "last 3 calls"
    )
    assert (
        "Last call with NaN or inf: call 17, step 12, skipped. There were 6 such calls in all."
        in text
    )
    assert "\n  Skipped: 10, 12 to 13, 15 to 17. Longest run: 3 calls." in text
    assert "Record: calls 0 to 17." in text


def test_the_first_and_the_last_of_a_long_run_of_bad_calls_are_told():
    stream = [*USUAL, BAD, *[grads_like(a=np.nan, b=np.inf)] * 30, *USUAL]
    text = told(pipeline(record=64, record_leaves=True), stream)
    assert "Last call with NaN or inf: call 40, step 10, skipped. There were 31 such calls" in text
    assert (
        "\n  The first of that run: call 10, step 10, skipped.\n  Leaves with NaN, 1 of 3: a\n"
        in text
    )
    assert "Record: calls 0 to 50, without 26 to 40.\n" in text
    text = told(pipeline(record=64), stream)
    assert "Last recorded call with NaN or inf: call 25, step 10, skipped. There were 31" in text
    assert "Clipped: 10 calls, 90.9%." in told(pipeline(), [*USUAL, BAD])
    assert "Clipped: 1 call, 50.0%." in told(pipeline(), [USUAL[0], BAD])


def test_a_call_that_was_skipped_for_its_norm_or_loss_is_no_bad_one():
    optimizer = pipeline(skip_above=10.0, skip_value_above=5.0)
    state = after(optimizer, [*USUAL, grads_like(a=100.0)])
    # As after a change-over: counted by whoever came before.
    state = state._replace(clip_state=state.clip_state._replace(nonfinite_count=jnp.int32(1)))
    assert "Calls with NaN or inf: 1. When they came is not known.\n" in wc.report(state)
    text = told(optimizer, USUAL[:2], [np.nan, 9.0])
    assert "\nCalls whose value was NaN or inf: 1.\n" in text
    assert "Calls with NaN or inf" not in text
    assert "over a bound" not in text


def test_a_state_that_knows_little_says_what_it_would_need():
    wish = "record=256 keeps the last calls (pipeline, skip_nonfinite); record_leaves=True keeps which leaves."
    text = told(wc.clip_by_global_norm(1.0), [*USUAL, BAD])
    assert "Calls with NaN or inf: 1. When they came is not known.\n" in text
    assert text.endswith(wish)
    skipping = told(pipeline(), [*USUAL, BAD, *USUAL])
    assert "Last call with NaN or inf: call 10, step 10, skipped.\nClipped: 20 calls" in skipping
    assert skipping.endswith(wish)
    assert "To know more" not in told(pipeline(record=64, record_leaves=True), USUAL)
    ringed = told(pipeline(record=64, max_norm=2.0), [*USUAL, grads_like(b=100.0), BAD, *USUAL])
    assert "Last call with NaN or inf: call 11, step 11, skipped.\n" in ringed
    assert (
        "Last call over a bound: call 10, step 11, multiplied by 0.0283. Norm 70.7, over the bound "
        "of 2.\n" in ringed
    )


def test_a_state_before_its_first_call_says_so():
    text = wc.report(pipeline(record=4, record_leaves=True).init(grads_like()))
    assert text == "Calls: 0, numbered from 0. Updates: 0. Skipped: 0."


def test_groups_are_told_by_name_the_most_clipped_first():
    rules = {"a": 10.0, "b": 0.5, "c": None}
    grouped = wc.pipeline(optax.sgd, 0.1, max_norm=rules, groups=wc.label_by_path())
    text = told(grouped, USUAL)
    lines = text.splitlines()
    start = lines.index("  Groups: 3. Of each, calls clipped; norm and bound at the last call:")
    assert [line.split() for line in lines[start + 1 : start + 4]] == [
        ["10", "norm", "0.707,", "bound", "0.5", "b"],
        ["0", "norm", "0.707,", "bound", "10", "a"],
        ["0", "norm", "0.707,", "no", "bound", "c"],
    ]
    assert "Last call: norm 1.22, learning rate 0.1." in text


def test_several_states_have_a_section_each():
    both = optax.named_chain(
        ("first", wc.clip_by_global_norm(2.0)), ("second", wc.skip_nonfinite(optax.sgd(0.1)))
    )
    lines = told(both, USUAL).splitlines()
    assert [line for line in lines if line.endswith(":")] == [
        "ClipState at first:",
        "SkipState at second:",
    ]
    assert sum(line.startswith("Calls: 10") for line in lines) == 2


def test_under_nnx_the_leaves_have_the_names_of_the_model():
    model: Any = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, pipeline(record=4, record_leaves=True), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> None:
        def loss(model: Any) -> jax.Array:
            return jnp.sum(model(jnp.ones((1, 2)))) + jnp.nan * model.bias[1]

        optimizer.update(model, nnx.grad(loss)(model))

    step(model, optimizer)
    states: Any = (
        optimizer,
        optimizer.opt_state,
        nnx.state(optimizer),
        nnx.to_pure_dict(nnx.state(optimizer)),
    )
    for state in states:
        assert "Leaves with NaN, 1 of 2: bias\n  Finite leaves: 1." in wc.report(state)


def test_of_vmapped_runs_each_has_a_line_the_worst_first():
    optimizer = pipeline(max_norm=1.0)
    # Of each call, in each run.
    scales = jnp.array([[1.0, 0.5, 3.0], [jnp.nan, 1.0, jnp.inf], [jnp.nan, 1.0, 1.0]])
    states = jax.vmap(optimizer.init, axis_size=3, in_axes=None)({"a": jnp.zeros(2)})
    step = jax.jit(
        jax.vmap(lambda scale, state: optimizer.update({"a": scale * jnp.eye(2)[0]}, state)[1])
    )
    for call in scales:
        states = step(call, states)
    assert wc.report(states).splitlines() == [
        "Runs: 3, the worst first. What is 0 is left out.",
        "  Run 0: calls 3, skipped 2, skipped in a row 2, with NaN or inf 2, learning rate 0.1.",
        "  Run 2: calls 3, skipped 1, with NaN or inf 1, clipped 1, norm 1, learning rate 0.1.",
        "  Run 1: calls 3, norm 1, learning rate 0.1.",
        "More of one run: wc.report(jax.tree.map(lambda leaf: leaf[0], opt_state)).",
    ]
    assert "Skipped: 2" in wc.report(jax.tree.map(lambda leaf: leaf[0], states))
    grid = jax.tree.map(lambda leaf: jnp.tile(leaf[:, None], (1, 100)), states)
    lines = wc.report(grid).splitlines()
    assert lines[0] == "Runs: 300, the worst first. What is 0 is left out."
    assert lines[1].startswith("  Run 0, ")
    assert lines[21:] == ["  And 280 more.", lines[-1]]
    assert re.search(r"leaf\[0, \d+\], opt_state", lines[-1])


def test_several_clips_in_vmapped_runs_are_told_by_the_worst_of_them():
    optimizer = optax.named_chain(
        ("first", wc.clip_by_global_norm(1.0)), ("second", wc.clip_by_global_norm(2.0))
    )
    states = jax.vmap(lambda norm: optimizer.init(norm * jnp.ones(2)))(jnp.ones(2))
    step = jax.jit(jax.vmap(lambda norm, state: optimizer.update(norm * jnp.eye(2)[0], state)[1]))
    states = step(jnp.array([4.0, 8.0]), states)
    assert "\n  Run 1: calls 1, clipped 1, norm 8.\n  Run 0: " in wc.report(states)
    with pytest.raises(ValueError, match=r"report: opt_state must be of one run, or all of it"):
        wc.report((states, optimizer.init(jnp.ones(2))))


def test_what_nobody_counted_before_a_change_over_is_not_told():
    params = grads_like()
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    old = after(adam, USUAL)
    optimizer = wc.pipeline(optax.adam, 0.1, record=4)
    state = wc.adopt_state(optimizer, params, old, step=10)
    assert wc.report(state).splitlines()[:2] == [
        "Calls: 10, numbered from 0. Updates: 10. Skipped since call 10: 0.",
        "Not known: what happened before the change-over at call 10.",
    ]
    assert len(wc.report(state).splitlines()) == 3
    for grads in (params, grads_like(a=100.0)):
        _, state = update(optimizer)(grads, state, params)
    text = wc.report(state)
    assert "\nNo call since call 10 had a NaN or inf.\n" in text
    assert "\nClipped: 2 calls, 100.0% of those since call 10.\n" in text
    _, state = update(optimizer)(BAD, state, params)
    assert "Skipped since call 10: 1, the last at call 12." in wc.report(state)
    assert "\nLast call with NaN or inf: call 12, step 12, skipped.\n" in wc.report(state)


def test_a_state_in_a_trace_or_of_shapes_is_an_error_in_words():
    optimizer = wc.clip_by_global_norm(1.0)
    for function in (wc.report, wc.records):
        with pytest.raises(TypeError, match=rf"{function.__name__}: opt_state must hold.*traced"):
            jax.jit(function)(optimizer.init(jnp.ones(2)))
    shapes = jax.eval_shape(optimizer.init, jnp.ones(2))
    for function in (wc.report, wc.metrics, wc.records, wc.plot_records):
        with pytest.raises(TypeError, match="opt_state must hold arrays; got their shapes alone"):
            function(shapes)


def test_a_call_that_was_skipped_for_its_loss_is_over_no_bound_of_the_norm():
    optimizer = pipeline(skip_above=1e3, skip_value_above=5.0, **RECORDED)
    text = told(optimizer, USUAL[:2], [1.0, 9.0])
    assert "Last finite call that was skipped: call 1" in text
    assert "over the bound" not in text


def test_after_a_change_to_groups_the_norm_of_the_last_call_is_not_known():
    params = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    grouped = pipeline(max_norm=9.0, groups=wc.label_by_path())
    state = after(pipeline(max_norm=9.0), [params])
    state = wc.adopt_state(grouped, params, state, step=1)
    assert "Last call: norm not known, learning rate 0.1." in wc.report(state)
    _, state = update(grouped)(params, state)
    assert "Last call: norm 5, learning rate 0.1." in wc.report(state)


@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_bad_calls_that_were_not_skipped_are_updates_taken_in_the_trouble(nonfinite: Any):
    optimizer = pipeline(nonfinite=nonfinite, record=64)
    text = told(optimizer, [*USUAL, *[BAD] * 20])
    assert "Updates taken in the trouble: 20. If the loss stays worse" in text
    assert "checkpoints written since are sound" not in text
    # A loss names no call of a gradient.
    text = told(pipeline(nonfinite=nonfinite), USUAL[:1], [np.nan])
    assert "Calls whose value was NaN or inf: 1." in text
    assert "call with NaN or inf" not in text
