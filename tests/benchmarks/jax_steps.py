"""One optimizer step in JAX with each clip: compiled, donated, and lent the same parameters and
moments as all others.
"""

import functools
import itertools
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import warmclip_jax as wc
from tests.benchmarks import machine
from tests.benchmarks.turns import Contender, Progress, seconds_of
from tests.benchmarks.workloads import LEARNING_RATE, MAX_NORM, SCALE, Workload, jax_filled

REFERENCE = "no clipping"
OURS = "wc.clip_by_global_norm"
OPTAX = "optax.clip_by_global_norm"
BARE = "one coefficient x leaf"
GIVEN = "a number that is known x leaf"
TOGETHER = "a plain sum of squares, 32 leaves at a time"
MEASURED = "wc.clip_by_global_norm(None)"
SKIP = "wc.pipeline, update"
OPTAX_SKIP = "optax.apply_if_finite around it"
RUNNING = "wc.pipeline, running bounds"
GROUPS = "wc.pipeline, 8 groups"
EACH = "wc.pipeline, a group for each leaf"
RECORDED = "wc.pipeline, record and record_leaves"
EVERYTHING = "wc.pipeline, record, record_leaves, running bounds and the loss"

OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "AdamW": optax.adamw,
    "SGD": functools.partial(optax.sgd, momentum=0.9),
}
#: Left out of workloads that are slow to build.
SLOW = (OPTAX_SKIP, MEASURED, RUNNING, GROUPS, EVERYTHING)
#: Those that are no clip: timed only where they are asked for.
PARTS = (GIVEN, TOGETHER)
#: Steps in a turn of an accelerator, which go on while the host hands out the next ones: a single one
#: would take as long as the host takes for its arguments.
BLOCK = 20
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def scaled_by_one_coefficient(max_norm: float) -> optax.GradientTransformation:
    """The least that a clip can be: a plain sum of squares and one product a leaf, right only for
    well-behaved numbers.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        squares = [
            jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(updates)
        ]
        coef = jnp.minimum(1, max_norm / jnp.sqrt(sum(squares)))
        return jax.tree.map(lambda leaf: (leaf * coef).astype(leaf.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scaled_by_a_number() -> optax.GradientTransformation:
    """The product without the norm: with a number that its state holds."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return jax.tree.map(lambda leaf: (leaf * state).astype(leaf.dtype), updates), state

    return optax.GradientTransformation(lambda params: jnp.float32(0.5), update)


