"""The models that `stability` trains: a small transformer on real text, and a residual perceptron
that learns a teacher.
"""

import pathlib
import sysconfig
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

LENGTH, WIDTH, HEADS = 24, 32, 2
TEXTS, ROWS = 12, 64  # in a batch of each task
HELD_OUT = 512  # texts or rows


class Data(NamedTuple):
    """All that depends on the seed: the parameters to start from, the batches, and what the loss is
    taken on at the end.
    """

    start: Any
    batches: Any  # arrays (steps, batch, ...)
    held_out: Any


class Task(NamedTuple):
    """A model, what it learns, and the optimizer that people train such a model with."""

    name: str
    optimizer: Callable[[Any], optax.GradientTransformation]
    peaks: np.ndarray  # learning rates, three decades of them
    depths: tuple[int, ...]
    data: Callable[[int, int, int], Data]  # depth, seed, steps
    loss: Callable[[Any, Any, int], jax.Array]  # parameters, batch, depth


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.attention_norm, self.norm = (
            nnx.LayerNorm(WIDTH, rngs=rngs),
            nnx.LayerNorm(WIDTH, rngs=rngs),
        )
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.expand, self.contract = (
            nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs),
            nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs),
        )

    def __call__(self, stream: jax.Array) -> jax.Array:
        mask = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
        stream = stream + self.attention(self.attention_norm(stream), mask=mask)
        return stream + self.contract(jax.nn.gelu(self.expand(self.norm(stream))))


class Transformer(nnx.Module):
    """ASCII in, the logits of each next character out."""

    def __init__(self, depth: int, rngs: nnx.Rngs):
        self.embed, self.places = (
            nnx.Embed(128, WIDTH, rngs=rngs),
            nnx.Embed(LENGTH, WIDTH, rngs=rngs),
        )
        self.blocks = nnx.List([Block(rngs) for _ in range(depth)])
        self.norm, self.unembed = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.Linear(WIDTH, 128, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        stream = self.embed(text) + self.places(jnp.arange(LENGTH))
        for block in self.blocks:
            stream = block(stream)
        return self.unembed(self.norm(stream))


class Perceptron(nnx.Module):
    """Residual layers without normalisation, each begun small enough that the stream does not grow
    with their number.
    """

    def __init__(self, depth: int, rngs: nnx.Rngs):
        self.enter, self.leave = nnx.Linear(8, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 1, rngs=rngs)
        begin = nnx.initializers.variance_scaling(2 / depth, "fan_in", "normal")
        self.blocks = nnx.List(
            [nnx.Linear(WIDTH, WIDTH, kernel_init=begin, rngs=rngs) for _ in range(depth)]
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        stream = self.enter(inputs)
        for block in self.blocks:
            stream = stream + block(jax.nn.relu(stream))
        return self.leave(stream)[..., 0]


def text() -> tuple[np.ndarray, np.ndarray]:
    """The source of the standard library in ASCII, shuffled by file: for training, and a tenth of
    it held out.
    """
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    files = [path.read_bytes() for path in sorted(folder.glob("*.py"))]
    order = np.random.default_rng(0).permutation(len(files))
    joined = np.frombuffer(b"\n".join(files[index] for index in order), np.uint8)
    joined = joined[joined < 128]
    cut = len(joined) * 9 // 10
    return joined[:cut], joined[cut:]


def begun(model: type, depth: int, seed: int) -> Any:
    return nnx.to_pure_dict(nnx.state(model(depth, nnx.Rngs(seed)), nnx.Param))


def applied(model: type, depth: int, params: Any, inputs: jax.Array) -> jax.Array:
    fresh = nnx.eval_shape(lambda: model(depth, nnx.Rngs(0)))
    graph, state = nnx.split(fresh, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)(inputs)


def text_data(depth: int, seed: int, steps: int) -> Data:
    rng = np.random.default_rng(seed)
    train, held_out = text()

    def windows(of: np.ndarray, number: int) -> np.ndarray:
        return of[
            rng.integers(len(of) - LENGTH, size=number)[:, None] + np.arange(LENGTH + 1)
        ].astype(np.int32)

    batches = windows(train, steps * TEXTS).reshape(steps, TEXTS, LENGTH + 1)
    return Data(begun(Transformer, depth, seed), batches, windows(held_out, HELD_OUT))


def text_loss(params: Any, batch: jax.Array, depth: int) -> jax.Array:
    logits = applied(Transformer, depth, params, batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


def teacher_data(depth: int, seed: int, steps: int) -> Data:
    rng, teacher = np.random.default_rng(seed), np.random.default_rng(0)
    inner, outer = teacher.standard_normal((8, 16)), teacher.standard_normal(16)

    def drawn(*shape: int) -> tuple[np.ndarray, np.ndarray]:
        inputs = rng.standard_normal((*shape, 8)).astype(np.float32)
        return inputs, (np.tanh(inputs @ inner) @ outer / 4).astype(np.float32)

    return Data(begun(Perceptron, depth, seed), drawn(steps, ROWS), drawn(HELD_OUT))


def teacher_loss(params: Any, batch: Any, depth: int) -> jax.Array:
    inputs, targets = batch
    return jnp.mean(jnp.square(applied(Perceptron, depth, params, inputs) - targets))


TASKS = (
    Task(
        "transformer, AdamW",
        optax.adamw,
        np.geomspace(3e-4, 3e-1, 13),
        (2, 6),
        text_data,
        text_loss,
    ),
    Task(
        "residual perceptron, SGD with momentum",
        lambda rate: optax.sgd(rate, momentum=0.9),
        np.geomspace(1e-3, 1.0, 13),
        (8, 32),
        teacher_data,
        teacher_loss,
    ),
)
