"""The rule for an argument that is a function of a count."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

from warmclip_jax._values._foreign import Foreign, takes_a_count
from warmclip_jax._values._messages import ArgumentTypeError, broken_rule
from warmclip_jax._values._rules import Number
from warmclip_jax._values._value import Value


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of a count; or also a number, by the rule `number`."""

    rule: str
    remedy: str
    number: Number | None = None

    @classmethod
    def or_number(cls, rule: str, remedy: str, holds: Callable[[float], bool]) -> Self:
        """The rule for a function, or a number for which `holds` is true."""
        return cls(rule, remedy, Number(rule, remedy, holds))

    def check(self, name: str, value: Any) -> Any:
        """The value, `Foreign` function or number to keep for this argument."""
        if isinstance(value, str):
            remedy = (
                "Read a schedule from text with warmclip_jax.parse; YAML reads 1.0e-4 as a number, "
                "1e-4 as text."
            )
            raise broken_rule(name, self.rule, value, remedy, TypeError)
        if self.number is not None and (not callable(value) or hasattr(value, "__jax_array__")):
            return self.number.check(name, value)
        if not callable(value) or isinstance(value, type):
            raise broken_rule(name, self.rule, value, self.remedy, TypeError)
        if isinstance(value, (Value, Foreign)):
            return value
        if hasattr(value, "is_named") or not takes_a_count(value):
            called = getattr(value, "__name__", repr(value))
            raise ArgumentTypeError(
                f"{name} must be {self.rule}; got the function {called} itself. Call it with its "
                f"arguments: {called}(...)."
            )
        return Foreign(value, name)
