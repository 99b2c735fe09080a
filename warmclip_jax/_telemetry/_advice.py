"""The sentences of a report about where trouble began, and what to do about it."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from warmclip_jax._clipping import decoded, names_of
from warmclip_jax._telemetry._account import Account, listed
from warmclip_jax._telemetry._usual import usual_of

#: Calls of trouble that are so close belong to one run of it.
_CLOSE = 16
#: From so many calls on a share of them says something.
_ENOUGH = 20
#: More than the rate rises from one update to the next in a warm-up that has begun.
_JUMP = 3


class _Trouble(NamedTuple):
    """The latest run of calls that were lost, or stood far above what was usual."""

    quiet: dict[str, Any] | None  # the row of the last call before it that was neither
    taken: int  # updates made in it


def loss_spike(account: Account) -> Iterator[str]:
    """The last loss that stood far above its usual."""
    rows, usual = _recorded(account)
    far = np.flatnonzero(usual.loss_is_far) if rows else []
    if len(far):
        row = rows[far[-1]]
        bound = row["value_bound"]
        over = f", over its bound of {bound:.3g}" if row["value"] > bound else ""
        yield (
            f"Last spike of the loss: {account.when(row['call'])}. Loss {row['value']:.3g}, usual "
            f"{usual.loss[far[-1]]:.3g}{over}; norm {row['grad_norm']:.3g}."
        )


def beginning(account: Account, path: Any) -> Iterator[str]:
    """The last quiet call before the latest trouble, and what a checkpoint holds since."""
    trouble = _trouble(account)
    if trouble is None:
        return
    if row := trouble.quiet:
        yield f"Last quiet call before the trouble: call {row['call']}, step {row['step']}."
    if trouble.taken:
        yield (
            f"Updates taken in the trouble: {trouble.taken}. If the loss stays worse, go back to a "
            "checkpoint from before it."
        )
    elif not (is_everywhere(account) or any(accumulator(account, path)) or any(growth(account))):
        yield "No update was taken in the trouble: checkpoints written since are sound."


def rise_of_the_rate(account: Account) -> Iterator[str]:
    """The last jump of the learning rate, after the first updates, in which a warm-up may jump."""
    rows = [row for row in account.rows.values() if row["learning_rate"] > 0]
    for before, after in reversed([*itertools.pairwise(rows)]):
        rates = before["learning_rate"], after["learning_rate"]
        is_next = after["step"] == before["step"] + 1
        if is_next and before["step"] >= _ENOUGH and rates[1] > _JUMP * rates[0]:
            yield (
                f"The learning rate rose from {rates[0]:.3g} to {rates[1]:.3g} at call "
                f"{after['call']}: if the schedule is not meant to, look at how the run was "
                "resumed."
            )
            return


def parameters(account: Account) -> Iterator[str]:
    """Whether the parameters themselves may hold NaN."""
    if is_everywhere(account):
        yield (
            "Every leaf was bad in the first call of the run, and is now: look for NaN in the "
            "parameters (wc.global_norm(params) tells), which updates in float16 can make, in "
            "running averages that a skipped call changed (wc.unless_skipped), and in all batches "
            "since."
        )


def the_same_batch(account: Account) -> Iterator[str]:
    """How to tell a fault of the machine, while calls are being skipped."""
    numbers, norm = account.numbers, np.asarray(account.last_norm)
    trouble = _trouble(account)
    if account.period or (trouble is not None and trouble.taken):
        return  # It did not begin with this batch.
    if numbers.get("consecutive_skips") and norm.ndim == 0 and np.isfinite(norm):
        yield (
            f"The batch of call {numbers['calls'] - 1}, run again before the next update, must "
            f"give the norm {norm!s} again; if not, suspect the machine."
        )


def bound_as_rate(account: Account) -> Iterator[str]:
    """A bound that clips most calls."""
    if clips_most(account):
        yield (
            "The bound clips most calls, so it works as a learning rate: raise max_norm, or take "
            "running_bound()."
        )


def clips_most(account: Account) -> bool:
    """Whether more calls were clipped than not."""
    calls = account.numbers["calls"] - account.counts_from
    return calls >= _ENOUGH and account.numbers.get("clipped_count", 0) > calls / 2


def growth(account: Account) -> Iterator[str]:
    """A norm that grew over the whole record."""
    norms = np.array([row["grad_norm"] for row in account.rows.values() if not row["is_bad"]])
    if len(norms) < _ENOUGH:
        return
    quarters = np.array_split(norms, 4)
    medians = [float(np.median(quarter)) for quarter in quarters]
    first, last = medians[0], medians[-1]
    is_rising = all(later > one for one, later in itertools.pairwise(medians))
    if is_rising and np.min(quarters[-1]) > np.max(quarters[0]) and last > 2 * first > 0:
        yield (
            f"The norm grew over the record, from a median of {first:.3g} in its first quarter to "
            f"{last:.3g} in its last: go back to before it, with a lower learning rate."
        )


def leaves_to_look_at(account: Account) -> Iterator[str]:
    """The leaves that hold most of the norm, and those that have never had a gradient."""
    if account.leaves is None:
        return
    names, norms = names_of(account.leaves), decoded(account.leaves.leaf_norms).astype(float)
    taught = account.leaves.leaf_history.norms_taught
    if np.isfinite(norms).all() and (total := np.linalg.norm(norms)) > 0:
        shares = (norms / total) ** 2
        largest = np.argsort(-shares, kind="stable")[:3]
        if len(norms) > 3 and shares[largest[0]] > 0.5:
            texts = (f"{names[leaf]} {shares[leaf]:.0%}" for leaf in largest)
            yield f"Share of the square of the last norm: {', '.join(texts)}."
    if taught.max() >= _ENOUGH and not (taught > 0).all():
        silent = [name for name, number in zip(names, taught, strict=True) if number == 0]
        number = f"{len(silent)} of {len(names)}"
        yield f"Leaves whose gradient was always zero, {number}: {listed(silent)}."


def accumulator(account: Account, path: Any) -> Iterator[str]:
    """A NaN that stays in the gradients that an `optax.MultiSteps` accumulates."""
    if not account.is_guarded and _is_in_multi_steps(path) and account.bad_since is not None:
        yield (
            f"All since call {account.bad_since} were bad: a NaN stays in the sums of an "
            "optax.MultiSteps without a guard. Write skip_nonfinite(optax.MultiSteps(...))."
        )


def train_step(account: Account, opt_state: Any, path: Any) -> Iterator[str]:
    """A train state whose own step is neither the calls nor the updates."""
    step, numbers = getattr(opt_state, "step", None), account.numbers
    if step is None or np.ndim(step) or not hasattr(opt_state, "opt_state"):
        return
    if _is_in_multi_steps(path) or int(step) in (numbers["calls"], numbers.get("step")):
        return
    yield (
        f"The train state counts {int(step)} steps, the optimizer {numbers['calls']} calls: was it "
        "restored for another optimizer? See adopt_state."
    )


def _is_in_multi_steps(path: Any) -> bool:
    names = (getattr(key, "name", getattr(key, "key", None)) for key in path)
    return "inner_opt_state" in names


def _recorded(account: Account) -> Any:
    rows = list(account.rows.values())
    columns = ([row[name] for row in rows] for name in ("grad_norm", "value"))
    return rows, usual_of(*map(np.asarray, columns)) if rows else None


def _trouble(account: Account) -> _Trouble | None:
    rows, usual = _recorded(account)
    if not rows:
        return None
    lost = np.array([row["is_bad"] or row["skipped"] for row in rows])
    in_trouble = lost | usual.norm_is_far | usual.loss_is_far
    where = np.flatnonzero(in_trouble)
    if not where.size:
        return None
    calls = np.array([row["call"] for row in rows])
    start = where[np.r_[True, np.diff(calls[where]) > _CLOSE]][-1]
    quiet = np.flatnonzero(~in_trouble[:start])
    # By steps: of many calls in a row that are lost the record keeps only the first.
    before = rows[start]["step"] - (not rows[start]["skipped"])
    is_on = where[-1] == len(rows) - 1
    after = account.numbers["step"] if is_on else rows[where[-1]]["step"]
    taken = int(after - before - np.sum(~in_trouble[start : where[-1]]))
    return _Trouble(rows[quiet[-1]] if quiet.size else None, taken)


def is_everywhere(account: Account) -> bool:
    """Whether every leaf was bad in the first call of a run of bad ones, and still is."""
    leaves = account.leaves
    if leaves is None or not 0 <= leaves.bad_call < leaves.last_bad_call:
        return False
    if leaves.last_bad_call != account.numbers["calls"] - 1:
        return False
    both = (decoded(leaves.bad_leaf_norms), decoded(leaves.leaf_norms))
    return not any(np.isfinite(norms).any() for norms in both)
