"""The curves: pure functions from a count to a value. They know no trees and no optimizers.

Each function below is written for arrays, in the order of its plot; `curve` makes a factory of it. Two things keep the
curves exact where floats are: steps are subtracted as integers before they are divided, and what is left of a length is
computed next to what has passed, never as one minus it.
"""

import math
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from warmclip_jax._checks import Number, Scalar, broken_rule, default_float, exactly_one, is_traced
from warmclip_jax._curve import curve

Value = Annotated[
    Scalar, Number("a finite number", "Learning rates are finite; a schedule that never ends is not needed.", math.isfinite)
]
Steps = Annotated[
    Scalar,
    Number("a whole number of steps, 0 or more", "Count optimizer steps; 0 means none.", lambda n: n >= 0, whole=True),
]
PositiveSteps = Annotated[
    Scalar,
    Number("a whole number of steps, 1 or more", "Count optimizer steps.", lambda n: n >= 1, whole=True),
]
Power = Annotated[
    Scalar, Number("a number above 0", "1 is a straight line, 2 a parabola, 0.5 a square root.", lambda power: power > 0)
]
Fraction = Annotated[
    Scalar, Number("a fraction in [0, 1)", "It is a share of total_steps; 0.1 is a tenth.", lambda share: 0 <= share < 1)
]


@curve()
def constant(count: jax.Array, *, value: Value) -> jax.Array:
    """The same value at every step.

    Args:
      value: the value, finite.

    Returns:
      A `Schedule`.

    Raises:
      TypeError, ValueError: for a concrete `value` that is no finite scalar. A traced one is not checked.

    >>> import warmclip_jax as wc
    >>> float(wc.constant(value=0.5)(1000))
    0.5
    """
    return jnp.broadcast_to(value, count.shape)


@curve()
def linear_warmup(count: jax.Array, *, peak_value: Value, warmup_steps: Steps, init_value: Value = 0.0) -> jax.Array:
    """A straight line from `init_value` to `peak_value`, which then stays.

    `init + (peak - init) * min(t / W, 1)` at step t, with W = `warmup_steps`.

    Args:
      peak_value: the value from step W on, finite.
      warmup_steps: W, in steps, 0 or more; 0 is the peak from step 0.
      init_value: the value at step 0, finite. With 0 the first step moves nothing; `init_value=peak/W` avoids that.

    Returns:
      A `Schedule`.

    Raises:
      TypeError, ValueError: for a concrete argument that breaks its rule. Traced ones are not checked; a negative W acts as 0.

    >>> import warmclip_jax as wc
    >>> float(wc.linear_warmup(peak_value=1.0, warmup_steps=4)(1))
    0.25

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2.
    """
    passed, _ = _shares(count, warmup_steps)
    return _between(init_value, peak_value, passed)


@curve()
def polynomial_warmup(
    count: jax.Array, *, peak_value: Value, warmup_steps: Steps, init_value: Value = 0.0, power: Power = 1.0
) -> jax.Array:
    """A power of the line from `init_value` to `peak_value`, which then stays.

    `init + (peak - init) * min(t / W, 1) ** power` at step t, with W = `warmup_steps`.

    Args:
      peak_value: the value from step W on, finite.
      warmup_steps: W, in steps, 0 or more; 0 is the peak from step 0.
      init_value: the value at step 0, finite.
      power: above 0. More than 1 starts slowly, less than 1 starts fast.

    Returns:
      A `Schedule`.

    Raises:
      TypeError, ValueError: for a concrete argument that breaks its rule. Traced ones are not checked; a negative W acts as 0.

    >>> import warmclip_jax as wc
    >>> float(wc.polynomial_warmup(peak_value=1.0, warmup_steps=4, power=2.0)(2))
    0.25

    Source: the `power` of tf-models' `WarmUp`.
    """
    passed, left = _shares(count, warmup_steps)
    return _between(init_value, peak_value, _power(passed, left, power))


