"""How a bound follows from a history: the numbers of a running bound, a number, a schedule."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from warmclip_jax._values import as_float


class Rule(NamedTuple):
    """The numbers of one bound, or arrays of them over groups."""

    deviations: Any  # positive; inf where there is no running bound
    rate: Any  # 1 - decay: the weight of one more number in the long run
    ceiling: Callable[[jax.Array], Any] | None  # from the count to the largest bound allowed

    @classmethod
    def of(cls, bound: Any) -> "Rule":
        """The rule of a checked bound: a number or a schedule is a ceiling without deviations."""
        return bound.rule if hasattr(bound, "rule") else cls(math.inf, 0.0, of_count(bound))

    @classmethod
    def of_groups(cls, bounds: Sequence[Any]) -> "Rule":
        """The rule of groups with a checked bound each, in the order of `bounds`."""
        # Groups that share a schedule ask it once.
        rules = {id(bound): cls.of(bound) for bound in bounds}
        keys = list(rules)
        of_group = jnp.asarray([keys.index(id(bound)) for bound in bounds])

        def over_groups(numbers: Iterable[Any]) -> jax.Array:
            return jnp.stack(list(map(as_float, numbers)))[of_group]

        def ceiling(count: jax.Array) -> jax.Array:
            ceilings = (rule.ceiling for rule in rules.values())
            return over_groups(math.inf if each is None else each(count) for each in ceilings)

        deviations, rates, _ = zip(*rules.values(), strict=True)
        return cls(over_groups(deviations), over_groups(rates), ceiling)

    def lowered(self, bound: jax.Array, count: jax.Array) -> jax.Array:
        """A bound, or the ceiling at `count` where that is below it."""
        if self.ceiling is None:
            return bound
        return jnp.minimum(bound, jnp.asarray(self.ceiling(count)).astype(bound.dtype))


def of_count(number: Any) -> Callable[[Any], Any] | None:
    """A number as what a schedule is, a function of the count; None stays None."""
    return number if number is None or callable(number) else lambda count: number
