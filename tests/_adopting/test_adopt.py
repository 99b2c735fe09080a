"""A run that changes over goes on as the run that never did, with every count; or it is refused."""

import collections
import dataclasses
import functools
import random
from typing import Any, NamedTuple

import chex
import flax.serialization
import flax.training.train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import warmclip_jax as wc
from warmclip_jax._clipping import ClipState, Ring, SkipState, from_keys
from warmclip_jax._pipeline import PipelineState

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(3, 2), "b": jnp.array([0.5, -2.0])}
MASK, LABELS = {"w": True, "b": False}, {"w": "matrix", "b": "bias"}
SCHEDULE = optax.linear_schedule(0.1, 0.0, 16)
NEAR, FAR = wc.running_bound(deviations=0.5), wc.running_bound(deviations=6.0)
CLIP, RECORD = wc.clip_by_global_norm(NEAR), {"record": 4, "record_leaves": True}
momentum = functools.partial(optax.sgd, momentum=0.9)
injected = optax.inject_hyperparams(momentum)
SGD = momentum(SCHEDULE)
CLIP_OF_OPTAX, ALL = optax.clip_by_global_norm(1.0), "nan spike loss"
PLAIN = optax.chain(CLIP_OF_OPTAX, SGD)
GROUPS: Any = {"max_norm": {"matrix": NEAR, "bias": 0.5}, "groups": LABELS}
SKIPS: Any = {"max_norm": None, "skip_above": FAR, "skip_value_above": FAR}


class Recipe(NamedTuple):
    """An optimizer, the states of ours in it by where they stand, and the faults it can skip."""

    optimizer: Any
    ours: str = ""
    skips: str = ""


def pipeline(optimizer: Any = momentum, **options: Any) -> Any:
    return wc.pipeline(optimizer, SCHEDULE, **options)


def piped(*optimizer: Any, skips: str = "nan", **options: Any) -> Recipe:
    return Recipe(pipeline(*optimizer, **options), "clip guard", skips)


def clipped(clip: Any) -> Recipe:
    return Recipe(optax.chain(clip, SGD), "clip")


def guarded(*inner: Any, where: str = "guard guard/clip", **options: Any) -> Recipe:
    return Recipe(wc.skip_nonfinite(optax.chain(*inner), **options), where, ALL)


def parted(first: Any) -> Any:
    return optax.partition({True: first, False: SGD}, MASK)


NAMED = optax.named_chain(("0", CLIP_OF_OPTAX), ("1", SGD))
#: The state of a named chain is a dict like any other in the oldest optax: it is refused there.
HAS_NAMED_CHAINS = isinstance(NAMED.init(jnp.zeros(1)), collections.OrderedDict)

