"""The sentences of a report about what went wrong: bad calls, spikes, calls over a bound."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from warmclip_jax._clipping import STANDS_OUT, decoded, names_of
from warmclip_jax._telemetry._account import LISTED, Account, listed
from warmclip_jax._telemetry._advice import clips_most, growth, is_everywhere


def bad_calls(account: Account) -> Iterator[str]:
    """The last call with a NaN or inf, and the leaves in which it began."""
    numbers, leaves = account.numbers, account.leaves
    count, of_values = numbers["nonfinite_count"], numbers.get("nonfinite_value_count", 0)
    since = f" since call {account.counts_from}" if account.counts_from else ""
    if not count and not of_values:
        yield f"No call{since} had a NaN or inf."
        return
    which, call = _last_bad_call(account)
    if call is not None:
        others = f" There were {count} such calls in all." if count > 1 else ""
        yield f"{which} call with NaN or inf: {account.when(call)}.{others}"
    elif count:
        yield f"Calls with NaN or inf{since}: {count}. When they came is not known."
    if of_values:
        yield f"Calls whose value was NaN or inf: {of_values}."
    if leaves is None or leaves.bad_call < 0:
        return
    if leaves.bad_call != call:
        yield f"  The first of that run: {account.when(int(leaves.bad_call))}."
    names, norms = names_of(leaves), decoded(leaves.bad_leaf_norms)
    for kind, held in (("NaN", np.isnan(norms)), ("inf", np.isinf(norms))):
        if held.any():
            which = listed(itertools.compress(names, held))
            yield f"  Leaves with {kind}, {held.sum()} of {held.size}: {which}"
    finite, row = int(np.isfinite(norms).sum()), account.rows.get(int(leaves.bad_call))
    loss = np.nan if row is None else row["value"]
    if finite == norms.size:
        yield "  All leaves were finite, the loss was not."
    elif finite:
        also = " The loss was finite too: look at the backward pass." if np.isfinite(loss) else ""
        yield f"  Finite leaves: {finite}.{also}"
    elif not is_everywhere(account):
        yield "  No leaf was finite: look at the loss and its inputs first."
    if np.isnan(norms).sum() > 1:
        yield "  NaN spreads backwards: these leaves show where it was seen, not where it began."
    is_nan = np.isnan(norms).any() or not np.isinf([*norms, loss]).any()
    kind = "nans" if is_nan else "infs"
    flag = f'jax.config.update("jax_debug_{kind}", True)'
    if not any(growth(account)):  # It is no single operation then.
        yield f"  To find the operation, repeat the step under {flag}."


def _last_bad_call(account: Account) -> tuple[str, int | None]:
    """A bad call, and whether it is the last one or the last that is recorded."""
    numbers = account.numbers
    if account.leaves is not None and account.leaves.last_bad_call >= 0:
        return "Last", int(account.leaves.last_bad_call)
    if bad := [call for call, row in account.rows.items() if row["is_bad"]]:
        recorded = sum(call > bad[-1] for call in account.rows)
        is_last = bad[-1] + recorded + 1 == numbers["calls"]
        return "Last" if is_last else "Last recorded", bad[-1]
    # Where no bound skips, the calls that were skipped were bad.
    skips_bad_ones = numbers.get("skip_bound") == numbers.get("value_bound") == np.inf
    if skips_bad_ones and 0 < numbers["skipped_count"] == numbers["nonfinite_count"]:
        return "Last", numbers["last_skipped_call"]
    return "Last", None


def large_calls(account: Account) -> Iterator[str]:
    """The last spike or, where leaves do not tell, the last call over a bound."""
    leaves, rows = account.leaves, account.rows
    if leaves is None or leaves.spike_call < 0:
        if clips_most(account):
            return
        if over := [call for call, row in rows.items() if _is_over(row)]:
            norm = rows[over[-1]]["grad_norm"]
            yield _over_bound(account, "Last call over a bound", over[-1], norm)
        return
    stood_out = leaves.spike_deviations >= STANDS_OUT
    norms = decoded(leaves.spike_leaf_norms).astype(np.float64)
    what = "Last spike" if stood_out else "Last finite call that was skipped"
    yield _over_bound(account, what, int(leaves.spike_call), np.linalg.norm(norms))
    if not stood_out:
        yield "  No leaf stood out from what is usual for it."
        return
    history, names = leaves.leaf_history, names_of(leaves)
    means = np.exp(history.log_mean.astype(np.float64))
    ratios = norms / np.where(history.norms_taught > 0, means, np.nan)
    yield "  times usual       norm  leaf"
    for leaf in np.argsort(np.where(np.isnan(ratios), -1, ratios))[::-1][:LISTED]:
        yield f"  {ratios[leaf]:11.3g}  {norms[leaf]:9.3g}  {names[leaf]}"


def _is_over(row: dict[str, Any]) -> bool:
    is_clipped = row["clip_coef"] < 1 and not row["skipped"]
    return not row["is_bad"] and bool(is_clipped or row["grad_norm"] > row["skip_bound"])


def _over_bound(account: Account, what: str, call: int, norm: Any) -> str:
    row = account.rows.get(call, {"skipped": False, "max_norm": np.inf})
    name, column = ("bound of skipping", "skip_bound") if row["skipped"] else ("bound", "max_norm")
    over = f", over the {name} of {row[column]:.3g}" if norm > row[column] else ""
    return f"{what}: {account.when(call)}. Norm {norm:.3g}{over}."
