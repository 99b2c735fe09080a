"""What clipping adds to a training step: update and apply, as a ratio to the same step without clipping in the same run.

The contenders take turns, step by step, with parameters and state donated, so that a slow moment of the machine hits all of
them. Times are of whole steps on the CPU, with AdamW; the norm is always over the bound, so that the clip has to act.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import warmclip_jax as wc

LEARNING_RATE = 1e-4
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def gpt2_small() -> dict[str, Any]:
    """The shapes of GPT-2 small: 124 M parameters in 148 leaves."""
    width, vocabulary, context = 768, 50257, 1024
    layer = {
        "attention": (width, 3 * width),
        "attention_bias": (3 * width,),
        "projection": (width, width),
        "projection_bias": (width,),
        "up": (width, 4 * width),
        "up_bias": (4 * width,),
        "down": (4 * width, width),
        "down_bias": (width,),
        **{f"norm{index}": (width,) for index in range(4)},
    }
    return {
        "tokens": (vocabulary, width),
        "positions": (context, width),
        "scale": (width,),
        "bias": (width,),
        **{f"layer{index}": layer for index in range(12)},
    }


@dataclasses.dataclass(frozen=True)
class Workload:
    """Shapes of parameters, and the dtype of their gradients."""

    shapes: Any
    gradient_dtype: Any = jnp.float32


WORKLOADS = {
    "gpt2_small": Workload(gpt2_small()),
    "gpt2_small_bf16": Workload(gpt2_small(), jnp.bfloat16),
    "800_middle_leaves": Workload([(180, 180)] * 800),
    "1000_small_leaves": Workload([(64,)] * 1000),
}


def _update_then_apply(optimizer: Any) -> Step:
    def step(params: Any, opt_state: Any, grads: Any) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step


def _apply_gradients(optimizer: Any) -> Step:
    return functools.partial(wc.apply_gradients, optimizer)


def contenders() -> dict[str, tuple[Any, Callable[[Any], Step]]]:
    """Optimizers by name, each with how it takes a step. The first is what the others are compared with."""
    adamw = optax.adamw(LEARNING_RATE)
    return {
        "no clipping": (adamw, _update_then_apply),
        "optax.clip_by_global_norm": (optax.chain(optax.clip_by_global_norm(1.0), adamw), _update_then_apply),
        "wc.clip_by_global_norm": (optax.chain(wc.clip_by_global_norm(1.0), adamw), _update_then_apply),
        "wc.clip_by_global_norm(None)": (optax.chain(wc.clip_by_global_norm(None), adamw), _update_then_apply),
        "optax, apply_if_finite": (
            optax.apply_if_finite(optax.chain(optax.clip_by_global_norm(1.0), adamw), 5),
            _update_then_apply,
        ),
        "wc.pipeline, update": (wc.pipeline(optax.adamw, LEARNING_RATE), _update_then_apply),
        "wc.pipeline, apply_gradients": (wc.pipeline(optax.adamw, LEARNING_RATE), _apply_gradients),
    }


@dataclasses.dataclass
class Result:
    """What was measured of one contender on one workload."""

    workload: str
    contender: str
    ratio: float  # median over rounds of its time by that of the first contender in the same round
    milliseconds: float  # median
    trace_seconds: float
    compile_seconds: float
    temporary_megabytes: float


@dataclasses.dataclass
class _Run:
    compiled: Any
    trace_seconds: float
    compile_seconds: float
    params: Any
    opt_state: Any
    seconds: list[float] = dataclasses.field(default_factory=list)

    def step(self, grads: Any) -> None:
        start = time.perf_counter()
        self.params, self.opt_state = self.compiled(self.params, self.opt_state, grads)
        jax.block_until_ready((self.params, self.opt_state))
        self.seconds.append(time.perf_counter() - start)


def _filled(workload: Workload, scale: float, dtype: Any) -> Any:
    rng = np.random.default_rng(0)
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape, np.float32) * scale, dtype), workload.shapes, is_leaf=is_shape
    )


def _compiled(workload: Workload, optimizer: Any, step: Step, grads: Any) -> _Run:
    params = _filled(workload, 1.0, jnp.float32)
    opt_state = optimizer.init(params)
    begin = time.perf_counter()
    traced = jax.jit(step, donate_argnums=(0, 1)).trace(params, opt_state, grads)
    middle = time.perf_counter()
    compiled = traced.lower().compile()
    return _Run(compiled, middle - begin, time.perf_counter() - middle, params, opt_state)


def measured(name: str, rounds: int, progress: Callable[[str], None]) -> Iterator[Result]:
    """Runs every contender on the workload `name`, in turn, `rounds` times."""
    workload = WORKLOADS[name]
    grads = _filled(workload, 0.1, workload.gradient_dtype)
    runs: dict[str, _Run] = {}
    for contender, (optimizer, how) in contenders().items():
        progress(f"{name}: compiling {contender}")
        runs[contender] = _compiled(workload, optimizer, how(optimizer), grads)
    for index in range(rounds + 2):  # the first two are not counted
        progress(f"{name}: round {index + 1} of {rounds + 2}")
        for run in runs.values():
            run.step(grads)
    reference = next(iter(runs.values())).seconds[2:]
    for contender, run in runs.items():
        seconds = run.seconds[2:]
        yield Result(
            workload=name,
            contender=contender,
            ratio=statistics.median(own / other for own, other in zip(seconds, reference, strict=True)),
            milliseconds=1e3 * statistics.median(seconds),
            trace_seconds=run.trace_seconds,
            compile_seconds=run.compile_seconds,
            temporary_megabytes=run.compiled.memory_analysis().temp_size_in_bytes / 1e6,
        )