#: Optimizers that do the same with the same gradients.
FAMILIES: dict[str, dict[str, Recipe]] = {
    "a number": {
        "plain": Recipe(PLAIN),
        **({"named_chain": Recipe(NAMED)} if HAS_NAMED_CHAINS else {}),
        "inject_hyperparams": Recipe(optax.chain(CLIP_OF_OPTAX, injected(SCHEDULE))),
        "apply_if_finite": Recipe(optax.apply_if_finite(PLAIN, 9), "", "nan"),
        "clip": clipped(wc.clip_by_global_norm(1.0)),
        "pipeline": piped(),
        "recorded": piped(**RECORD),
        "longer": piped(injected, record=20),
    },
    "a running bound": {
        "clip": clipped(CLIP),
        "clip of leaves": clipped(wc.clip_by_global_norm(NEAR, record_leaves=True)),
        "pipeline": piped(max_norm=NEAR),
        "recorded": piped(max_norm=NEAR, **RECORD),
    },
    "groups": {
        "clip": clipped(wc.clip_by_group_norm(GROUPS["max_norm"], LABELS)),
        "pipeline": piped(**GROUPS),
    },
    "skips": {
        "guard": guarded(SGD, where="guard", above=FAR, value_above=FAR, **RECORD),
        "pipeline": piped(skips=ALL, **SKIPS, record=3),
        "recorded": piped(skips=ALL, **SKIPS, record=20, record_leaves=True),
    },
    "a clip in a guard": {
        "guard": guarded(CLIP, SGD, above=FAR, value_above=9.0),
        "recorded": guarded(CLIP, SGD, above=FAR, value_above=9.0, **RECORD),
    },
    "a guard behind a clip": {
        "clip": clipped(CLIP),
        "guard": Recipe(optax.chain(CLIP, wc.skip_nonfinite(SGD)), "clip clip/guard", "nan"),
    },
    "MultiSteps": {
        "plain": Recipe(optax.MultiSteps(PLAIN, 2)),
        "guard": Recipe(wc.skip_nonfinite(optax.MultiSteps(PLAIN, 2)), "guard", "nan"),
        "pipeline": Recipe(optax.MultiSteps(pipeline(), 2), "steps/clip steps/guard"),
        "both": Recipe(
            wc.skip_nonfinite(optax.MultiSteps(pipeline(**RECORD), 2)),
            "guard steps/clip steps/guard",
            "nan",
        ),
    },
    "masked": {
        "plain": Recipe(optax.masked(PLAIN, MASK)),
        "pipeline": Recipe(optax.masked(pipeline(), MASK), "clip guard"),
    },
    "partition": {
        "plain": Recipe(parted(PLAIN)),
        "pipeline": Recipe(parted(pipeline()), "clip guard"),
    },
}
PAIRS = [
    (family, source, target)
    for family, recipes in FAMILIES.items()
    for source in recipes
    for target in recipes
]
CALLS, QUIET = 11, 3  # in a run, and before its first fault
#: What every call writes anew.
OF_THE_LAST_CALL = (
    *("grad_norm", "norm_bound", "clip_coef", "above_bound"),
    *("last_loss", "loss_bound", "last_learning_rate"),
)
LOST = r"^adopt_state: opt_state\S* is the state of a (clip|guard)"


@functools.cache
def step_of(family: str, name: str) -> Any:
    return jax.jit(functools.partial(wc.apply_gradients, FAMILIES[family][name].optimizer))


def run(family: str, name: str, params: Any, state: Any, calls: list[Any]) -> tuple[Any, Any]:
    for grads, loss in calls:
        params, state = step_of(family, name)(params, state, grads=grads, value=loss)
    return params, state


def drawn(draw: random.Random, faults: list[str]) -> tuple[Any, float]:
    """The gradients and the loss of a call, sometimes with a fault."""
    fault = draw.choice([*faults, ""])
    scale = {"nan": np.nan, "spike": 1000.0}.get(fault, draw.lognormvariate(0.0, 0.5))
    grads = jax.tree.map(lambda p: jnp.cos(p + draw.random()) * np.float32(scale), PARAMS)
    return grads, draw.choice([np.nan, 1e3]) if fault == "loss" else draw.uniform(0.9, 1.1)


def ours(recipe: Recipe, state: Any) -> dict[str, dict[str, Any]]:
    """The fields of each state of ours, by where it stands."""
    kinds, seen = (ClipState, SkipState, PipelineState), []

    def collect(tree: Any) -> None:
        for node in found(tree, kinds):
            fields = node._asdict()
            collect(fields.pop("clip_state", ()))
            inside = fields.pop("inner_state", ())
            seen.append(fields)
            collect(inside)

    collect(state)
    return dict(zip(recipe.ours.split(), seen, strict=True))


def found(state: Any, kind: Any) -> list[Any]:
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in nodes if isinstance(node, kind)]


def rows(state: Any) -> dict[int, Any]:
    """The numbers of each call in a record, and whether it was skipped."""
    return {
        int(counts[0]): (counts[2], row)
        for ring in found(state, Ring)
        for counts, row in zip(*map(np.asarray, ring[:2]), strict=True)
        if counts[0] >= 0
    }


