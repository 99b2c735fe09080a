"""What a clip costs: the structure of the compiled program, not its time."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import warmclip_jax as wc
from tests.compiled import readers, temporaries
from tests.trees import clipping

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def compiled_update(tree: Any, max_norm: Any) -> Any:
    transformation = clipping(max_norm)
    return (
        jax.jit(transformation.update, donate_argnums=(0, 1))
        .lower(tree, transformation.init(tree))
        .compile()
    )


@pytest.mark.parametrize("max_norm", [1.0, wc.linear_warmup(peak_value=1.0, warmup_steps=10)])
def test_clipping_reads_a_gradient_twice_once_to_measure_and_once_to_scale(max_norm):
    tree = {
        "leaf": jnp.ones((1000, 100)),
        "flat": jnp.ones(10**6),
        "four": jnp.ones((64, 3, 3, 64)),
    }
    compiled = compiled_update(tree, max_norm)
    for name in tree:
        assert readers(compiled, f"updates[\\'{name}\\']") == ["fusion", "fusion"]


@pytest.mark.parametrize("max_norm", [1.0, None, wc.linear_warmup(peak_value=1.0, warmup_steps=10)])
def test_a_donated_clip_works_in_place(max_norm):
    shapes = [(1000, 1000), (10**6,), (2, 5 * 10**5), (256, 3, 3, 400)]
    leaves = [jnp.ones(shape, dtype) for shape in shapes for dtype in (jnp.bfloat16, jnp.float32)]
    compiled = compiled_update(leaves, max_norm)
    assert compiled.memory_analysis().alias_size_in_bytes >= sum(leaf.nbytes for leaf in leaves)
    assert temporaries(compiled, leaves) < min(leaf.nbytes for leaf in leaves) / 4


@pytest.mark.parametrize("max_norm", [1.0, None])
@pytest.mark.parametrize(
    "optimizer", [optax.adamw(0.1), optax.sgd(0.1, momentum=0.9)], ids=["adamw", "momentum"]
)
def test_a_step_with_the_clip_keeps_no_copy_of_a_gradient(max_norm, optimizer):
    params = {"brain": jnp.ones((1000, 1000)), "single": jnp.ones((1000, 1000))}
    # No float16: of that, XLA makes a float32 copy to add it up.
    grads = {"brain": jnp.ones((1000, 1000), jnp.bfloat16), "single": jnp.ones((1000, 1000))}
    chain = optax.chain(clipping(max_norm), optimizer)

    def step(params, state, grads):
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):  # what optax's optimizers take
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, chain.init(params), grads)
    assert temporaries(lowered.compile(), grads.values()) < grads["brain"].nbytes / 4


@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_the_coefficient_is_worked_out_once_and_not_for_every_leaf(nonfinite):
    tree = [jnp.ones((100, 100))] * 20
    transformation = clipping(1.0, nonfinite=nonfinite)
    program = str(
        jax.jit(transformation.update).lower(tree, transformation.init(tree)).compile().as_text()
    )
    # All that a leaf's loop does with scalars is to compare them: `factor == 1`, whether it is far
    # off, whether all is finite.
    for operation in ("minimum", "maximum", "not", "and", "divide"):
        assert program.count(f" {operation}(") < len(tree), operation
