"""A norm as a mantissa and a scale, and the range in which a sum of squares can be trusted."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class ScaledNorm(NamedTuple):
    """The norm `mantissa / scale`, also where that is not representable.

    Scalars of the accumulation dtype, or arrays of them. In derivatives `value` alone has a slope
    that never leaves the range: that of the mantissa is `scale` times as large.
    """

    mantissa: jax.Array
    scale: jax.Array  # a power of two, positive
    value: jax.Array  # the norm as one number: inf where it is too large for its dtype

    @property
    def is_finite(self) -> jax.Array:
        """Whether every entry is finite, even where the norm is not representable."""
        return jnp.isfinite(self.mantissa)

    @property
    def inverse(self) -> jax.Array:
        """`x * scale * inverse` is the unit vector of the entries x. It is 0 where the norm is."""
        some = self.mantissa > 0
        return jnp.where(some, 1 / jnp.where(some, self.mantissa, 1), 0)

    @classmethod
    def of(cls, norm: jax.Array) -> "ScaledNorm":
        """A norm that is given as one number."""
        # Only a norm whose square overflows is scaled.
        scale = lax.stop_gradient(
            jnp.where(jnp.isinf(norm * norm), Range.of(norm.dtype).down, 1).astype(norm.dtype)
        )
        return cls(norm * scale, scale, norm)


class Range(NamedTuple):
    """Where a sum of squares can be trusted, and the powers of two that bring the others there."""

    low: np.ndarray  # below it, squares that underflowed may be missing from the sum
    up: np.ndarray  # scale for what is below `low`
    down: np.ndarray  # scale for what overflowed

    @classmethod
    def of(cls, dtype: Any) -> "Range":
        # An entry below sqrt(tiny) squares to nothing. 2^31 such entries are missing 2^-95
        # (float32) from a sum of at least 2^-60. Scaled by `down`, 2^31 of the largest entries
        # still add up to less than the largest number.
        low, up, down = (-60, 70, -80) if dtype == jnp.float32 else (-900, 600, -600)
        return cls(*(np.ldexp(np.asarray(1, dtype), exponent) for exponent in (low, up, down)))

    def fitting(self, plain: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Whether a plain sum can be trusted, and the scale at which it can."""
        fits = (plain >= self.low) & (plain < jnp.inf)
        other = jnp.where(plain < self.low, self.up, self.down)
        return fits, jnp.where(fits, 1, other).astype(plain.dtype)

    def scales(self) -> tuple[None, jax.Array, jax.Array]:
        """The scales 1, `up` and `down` of the sums that `chosen` takes."""
        # Hidden from the compiler, which turns (x * up) * (x * up) of a single number into
        # x * x * up^2, and up^2 is inf.
        return None, *lax.optimization_barrier((jnp.asarray(self.up), jnp.asarray(self.down)))

    def chosen(
        self, plain: jax.Array, raised: jax.Array, lowered: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The one of the sums at scales 1, `up` and `down` that can be trusted, and its scale."""
        fits, scale = self.fitting(plain)
        return jnp.where(plain < self.low, raised, jnp.where(fits, plain, lowered)), scale
