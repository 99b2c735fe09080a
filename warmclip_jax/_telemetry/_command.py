"""What `python -m warmclip_jax report` prints and writes besides the report."""

import csv
import io
import json
import math
from typing import Any

import numpy as np

from warmclip_jax._telemetry._finding import found
from warmclip_jax._telemetry._metrics import metrics
from warmclip_jax._telemetry._reading import read_state, steps_in
from warmclip_jax._telemetry._records import records, ring_of


def listing(path: Any) -> str:
    """A line for each step of a root: what is recorded in it, or why it cannot be read."""
    steps = steps_in(path)
    if not steps:
        return f"one checkpoint: {_recorded(read_state(path))}"
    lines = []
    for step, checkpoint in steps.items():
        try:
            lines.append(f"step {step}: {_recorded(read_state(checkpoint))}")
        except (ValueError, OSError) as error:
            lines.append(f"step {step}: {error}")
    return "\n".join(lines)


def _recorded(state: Any) -> str:
    rings = [ring for each in found(state) if (ring := ring_of(each.state)) is not None]
    if not rings:
        return "no record"
    calls = np.unique(np.concatenate([ring.ring_counts[..., 0].ravel() for ring in rings]))
    calls = calls[calls >= 0]
    return f"calls recorded: {calls.size}" + (f", the last is {calls[-1]}" if calls.size else "")


def rows_as_csv(state: Any) -> str:
    """The record of a state, a line a call; of vmapped runs one after the other, with their number.

    Numbers have the digits that tell them apart in float32; what is unknown is empty.
    """
    columns = records(state)
    shape = columns["call"].shape
    if len(shape) > 1:
        run = np.arange(math.prod(shape[:-1])).repeat(shape[-1])
        columns = {"run": run.reshape(shape), **columns}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    # A run that made fewer calls than another has rows of no call.
    for row in zip(*(column[columns["call"] >= 0] for column in columns.values()), strict=True):
        writer.writerow("" if np.isnan(number) else str(number) for number in row)
    return text.getvalue()


def metrics_as_json(state: Any) -> str:
    """The metrics of a state as JSON, with null for what is unknown or infinite."""
    return json.dumps(metrics(state, plain=True), indent=2, allow_nan=False)
