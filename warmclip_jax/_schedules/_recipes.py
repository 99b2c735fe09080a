"""Schedules of whole runs: a warm-up, then a decay, given the total number of steps."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from warmclip_jax._schedules._arguments import Finite, Fraction, PositiveSteps, Power, Steps
from warmclip_jax._schedules._counts import is_before
from warmclip_jax._schedules._schedule import Schedule, as_schedule
from warmclip_jax._schedules._shares import (
    Shares,
    between,
    difference,
    expm1_below_one,
    half_cosine,
    raised,
    share_of,
    shares,
)
from warmclip_jax._values import as_length, broken_rule, exactly_one, is_traced, makes


def _resolved(part: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Which of `<part>_steps` and `<part>_fraction` was given, and the arguments with the steps."""
    steps, fraction = f"{part}_steps", f"{part}_fraction"
    name = exactly_one({steps: arguments[steps], fraction: arguments[fraction]})
    if name == steps:
        return name, arguments
    share = share_of(arguments[fraction], arguments["total_steps"])
    return name, {**arguments, steps: share if is_traced(share) else as_length(share)}


def _warmup_within_total(arguments: dict[str, Any]) -> dict[str, Any]:
    """Turns `warmup_fraction` into steps; raises unless the warm-up leaves a step of the total."""
    name, resolved = _resolved("warmup", arguments)
    total, warmup = resolved["total_steps"], resolved["warmup_steps"]
    if not (is_traced(warmup) or is_traced(total)) and warmup >= total:
        rule = f"short of total_steps={total!r}, which includes the warm-up"
        remedy = "Leave at least one step to decay in, or use linear_warmup."
        raise broken_rule(name, rule, resolved[name], remedy)
    return resolved


def _warmup_and_decay_within_total(arguments: dict[str, Any]) -> dict[str, Any]:
    """Turns fractions into steps; raises unless the decay starts after the warm-up."""
    name, resolved = _resolved("decay", _warmup_within_total(arguments))
    numbers = [resolved[each] for each in ("total_steps", "warmup_steps", "decay_steps")]
    total, warmup, decay = numbers
    if not any(map(is_traced, numbers)) and warmup + decay > total:
        rule = f"at most what warmup_steps={warmup!r} leaves of total_steps={total!r}"
        remedy = "The total includes both; between them the value stays at the peak."
        raise broken_rule(name, rule, resolved[name], remedy)
    return resolved


@makes(Schedule, prepare=_warmup_within_total, resolves=("warmup_fraction",))
def warmup_polynomial_decay(
    *,
    peak_value: Finite,
    total_steps: PositiveSteps,
    warmup_steps: Steps | None = None,
    warmup_fraction: Fraction | None = None,
    init_value: Finite = 0.0,
    end_value: Finite = 0.0,
    power: Power = 1.0,
    decay_from: Literal["warmup_end", "zero"] = "warmup_end",
) -> Schedule:
    """A linear warm-up to `peak_value`, then a polynomial decay to `end_value`.

    At step t, with W = `warmup_steps` and T = `total_steps`: `init + (peak - init) * t / W` while t
    < W, and then `(peak - end) * (1 - x) ** power + end`, where `decay_from` says where the decay
    counts from. `"warmup_end"`: x = (t - W) / (T - W), so the decay starts at the peak. `"zero"`,
    the BERT form: x = t / T, so the decay also runs during the warm-up, which hides it, and at step
    W the rate drops from `peak * (W - 1) / W` to `peak * (1 - W / T) ** power`.

    Args:
      peak_value: where the warm-up leads, finite.
      total_steps: T, in steps, the warm-up included; from T on the value is `end_value`.
      warmup_steps: W, in steps, 0 or more and short of T. Give either this or
      warmup_fraction: W as a share of T in [0, 1), rounded to the nearest step, halves up.
      init_value: the value at step 0, finite.
      end_value: the value at step T, finite.
      power: above 0. 1 is a straight line.
      decay_from: `"warmup_end"` or `"zero"`.

    Traced arguments are not checked: W >= T gives `end_value` from step W on.

    >>> import warmclip_jax as wc
    >>> bert = wc.warmup_polynomial_decay(
    ...     peak_value=1.0, total_steps=100, warmup_fraction=0.1, decay_from="zero"
    ... )
    >>> [round(float(bert(count)), 2) for count in (0, 9, 10, 11, 100)]
    [0.0, 0.9, 0.9, 0.89, 0.0]

    Source: Devlin et al. 2018, "BERT", appendix A.2, and its `optimization.py` for `"zero"`.
    """
    return _run(
        (init_value, peak_value, end_value),
        (warmup_steps, total_steps, _length(decay_from, warmup_steps, total_steps)),
        lambda decay: raised(decay.left, decay.passed, power),
    )


