"""Gradients in, gradients out, and what is remembered of them."""

from warmclip_jax._clipping._applying import apply_gradients, as_transformation
from warmclip_jax._clipping._bounds import Bound, running_bound
from warmclip_jax._clipping._clip import Clip, ClipState
from warmclip_jax._clipping._groups import Groups, as_keys, from_keys, label_by_path
from warmclip_jax._clipping._history import History
from warmclip_jax._clipping._leaf_record import STANDS_OUT, LeafRecord, names_of
from warmclip_jax._clipping._ring import COUNTS, NUMBERS, Ring
from warmclip_jax._clipping._selecting import choose
from warmclip_jax._clipping._skipping import Guard, SkipState, skip_nonfinite
from warmclip_jax._clipping._states import UNKNOWN, like, own, shown, shown_bound, stored
from warmclip_jax._clipping._transformations import (
    clip_by_global_norm,
    clip_by_group_norm,
    clip_tree,
)
