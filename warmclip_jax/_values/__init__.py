"""What a value is, and the rules of arguments."""

from warmclip_jax._values._foreign import Foreign
from warmclip_jax._values._parsing import parse
from warmclip_jax._values._rules import (
    MAX_COUNT,
    Choice,
    Each,
    Number,
    Scalar,
    as_array_like,
    as_length,
    as_number,
    broken_rule,
    default_float,
    exactly_one,
    is_real,
    is_traced,
    naming,
)
from warmclip_jax._values._value import Function, Value, factories, makes