close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("family", "source", "target"), PAIRS)
def test_a_run_that_changes_over_is_the_run_that_never_did_or_is_refused(
    family: str, source: str, target: str
):
    old, new = FAMILIES[family][source], FAMILIES[family][target]
    if not {*old.ours.split()} <= {*new.ours.split()}:
        with pytest.raises(TypeError, match=LOST):
            wc.adopt_state(new.optimizer, PARAMS, old.optimizer.init(PARAMS), step=0)
        return
    draw = random.Random(f"{family} {source} {target}")
    moment = draw.randint(QUIET + 2, CALLS - 4)
    late = new.skips.split()
    early = [fault for fault in late if fault in old.skips]
    calls = [
        drawn(draw, [] if call < QUIET or abs(call - moment) < 2 else [late, early][call < moment])
        for call in range(CALLS)
    ]
    fresh = new.optimizer.init(PARAMS)
    params, state = run(family, source, PARAMS, old.optimizer.init(PARAMS), calls[:moment])
    whole = run(family, target, PARAMS, fresh, calls[:moment])
    step = max(int(count) for _, count in optax.tree.get_all_with_path(state, "count"))
    adopted = wc.adopt_state(new.optimizer, params, state, step=step)
    chex.assert_trees_all_equal_shapes_and_dtypes(adopted, fresh)
    end, other = (run(family, target, *each, calls[moment:]) for each in ((params, adopted), whole))
    close(end[0], other[0])

    had, begun, initial = ours(old, state), ours(new, adopted), ours(new, fresh)
    reached, ended, expected = (ours(new, each) for each in (whole[1], end[1], other[1]))
    for where, fields in begun.items():
        guard = had.get(where.replace("clip", "guard"), {})
        clip = {"clip_calls": guard.get("skip_calls", ())}  # A clip that goes on from a guard.
        kept = had.get(where) or {**guard, "counts_from": ()} | clip
        is_micro = family == "MultiSteps" and "/" not in where
        for field, value in fields.items():
            if is_kept := jax.tree.leaves(kept.get(field, ())) and field != "ring":
                close(value, reached[where][field])
            elif field in ("clip_calls", "skip_calls", "counts_from"):
                assert value == (0 if is_micro else moment if guard else step)
            elif field != "ring":
                close(value, initial[where][field])
            if is_kept or field in OF_THE_LAST_CALL:
                close(ended[where][field], expected[where][field])
    before, kept, after, full = map(rows, (state, adopted, end[1], other[1]))
    if after:
        now = step if family == "MultiSteps" else moment  # In it, a pipeline's calls are updates.
        shift, length = max(full) - max(after), len(found(end[1], Ring)[0].ring_counts)
        both = before | {call - shift: row for call, row in full.items() if call >= now}
        assert sorted(after) == sorted(both)[-length:]
        assert sorted(kept) == sorted(before)[-length:]
        close(after, {call: both[call] for call in after})


SOME = [
    (family if family in ("MultiSteps", "masked", "partition") else "", recipe)
    for family, recipes in FAMILIES.items()
    for name, recipe in recipes.items()
    if name in ("pipeline", "guard", "plain", "clip", "both")
]


def numbers(state: Any) -> dict[str, set[float]]:
    """The numbers in each field of a state, without those of the last call and of a record."""
    seen: dict[str, set[float]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        fields = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)][-2:]
        if leaf.dtype == jnp.float32 and not {*OF_THE_LAST_CALL, "ring_numbers"} & {*fields}:
            seen.setdefault(" ".join(fields), set()).update(np.ravel(leaf).tolist())
    return seen


@pytest.mark.parametrize(("inside", "old"), SOME)
def test_between_any_two_no_number_is_lost_but_with_its_option(inside: str, old: Recipe):
    draw = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: draw.random(leaf.shape, leaf.dtype) if leaf.dtype == jnp.float32 else leaf,
        old.optimizer.init(PARAMS),
    )
    theirs = numbers(state)
    for depth, new in SOME:
        fresh = new.optimizer.init(PARAMS)
        clash = any(
            a.clip_history and b.clip_history and bool(a.group_labels) != bool(b.group_labels)
            for a, b in zip(found(state, ClipState), found(fresh, ClipState), strict=False)
        )
        if depth != inside or clash or not {*old.ours.split()} <= {*new.ours.split()}:
            with pytest.raises(TypeError, match=r"^adopt_state: opt_state"):
                wc.adopt_state(new.optimizer, PARAMS, state, step=0)
            continue
        adopted = numbers(wc.adopt_state(new.optimizer, PARAMS, state, step=0))
        assert all(theirs[field] <= adopted[field] for field in theirs.keys() & adopted.keys())


