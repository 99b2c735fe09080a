"""The sentences of a report about the course of a run: calls, clips, the last call, the record."""

from collections.abc import Iterator

import numpy as np

from warmclip_jax._clipping import MOST_IN_A_ROW, decoded, from_keys
from warmclip_jax._telemetry._account import LISTED, Account, bound_text, listed, span


def calls(account: Account) -> Iterator[str]:
    """How many calls there were, and how many were skipped."""
    numbers = account.numbers
    text = f"Calls: {numbers['calls']}, numbered from 0."
    if "skipped_count" in numbers:
        skipped, since = numbers["skipped_count"], account.skips_from
        since = f" since call {since}" if since else ""
        last = f", the last at call {numbers['last_skipped_call']}" if skipped else ""
        text += f" Updates: {numbers['step']}. Skipped{since}: {skipped}{last}."
    yield text
    if account.counts_from:
        yield f"Not known: what happened before the change-over at call {account.counts_from}."
    if (in_a_row := numbers.get("consecutive_skips", 0)) > 1:
        yield f"All of the last {in_a_row} calls were skipped: nothing is being learnt."


def clips(account: Account) -> Iterator[str]:
    """How many calls were clipped; of groups, each."""
    if (clipped := account.numbers.get("clipped_count")) is None:
        return
    if not clipped and account.numbers.get("max_norm") == np.inf:
        return
    share = clipped / (account.numbers["calls"] - account.counts_from)
    since = f" of those since call {account.counts_from}" if account.counts_from else ""
    yield f"Clipped: {clipped} {'call' if clipped == 1 else 'calls'}, {share:.1%}{since}."
    clip = account.clip
    if not (labels := from_keys(clip.group_labels)):
        return
    norms, bounds, counts = (
        decoded(clip.grad_norm),
        decoded(clip.norm_bound),
        clip.group_clipped_count,
    )
    yield f"  Groups: {len(labels)}. Of each, calls clipped; norm and bound at the last call:"
    for group in np.argsort(-counts, kind="stable")[:LISTED]:
        bound = bound_text("bound", bounds[group])
        start = int(np.ravel(clip.group_counts_from)[group])
        since = f", counted since call {start}" if start > account.counts_from else ""
        yield f"  {counts[group]:11d}  norm {norms[group]:.3g}, {bound}{since}  {labels[group]}"
    if len(labels) > LISTED:
        yield f"  {'':11}  and {len(labels) - LISTED} that were clipped less or as often"


def last_call(account: Account) -> str:
    """The norm, bounds and rate of the last call."""
    numbers = account.numbers
    facts = [f"norm {numbers['grad_norm']:.3g}" if account.norm_is_known else "norm not known"]
    if np.isfinite(usual := numbers.get("typical_norm", np.nan)):
        facts.append(f"usual norm {usual:.3g}")
    if not np.isnan(loss := numbers.get("value", np.nan)):
        facts.append(f"loss {loss:.3g}")
    if np.isfinite(above := numbers.get("value_bound", np.inf)):
        facts.append(bound_text("bound of the loss", above))
    if "max_norm" in numbers and not account.clip.group_labels:
        facts.append(bound_text("bound", numbers["max_norm"]))
    if np.isfinite(above := numbers.get("skip_bound", np.inf)):
        facts.append(bound_text("bound of skipping", above))
    if (rate := numbers.get("learning_rate")) is not None:
        facts.append(f"learning rate {'not known' if np.isnan(rate) else f'{rate:.3g}'}")
    return f"Last call: {', '.join(facts)}."


def record(account: Account) -> Iterator[str]:
    """What the recorded calls were like."""
    if not account.rows:
        return
    calls = np.array([*account.rows])
    gaps = np.flatnonzero(np.diff(calls) > 1)
    without = listed(span(calls[gap] + 1, calls[gap + 1] - 1) for gap in gaps)
    unit = "call" if calls.size == 1 else "calls"
    yield f"Record: {unit} {span(calls[0], calls[-1])}{without and f', without {without}'}."
    norms = {call: row["grad_norm"] for call, row in account.rows.items() if not row["is_bad"]}
    if norms:
        largest = sorted(norms, key=norms.__getitem__, reverse=True)[:3]
        texts = ", ".join(f"{norms[call]:.3g} at call {call}" for call in largest)
        yield f"  Norm: median {np.median([*norms.values()]):.3g}, largest {texts}."
    if runs := account.skipped:
        every = f", every {account.period} calls" if account.period else ""
        longest = max(run.size for run in runs)
        most = f" Longest run: {longest} calls." if longest > 1 else ""
        if longest >= MOST_IN_A_ROW:
            most = f" Of each run, the first {MOST_IN_A_ROW} are recorded."
        yield f"  Skipped: {listed(span(run[0], run[-1]) for run in runs)}{every}.{most}"
