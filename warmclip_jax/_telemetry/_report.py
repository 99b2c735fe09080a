"""A report for a person: when a run went wrong, in which leaves, what was done about it and how often."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from warmclip_jax._clipping import STANDS_OUT, decoded, from_keys, names_of, quietly
from warmclip_jax._telemetry._metrics import of_state
from warmclip_jax._telemetry._records import check_one_run, in_order_of_time, on_host, ring_of
from warmclip_jax._values import named

#: How many leaves, groups, or runs of skips are listed; the others are counted.
_LISTED = 5


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
      Lines of text. A state with several clips or guards has a section for each. The usual norm of
      a leaf is that of the calls before the report, not before the spike.

    Raises:
      ValueError: for a state that holds nothing of this package, that another version wrote, or of
        several runs. TypeError: for a traced state. In several processes each may ask by itself.

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
    check_one_run(seen)
    accounts = [_Account(each.state) for each in seen]
    lines: list[str] = []
    for each, account in zip(seen, accounts, strict=True):
        if len(seen) > 1:
            place = jax.tree_util.keystr(each.path, simple=True, separator="/")
            lines.append(f"{type(each.state).__name__}{place and f' at {place}'}:")
        lines += account.lines()
    wishes = {
        "record=256 keeps the last calls (pipeline, skip_nonfinite)": not any(
            ring_of(account.state) for account in accounts
        ),
        "record_leaves=True keeps which leaves": not any(account.leaves for account in accounts),
    }
    if any(wishes.values()):
        lines.append(
            f"To know more next time: {'; '.join(itertools.compress(wishes, wishes.values()))}."
        )
    return "\n".join(lines)


class _Account:
    """What one state knows."""

    def __init__(self, state: Any) -> None:
        clip, ring = getattr(state, "clip_state", state), ring_of(state)
        self.state, self.clip, self.leaves = state, clip, clip.leaves or None
        self.known = {name: value.item() for name, value in of_state(state).items()}
        self.rows = {} if ring is None else _by_call(in_order_of_time(ring))

    def lines(self) -> Iterator[str]:
        yield from self._calls()
        if self.known["calls"]:
            yield from self._bad_call()
            yield from self._large_call()
            yield from self._clips()
            yield self._last_call()
            yield from self._record()

    def _calls(self) -> Iterator[str]:
        known, text = self.known, f"Calls: {self.known['calls']}, numbered from 0."
        if "skipped_count" not in known:
            yield text
            return
        last = f", the last at call {known['last_skipped_call']}" if known["skipped_count"] else ""
        yield f"{text} Updates: {known['step']}. Skipped: {known['skipped_count']}{last}."
        if known["consecutive_skips"] > 1:
            yield f"All of the last {known['consecutive_skips']} calls were skipped: nothing is being learnt."

    def _bad_call(self) -> Iterator[str]:
        count, losses = self.known["nonfinite_count"], self.known.get("nonfinite_value_count", 0)
        if not count and not losses:
            yield "No call had a NaN or inf."
            return
        which, call = self._last_bad_call()
        if call is None and count:
            yield f"Calls with NaN or inf: {count}. When they came is not known."
        elif call is not None:
            others = f" There were {count} such calls in all." if count > 1 else ""
            yield f"{which} call with NaN or inf: {self._place(call)}.{others}"
        if losses:
            yield f"Calls whose value was NaN or inf: {losses}."
        if self.leaves is None or self.leaves.bad_call < 0:
            return
        if self.leaves.bad_call != call:
            yield f"  The first of that run: {self._place(int(self.leaves.bad_call))}."
        names, norms = names_of(self.leaves), decoded(self.leaves.bad_leaf_norms)
        for kind, held in (("NaN", np.isnan(norms)), ("inf", np.isinf(norms))):
            if held.any():
                yield f"  Leaves with {kind}, {held.sum()} of {held.size}: {_listed(itertools.compress(names, held))}"
        finite = int(np.isfinite(norms).sum())
        yield (
            f"  Finite leaves: {finite}."
            if finite
            else "  No leaf was finite: look at the loss and its inputs first."
        )
        yield "  NaN spreads backwards: these leaves show where it was seen, not where it began."
        yield '  To find the operation, repeat the step under jax.config.update("jax_debug_nans", True).'

    def _last_bad_call(self) -> tuple[str, int | None]:
        """A call with NaN or inf, and whether it is the last or the last that is recorded."""
        if self.leaves is not None and self.leaves.last_bad_call >= 0:
            return "Last", int(self.leaves.last_bad_call)
        bad = [call for call, row in self.rows.items() if row["is_bad"]]
        if bad:
            later = sum(call > bad[-1] for call in self.rows)
            is_last = bad[-1] + later + 1 == self.known["calls"]
            return "Last" if is_last else "Last recorded", bad[-1]
        known = self.known
        # Where no bound skips, calls that were skipped were bad.
        if known.get("skip_bound") == known.get("value_bound") == np.inf:
            if known["skipped_count"] == known["nonfinite_count"]:
                return "Last", known["last_skipped_call"]
        return "Last", None

    def _large_call(self) -> Iterator[str]:
        """The last spike or, where leaves do not tell, the last call over a bound."""
        leaves, rows = self.leaves, self.rows
        if leaves is None or leaves.spike_call < 0:
            over = [
                call
                for call, row in rows.items()
                if not row["is_bad"]
                and (
                    row["grad_norm"] > row["skip_bound"]
                    or row["clip_coef"] < 1
                    and not row["skipped"]
                )
            ]
            if over:
                yield self._over_bound(
                    "Last call over a bound", over[-1], rows[over[-1]]["grad_norm"]
                )
            return
        norms, stood_out = (
            decoded(leaves.spike_leaf_norms).astype(np.float64),
            leaves.spike_deviations >= STANDS_OUT,
        )
        what = "Last spike" if stood_out else "Last call over a bound"
        yield self._over_bound(what, int(leaves.spike_call), np.linalg.norm(norms))
        if not stood_out:
            yield "  No leaf stood out from what is usual for it."
            return
        history, names = leaves.leaf_history, names_of(leaves)
        usual = np.where(
            history.norms_taught > 0, np.exp(history.log_mean.astype(np.float64)), np.nan
        )
        ratios = norms / usual
        yield "  times usual       norm  leaf"
        for place in np.argsort(np.where(np.isnan(ratios), -1, ratios))[::-1][:_LISTED]:
            yield f"  {ratios[place]:11.3g}  {norms[place]:9.3g}  {names[place]}"

    def _over_bound(self, what: str, call: int, norm: Any) -> str:
        row = self.rows.get(call, {"skipped": False, "max_norm": np.inf})
        bound, name = (
            (row["skip_bound"], "bound of skipping")
            if row["skipped"]
            else (row["max_norm"], "bound")
        )
        over = f", over the {name} of {bound:.3g}" if np.isfinite(bound) else ""
        return f"{what}: {self._place(call)}. Norm {norm:.3g}{over}."

    def _place(self, call: int) -> str:
        """When a call was, and what became of it, as far as it is known."""
        if row := self.rows.get(call):
            clipped = f", multiplied by {row['clip_coef']:.3g}" if row["clip_coef"] < 1 else ""
            return f"call {call}, step {row['step']}{', skipped' if row['skipped'] else clipped}"
        if call == self.known.get("last_skipped_call"):
            return f"call {call}, step {call + 1 - self.known['skipped_count']}, skipped"
        return f"call {call}"

    def _clips(self) -> Iterator[str]:
        if (clipped := self.known.get("clipped_count")) is None:
            return
        unit = "call" if clipped == 1 else "calls"
        yield f"Clipped: {clipped} {unit}, {clipped / self.known['calls']:.1%}."
        if not (labels := from_keys(self.clip.group_labels)):
            return
        norms, bounds, counts = (
            decoded(self.clip.grad_norm),
            decoded(self.clip.norm_bound),
            self.clip.group_clipped_count,
        )
        yield f"  Groups: {len(labels)}. Of each, calls clipped; norm and bound at the last call:"
        for place in np.argsort(-counts, kind="stable")[:_LISTED]:
            yield f"  {counts[place]:11d}  norm {norms[place]:.3g}, {_bound('bound', bounds[place])}  {labels[place]}"
        if len(labels) > _LISTED:
            yield f"  {'':11}  and {len(labels) - _LISTED} that were clipped less or as often"

    def _last_call(self) -> str:
        known = self.known
        facts = [f"norm {known['grad_norm']:.3g}"]
        if np.isfinite(usual := known.get("typical_norm", np.nan)):
            facts.append(f"usual norm {usual:.3g}")
        if "max_norm" in known and not self.clip.group_labels:
            facts.append(_bound("bound", known["max_norm"]))
        if np.isfinite(above := known.get("skip_bound", np.inf)):
            facts.append(_bound("bound of skipping", above))
        if (rate := known.get("learning_rate")) is not None:
            facts.append(f"learning rate {'not known' if np.isnan(rate) else f'{rate:.3g}'}")
        return f"Last call: {', '.join(facts)}."

    def _record(self) -> Iterator[str]:
        if not self.rows:
            return
        calls = np.array([*self.rows])
        gaps = np.flatnonzero(np.diff(calls) > 1)
        missing = _listed(_span(calls[gap] + 1, calls[gap + 1] - 1) for gap in gaps)
        yield f"Record: calls {calls[0]} to {calls[-1]}{missing and f', without {missing}'}."
        norms = {
            call: row["grad_norm"]
            for call, row in self.rows.items()
            if np.isfinite(row["grad_norm"])
        }
        if norms:
            largest = max(norms, key=norms.__getitem__)
            yield f"  Norm: median {np.median([*norms.values()]):.3g}, largest {norms[largest]:.3g} at call {largest}."
        skipped = np.array([call for call, row in self.rows.items() if row["skipped"]])
        if skipped.size:
            runs = np.split(skipped, np.flatnonzero(np.diff(skipped) > 1) + 1)
            texts = [_span(run[0], run[-1]) for run in runs]
            longest = max(run.size for run in runs)
            yield f"  Skipped: {_listed(texts)}." + (
                f" Longest run: {longest} calls." if longest > 1 else ""
            )


def _by_call(columns: dict[str, np.ndarray]) -> dict[int, dict[str, Any]]:
    """The rows of a record, in order of time."""
    return {
        int(row[0]): dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    }


def _span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first} to {last}"


def _listed(texts: Iterable[str]) -> str:
    texts = list(texts)
    more = len(texts) - _LISTED
    return ", ".join(texts[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _bound(name: str, bound: Any) -> str:
    return f"{name} {bound:.3g}" if np.isfinite(bound) else f"no {name}"
