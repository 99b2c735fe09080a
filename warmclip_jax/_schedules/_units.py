"""Turns epochs, examples, tokens and fractions of a run into optimizer steps.

The arithmetic is exact and runs on the host, before tracing.
"""

import math
from fractions import Fraction
from typing import Any

import jax.numpy as jnp

from warmclip_jax._schedules._shares import share_of
from warmclip_jax._values import (
    FLAG,
    Number,
    Scalar,
    as_float,
    broken_rule,
    exactly_one,
    is_traced,
    named,
)

_AMOUNT = Number(
    "a finite number, 0 or more",
    "It may be a fraction: half an epoch is 0.5.",
    lambda amount: amount >= 0,
)
_SHARE = Number(
    "a fraction in [0, 1]",
    "It is a share of total_steps; 0.1 is a tenth.",
    lambda share: 0 <= share <= 1,
)
_SIZE = Number(
    "a whole number, 1 or more",
    "Count what one optimizer step sees.",
    lambda size: size >= 1,
    whole=True,
)
_B2 = Number("a number in [0, 1)", "It is Adam's b2: 0.999, for example.", lambda b2: 0 <= b2 < 1)

#: The sizes that turn each unit into steps.
_NEEDS = {
    "epochs": ("dataset_size", "batch_size"),
    "examples": ("batch_size",),
    "tokens": ("batch_size", "sequence_length"),
    "fraction": ("total_steps",),
}


@named
def steps(
    *,
    epochs: Scalar | None = None,
    examples: Scalar | None = None,
    tokens: Scalar | None = None,
    fraction: Scalar | None = None,
    dataset_size: Scalar | None = None,
    batch_size: Scalar | None = None,
    sequence_length: Scalar | None = None,
    total_steps: Scalar | None = None,
    accumulation: Scalar = 1,
    updates_per_batch: Scalar = 1,
    drop_remainder: bool = False,
) -> int:
    """How many optimizer steps some epochs, examples or tokens take, or a fraction of the run.

    `ceil(examples / (batch_size * accumulation)) * updates_per_batch`, where examples are `epochs *
    dataset_size` or `tokens / sequence_length`; or `round(fraction * total_steps)`. A step is one
    update of the optimizer, which advances its schedule; under `optax.MultiSteps` it takes
    `accumulation` batches. `drop_remainder` rounds down instead: examples to batches, in each
    epoch, and batches to steps.

    Args:
      epochs: passes over the data, 0 or more; needs `dataset_size` and `batch_size`. Give exactly
        one of `epochs`, `examples`, `tokens` and `fraction`.
      examples: how many examples are seen, 0 or more; needs `batch_size`.
      tokens: how many tokens are seen, 0 or more; needs `batch_size` and `sequence_length`.
      fraction: a share of the run in [0, 1]; needs `total_steps`.
      dataset_size: in examples, 1 or more.
      batch_size: examples in one batch, over all devices, 1 or more.
      sequence_length: tokens in one example, 1 or more.
      total_steps: the length of the run, in optimizer steps, 1 or more.
      accumulation: batches whose gradients make one step (`every_k_schedule` of
        `optax.MultiSteps`), 1 or more.
      updates_per_batch: steps made on the same batch, 1 or more, as in PPO.
      drop_remainder: whether examples that do not fill a batch are left out, as by data loaders
        that drop the last batch of every epoch. It is not used with `fraction`.

    Returns:
      A Python int. The last step may be partly filled: the number is rounded up, over the whole run
      and not in each epoch, unless `drop_remainder`; a fraction is rounded to the nearest step,
      halves up. A number is its shortest decimal: 0.1 is a tenth.

    Raises:
      TypeError, ValueError: for an argument that breaks its rule, is missing, or is not used; and
        for every traced argument.

    >>> import warmclip_jax as wc
    >>> wc.steps(epochs=3, dataset_size=50_000, batch_size=128)
    1172
    >>> wc.steps(tokens=2e9, batch_size=256, sequence_length=2048)
    3815
    >>> wc.steps(epochs=3, dataset_size=50_000, batch_size=128, accumulation=4)
    293
    >>> wc.steps(epochs=3, dataset_size=50_000, batch_size=128, drop_remainder=True)
    1170
    """
    amounts = {"epochs": epochs, "examples": examples, "tokens": tokens, "fraction": fraction}
    sizes = {
        "dataset_size": dataset_size,
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "total_steps": total_steps,
    }
    unit = exactly_one(amounts)
    amount = _concrete(unit, amounts[unit], _SHARE if unit == "fraction" else _AMOUNT)
    for name, size in sizes.items():
        if (size is None) == (name in _NEEDS[unit]):
            rule = (
                f"given with {unit}"
                if size is None
                else f"left out with {unit}, which does not use it"
            )
            raise broken_rule(name, rule, size, f"{unit} needs {' and '.join(_NEEDS[unit])}.")
    needed = {name: Fraction(_concrete(name, sizes[name], _SIZE)) for name in _NEEDS[unit]}
    accumulated = Fraction(_concrete("accumulation", accumulation, _SIZE))
    updates = int(_concrete("updates_per_batch", updates_per_batch, _SIZE))
    FLAG.check("drop_remainder", drop_remainder)
    if unit == "fraction":
        if drop_remainder:
            raise broken_rule(
                "drop_remainder",
                "False with fraction, which counts no batches",
                True,
                "Leave it out.",
            )
        return share_of(amount, needed["total_steps"])
    # From its decimal: the float 0.1 is more than a tenth, and rounding up would show it.
    exact = Fraction(str(amount))
    size = Fraction(needed.get("dataset_size", 1), needed.get("sequence_length", 1))
    batch = needed["batch_size"]
    if drop_remainder:
        epochs_done = math.floor(exact) if unit == "epochs" else 0
        batches = epochs_done * (size // batch) + (exact - epochs_done) * size // batch
        return math.floor(batches / accumulated) * updates
    return math.ceil(exact * size / (batch * accumulated)) * updates


@named
def untuned_warmup_steps(b2: Scalar) -> Any:
    """The length of an untuned linear warm-up for Adam.

    `ceil(2 / (1 - b2))`.

    Args:
      b2: Adam's decay of the second moment, in [0, 1).

    Returns:
      A Python int; for a traced `b2` a whole number in the default float dtype, whose rounding may
      make it one off.

    Raises:
      TypeError, ValueError: for a concrete `b2` that breaks its rule. A traced one is not checked.

    >>> import warmclip_jax as wc
    >>> wc.untuned_warmup_steps(0.999), wc.untuned_warmup_steps(0.95)
    (2000, 40)

    Source: Ma & Yarats 2019, "On the adequacy of untuned warmup for adaptive optimization", section
    4.
    """
    b2 = _B2.check("b2", b2)
    if is_traced(b2):
        return jnp.ceil(2 / (1 - as_float(b2)))
    # From its decimal: in floats, 2 / (1 - 0.999) is more than 2000.
    return math.ceil(2 / (1 - Fraction(str(b2))))


def _concrete(name: str, value: Any, number: Number) -> Any:
    if is_traced(value):
        remedy = "Steps are computed before tracing; pass a Python number."
        raise broken_rule(name, f"{number.rule}, and not traced", value, remedy, TypeError)
    return number.check(name, value)
