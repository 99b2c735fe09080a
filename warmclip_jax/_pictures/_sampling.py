"""Samples schedules for a picture: their names, the values to draw, and the steps to mark."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from warmclip_jax._pictures._exploring import Drawable, Explored, Marks
from warmclip_jax._values import MAX_COUNT, Function, Number, as_number, broken_rule

#: How many evenly spaced steps to sample at most: no screen shows more.
_MOST = 4096
_STEPS = Number(
    f"a whole number of steps from 1 to {MAX_COUNT}, or None",
    "It is how far to draw.",
    lambda n: 1 <= n <= MAX_COUNT,
    whole=True,
)
_SCHEDULE = Function("a schedule", "Pass warmclip_jax.linear_warmup(...) or any optax schedule.")


class Sampled(NamedTuple):
    """A schedule at the steps to draw, in order, and those of its marks that are among them."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    marks: Marks

    def at(self, step: int) -> float:
        """The value at one of `steps`."""
        return float(self.values[np.searchsorted(self.steps, step)])


def sampled(schedules: Any, steps: int | None) -> list[Sampled]:
    """Samples each schedule of a list or dict, and each entry of a stacked one.

    Raises TypeError or ValueError for anything that is no schedule.
    """
    explored = [
        (name, Explored(entry))
        for kind, schedule in _named(schedules)
        for name, entry in _entries(kind, schedule)
    ]
    if steps is not None:
        last = int(_STEPS.check("steps", steps))
    else:
        # As far as the longest goes, and a tenth more to show what comes after.
        length = max(each.length() for _, each in explored) or 100
        last = min(max(round(1.1 * length), length + 1), MAX_COUNT)
    return [_sampled(name, each, last) for name, each in explored]


def _sampled(name: str, explored: Explored, last: int) -> Sampled:
    explored.look_at(np.linspace(0, last, min(last + 1, _MOST)))
    shown = explored.steps <= last
    values = explored.values[shown]
    if not np.isfinite(values).any():
        rule, remedy = f"finite somewhere ({name!r})", "There is nothing to draw."
        raise broken_rule("schedules", rule, float(values[0]), remedy)
    return Sampled(name, explored.steps[shown], values, explored.marks(last))


def _named(schedules: Any) -> list[tuple[str, Drawable]]:
    """The schedules with their names: the keys of a dict, else their kinds.

    Where two are of one kind, they are numbered.
    """
    is_dict = isinstance(schedules, Mapping)
    # An optimizer is a tuple too.
    if is_dict or (isinstance(schedules, (list, tuple)) and not hasattr(schedules, "_fields")):
        entries = schedules.items() if is_dict else enumerate(schedules)
        given = [(f"schedules[{key!r}]", each) for key, each in entries]
    else:
        given = [("schedules", schedules)]
    if not given:
        rule = "a schedule, or a list or dict of at least one"
        raise broken_rule("schedules", rule, schedules, "Pass a schedule.")
    checked = [_SCHEDULE.check(argument, each) for argument, each in given]
    kinds = [
        getattr(each, "kind", None) or getattr(each, "__name__", "schedule") for _, each in given
    ]
    numbered = (
        kind if kinds.count(kind) == 1 else f"{kind} {kinds[: index + 1].count(kind)}"
        for index, kind in enumerate(kinds)
    )
    return list(zip(map(str, schedules) if is_dict else numbered, checked, strict=True))


def _entries(name: str, schedule: Drawable) -> Iterable[tuple[str, Drawable]]:
    """A stacked schedule entry by entry, each named by the numbers that vary; else `schedule`."""
    arrays = jax.tree.map(np.asarray, schedule)
    paths, treedef = jax.tree_util.tree_flatten_with_path(arrays)
    shape = np.broadcast_shapes(*(array.shape for _, array in paths))
    if not shape:
        yield name, schedule
        return
    for index in np.ndindex(shape):
        numbers = [as_number(np.broadcast_to(array, shape)[index]) for _, array in paths]
        varying = [
            f"{jax.tree_util.keystr(path, simple=True, separator='.')}={number:.3g}"
            for (path, array), number in zip(paths, numbers, strict=True)
            if np.ptp(array)
        ]
        yield f"{name} {', '.join(varying) or list(index)}", treedef.unflatten(numbers)