def advance(optimizer: Any, calls: int, state: Any = None, params: Any = PARAMS) -> Any:
    state, update = state or optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(calls):
        state = update(params, state, params)[1]
    return state


OPTIMIZERS: dict[str, Any] = {
    "adafactor": functools.partial(optax.adafactor, min_dim_size_to_factor=2),
    "adamw without decay of biases": functools.partial(optax.adamw, mask=MASK),
    "scheduled decay": lambda rate: optax.chain(
        injected(rate), optax.inject_hyperparams(optax.add_decayed_weights)(SCHEDULE)
    ),
    "muon": optax.contrib.muon,
    "noise": functools.partial(optax.noisy_sgd, key=0),
    "schedule_free": lambda rate: optax.contrib.schedule_free(optax.sgd(rate), rate),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_and_clocks_of_every_optimizer_of_optax_are_kept(name: str):
    old = optax.apply_if_finite(optax.chain(CLIP_OF_OPTAX, OPTIMIZERS[name](SCHEDULE)), 5)
    # One more everywhere: no number is one of `init`.
    state: Any = jax.tree.map(
        lambda leaf: leaf + leaf.dtype.type(1) if jnp.issubdtype(leaf.dtype, jnp.number) else leaf,
        old.init(PARAMS),
    )
    adopted = wc.adopt_state(pipeline(OPTIMIZERS[name]), PARAMS, state, step=1)
    chex.assert_trees_all_equal(adopted.inner_state, state.inner_state[1])


ADAM = optax.adam(0.1)
MICRO = optax.MultiSteps(optax.adam(SCHEDULE), 2).gradient_transformation()
GUARDED = wc.skip_nonfinite(MICRO)
SKIPPED = advance(pipeline(optax.adam), 3)._replace(skipped_count=jnp.int32(1))


@pytest.mark.parametrize(
    ("new", "state", "right"),
    [
        (pipeline(optax.adam), advance(ADAM, 3), [3]),
        (pipeline(optax.adam), advance(optax.inject_hyperparams(optax.adam)(SCHEDULE), 3), [3]),
        (pipeline(optax.sgd), advance(optax.sgd(SCHEDULE), 3), [3]),
        (pipeline(optax.adam), SKIPPED, [2]),
        (GUARDED, advance(GUARDED, 7), [3, 7]),
        (GUARDED, advance(MICRO, 7), [3]),
        (pipeline(optax.sgd), optax.sgd(0.1).init(PARAMS), [0, 9]),
    ],
)
def test_a_step_that_nobody_counted_is_an_error_with_the_nearest(
    new: Any, state: Any, right: list[int]
):
    for step in right:
        wc.adopt_state(new, PARAMS, state, step=np.int64(step))
    if 9 not in right:
        message = rf"^adopt_state: step must be .*; got 9, and the nearest there is {right[-1]}\."
        with pytest.raises(ValueError, match=message):
            wc.adopt_state(new, PARAMS, state, step=9)


def test_clocks_begin_at_step_where_there_were_none_and_go_on_where_there_were():
    optimizer = pipeline(
        lambda rate: optax.chain(optax.adam(rate), optax.scale_by_schedule(SCHEDULE))
    )
    for old, counts in ((optax.adam(SCHEDULE), [4, 4, 9]), (ADAM, [4, 9, 9])):
        adopt = jax.jit(functools.partial(wc.adopt_state, optimizer))
        state = adopt(PARAMS, advance(old, 4), step=9)
        assert [int(count) for _, count in optax.tree.get_all_with_path(state, "count")] == counts
        assert int(wc.metrics(state)["calls"]) == 9


def test_a_rate_that_was_set_by_hand_stays():
    old = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    state = optax.tree.set(old.init(PARAMS), learning_rate=jnp.float32(0.03125))
    optimizer = wc.pipeline(optax.inject_hyperparams(optax.sgd), 0.1)
    state = advance(optimizer, 1, wc.adopt_state(optimizer, PARAMS, state, step=0))
    assert float(wc.metrics(state)["learning_rate"]) == 0.03125


def test_what_multi_steps_say_of_a_micro_step_that_they_skipped_is_kept_or_new():
    plain = optax.MultiSteps(PLAIN, 2)
    skips = optax.MultiSteps(PLAIN, 2, should_skip_update_fn=optax.skip_not_finite)
    fresh: Any = skips.init(PARAMS)
    state = fresh._replace(skip_state={**fresh.skip_state, "num_not_finite": jnp.int32(7)})
    for optimizer, given, expected in ((skips, state, state), (skips, plain.init(PARAMS), fresh)):
        chex.assert_trees_all_equal(wc.adopt_state(optimizer, PARAMS, given, step=0), expected)
    assert wc.adopt_state(plain, PARAMS, state, step=0).skip_state == ()


def test_groups_are_matched_by_label_and_no_history_of_one_is_lost():
    params = {"w": [PARAMS["w"]] * 2, "b": PARAMS["b"]}
    split = {"w": ["x", "matrix"], "b": "bias"}
    old = wc.pipeline(optax.sgd, 0.1, **GROUPS)
    new: Any = wc.pipeline(optax.sgd, 0.1, max_norm=NEAR, groups=split)
    state = advance(old, 3)
    clip, fresh = (
        each.clip_state for each in (wc.adopt_state(new, params, state, step=3), new.init(params))
    )
    assert from_keys(clip.group_labels) == ["bias", "matrix", "x"]
    for field in ("grad_norm", "clip_coef", "clip_history", "group_clipped_count"):
        each = (jax.tree.leaves(getattr(it, field)) for it in (clip, state.clip_state, fresh))
        for mine, theirs, init in zip(*each, strict=True):
            np.testing.assert_array_equal(mine, [*theirs, init[2]])
    alone = wc.pipeline(optax.sgd, 0.1, max_norm=2.0)
    assert int(wc.adopt_state(alone, PARAMS, state, step=3).clip_state.clipped_count) == 3
    lost = r" must be of .*\['matrix', 'x'\]; got \['bias', 'matrix'\]\. Keep"
    for groups, message in (({"w": "matrix", "b": "x"}, lost), (None, r"\.clip_history must have")):
        other = wc.pipeline(optax.sgd, 0.1, max_norm=NEAR, groups=groups)
        with pytest.raises(TypeError, match=rf"^adopt_state: opt_state\.clip_state.*{message}"):
            wc.adopt_state(other, PARAMS, state, step=3)


def test_groups_that_begin_later_say_since_which_call_they_are_counted():
    """In a run of 3 calls without groups, 2 with one group, 4 with two; every call clips all of it."""
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    of = functools.partial(wc.clip_by_group_norm, 1.0)
    for wrap in (lambda clip: clip, wc.skip_nonfinite):
        whole, one, two = (
            wrap(each) for each in (wc.clip_by_global_norm(1.0), of("b"), of({"w": "w", "b": "b"}))
        )
        state = advance(whole, 3, params=params)
        state = advance(one, 2, wc.adopt_state(one, params, state, step=3), params)
        assert "  2  norm 2, bound 1, counted since call 3  b" in wc.report(state)
        state = advance(two, 4, wc.adopt_state(two, params, state, step=5), params)
        text = wc.report(wc.adopt_state(two, params, state, step=9))
        assert "Clipped: 9 calls, 100.0%." in text
        assert "  6  norm 1.41, bound 1, counted since call 3  b" in text
        assert "  4  norm 1.41, bound 1, counted since call 5  w" in text
        assert "counted since" not in wc.report(advance(two, 1, params=params))


def test_what_nobody_measured_is_unknown_until_the_next_call_and_counts_say_where_they_begin():
    optimizer = pipeline(**SKIPS)
    with jax.debug_nans(True), jax.debug_infs(True):  # Which stop at what is computed.
        state = wc.adopt_state(optimizer, PARAMS, advance(SGD, 4), step=4)
    names = ("grad_norm", "max_norm", "skip_bound", "clip_coef", "learning_rate")
    assert all(np.isnan(wc.metrics(state)[name]) for name in names)
    assert int(state.counts_from) == int(state.clip_state.counts_from) == 4
    state = advance(optimizer, 1, state)
    assert not any(np.isnan(wc.metrics(state)[name]) for name in names)
    guard = wc.adopt_state(GUARDED, PARAMS, advance(MICRO, 7), step=3)
    assert int(guard.skip_calls) == int(guard.counts_from) == 0
    guarded = wc.skip_nonfinite(optax.MultiSteps(pipeline(optax.adam), 2))
    steps = wc.adopt_state(guarded, PARAMS, advance(GUARDED, 7), step=7).inner_state
    assert int(steps.inner_opt_state.clip_state.clip_calls) == 3
    again = wc.adopt_state(optimizer, PARAMS, state, step=5)
    assert int(again.counts_from) == 4


@pytest.mark.parametrize("jit", [jax.jit, lambda function: function])
def test_either_state_can_be_donated_and_the_other_lives(jit: Any):
    old = advance(pipeline(**GROUPS, record=6, record_leaves=True), 1)
    adopt = jit(functools.partial(wc.adopt_state, pipeline(**GROUPS, **RECORD), PARAMS))
    for donated in (0, 1):
        states = [jax.tree.map(jnp.copy, old)]
        states.append(adopt(states[0], step=jnp.int32(1)))
        other = jax.tree.map(np.array, states[1 - donated])
        for leaf in jax.tree.leaves(states[donated]):
            leaf.delete()
        chex.assert_trees_all_equal(states[1 - donated], other)


def test_arrays_of_other_libraries_and_dtypes_become_those_of_init():
    old, new = optax.chain(CLIP_OF_OPTAX, optax.adam(SCHEDULE)), pipeline(optax.adam)
    state = advance(old, 3)
    expected = wc.adopt_state(new, PARAMS, state, step=3)
    restored = flax.serialization.from_bytes(old.init(PARAMS), flax.serialization.to_bytes(state))
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64 if leaf.ndim else np.int64), state)
    boxed = jax.tree.map(nnx.Variable, state)
    adam = state[1][0]
    ordered = (adam._replace(mu=collections.OrderedDict(adam.mu)), state[1][1])
    for given in (restored, wide, boxed, ordered):
        chex.assert_trees_all_equal(wc.adopt_state(new, PARAMS, given, step=3), expected)


