"""What the states of clips and guards are made of, and the check that a state is their own."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from warmclip_jax._norms import ScaledNorm
from warmclip_jax._values import ArgumentTypeError, described

#: What fills the fields that may be empty.
_OPTIONS = {
    "clip_history": "a running bound",
    "group_clipped_count": "groups",
    "leaves": "record_leaves",
    "loss_history": "a running bound on the loss",
    "ring": "record",
    "skip_history": "a running bound of skipping",
}

State = TypeVar("State", bound=tuple[Any, ...])


def own(kind: type[State], state: Any, updates: Any, **filled: bool) -> State:
    """`state`, when it is a `kind` whose fields in `filled` hold arrays (True) or none (False).

    Raises TypeError with what came instead, and what to do.
    """
    name = kind.__name__
    if isinstance(state, kind):
        wrong = [
            field
            for field, is_filled in filled.items()
            if is_filled != bool(jax.tree.leaves(getattr(state, field)))
        ]
        if not wrong:
            _check_replicated(state)
            return state
        rule = "that of an optimizer with the options of this one"
        came = f"a {name} {'without' if filled[wrong[0]] else 'with'} {_OPTIONS[wrong[0]]}"
    elif isinstance(updates, kind):
        raise ArgumentTypeError(
            f"updates and state are swapped: got the {name} first. Call update(updates, state, "
            "params)."
        )
    else:
        rule, came = f"the {name} that init or the last update returned", described(state)
    raise ArgumentTypeError(
        f"state must be {rule}; got {came}. For the state of another optimizer, or of one built "
        "with other options, call adopt_state(optimizer, params, opt_state, step=...) once."
    )


def _check_replicated(state: Any) -> None:
    """Raises TypeError for an array of our own that an explicit mesh has sharded."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state._asdict() | {"inner_state": ()}):
        if any(spec := jax.typeof(leaf).sharding.spec):
            raise ArgumentTypeError(
                "state must be whole on each device of an explicit mesh, but for inner_state; got "
                f"{jax.tree_util.keystr(path, simple=True, separator='.')} sharded by {spec}. It "
                "has an entry for each call, leaf or group: put it with PartitionSpec()."
            )


def counter(start: int = 0) -> jax.Array:
    """A fresh counter: a buffer of its own, since one shared by two fields could not be donated."""
    return jnp.full((), start, jnp.int32)


def increment_if(condition: jax.Array | bool, count: Any) -> jax.Array:
    """`count` plus one where `condition` holds, never past its dtype."""
    return jnp.where(condition, optax.safe_increment(count), count)


def like(old: jax.Array, new: Any) -> jax.Array:
    """`new` in the dtype of `old`, so that a state keeps its dtypes under x64 and after a cast."""
    return jnp.asarray(new).astype(old.dtype)


def as_number(norm: ScaledNorm) -> jax.Array:
    """A norm as one number: the largest of its dtype where it is past that and all is finite."""
    largest = jnp.finfo(norm.mantissa.dtype).max
    return jnp.where(norm.is_finite, jnp.minimum(norm.value, largest), norm.value)
