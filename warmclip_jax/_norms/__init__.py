"""A tree in, norms out: they know no bounds and no schedules."""

from warmclip_jax._norms._axes import AxisName, check_axis_name, varying_axes
from warmclip_jax._norms._entries import entries
from warmclip_jax._norms._frame import Grouping, all_together, each_alone, scaled_norms
from warmclip_jax._norms._leaf_norms import leaf_norms
from warmclip_jax._norms._leaves import (
    accumulation_dtype,
    from_prefix,
    is_gradient,
    joined,
    leaf_names,
    paths,
    stops_a_path,
)
from warmclip_jax._norms._norm import global_norm, scaled_norm
from warmclip_jax._norms._range import ScaledNorm