def test_an_nnx_optimizer_changes_over():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    old, new = (nnx.Optimizer(model, each, wrt=nnx.Param) for each in (ADAM, pipeline(optax.adam)))
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    old.update(model, grads)
    params = nnx.state(model, nnx.Param)
    adopted = wc.adopt_state(new.tx, params, old.opt_state, step=1)
    assert jax.tree.structure(adopted) == jax.tree.structure(new.tx.init(params))
    plain = [nnx.to_pure_dict(each) for each in (grads, params)]
    _, state = ADAM.update(plain[0], ADAM.init(plain[1]))
    expected = wc.adopt_state(new.tx, plain[1], state, step=1)
    chex.assert_trees_all_equal(jax.tree.leaves(adopted), jax.tree.leaves(expected))


def test_states_of_a_stack_of_runs_are_adopted_by_vmap():
    runs = [advance(PLAIN, calls) for calls in (2, 3)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
    adopt = functools.partial(wc.adopt_state, pipeline(), PARAMS)
    state = jax.vmap(lambda old, step: adopt(old, step=step))(stack, jnp.array([2, 3]))
    assert wc.metrics(state)["step"].tolist() == [2, 3]


def test_a_state_keeps_its_sharding():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    params = jax.device_put(jnp.ones(16), sharding)
    state = wc.adopt_state(pipeline(optax.adamw), params, ADAM.init(params), step=0)
    assert state.inner_state[0].mu.sharding == sharding


NNX = nnx.Optimizer(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), ADAM, wrt=nnx.Param)
TRAIN_STATE = flax.training.train_state.TrainState
WHOLE = {
    "TrainState": TRAIN_STATE.create(apply_fn=print, params=PARAMS, tx=ADAM),
    "Optimizer": NNX,
    "State": nnx.state(NNX),
    "dict": {"params": PARAMS, "opt_state": ADAM.init(PARAMS)},
}
MOMENTS = r"opt_state must hold the moments that optimizer.init\(params\) does, and no others; got "
EVERY = optax.masked(ADAM, {"w": True, "b": True}).init(PARAMS)
RESHAPED = ADAM.init({"w": jnp.ones(2), "b": jnp.ones(2)})
WRONG = {
    **{
        f"opt_state must be an optimizer's state; got a {name} that holds one. Pass train_": whole
        for name, whole in WHOLE.items()
    },
    rf"{MOMENTS}no ScaleByAdamState for its \.inner_state\[0\]\.count\. Pass the params and": None,
    rf"{MOMENTS}no ScaleByAdamState for its \.inner_state\[0\]\.count\.": EVERY,
    rf"{MOMENTS}EmaState, opt_state\[1\]\.count\. Pass": optax.chain(ADAM, optax.ema(0.9)).init(
        PARAMS
    ),
    r"opt_state\[0\]\.mu\['w'\] must have the shapes of .*\[\(3, 2\)\]; got \[\(2,\)\]\.": RESHAPED,
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_said_in_one_message(message: str):
    with pytest.raises(TypeError, match=f"^adopt_state: {message}"):
        wc.adopt_state(pipeline(optax.adam), PARAMS, WRONG[message], step=0)


class Count(NamedTuple):
    count: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pair:
    """A node of two arrays, as one array to who asks."""

    left: Any
    right: Any

    def __jax_array__(self) -> Any:
        return self.left * self.right


def test_parameters_are_not_taken_for_fields_whatever_their_names_and_nodes():
    fields = "count gradient_step clip_calls beside skip_state inner_state clip_state leaves ring"
    x, y = jnp.ones(2), jnp.full(2, 3.0)
    params: Any = collections.OrderedDict(dict.fromkeys(fields.split(), x))
    params |= {
        "named": Count(x),
        "row": (x, y),
        "nodes": {"z": (x,), "y": (y,)},
        "pair": Pair(x, y),
    }
    params |= {"ordered": collections.OrderedDict(b=x, a=y), "masked": optax.MaskedNode()}
    new, state = pipeline(optax.adam), advance(ADAM, 1, params=params)
    adopted = wc.adopt_state(new, params, state, step=1)
    chex.assert_trees_all_equal(adopted.inner_state[0], state[0])
    for name in params.keys() - {"masked"}:
        less = ADAM.init({key: params[key] for key in params if key != name})
        with pytest.raises(TypeError, match=rf"got no ScaleByAdamState for its .*mu\['{name}'\]"):
            wc.adopt_state(new, params, less, step=0)
    # Without moments, the record alone shows that leaves are others.
    clip = wc.clip_by_global_norm(1.0, record_leaves=True)
    for other in ({"a": x, "c": y}, collections.OrderedDict(b=x, a=y)):
        with pytest.raises(TypeError, match=r"leaves must be of .*\['a', 'b'\]; got .* Keep"):
            wc.adopt_state(clip, {"a": x, "b": y}, clip.init(other), step=0)


def test_parameters_of_lookahead_are_parameters():
    fast = {"w": jnp.ones(2)}
    params = optax.LookaheadParams(fast, fast)
    optimizer = optax.lookahead(wc.pipeline(optax.sgd, 0.1), sync_period=2, slow_step_size=0.5)
    state = optimizer.init(params)
    _, state = optimizer.update(fast, state, params)
    adopted = wc.adopt_state(optimizer, params, state, step=1)
    chex.assert_trees_all_equal(adopted, state)
