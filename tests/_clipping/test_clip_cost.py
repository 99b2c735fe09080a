"""What a clip costs: how often the compiled program reads a gradient, and what it keeps beside it;
not its time.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import warmclip_jax as wc
from tests.compiled import readers, temporaries

LABELS = {"leaf": "a", "flat": "b", "four": "a", "half": "c"}
EACH = wc.label_by_path()
CLIPS: dict[str, Any] = {
    "plain": wc.clip_by_global_norm(1.0),
    "zero": wc.clip_by_global_norm(1.0, nonfinite="zero"),
    "groups": wc.clip_by_group_norm(1.0, LABELS),
    "running": wc.clip_by_global_norm(wc.running_bound(ceiling=1.0)),
    "leaves": wc.clip_by_global_norm(1.0, record_leaves=True),
    "all": wc.clip_by_group_norm(wc.running_bound(), EACH, record_leaves=True),
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_gradient_is_read_once_for_all_norms_and_once_to_be_scaled_in_place(as_on, name):
    as_on("cpu", devices=1)
    tree = {"leaf": jnp.ones((1000, 100)), "flat": jnp.ones(10**6)}
    tree |= {"four": jnp.ones((64, 3, 3, 64)), "half": jnp.ones((500, 500), jnp.bfloat16)}
    clip = CLIPS[name]
    compiled = jax.jit(clip.update, donate_argnums=(0, 1)).lower(tree, clip.init(tree)).compile()
    for leaf in tree:
        assert readers(compiled, f"updates[\\'{leaf}\\']") == ["fusion", "fusion"], leaf
    used: Any = compiled.memory_analysis()
    assert used.alias_size_in_bytes >= sum(leaf.nbytes for leaf in tree.values())
    assert temporaries(compiled, tree.values()) < min(leaf.nbytes for leaf in tree.values()) / 4


def test_norms_by_leaf_add_one_sum_to_that_of_all_and_no_second_range(as_on):
    as_on("cpu", devices=1)
    tree = {"leaf": jnp.ones((1000, 100)), "flat": jnp.ones(10**5)}

    def work(clip: Any) -> float:
        compiled = jax.jit(clip.update).lower(tree, clip.init(tree)).compile()
        costs: Any = compiled.cost_analysis()
        return costs["flops"]

    assert max(work(CLIPS[name]) for name in ("leaves", "all")) < 1.5 * work(CLIPS["plain"])


def test_a_step_with_all_of_it_keeps_no_copy_of_a_gradient(as_on):
    as_on("cpu", devices=1)
    params = {"brain": jnp.ones((1000, 1000)), "single": jnp.ones((1000, 1000))}
    grads = params | {"brain": jnp.ones((1000, 1000), jnp.bfloat16)}
    optimizer = wc.pipeline(
        optax.adamw,
        1e-3,
        max_norm=wc.running_bound(),
        groups=EACH,
        skip_above=wc.running_bound(deviations=6.0),
        record=256,
        record_leaves=True,
    )
    step = jax.jit(functools.partial(wc.apply_gradients, optimizer), donate_argnums=(0, 1))
    compiled = step.lower(params, optimizer.init(params), grads=grads).compile()
    assert temporaries(compiled, grads.values()) < grads["brain"].nbytes / 4
