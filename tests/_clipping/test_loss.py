"""`update(..., value=loss)`: recorded, judged and handed on, wherever an optimizer runs."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import warmclip_jax as wc

PARAMS = jnp.array([1.0, -2.0])
GRADS = jnp.array([0.5, 0.25])
#: Ordinary losses, one that is far out, one that is not finite, and one that is missing.
LOSSES = [2.0, 2.1, 1.9, 50.0, np.nan, 2.0, None, -np.inf, 2.0]
SKIPPED = [3, 4, 7]
BOUND = wc.running_bound(deviations=6.0)


def pipeline(**options: Any) -> Any:
    return wc.pipeline(optax.sgd, 0.1, skip_value_above=BOUND, record=16, **options)


def guard(**options: Any) -> Any:
    return wc.skip_nonfinite(optax.sgd(0.1), value_above=BOUND, record=16, **options)


def given(loss: Any) -> dict[str, Any]:
    return {} if loss is None else {"value": jnp.float32(loss)}


def run(optimizer: Any, *, jit: Any = jax.jit, losses: Any = LOSSES) -> tuple[Any, Any]:
    step = jit(functools.partial(wc.apply_gradients, optimizer))
    params, state = PARAMS, optimizer.init(PARAMS)
    for loss in losses:
        params, state = step(params, state, grads=GRADS, **given(loss))
    return params, state


MADE = pytest.mark.parametrize("made", [pipeline, guard])


@pytest.mark.parametrize(
    ("made", "jit"), [(pipeline, jax.jit), (pipeline, lambda function: function), (guard, jax.jit)]
)
def test_losses_are_recorded_and_those_that_are_bad_or_far_out_are_skipped(made: Any, jit: Any):
    params, state = run(made(), jit=jit)
    np.testing.assert_allclose(params, PARAMS - 6 * 0.1 * GRADS, rtol=1e-5)
    told, columns = wc.metrics(state), wc.records(state)
    np.testing.assert_array_equal(
        columns["value"],
        np.array([np.nan if loss is None else loss for loss in LOSSES], np.float32),
    )
    assert np.flatnonzero(columns["skipped"]).tolist() == SKIPPED
    assert np.isinf(columns["value_bound"][0])
    assert 2 < columns["value_bound"][3] < 50
    assert (int(told["nonfinite_value_count"]), int(told["nonfinite_count"])) == (2, 0)
    assert float(told["value"]) == 2.0
    assert 1.9 < float(told["typical_value"]) < 8
    assert float(told["value_bound"]) == columns["value_bound"][-1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@MADE
def test_without_a_loss_nothing_is_known_of_it_and_none_is_as_not_given(made: Any):
    optimizer = made()
    _, left_out = run(optimizer, losses=[None])
    _, none = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS, value=None)
    for state in (left_out, none):
        told = wc.metrics(state)
        assert np.isnan([told["value"], told["typical_value"]]).all()
        assert np.isinf(told["value_bound"])


@pytest.mark.parametrize(
    ("optimizer", "skipped"),
    [
        (wc.pipeline(optax.sgd, 0.1, record=8, skip_value_above=10.0), [3]),
        (wc.skip_nonfinite(optax.sgd(0.1), record=8, value_above=-1.0), [0, 1, 2, 3, 5]),
        (
            wc.pipeline(
                optax.sgd, 0.1, record=8, skip_value_above=optax.linear_schedule(0.0, 4.0, 2)
            ),
            [0, 1, 3],
        ),
        (wc.skip_nonfinite(optax.sgd(0.1), record=8, value_above=np.inf), []),
    ],
)
def test_a_bound_may_be_a_number_of_either_sign_or_a_schedule_of_calls(
    optimizer: Any, skipped: Any
):
    _, state = run(optimizer, losses=[2.0, 2.1, 1.9, 50.0, -3.0, 2.0])
    assert np.flatnonzero(wc.records(state)["skipped"]).tolist() == skipped


def test_a_loss_is_recorded_where_a_bad_call_is_not_skipped():
    for policy in ("propagate", "zero"):
        optimizer = wc.pipeline(optax.sgd, 0.1, nonfinite=policy, record=8)
        params, state = run(optimizer, losses=[1.0, np.nan, 2.0])
        assert int(wc.metrics(state)["nonfinite_value_count"]) == 1
        assert not wc.records(state)["skipped"].any()
        np.testing.assert_allclose(params, PARAMS - 3 * 0.1 * GRADS, rtol=1e-5)


# Wherever an optimizer runs.


def test_in_a_scan_and_under_vmap_over_runs():
    optimizer = guard()
    losses = jnp.float32([2.0, 2.1, 60.0, np.nan, 2.0])

    def one(carry: Any, loss: jax.Array) -> Any:
        return wc.apply_gradients(optimizer, *carry, grads=GRADS, value=loss), None

    def scanned(losses: jax.Array) -> Any:
        return jax.lax.scan(one, (PARAMS, optimizer.init(PARAMS)), losses)[0]

    params, state = jax.jit(jax.vmap(scanned))(jnp.stack([losses, jnp.ones(5)]))
    np.testing.assert_allclose(params[0], PARAMS - 3 * 0.1 * GRADS, rtol=1e-5)
    np.testing.assert_allclose(params[1], PARAMS - 5 * 0.1 * GRADS, rtol=1e-5)
    assert wc.records(state)["skipped"].tolist() == [[False, False, True, True, False], [False] * 5]


@MADE
def test_in_a_map_with_types_it_is_the_same_on_all_devices_or_an_error(made: Any):
    optimizer = made()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    each = PartitionSpec("data")

    def step(losses: jax.Array, average: bool) -> Any:
        loss = jax.lax.pmean(losses[0], "data") if average else losses[0]
        _, state = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS, value=loss)
        return wc.metrics(state)["value"]

    def mapped(average: bool) -> Any:
        function = functools.partial(step, average=average)
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=each, out_specs=PartitionSpec()))

    assert float(mapped(True)(jnp.array([1.0, 3.0]))) == 2.0
    with pytest.raises(
        ValueError, match=r"value must be .* same on all devices; .*jax\.lax\.pmean"
    ):
        mapped(False)(jnp.array([1.0, 3.0]))


@pytest.mark.parametrize("order", ["guard outside", "pipeline inside"])
def test_under_multi_steps_a_guard_outside_sees_the_loss_of_each_micro_batch(order: str):
    inner = optax.MultiSteps(wc.pipeline(optax.sgd, 0.1, record=8), 2)
    optimizer: Any = inner
    if order == "guard outside":
        optimizer = wc.skip_nonfinite(inner, value_above=10.0, record=8)
    else:
        optimizer = inner.gradient_transformation()
    losses = [1.0, 50.0, 3.0, 5.0, 7.0]
    _, state = run(optimizer, losses=losses)
    if order == "guard outside":
        assert wc.records(state)["value"].tolist() == losses
        assert np.flatnonzero(wc.records(state)["skipped"]).tolist() == [1]
    else:
        assert wc.records(state)["call"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("made", "inner"),
    [
        (
            pipeline,
            lambda rate: optax.chain(optax.sgd(rate), optax.contrib.reduce_on_plateau(patience=2)),
        ),
        (guard, lambda rate: optax.lbfgs(0.1)),
        (
            pipeline,
            lambda rate: optax.chain(optax.sgd(rate), optax.scale_by_backtracking_linesearch(5)),
        ),
    ],
    ids=["reduce_on_plateau", "lbfgs", "linesearch"],
)
def test_it_is_handed_on_to_optimizers_that_take_it(made: Any, inner: Any):
    def loss_of(params: jax.Array) -> jax.Array:
        return jnp.sum(params**2)

    plain = inner(0.1)
    ours = wc.pipeline(inner, 0.1, max_norm=None) if made is pipeline else wc.skip_nonfinite(plain)

    def trained(optimizer: Any) -> Any:
        params, state = PARAMS, optimizer.init(PARAMS)
        for _ in range(3):
            value, grads = jax.value_and_grad(loss_of)(params)
            extra = {"value": value, "grad": grads, "value_fn": loss_of}
            params, state = wc.apply_gradients(optimizer, params, state, grads=grads, **extra)
        return params

    with_ours, without = (jax.jit(trained, static_argnums=0)(each) for each in (ours, plain))
    np.testing.assert_allclose(with_ours, without, rtol=1e-6)


@pytest.mark.parametrize("value", [None, 1.0])
def test_other_arguments_are_handed_on_whether_there_is_a_loss_or_not(value: Any):
    seen: list[set[str]] = []

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.append(set(extra))
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    for optimizer in (wc.skip_nonfinite(inner), wc.pipeline(lambda rate: inner, 0.1)):
        optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS, value=value, scale=2.0)
    assert seen == [{"scale"} if value is None else {"scale", "value"}] * 2


def test_nnx_optimizers_and_equinox_hand_it_over():
    model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, pipeline(), wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads, value=jnp.float32(2.0))
    assert float(wc.metrics(optimizer)["value"]) == 2.0

    module = eqx.nn.Linear(2, 1, use_bias=False, key=jax.random.key(0))
    params, tx = eqx.filter(module, eqx.is_array), guard()

    @eqx.filter_jit
    def step(params: Any, state: Any, loss: Any) -> Any:
        return tx.update(jax.tree.map(jnp.ones_like, params), state, params, value=loss)

    _, state = step(params, tx.init(params), 3)
    assert float(wc.metrics(state)["value"]) == 3.0


def test_a_donated_step_keeps_no_buffer_of_the_loss():
    optimizer = pipeline()
    step = jax.jit(functools.partial(wc.apply_gradients, optimizer), donate_argnums=(0, 1))
    params, state, loss = jnp.copy(PARAMS), optimizer.init(PARAMS), jnp.float32(2.0)
    for _ in range(2):
        params, state = step(params, state, grads=GRADS, value=loss)
    assert float(wc.metrics(state)["value"]) == float(loss) == 2.0


@MADE
@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ({"loss": 1.0}, TypeError, "there is no argument 'loss'; here it is 'value'"),
        ({"value": jnp.ones(2)}, TypeError, r"value must be the loss.*Array\(\[1., 1.\].*mean"),
        ({"value": 2j}, TypeError, "value must be the loss, a real scalar.*2j"),
        ({"value": True}, TypeError, "value must be the loss, a real scalar.*True"),
        ({"value": "2.0"}, TypeError, "value must be the loss, a real scalar.*'2.0'"),
    ],
)
def test_what_is_no_loss_is_refused_in_one_sentence(
    made: Any, extra: Any, error: Any, message: str
):
    optimizer = made()
    name = "pipeline" if made is pipeline else "skip_nonfinite"
    with pytest.raises(error, match=f"^{name}: {message}"):
        optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS, **extra)


def test_a_bound_on_the_loss_needs_the_policy_that_skips():
    with pytest.raises(ValueError, match=r"^pipeline: skip_value_above needs nonfinite='skip'"):
        wc.pipeline(optax.sgd, 0.1, skip_value_above=1.0, nonfinite="zero")
    with pytest.raises(TypeError, match=r"^skip_nonfinite: value_above must be .*'1.0'"):
        wc.skip_nonfinite(optax.sgd(0.1), value_above="1.0")  # pyright: ignore[reportArgumentType]
