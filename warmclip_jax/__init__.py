"""Learning-rate schedules, global-norm gradient clipping, and one call that chains them into an optimizer."""

from warmclip_jax._adopting import adopt_state
from warmclip_jax._gradients._applying import apply_gradients
from warmclip_jax._gradients._bounds import running_bound
from warmclip_jax._gradients._clip import ClipState
from warmclip_jax._gradients._clipping import clip_by_global_norm, clip_by_group_norm, clip_tree
from warmclip_jax._gradients._groups import label_by_path
from warmclip_jax._gradients._leaf_norms import leaf_norms
from warmclip_jax._gradients._norm import global_norm
from warmclip_jax._gradients._skipping import SkipState, skip_nonfinite
from warmclip_jax._metrics import metrics
from warmclip_jax._parsing import parse
from warmclip_jax._pictures._plot import plot
from warmclip_jax._pictures._recorded import plot_records
from warmclip_jax._pipeline import PipelineState, pipeline
from warmclip_jax._records import records
from warmclip_jax._report import report
from warmclip_jax._schedules._curves import (
    constant,
    cosine_decay,
    exponential_warmup,
    inverse_sqrt_decay,
    linear_warmup,
    piecewise_constant,
    polynomial_decay,
    polynomial_warmup,
)
from warmclip_jax._schedules._exponential import exponential_decay
from warmclip_jax._schedules._pointwise import maximum, minimum, product
from warmclip_jax._schedules._recipes import warmup_cosine_decay, warmup_polynomial_decay, warmup_stable_decay
from warmclip_jax._schedules._schedule import Schedule
from warmclip_jax._schedules._transforms import join, repeat, shift, stretch, with_warmup
from warmclip_jax._schedules._units import steps, untuned_warmup_steps

__version__ = "0.1.0"

__all__ = [
    "ClipState",
    "PipelineState",
    "Schedule",
    "SkipState",
    "adopt_state",
    "apply_gradients",
    "clip_by_global_norm",
    "clip_by_group_norm",
    "clip_tree",
    "constant",
    "cosine_decay",
    "exponential_decay",
    "exponential_warmup",
    "global_norm",
    "inverse_sqrt_decay",
    "join",
    "label_by_path",
    "leaf_norms",
    "linear_warmup",
    "maximum",
    "metrics",
    "minimum",
    "parse",
    "piecewise_constant",
    "pipeline",
    "plot",
    "plot_records",
    "polynomial_decay",
    "polynomial_warmup",
    "product",
    "records",
    "repeat",
    "report",
    "running_bound",
    "shift",
    "skip_nonfinite",
    "steps",
    "stretch",
    "untuned_warmup_steps",
    "warmup_cosine_decay",
    "warmup_polynomial_decay",
    "warmup_stable_decay",
    "with_warmup",
]
