"""Learning rates, gradient clipping and bad steps for optax, with a record of what happened.

Train: `pipeline`, `apply_gradients`, `metrics`, `unless_skipped`.
Clip: `clip_by_global_norm`, `clip_by_group_norm` and `label_by_path`, `clip_tree`; a bound that
    follows the run: `running_bound`. Measure: `global_norm`, `leaf_norms`.
Leave bad steps out: `skip_nonfinite`. Take over a running project: `adopt_state`.
Find out what happened: `report`, `records`, `plot_records`, `read_state`.
Warm up: `linear_warmup`, `polynomial_warmup`, `exponential_warmup`, `with_warmup`.
Decay: `polynomial_decay`, `cosine_decay`, `exponential_decay`, `inverse_sqrt_decay`,
    `inverse_power_decay`.
Both: `warmup_polynomial_decay`, `warmup_cosine_decay`, `warmup_stable_decay`.
Build schedules: `constant`, `piecewise_constant`, `join`, `repeat`, `shift`, `stretch`, `product`,
    `total`, `minimum`, `maximum`. Count: `steps`, `untuned_warmup_steps`. Look, and read: `plot`,
    `parse`.
"""

from warmclip_jax._adopting import adopt_state
from warmclip_jax._clipping import (
    ClipState,
    SkipState,
    apply_gradients,
    clip_by_global_norm,
    clip_by_group_norm,
    clip_tree,
    label_by_path,
    running_bound,
    skip_nonfinite,
)
from warmclip_jax._norms import global_norm, leaf_norms
from warmclip_jax._pictures import plot
from warmclip_jax._pipeline import PipelineState, pipeline
from warmclip_jax._schedules import (
    Schedule,
    constant,
    cosine_decay,
    exponential_decay,
    exponential_warmup,
    inverse_power_decay,
    inverse_sqrt_decay,
    join,
    linear_warmup,
    maximum,
    minimum,
    piecewise_constant,
    polynomial_decay,
    polynomial_warmup,
    product,
    repeat,
    shift,
    steps,
    stretch,
    total,
    untuned_warmup_steps,
    warmup_cosine_decay,
    warmup_polynomial_decay,
    warmup_stable_decay,
    with_warmup,
)
from warmclip_jax._telemetry import (
    metrics,
    plot_records,
    read_state,
    records,
    report,
    unless_skipped,
)
from warmclip_jax._values import parse

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
    "inverse_power_decay",
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
    "read_state",
    "records",
    "repeat",
    "report",
    "running_bound",
    "shift",
    "skip_nonfinite",
    "steps",
    "stretch",
    "total",
    "unless_skipped",
    "untuned_warmup_steps",
    "warmup_cosine_decay",
    "warmup_polynomial_decay",
    "warmup_stable_decay",
    "with_warmup",
]