@curve()
def polynomial_decay(
    count: jax.Array,
    *,
    init_value: Value,
    decay_steps: PositiveSteps,
    end_value: Value = 0.0,
    power: Power = 1.0,
    cycle: bool = False,
) -> jax.Array:
    """A power of the line from `init_value` to `end_value`, which then stays.

    `(init - end) * (1 - min(t, D) / D) ** power + end` at step t, with D = `decay_steps`. With `cycle`, D is stretched to
    its next multiple, `D * ceil(t / D)`: an exact multiple of D gives `end_value` and the step after it restarts lower.

    Args:
      init_value: the value at step 0, finite.
      decay_steps: D, in steps, 1 or more: the decay alone.
      end_value: the value at step D, finite.
      power: above 0. 1 is a straight line; more falls fast at first, less falls late.
      cycle: whether to restart at each multiple of D, instead of staying at `end_value`.

    Returns:
      A `Schedule`.

    Raises:
      TypeError, ValueError: for a concrete argument that breaks its rule. Traced ones are not checked; D below 1 gives
        `end_value`. `cycle` cannot be traced.

    >>> import warmclip_jax as wc
    >>> decay = wc.polynomial_decay(init_value=1.0, decay_steps=4, cycle=True)
    >>> [float(decay(count)) for count in range(7)]
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.375, 0.25]

    Source: TensorFlow's `tf.keras.optimizers.schedules.PolynomialDecay`.
    """
    passed, left = _cycle_shares(count, decay_steps) if cycle else _shares(count, decay_steps)
    return _between(end_value, init_value, _power(left, passed, power))


def _warmup_within_total(arguments: dict[str, Any]) -> dict[str, Any]:
    """Turns `warmup_fraction` into `warmup_steps`, and sees that something is left of `total_steps` after them."""
    total, warmup, fraction = (arguments[name] for name in ("total_steps", "warmup_steps", "warmup_fraction"))
    exactly_one(("warmup_steps", "warmup_fraction"), (warmup, fraction))
    if warmup is None:
        warmup = _rounded(fraction, total)
    if not (is_traced(warmup) or is_traced(total)) and warmup >= total:
        came = warmup if fraction is None else fraction
        name = "warmup_steps" if fraction is None else "warmup_fraction"
        rule = f"short of total_steps={total!r}, which includes the warm-up"
        raise broken_rule(name, rule, came, "Leave at least one step to decay in, or use linear_warmup.")
    return {**arguments, "warmup_steps": warmup}


_warmup_within_total.resolves = ("warmup_fraction",)  # pyright: ignore[reportFunctionMemberAccess]


@curve(prepare=_warmup_within_total)
def warmup_polynomial_decay(
    count: jax.Array,
    *,
    peak_value: Value,
    total_steps: PositiveSteps,
    warmup_steps: Steps | None = None,
    warmup_fraction: Fraction | None = None,
    init_value: Value = 0.0,
    end_value: Value = 0.0,
    power: Power = 1.0,
    decay_from: Literal["warmup_end", "zero"] = "warmup_end",
) -> jax.Array:
    """A linear warm-up to `peak_value`, then a polynomial decay to `end_value`.

    At step t, with W = `warmup_steps` and T = `total_steps`: `init + (peak - init) * t / W` while t < W, and then
    `(peak - end) * (1 - clock / length) ** power + end`, where `decay_from` says which clock the decay runs on:
    `"warmup_end"`: t - W over T - W, so it starts at the peak. `"zero"`, the BERT form: t over T, so the decay has been
    running under the warm-up and the rate drops from `peak * (W - 1) / W` to `peak * (1 - W / T) ** power` at step W.

    Args:
      peak_value: where the warm-up leads, finite.
      total_steps: T, in steps, the warm-up included; from T on the value is `end_value`.
      warmup_steps: W, in steps, 0 or more and short of T. Give either this or
      warmup_fraction: W as a share of T in [0, 1), rounded to the nearest step, halves up.
      init_value: the value at step 0, finite.
      end_value: the value at step T, finite.
      power: above 0. 1 is a straight line.
      decay_from: `"warmup_end"` or `"zero"`.

    Returns:
      A `Schedule`.

    Raises:
      TypeError, ValueError: for a concrete argument that breaks its rule. Traced ones are not checked; W >= T gives
        `end_value` from step W on.

    >>> import warmclip_jax as wc
    >>> bert = wc.warmup_polynomial_decay(peak_value=1.0, total_steps=100, warmup_fraction=0.1, decay_from="zero")
    >>> [round(float(bert(count)), 2) for count in (0, 9, 10, 11, 100)]
    [0.0, 0.9, 0.9, 0.89, 0.0]

    Source: Devlin et al. 2018, "BERT", appendix A.2, and its `optimization.py` for `"zero"`.
    """
    del warmup_fraction  # `_warmup_within_total` turned it into warmup_steps.
    rising, _ = _shares(count, warmup_steps)
    passed, left = _decay_shares(count, total_steps, warmup_steps, decay_from)
    falling = _between(end_value, peak_value, _power(left, passed, power))
    return jnp.where(_before(count, warmup_steps), _between(init_value, peak_value, rising), falling)