def sum_of_squares_together() -> optax.GradientTransformation:
    """The norm without a product, in as few kernels as ours reads small leaves in; right only for
    well-behaved numbers.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del state, params
        leaves = [leaf.ravel() for leaf in jax.tree.leaves(updates)]
        parts = [jnp.concatenate(leaves[start : start + 32]) for start in range(0, len(leaves), 32)]
        return updates, jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(part)) for part in parts])))

    return optax.GradientTransformation(lambda params: jnp.float32(0), update)


def _step(optimizer: Any, *, with_loss: bool = False) -> Step:
    def step(params: Any, opt_state: Any, grads: Any) -> tuple[Any, Any]:
        # One entry of a gradient instead of a loss: a number that no compiler can know.
        extra = {"value": grads[0].ravel()[0].astype(jnp.float32)} if with_loss else {}
        updates, opt_state = optimizer.update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    return step


def optimizers(kind: str) -> dict[str, tuple[Any, Step]]:
    """Optimizers by name, each with how it takes a step."""
    plain = OPTIMIZERS[kind](LEARNING_RATE)
    by_optax = optax.chain(optax.clip_by_global_norm(MAX_NORM), plain)

    def built(max_norm: Any = MAX_NORM, **options: Any) -> Any:
        return wc.pipeline(OPTIMIZERS[kind], LEARNING_RATE, max_norm=max_norm, **options)

    # Without the ceiling, a clip that follows the norms would leave these steps alone.
    running, spikes = wc.running_bound(ceiling=MAX_NORM), wc.running_bound(deviations=6.0)
    found = {
        REFERENCE: plain,
        BARE: optax.chain(scaled_by_one_coefficient(MAX_NORM), plain),
        GIVEN: optax.chain(scaled_by_a_number(), plain),
        TOGETHER: optax.chain(sum_of_squares_together(), plain),
        OPTAX: by_optax,
        OPTAX_SKIP: optax.apply_if_finite(by_optax, 5),
        OURS: optax.chain(wc.clip_by_global_norm(MAX_NORM), plain),
        MEASURED: optax.chain(wc.clip_by_global_norm(None), plain),
        SKIP: built(),
        RUNNING: built(running, skip_above=spikes),
        GROUPS: built(groups=_in_eight),
        EACH: built(groups=wc.label_by_path()),
        RECORDED: built(record=256, record_leaves=True),
        EVERYTHING: built(
            running, skip_above=spikes, skip_value_above=spikes, record=256, record_leaves=True
        ),
    }
    return {
        name: (optimizer, _step(optimizer, with_loss=name == EVERYTHING))
        for name, optimizer in found.items()
    }


def _in_eight(params: list[Any]) -> list[str]:
    """Labels of eight groups, of leaves that stand one after the other: as stages or kinds of
    layers would be.
    """
    return [f"group {8 * place // len(params)}" for place in range(len(params))]


def traced_lowered_compiled(step: Step, *arguments: Any) -> tuple[Any, dict[str, float]]:
    """The step as a program, with the seconds that each stage took."""
    jax.clear_caches()  # else what an earlier program has traced would be found again
    times = [time.perf_counter()]
    traced = jax.jit(step, donate_argnums=(0, 1)).trace(*arguments)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    compiled = lowered.compile()
    times.append(time.perf_counter())
    names = ("trace_seconds", "lower_seconds", "compile_seconds")
    return compiled, dict(zip(names, np.diff(times).tolist(), strict=True))


def contenders(
    workload: Workload, progress: Progress, names: Iterable[str] | None = None
) -> dict[str, Contender]:
    """Each of `names` (None: all), ready to take its turns."""
    params = jax_filled(workload.shapes, seed=1)
    grads = jax_filled(workload.shapes, SCALE, dtype=workload.gradient_dtype)
    left_out = (*PARTS, *(SLOW if workload.slow_to_build else ()))
    # The arrays that contenders hand on. Copies for each would be 1.5 GB a contender, and no two in
    # the same place.
    lent: list[jax.Array] = []
    ready: dict[str, Contender] = {}
    for name, (optimizer, step) in optimizers(workload.optimizer).items():
        if name in left_out if names is None else name not in names:
            continue
        if name == OPTAX_SKIP and workload.gradient_dtype != "float32":
            # An error: a step it leaves out has zeros of the gradients' dtype, one it takes has the
            # parameters'.
            continue
        progress(f"compiling {name}")
        opt_state = optimizer.init(params)
        compiled, facts = traced_lowered_compiled(step, params, opt_state, grads)
        facts["temporary_megabytes"] = compiled.memory_analysis().temp_size_in_bytes / 1e6
        turn = _turn(compiled, lent, (params, opt_state), grads, facts)
        ready[name] = Contender(REFERENCE, turn, facts)
    return ready


def _is_kept(node: Any) -> bool:
    """Whether a part of a state holds vectors over groups, leaves or calls, which other contenders
    have not.
    """
    return isinstance(node, wc.ClipState) or hasattr(node, "ring_counts")


def _turn(
    compiled: Any, lent: list[jax.Array], begin: Any, grads: Any, facts: dict[str, float]
) -> Callable[[], float]:
    """Takes a step with the lent arrays and with those of its own: counts, norms, records.

    Or a block of steps, and then returns the seconds of one.
    """
    page_faults: list[int] = []
    block = BLOCK if machine.accelerator() else 1
    leaves, structure = jax.tree.flatten(begin)
    is_lent = jax.tree.leaves(
        jax.tree.map(
            lambda node: jax.tree.map(lambda leaf: leaf.ndim > 0 and not _is_kept(node), node),
            begin,
            is_leaf=_is_kept,
        )
    )
    arrays = list(itertools.compress(leaves, is_lent))
    lent[:] = lent or arrays
    assert [leaf.shape for leaf in arrays] == [leaf.shape for leaf in lent]
    own = [
        jnp.array(leaf, copy=True) for leaf, which in zip(leaves, is_lent, strict=True) if not which
    ]

    def steps(params: Any, opt_state: Any) -> tuple[Any, Any]:
        for _ in range(block):
            params, opt_state = compiled(params, opt_state, grads)
        return params, opt_state

    def turn() -> float:
        arrays, others = iter(lent), iter(own)
        before = structure.unflatten([next(arrays if which else others) for which in is_lent])
        lent.clear()  # the step may then take their place
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        seconds, after = seconds_of(steps, *before)
        page_faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
        facts["page_faults"] = statistics.median(page_faults)
        leaves = jax.tree.leaves(after)
        lent[:] = itertools.compress(leaves, is_lent)
        own[:] = [leaf for leaf, which in zip(leaves, is_lent, strict=True) if not which]
        return seconds / block

    return turn
