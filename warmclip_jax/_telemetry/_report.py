"""A report for a person: when a run went wrong, in which leaves, and what was done about it."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax

from warmclip_jax._clipping import quietly
from warmclip_jax._telemetry._account import Account
from warmclip_jax._telemetry._advice import (
    accumulator,
    beginning,
    bound_as_rate,
    growth,
    leaves_to_look_at,
    loss_spike,
    parameters,
    rise_of_the_rate,
    the_same_batch,
    train_step,
)
from warmclip_jax._telemetry._course import calls, clips, last_call, record
from warmclip_jax._telemetry._finding import Found
from warmclip_jax._telemetry._records import common_shape, on_host, ring_of
from warmclip_jax._telemetry._runs import lines_of_runs
from warmclip_jax._telemetry._trouble import bad_calls, large_calls
from warmclip_jax._values import named


@named
@quietly()
def report(opt_state: Any) -> str:
    """What an optimizer state knows of the run, for a person: a few lines of text.

    The last call with a NaN or inf and the leaves that held one; the last spike and its leaves,
    ranked by the ratio of their norm to what is usual for each; skips, clips, the learning rate;
    and what would have to be recorded to know more.

    Args:
      opt_state: any optimizer state, however nested, or a raw checkpoint of one, as in `metrics`:
        on any machine, without the code that trained, `wc.report(wc.read_state(path))`.

    Returns:
      Lines of text. A state with several clips or guards has a section for each, one of vmapped
      runs a line for each, the worst first. The usual norm of a leaf is that of the calls before
      the report, not before the spike.

    Raises:
      ValueError: for a state that holds nothing of this package, or that another version wrote.
      TypeError: for a traced or an abstract state. In several processes each may ask by itself.

    >>> import jax.numpy as jnp
    >>> import warmclip_jax as wc
    >>> optimizer = wc.skip_nonfinite(wc.clip_by_global_norm(1.0), record=8, record_leaves=True)
    >>> params = {"head": jnp.ones(2), "trunk": jnp.ones(3)}
    >>> state = optimizer.init(params)
    >>> _, state = optimizer.update(params, state)
    >>> _, state = optimizer.update(params | {"head": jnp.array([1.0, jnp.nan])}, state)
    >>> for line in wc.report(state).splitlines()[2:5]:
    ...     print(line)
    Last call with NaN or inf: call 1, step 1, skipped.
      Leaves with NaN, 1 of 2: head
      Finite leaves: 1.
    """
    seen = on_host(opt_state)
    if shape := common_shape(seen):
        return "\n".join(lines_of_runs(seen, shape))
    accounts = [Account(each.state, is_guarded=each.guard is not None) for each in seen]
    lines: list[str] = []
    for each, account in zip(seen, accounts, strict=True):
        if len(seen) > 1:
            where = jax.tree_util.keystr(each.path, simple=True, separator="/")
            lines.append(f"{type(each.state).__name__}{where and f' at {where}'}:")
        lines += _sentences(account, each, opt_state)
    wishes = {
        "record=256 keeps the last calls (pipeline, skip_nonfinite)": not any(
            ring_of(each.state) for each in seen
        ),
        "record_leaves=True keeps which leaves": not any(account.leaves for account in accounts),
    }
    if any(wishes.values()):
        wished = "; ".join(itertools.compress(wishes, wishes.values()))
        lines.append(f"To know more next time: {wished}.")
    return "\n".join(lines)


def _sentences(account: Account, each: Found, opt_state: Any) -> Iterator[str]:
    yield from calls(account)
    if each.guard is None:
        yield from train_step(account, opt_state, each.path)
    yield from growth(account)
    yield from rise_of_the_rate(account)
    if account.numbers["calls"] > account.counts_from:
        yield from bad_calls(account)
        yield from accumulator(account, each.path)
        yield from parameters(account)
        yield from large_calls(account)
        yield from loss_spike(account)
        yield from beginning(account, each.path)
        yield from the_same_batch(account)
        yield from clips(account)
        yield from bound_as_rate(account)
        yield last_call(account)
        yield from leaves_to_look_at(account)
    yield from record(account)
