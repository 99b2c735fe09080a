"""JAX's own modes: what each switches on or off changes nothing that is computed here."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import warmclip_jax as wc
from tests.problem import FEATURES, PARAMS, float64_norm, loss_of

SCHEDULE = wc.warmup_polynomial_decay(peak_value=0.1, total_steps=20, warmup_steps=3)
GRADS = jax.grad(loss_of)(PARAMS)
BAD = {**GRADS, "b": jnp.full(4, jnp.nan)}


def scale_by_rate(rate: Any) -> optax.GradientTransformation:
    """SGD without a line of optax's, which does not pass strict promotion."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        return jax.tree.map(lambda g: -rate(state).astype(g.dtype) * g, updates), state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


OPTIMIZER: Any = wc.pipeline(optax.adam, SCHEDULE)


@functools.cache
def sgd(max_norm: float | None) -> Any:
    return wc.pipeline(optax.sgd, SCHEDULE, max_norm=max_norm)


def eager_step(optimizer: Any, params: Any, state: Any, grads: Any) -> Any:
    return wc.apply_gradients(optimizer, params, state, grads=grads)


jitted_step = jax.jit(eager_step, static_argnums=0)


def train(
    optimizer: Any, stream: Any, params: Any = PARAMS, *, jit: bool = True
) -> tuple[Any, Any]:
    step = functools.partial(jitted_step if jit else eager_step, optimizer)
    state = optimizer.init(params)
    for grads in stream:
        params, state = step(params, state, grads)
    return params, state


def test_without_jit_the_numbers_are_those_of_jit():
    stream = [GRADS, BAD, GRADS]
    params, state = train(OPTIMIZER, stream)
    with jax.disable_jit():
        others = train(OPTIMIZER, stream)
    chex.assert_trees_all_close((params, state), others, rtol=2e-6)
    assert int(wc.metrics(others[1])["skipped_count"]) == 1


def test_checkify_finds_the_nan_in_the_users_own_arithmetic_and_none_in_ours():
    def step(params: Any, state: Any, features: jax.Array) -> Any:
        return wc.apply_gradients(
            OPTIMIZER, params, state, grads=jax.grad(loss_of)(params, features)
        )

    state = OPTIMIZER.init(PARAMS)
    checked: Any = jax.jit(checkify.checkify(step, errors=checkify.all_checks))
    error, (params, _) = checked(PARAMS, state, FEATURES)
    assert error.get() is None
    chex.assert_trees_all_close(params, jax.jit(step)(PARAMS, state, FEATURES)[0], rtol=2e-6)
    error, _ = checked(PARAMS, state, FEATURES.at[0, 0].set(jnp.nan))
    assert "nan generated" in (error.get() or "")


@pytest.mark.parametrize(
    ("factor", "max_norm"), [(1.0, 0.8), (0.0, 0.0), (1e20, 0.8), (1e-30, 0.0), (1e20, None)]
)
def test_debug_nans_finds_none_in_our_arithmetic_on_finite_gradients(
    factor: float, max_norm: float | None
):
    grads = jax.tree.map(lambda g: factor * g, GRADS)
    with jax.debug_nans(True):
        params, state = train(sgd(max_norm), [grads], jit=False)
        jitted, _ = train(sgd(max_norm), [grads])
    chex.assert_trees_all_close(params, jitted, rtol=1e-6)
    assert int(wc.metrics(state)["nonfinite_count"]) == 0


def test_debug_nans_stops_where_we_pass_a_nan_on():
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        train(optax.chain(wc.clip_by_global_norm(1.0), optax.sgd(0.1)), [BAD])


@pytest.mark.parametrize("max_norm", [0.8, None])
def test_debug_infs_finds_none_in_a_jitted_step_whose_squares_overflow_and_none_outside_of_jit(
    max_norm: float | None,
):
    huge = jax.tree.map(lambda g: 1e20 * g, GRADS)
    small_rate: Any = wc.pipeline(optax.sgd, wc.constant(value=1e-20), max_norm=max_norm)
    with jax.debug_infs(True):
        _, state = train(small_rate, [huge])
        _, eager = train(sgd(max_norm), [GRADS], jit=False)
        unclipped, _ = wc.clip_tree(GRADS, 1e3)
    norms = [float(wc.metrics(each)["grad_norm"]) for each in (state, eager)]
    np.testing.assert_allclose(norms, np.array([1e20, 1]) * float64_norm(GRADS), rtol=1e-6)
    chex.assert_trees_all_equal(unclipped, GRADS)


@pytest.mark.usefixtures("x64")
def test_under_x64_each_dtype_stays_and_the_norm_is_as_exact_as_the_widest_leaf():
    params = {"w": np.asarray(PARAMS["w"], np.float64), "b": PARAMS["b"]}
    grads = {"w": np.asarray(GRADS["w"], np.float64) * (1 + 2**-40), "b": GRADS["b"]}
    optimizer: Any = wc.pipeline(optax.adam, SCHEDULE)
    trained, state = train(optimizer, [grads] * 3, jax.tree.map(jnp.asarray, params))
    assert (trained["w"].dtype, trained["b"].dtype) == (jnp.float64, jnp.float32)
    known = wc.metrics(state)
    assert known["grad_norm"].dtype == known["learning_rate"].dtype == jnp.float64
    np.testing.assert_allclose(known["grad_norm"], float64_norm(grads), rtol=1e-15)
    assert known["step"].dtype == jnp.int32


def test_our_code_alone_trains_three_dtypes_under_strict_promotion_and_leaves_a_nan_out():
    def mixed(tree: Any) -> Any:
        half = tree["w"].astype(jnp.float16)
        return {"w": tree["w"].astype(jnp.bfloat16), "half": half, "b": tree["b"]}

    params, grads, bad = mixed(PARAMS), mixed(GRADS), mixed(BAD)
    plain = optax.chain(wc.clip_by_global_norm(0.5), scale_by_rate(SCHEDULE))
    ours: Any = {
        policy: wc.pipeline(
            lambda rate: scale_by_rate(rate), SCHEDULE, max_norm=0.5, nonfinite=policy
        )
        for policy in ("skip", "zero")
    }
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for jit in (True, False):
            expected, _ = train(plain, [grads] * 3, params, jit=jit)
            for optimizer, stream in (
                (ours["zero"], [grads] * 3),
                (ours["skip"], [grads, bad, grads, grads]),
                (wc.skip_nonfinite(plain), [grads, bad, grads, grads]),
            ):
                trained, state = train(optimizer, stream, params, jit=jit)
                chex.assert_trees_all_equal_dtypes(trained, params)
                # One rounding of the product apart, which each program fuses in its own way.
                for name, rtol in {"b": 2e-6, "half": 2**-10, "w": 2**-7}.items():
                    chex.assert_trees_all_close(trained[name], expected[name], rtol=rtol)
                assert int(wc.metrics(state)["clipped_count"]) == 3


def test_a_donated_step_under_strict_transfers_moves_nothing_between_host_and_device():
    def step(params: Any, state: Any, grads: Any) -> Any:
        params, state = wc.apply_gradients(OPTIMIZER, params, state, grads=grads)
        return params, state, wc.metrics(state)

    params, state, grads = jax.tree.map(jnp.copy, (PARAMS, OPTIMIZER.init(PARAMS), GRADS))
    known: Any = {}
    jitted = jax.jit(step, donate_argnums=(0, 1))
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            params, state, known = jitted(params, state, grads)
    assert int(known["step"]) == 3
