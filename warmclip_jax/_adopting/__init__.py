"""States of other optimizers, taken over."""

from warmclip_jax._adopting._adopt import adopt_state
