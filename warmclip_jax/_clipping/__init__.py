"""Gradients in, gradients out, and what is remembered of them."""

from warmclip_jax._clipping._applying import apply_gradients, as_transformation, check_params
from warmclip_jax._clipping._bounds import Bound, running_bound
from warmclip_jax._clipping._clip import Clip, ClipState
from warmclip_jax._clipping._coding import coded, decoded, is_unknown, quietly, unknown
from warmclip_jax._clipping._gate import gated
from warmclip_jax._clipping._groups import Groups, as_keys, from_keys, label_by_path
from warmclip_jax._clipping._guard import Guard
from warmclip_jax._clipping._history import (
    History,
    deviations_above,
    init_history,
    log_of,
    taught,
)
from warmclip_jax._clipping._leaf_record import STANDS_OUT, LeafRecord, names_of
from warmclip_jax._clipping._loss import loss_of
from warmclip_jax._clipping._loss_history import (
    LossHistory,
    init_loss_history,
    loss_deviations_above,
    loss_taught,
)
from warmclip_jax._clipping._ring import COUNTS, MOST_IN_A_ROW, NUMBERS, Ring
from warmclip_jax._clipping._scaling import scale_tree
from warmclip_jax._clipping._selecting import choose
from warmclip_jax._clipping._skipping import SkipState, skip_nonfinite
from warmclip_jax._clipping._states import own
from warmclip_jax._clipping._transformations import (
    clip_by_global_norm,
    clip_by_group_norm,
    clip_tree,
)
