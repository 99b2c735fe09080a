"""A count in, a value out: the schedules, which know no trees, no gradients and no optimizers."""

from warmclip_jax._schedules._curves import (
    constant,
    cosine_decay,
    exponential_warmup,
    inverse_power_decay,
    inverse_sqrt_decay,
    linear_warmup,
    piecewise_constant,
    polynomial_decay,
    polynomial_warmup,
)
from warmclip_jax._schedules._exponential import exponential_decay
from warmclip_jax._schedules._pointwise import maximum, minimum, product, total
from warmclip_jax._schedules._recipes import (
    warmup_cosine_decay,
    warmup_polynomial_decay,
    warmup_stable_decay,
)
from warmclip_jax._schedules._schedule import Schedule
from warmclip_jax._schedules._transforms import join, repeat, shift, stretch, with_warmup
from warmclip_jax._schedules._units import steps, untuned_warmup_steps
