"""What a value is, the rules of arguments, and the wording of messages."""

from warmclip_jax._values._factories import factories, makes
from warmclip_jax._values._foreign import Foreign
from warmclip_jax._values._function import Function
from warmclip_jax._values._messages import (
    ArgumentTypeError,
    ArgumentValueError,
    broken_rule,
    described,
    named,
    naming,
    shortened,
)
from warmclip_jax._values._parsing import parse
from warmclip_jax._values._rules import (
    FLAG,
    MAX_COUNT,
    Choice,
    Each,
    Number,
    Scalar,
    as_array_like,
    as_float,
    as_length,
    as_number,
    default_float,
    exactly_one,
    is_integer,
    is_real,
    is_traced,
    real_scalar,
    stacked,
)
from warmclip_jax._values._value import Value
