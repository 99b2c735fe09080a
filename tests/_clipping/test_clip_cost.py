"""What groups, running bounds and norms of leaves cost: the structure of the compiled program, not
its time.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import warmclip_jax as wc
from tests.compiled import WRITES_SQUARES, readers, temporaries

LABELS = {"leaf": "a", "flat": "b", "four": "a", "half": "c"}
OPTIONS: dict[str, dict[str, Any]] = {
    "groups": {"groups": LABELS},
    "each": {"groups": wc.label_by_path()},
    "running": {"max_norm": wc.running_bound(ceiling=1.0)},
    "leaves": {"record_leaves": True},
    "all": {"groups": wc.label_by_path(), "max_norm": wc.running_bound(), "record_leaves": True},
}


def clip_of(*, max_norm: Any = 1.0, groups: Any = None, **options: Any) -> Any:
    return (
        wc.clip_by_global_norm(max_norm, **options)
        if groups is None
        else wc.clip_by_group_norm(max_norm, groups, **options)
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_a_gradient_is_read_once_for_all_norms_and_once_to_be_scaled_in_place(as_on, name):
    as_on("cpu", devices=1)
    tree = {
        "leaf": jnp.ones((1000, 100)),
        "flat": jnp.ones(10**6),
        "four": jnp.ones((64, 3, 3, 64)),
    }
    tree |= {"half": jnp.ones((500, 500), jnp.bfloat16)}
    clip = clip_of(**OPTIONS[name])
    compiled = jax.jit(clip.update, donate_argnums=(0, 1)).lower(tree, clip.init(tree)).compile()
    for leaf in tree:
        assert readers(compiled, f"updates[\\'{leaf}\\']") == ["fusion", "fusion"], leaf
    used: Any = compiled.memory_analysis()
    assert used.alias_size_in_bytes >= sum(leaf.nbytes for leaf in tree.values())
    assert temporaries(compiled, tree.values()) < min(leaf.nbytes for leaf in tree.values()) / 4


def test_a_pipeline_with_all_of_it_keeps_no_copy_of_a_gradient(as_on):
    as_on("cpu", devices=1)
    params = [jnp.ones((1000, 1000))] * 3
    optimizer = wc.pipeline(
        optax.adamw, 1e-3, skip_above=wc.running_bound(deviations=6.0), record=256, **OPTIONS["all"]
    )
    step = jax.jit(
        lambda params, state, grads: wc.apply_gradients(optimizer, params, state, grads=grads),
        donate_argnums=(0, 1),
    )
    compiled = step.lower(params, optimizer.init(params), params).compile()
    assert temporaries(compiled, params) < params[0].nbytes / 4


def test_leaves_of_one_shape_share_their_program_whatever_their_group(as_on):
    # XLA compiles equal loops once: the place of a group must not be a part of the loop.
    as_on("cpu", devices=1)
    leaves = [jnp.ones((70, 80))] * 6
    clip = wc.clip_by_group_norm(1.0, wc.label_by_path())
    text = str(jax.jit(clip.update).lower(leaves, clip.init(leaves)).compile().as_text())
    loops = re.findall(r"\n%\S+ \([^\n]*-> f32\[70,80\] \{\n(.*?)\n\}", text, re.DOTALL)
    kinds = 3 if WRITES_SQUARES else 1  # besides the scaled entries, the squares of either pass
    assert len(loops) == 6 * kinds
    assert len({re.sub(r"metadata=\{[^}]*\}|%[\w.-]+", "", loop) for loop in loops}) == kinds
