"""The trees that steps are taken on: shapes of parameters, the dtype of their gradients, and an
optimizer.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LEARNING_RATE = 1e-4
#: Far below the norm of what `filled` makes, so that every clip has to act in every step.
MAX_NORM = 0.01
#: Scale of the gradients.
SCALE = 0.1

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is updated, and how. Parameters and moments are float32."""

    title: str
    shapes: tuple[Shape, ...]
    optimizer: str = "AdamW"  # or "SGD", with momentum
    gradient_dtype: str = "float32"
    slow_to_build: bool = (
        False  # so many leaves that the contenders that take longest to compile are left out
    )

    @property
    def entries(self) -> int:
        return sum(map(math.prod, self.shapes))

    @property
    def limit(self) -> float | None:
        """The ratio that memory traffic alone allows: the norm reads every gradient once more. None where all fits in a cache.

        The step reads gradient, parameter and moments, and writes parameter and moments.
        """
        gradient, rest = (
            jnp.dtype(self.gradient_dtype).itemsize,
            {"AdamW": 6, "SGD": 4}[self.optimizer] * 4,
        )
        traffic = gradient + rest
        return (traffic + gradient) / traffic if self.entries * traffic > 2**28 else None


def gpt2_small(stacked: bool = False) -> tuple[Shape, ...]:
    """GPT-2 small: 124 M parameters in 148 leaves; or its 12 layers stacked into leaves with a
    leading axis, as for a scan.
    """
    width, vocabulary, context, layers = 768, 50257, 1024, 12
    layer = [
        *((width,) for _ in range(4)),  # two layer norms
        *((width, 3 * width), (3 * width,), (width, width), (width,)),  # attention
        *((width, 4 * width), (4 * width,), (4 * width, width), (width,)),  # up and down
    ]
    around = [(vocabulary, width), (context, width), (width,), (width,)]
    return (*around, *([(layers, *shape) for shape in layer] if stacked else layer * layers))


WORKLOADS = {
    "gpt2": Workload("GPT-2 small, AdamW", gpt2_small()),
    "gpt2_sgd": Workload("GPT-2 small, SGD with momentum", gpt2_small(), optimizer="SGD"),
    "gpt2_bf16": Workload(
        "GPT-2 small, bfloat16 gradients, AdamW", gpt2_small(), gradient_dtype="bfloat16"
    ),
    "gpt2_stacked": Workload("GPT-2 small, stacked for a scan, AdamW", gpt2_small(stacked=True)),
    "middle_leaves": Workload(
        "800 leaves of 180 x 180, AdamW", ((180, 180),) * 800, slow_to_build=True
    ),
    "small_leaves": Workload("1,000 leaves of 64, AdamW", ((64,),) * 1000, slow_to_build=True),
}


def filled(shapes: Iterable[Shape], scale: float = 1.0, seed: int = 0) -> list[np.ndarray]:
    """Normally distributed float32 leaves. The numbers repeat: to draw 124 M of them would take
    longer than to measure.
    """
    block = np.random.default_rng(seed).standard_normal(65_521, np.float32) * np.float32(scale)
    return [np.resize(block, shape) for shape in shapes]


def jax_filled(
    shapes: Iterable[Shape], scale: float = 1.0, seed: int = 0, dtype: Any = jnp.float32
) -> list[jax.Array]:
    """The same as JAX arrays of their own: one made from NumPy's may share its memory, and could
    not be donated.
    """
    return [jnp.array(leaf, dtype, copy=True) for leaf in filled(shapes, scale, seed)]
