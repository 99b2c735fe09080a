"""A small byte-level transformer."""

import jax
import jax.numpy as jnp
import numpy as np
from byte_lm_settings import HEAD_WIDTH
from flax import nnx


class Block(nnx.Module):
    """Causal self-attention and a perceptron, each added to the stream."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.queries_keys_values = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.mix = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.perceptron_norm = nnx.LayerNorm(width, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, stream: jax.Array) -> jax.Array:
        batch, length, width = stream.shape
        heads = self.queries_keys_values(self.attention_norm(stream)).reshape(
            batch, length, -1, HEAD_WIDTH
        )
        queries, keys, values = jnp.split(heads, 3, axis=2)
        seen = jax.nn.dot_product_attention(rotated(queries), rotated(keys), values, is_causal=True)
        stream = stream + self.mix(seen.reshape(batch, length, width))
        return stream + self.contract(jax.nn.gelu(self.expand(self.perceptron_norm(stream))))


class ByteLM(nnx.Module):
    """Bytes in, the logits of each next byte out."""

    def __init__(self, width: int, layers: int, rngs: nnx.Rngs):
        self.embed = nnx.Embed(256, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.unembed = nnx.Linear(width, 256, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        stream = self.embed(text)
        for block in self.blocks:
            stream = block(stream)
        return self.unembed(self.norm(stream))


def rotated(heads: jax.Array) -> jax.Array:
    """Rotary positions (Su et al. 2021): attention sees how far apart two bytes are."""
    length, half = heads.shape[1], HEAD_WIDTH // 2
    angles = np.outer(np.arange(length), 10_000.0 ** -(np.arange(half) / half)).astype(np.float32)[
        None, :, None, :
    ]
    even, odd = jnp.split(heads, 2, axis=-1)
    turned = (
        even * np.cos(angles) - odd * np.sin(angles),
        even * np.sin(angles) + odd * np.cos(angles),
    )
    return jnp.concatenate(turned, axis=-1)
