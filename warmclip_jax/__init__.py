"""Learning-rate schedules, global-norm gradient clipping, and one call that chains them into an optimizer."""

from warmclip_jax._clipping import ClipState, clip_by_global_norm, clip_tree
from warmclip_jax._curve import Schedule
from warmclip_jax._norm import global_norm
from warmclip_jax._pipeline import PipelineState, metrics, pipeline
from warmclip_jax._schedules import (
    constant,
    linear_warmup,
    polynomial_decay,
    polynomial_warmup,
    warmup_polynomial_decay,
)
from warmclip_jax._skipping import SkipState, apply_gradients, skip_nonfinite

__version__ = "0.1.0"

__all__ = [
    "ClipState",
    "PipelineState",
    "Schedule",
    "SkipState",
    "apply_gradients",
    "clip_by_global_norm",
    "clip_tree",
    "constant",
    "global_norm",
    "linear_warmup",
    "metrics",
    "pipeline",
    "polynomial_decay",
    "polynomial_warmup",
    "skip_nonfinite",
    "warmup_polynomial_decay",
]