# What follows is the arithmetic that the curves share. A rule has turned every argument into an array by now, which the
# annotations of the public functions cannot say; hence `Any`.


def _between(origin: Any, target: Any, weight: jax.Array) -> jax.Array:
    """`origin + (target - origin) * weight`, never outside the two and exactly `target` at weight 1."""
    value = origin + (target - origin) * weight
    low, high = jnp.minimum(origin, target), jnp.maximum(origin, target)
    # Comparisons rather than `clip`, whose derivative is shared out between equal operands.
    value = jnp.where(value < low, low, jnp.where(value > high, high, value))
    return jnp.where(weight == 1, target, value)


def _shares(count: jax.Array, length: Any) -> tuple[jax.Array, jax.Array]:
    """The share of `length` that has passed at `count` and the share that is left, both in [0, 1]. No length has passed."""
    count, length = _alike(count, length)
    done = jnp.clip(count, 0, jnp.maximum(length, 0))
    return _divided(done, length - done, length)


def _cycle_shares(count: jax.Array, length: Any) -> tuple[jax.Array, jax.Array]:
    """`_shares` of the smallest multiple of `length` that is not below `count`, and at least one."""
    count, length = _alike(count, length)
    length = jnp.maximum(length, 1)
    before = jnp.maximum(count - 1, 0)
    cycles = before // length + 1
    # The multiple itself can be past int32; what is left of it never is.
    left = jnp.where(count > 0, length - 1 - before % length, length)
    return _divided(count, left, length.astype(default_float()) * cycles.astype(default_float()))


def _decay_shares(count: jax.Array, total: Any, warmup: Any, decay_from: str) -> tuple[jax.Array, jax.Array]:
    """`_shares` of the decay that follows a warm-up, on the clock that `decay_from` names."""
    if decay_from == "zero":
        return _shares(count, total)
    return _shares(_minus(count, warmup), _minus(total, warmup))


def _divided(passed: jax.Array, left: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    dtype = default_float()
    some = length > 0
    whole = jnp.where(some, length, 1).astype(dtype)
    return jnp.where(some, passed.astype(dtype) / whole, 1), jnp.where(some, left.astype(dtype) / whole, 0)


def _power(share: jax.Array, complement: jax.Array, power: Any) -> jax.Array:
    """`share ** power`, where `complement` is 1 - share, to a few ulp of 1 for every power and a finite derivative at 0."""
    some = share > 0
    base = jnp.where(some, share, 1)
    # share ** 1000 turns the rounding of a share near one into a thousand roundings; its logarithm does not.
    log = jnp.where(complement < 0.5, jnp.log1p(-jnp.minimum(complement, 0.5)), jnp.log(base))
    raised = jnp.where(power <= 4, base**power, jnp.exp(power * log))
    return jnp.where(some, jnp.where(power == 1, share, raised), 0)


def _minus(left: Any, right: Any) -> jax.Array:
    left, right = _alike(left, right)
    return left - right


def _before(count: jax.Array, step: Any) -> jax.Array:
    count, step = _alike(count, step)
    return count < step


def _alike(left: Any, right: Any) -> tuple[jax.Array, jax.Array]:
    """Both as they are when both are integers, so that their difference is exact; otherwise both as floats."""
    if jnp.issubdtype(left.dtype, jnp.integer) and jnp.issubdtype(right.dtype, jnp.integer):
        return left, right
    return left.astype(default_float()), right.astype(default_float())


def _rounded(fraction: Any, total: Any) -> Any:
    """`fraction` of `total` in whole steps, halves up; in float64 on the host, or traced where either is."""
    if is_traced(fraction) or is_traced(total):
        return jnp.floor(fraction * jnp.asarray(total, default_float()) + 0.5)
    return math.floor(np.float64(fraction) * np.float64(total) + 0.5)