@makes(Schedule, prepare=_warmup_within_total, resolves=("warmup_fraction",))
def warmup_cosine_decay(
    *,
    peak_value: Finite,
    total_steps: PositiveSteps,
    warmup_steps: Steps | None = None,
    warmup_fraction: Fraction | None = None,
    init_value: Finite = 0.0,
    end_value: Finite = 0.0,
    decay_from: Literal["warmup_end", "zero"] = "warmup_end",
) -> Schedule:
    """A linear warm-up to `peak_value`, then half a cosine to `end_value`.

    At step t, with W = `warmup_steps` and T = `total_steps`: `init + (peak - init) * t / W` while t
    < W, and then `end + (peak - end) * (1 + cos(pi * x)) / 2`, where `decay_from` says where the
    decay counts from. `"warmup_end"`: x = (t - W) / (T - W), so the decay starts at the peak.
    `"zero"`: x = t / T, so the decay also runs during the warm-up, which hides it.

    Args:
      peak_value: where the warm-up leads, finite.
      total_steps: T, in steps, the warm-up included; from T on the value is `end_value` and never
        rises again.
      warmup_steps: W, in steps, 0 or more and short of T. Give either this or
      warmup_fraction: W as a share of T in [0, 1), rounded to the nearest step, halves up.
      init_value: the value at step 0, finite.
      end_value: the value at step T, finite.
      decay_from: `"warmup_end"` or `"zero"`.

    Traced arguments are not checked: W >= T gives `end_value` from step W on.

    >>> import warmclip_jax as wc
    >>> cosine = wc.warmup_cosine_decay(
    ...     peak_value=1.0, total_steps=100, warmup_steps=20, end_value=0.1
    ... )
    >>> [round(float(cosine(count)), 2) for count in (0, 10, 20, 60, 100)]
    [0.0, 0.5, 1.0, 0.55, 0.1]

    Source: Loshchilov & Hutter 2017, "SGDR", equation 5, after the warm-up of Goyal et al. 2017,
    section 2.2.
    """
    return _run(
        (init_value, peak_value, end_value),
        (warmup_steps, total_steps, _length(decay_from, warmup_steps, total_steps)),
        _SHAPES["cosine"],
    )


@makes(
    Schedule, prepare=_warmup_and_decay_within_total, resolves=("warmup_fraction", "decay_fraction")
)
def warmup_stable_decay(
    *,
    peak_value: Finite,
    total_steps: PositiveSteps,
    warmup_steps: Steps | None = None,
    warmup_fraction: Fraction | None = None,
    decay_steps: Steps | None = None,
    decay_fraction: Fraction | None = None,
    init_value: Finite = 0.0,
    end_value: Finite = 0.0,
    decay_shape: Literal["linear", "cosine", "one_minus_sqrt", "exponential"] = "linear",
) -> Schedule:
    """A linear warm-up, a plateau at `peak_value`, and a decay to `end_value` over the last steps.

    At step t, with W = `warmup_steps`, T = `total_steps` and D = `decay_steps`: `init + (peak -
    init) * t / W` while t < W, then `peak` while t < T - D, then `end + (peak - end) * shape(x)`
    with x = (t - (T - D)) / D, where `decay_shape` is `"linear"`: 1 - x; `"cosine"`: (1 + cos(pi
    x)) / 2; `"one_minus_sqrt"`: 1 - sqrt(x); `"exponential"`: 2 * 0.5**x - 1.

    Args:
      peak_value: where the warm-up leads, finite.
      total_steps: T, in steps, warm-up and decay included; from T on the value is `end_value`.
      warmup_steps: W, in steps, 0 or more and short of T. Give either this or
      warmup_fraction: W as a share of T in [0, 1), rounded to the nearest step, halves up.
      decay_steps: D, in steps, 0 or more and at most T - W; 0 is no decay: the value stays at the
        peak. Give either this or
      decay_fraction: D as a share of T, rounded likewise.
      init_value: the value at step 0, finite.
      end_value: the value at step T, finite.
      decay_shape: the name of the shape.

    Traced arguments are not checked: where W + D > T the warm-up overrides the part of the decay
    under it.

    >>> import warmclip_jax as wc
    >>> trapezoid = wc.warmup_stable_decay(
    ...     peak_value=1.0, total_steps=100, warmup_steps=10, decay_fraction=0.2
    ... )
    >>> [round(float(trapezoid(count)), 2) for count in (0, 5, 10, 80, 90, 100)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]

    Source: Hu et al. 2024, "MiniCPM", section 4; Hägele et al. 2024, "Scaling laws and
    compute-optimal training beyond fixed training durations", section 3, for 1 - sqrt;
    Megatron-LM's WSD for the exponential that ends.
    """

    def shape(decay: Shares) -> jax.Array:
        return jnp.where(jnp.asarray(decay_steps) > 0, _SHAPES[decay_shape](decay), 1)

    values = (init_value, peak_value, end_value)
    return _run(values, (warmup_steps, total_steps, decay_steps), shape)


def _one_minus_sqrt(decay: Shares) -> jax.Array:
    # A quotient keeps the digits near the end that 1 - sqrt(x) loses. The root of 0 has no finite
    # derivative.
    some = decay.passed > 0
    return jnp.where(some, decay.left / (1 + jnp.sqrt(jnp.where(some, decay.passed, 1))), 1)


def _exponential(decay: Shares) -> jax.Array:
    # 2 * 0.5 ** x - 1 without the subtraction, which loses the digits near the end.
    return jnp.where(decay.passed > 0, expm1_below_one(decay.left * math.log(2)), 1)


_SHAPES: dict[str, Callable[[Shares], jax.Array]] = {
    "linear": lambda decay: decay.left,
    "cosine": lambda decay: half_cosine(decay.left, decay.passed),
    "one_minus_sqrt": _one_minus_sqrt,
    "exponential": _exponential,
}


def _length(decay_from: str, warmup: Any, total: Any) -> Any:
    """Of a decay that ends at `total`."""
    return total if decay_from == "zero" else difference(total, warmup)


def _run(
    values: tuple[Any, Any, Any], steps: tuple[Any, Any, Any], shape: Callable[[Shares], jax.Array]
) -> Schedule:
    """A straight line from `init` to `peak`, then a decay to `end` over the last steps.

    `shape` turns the shares of the decay that have passed and are left into the share of `peak -
    end` that is left.
    """
    init, peak, end = values
    warmup, total, length = steps

    def value(count: jax.Array) -> jax.Array:
        left = shape(shares(difference(count, difference(total, length)), length))
        rising = between(init, peak, shares(count, warmup).passed)
        return jnp.where(is_before(count, warmup), rising, between(end, peak, left))

    return as_schedule(value)
