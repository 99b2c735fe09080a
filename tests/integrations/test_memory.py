"""How many copies of the gradients a donated step keeps, beyond those of the optimizer alone.
The guide tells these.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import warmclip_jax as wc
from tests.compiled import WRITES_SQUARES

#: Each optimizer of optax with the copies that a clip before it, and a pipeline of it, make XLA's
#: CPU compiler keep. What it uses more than once it computes anew each time, but not where it
#: chooses between two arrays, as the clip does for each leaf.
COPIES: dict[str, tuple[Any, int, int]] = {
    "sgd": (optax.sgd, 0, 0),
    "momentum": (functools.partial(optax.sgd, momentum=0.9), 0, 0),
    "adam": (optax.adam, 0, 0),
    "adamw": (optax.adamw, 0, 0),
    "nadam": (optax.nadam, 0, 0),
    "lion": (optax.lion, 0, 0),
    "muon": (optax.contrib.muon, 0, 0),
    "nesterov": (functools.partial(optax.sgd, momentum=0.9, nesterov=True), 1, 1),
    "rmsprop": (optax.rmsprop, 1, 1),
    "adagrad": (optax.adagrad, 1, 1),
    "sm3": (optax.sm3, 1, 1),
    "adafactor": (optax.adafactor, 1, 1),
    "novograd": (optax.novograd, 1, 2),
}
PARAMS = {name: jnp.ones((400, 400)) for name in "abc"}


def temporaries(optimizer: Any) -> float:
    """The temporaries of a donated step, as a multiple of its gradients."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        return wc.apply_gradients(optimizer, params, state, grads=grads)

    state = jax.eval_shape(optimizer.init, PARAMS)
    memory: Any = (
        jax.jit(step, donate_argnums=(0, 1))
        .lower(PARAMS, state, PARAMS)
        .compile()
        .memory_analysis()
    )
    return memory.temp_size_in_bytes / sum(leaf.nbytes for leaf in PARAMS.values())


@pytest.mark.parametrize("name", COPIES)
def test_a_step_keeps_as_many_copies_of_the_gradients_as_the_table_says_and_no_more(name: str):
    build, by_clip, by_pipeline = COPIES[name]
    alone = temporaries(build(0.1))
    squares = int(
        WRITES_SQUARES
    )  # as large as the gradients, and no longer there when the other copies are made
    assert (
        temporaries(optax.chain(wc.clip_by_global_norm(1.0), build(0.1)))
        < max(alone + by_clip, squares) + 0.25
    )
    # The bound on a skipped step is another scalar, and costs no more.
    pipeline = wc.pipeline(build, 0.1, skip_above=wc.running_bound(deviations=6.0))
    assert temporaries(pipeline) < max(alone + by_pipeline, squares) + 0.25
