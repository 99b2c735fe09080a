"""What a factory refuses, in which words; and that it cannot refuse what is traced."""

import inspect
import math
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from warmclip_jax._schedules import _arguments
from warmclip_jax._values import _rules as checks

DECAY = wc.linear_warmup(peak_value=1.0, warmup_steps=4)
GOOD: dict[Callable[..., wc.Schedule], dict[str, Any]] = {
    wc.constant: {"value": 0.1},
    wc.linear_warmup: {"peak_value": 0.1, "warmup_steps": 10},
    wc.polynomial_warmup: {"peak_value": 0.1, "warmup_steps": 10, "power": 2.0},
    wc.exponential_warmup: {"peak_value": 0.1, "timescale": 10.0},
    wc.polynomial_decay: {"init_value": 0.1, "decay_steps": 10},
    wc.cosine_decay: {"init_value": 0.1, "decay_steps": 10},
    wc.exponential_decay: {"init_value": 0.1, "decay_steps": 10, "decay_rate": 0.5},
    wc.inverse_sqrt_decay: {"init_value": 0.1, "timescale": 10.0},
    wc.warmup_polynomial_decay: {"peak_value": 0.1, "total_steps": 100, "warmup_steps": 10},
    wc.warmup_cosine_decay: {"peak_value": 0.1, "total_steps": 100, "warmup_steps": 10},
    wc.warmup_stable_decay: {
        "peak_value": 0.1,
        "total_steps": 100,
        "warmup_steps": 10,
        "decay_steps": 20,
    },
    wc.with_warmup: {"schedule": DECAY, "warmup_steps": 10},
    wc.join: {"schedules": [DECAY, DECAY, DECAY], "boundaries": [10, 20]},
    wc.repeat: {"schedule": DECAY, "period": 10},
    wc.shift: {"schedule": DECAY, "by": 1},
    wc.stretch: {"schedule": DECAY, "factor": 2},
    wc.piecewise_constant: {"values": [0.1, 0.2, 0.3], "boundaries": [10, 20]},
}

#: Factory, argument, bad value, error, and another word that the message needs: the rule or the
#: remedy.
BAD: list[tuple[Callable[..., wc.Schedule], str, Any, type[Exception], str]] = [
    (wc.constant, "value", math.nan, ValueError, "finite"),
    (wc.constant, "value", math.inf, ValueError, "finite"),
    (wc.constant, "value", 1e39, ValueError, "finite"),
    (wc.constant, "value", 10**400, ValueError, "finite"),
    (wc.constant, "value", True, TypeError, "bool"),
    (wc.constant, "value", "0.1", TypeError, "str"),
    (wc.constant, "value", b"0.1", TypeError, "bytes"),
    (wc.constant, "value", None, TypeError, "NoneType"),
    (wc.constant, "value", 1j, TypeError, "complex"),
    (wc.constant, "value", [0.1], TypeError, "list"),
    (wc.constant, "value", np.bool_(True), TypeError, "bool"),
    (wc.constant, "value", np.array([0.1, 0.2]), ValueError, "jax.vmap"),
    (wc.constant, "value", np.array(["a"]), TypeError, "scalar"),
    (wc.linear_warmup, "peak_value", -math.inf, ValueError, "finite"),
    (wc.linear_warmup, "init_value", math.nan, ValueError, "finite"),
    (wc.linear_warmup, "warmup_steps", -1, ValueError, "0 or more"),
    (wc.linear_warmup, "warmup_steps", 2.5, ValueError, "whole"),
    (wc.linear_warmup, "warmup_steps", math.nan, ValueError, "whole"),
    (wc.linear_warmup, "warmup_steps", math.inf, ValueError, "whole"),
    (wc.linear_warmup, "warmup_steps", None, TypeError, "NoneType"),
    (wc.linear_warmup, "warmup_steps", False, TypeError, "bool"),
    (wc.linear_warmup, "warmup_steps", np.arange(3), ValueError, "(3,)"),
    (wc.polynomial_warmup, "power", 0, ValueError, "above 0"),
    (wc.polynomial_warmup, "power", -1.0, ValueError, "above 0"),
    (wc.polynomial_warmup, "power", "1", TypeError, "str"),
    (wc.exponential_warmup, "timescale", 0, ValueError, "above 0"),
    (wc.exponential_warmup, "timescale", -0.5, ValueError, "above 0"),
    (wc.exponential_warmup, "timescale", math.inf, ValueError, "above 0"),
    (wc.polynomial_decay, "decay_steps", 0, ValueError, "1 or more"),
    (wc.polynomial_decay, "decay_steps", 0.5, ValueError, "whole"),
    (wc.polynomial_decay, "end_value", "0", TypeError, "str"),
    (wc.polynomial_decay, "cycle", 1, TypeError, "one of False, True"),
    (wc.polynomial_decay, "cycle", None, TypeError, "one of False, True"),
    (wc.cosine_decay, "decay_steps", -100, ValueError, "1 or more"),
    (wc.cosine_decay, "init_value", math.nan, ValueError, "finite"),
    (wc.exponential_decay, "decay_rate", 0.0, ValueError, "above 0"),
    (wc.exponential_decay, "decay_rate", math.inf, ValueError, "above 0"),
    (wc.exponential_decay, "decay_rate", -0.5, ValueError, "above 0"),
    (wc.exponential_decay, "end_value", 0.2, ValueError, "init_value=0.1"),
    (wc.exponential_decay, "staircase", "yes", TypeError, "one of False, True"),
    (wc.inverse_sqrt_decay, "timescale", 0.0, ValueError, "above 0"),
    (wc.warmup_polynomial_decay, "total_steps", 0, ValueError, "1 or more"),
    (wc.warmup_polynomial_decay, "warmup_steps", 100, ValueError, "total_steps=100"),
    (wc.warmup_polynomial_decay, "warmup_steps", 101, ValueError, "total_steps=100"),
    (wc.warmup_polynomial_decay, "warmup_steps", None, ValueError, "exactly one"),
    (wc.warmup_polynomial_decay, "warmup_fraction", 0.1, ValueError, "exactly one"),
    (wc.warmup_polynomial_decay, "decay_from", "Zero", ValueError, "'warmup_end', 'zero'"),
    (wc.warmup_polynomial_decay, "decay_from", 0, TypeError, "'warmup_end', 'zero'"),
    (wc.warmup_cosine_decay, "total_steps", 10, ValueError, "short of total_steps=10"),
    (wc.warmup_stable_decay, "decay_steps", 0, ValueError, "1 or more"),
    (wc.warmup_stable_decay, "decay_steps", 91, ValueError, "warmup_steps=10"),
    (wc.warmup_stable_decay, "decay_fraction", 0.1, ValueError, "exactly one"),
    (wc.warmup_stable_decay, "decay_steps", None, ValueError, "exactly one"),
    (wc.warmup_stable_decay, "decay_shape", "sqrt", ValueError, "one_minus_sqrt"),
    (wc.with_warmup, "schedule", 0.1, TypeError, "a schedule"),
    (wc.with_warmup, "schedule", None, TypeError, "a schedule"),
    (wc.with_warmup, "schedule", wc.linear_warmup, TypeError, "Call it"),
    (wc.with_warmup, "schedule", wc.Schedule, TypeError, "a schedule"),
    (wc.with_warmup, "warmup_steps", -1, ValueError, "0 or more"),
    (wc.join, "schedules", [], ValueError, "one or more"),
    (wc.join, "schedules", DECAY, TypeError, "a list, tuple or array"),
    (wc.join, "boundaries", [10], ValueError, "one fewer than the 3"),
    (wc.join, "boundaries", [20, 10], ValueError, "increasing"),
    (wc.join, "boundaries", [10, 10], ValueError, "increasing"),
    (wc.join, "boundaries", 10, TypeError, "a list, tuple or array"),
    (wc.join, "boundaries", range(20, 0, -10), ValueError, "increasing"),
    (wc.join, "boundaries", np.array(10), TypeError, "a list, tuple or array"),
    (wc.repeat, "period", 0, ValueError, "1 or more"),
    (wc.shift, "by", 0.5, ValueError, "whole"),
    (wc.shift, "by", 2**31, ValueError, "2**31"),
    (wc.stretch, "factor", 0, ValueError, "1 or more"),
    (wc.stretch, "factor", 1.5, ValueError, "whole"),
    (wc.stretch, "schedule", [DECAY], TypeError, "a schedule"),
    (wc.piecewise_constant, "values", 0.1, TypeError, "a list, tuple or array"),
    (wc.piecewise_constant, "values", "0.1", TypeError, "a list, tuple or array"),
    (wc.piecewise_constant, "values", {0.1: 1}, TypeError, "a list, tuple or array"),
    (wc.piecewise_constant, "values", [], ValueError, "one or more"),
    (wc.piecewise_constant, "boundaries", [10], ValueError, "one fewer than the 3 values"),
    (wc.piecewise_constant, "boundaries", [20, 20], ValueError, "increasing"),
    (wc.piecewise_constant, "boundaries", np.ones((2, 2)), TypeError, "of one dimension"),
]


def of(factory: Callable[..., wc.Schedule], **changed: Any) -> wc.Schedule:
    return factory(**{**GOOD[factory], **changed})


@pytest.mark.parametrize(("factory", "name", "value", "error", "word"), BAD)
def test_a_bad_argument_is_refused_by_name_and_value(
    factory: Callable[..., wc.Schedule], name: str, value: Any, error: type[Exception], word: str
):
    of(factory)
    with pytest.raises(error) as caught:
        of(factory, **{name: value})
    message = str(caught.value)
    assert caught.type is error
    assert message.startswith(f"{factory.__name__}: ")
    assert name in message
    assert word in message
    shown = (
        value.__name__
        if callable(value) and not isinstance(value, (type, wc.Schedule))
        else repr(value)
    )
    assert (
        shown in message
        or str(value) in message
        or (isinstance(value, range) and str(list(value)) in message)
    )


@pytest.mark.parametrize(
    ("factory", "arguments", "name"),
    [
        (
            wc.warmup_polynomial_decay,
            {"warmup_steps": None, "warmup_fraction": 1.0},
            "warmup_fraction",
        ),
        (
            wc.warmup_polynomial_decay,
            {"warmup_steps": None, "warmup_fraction": -0.1},
            "warmup_fraction",
        ),
        (
            wc.warmup_polynomial_decay,
            {"warmup_steps": None, "warmup_fraction": 0.999},
            "warmup_fraction",
        ),
        (wc.warmup_stable_decay, {"decay_steps": None, "decay_fraction": 0.95}, "decay_fraction"),
        (wc.warmup_stable_decay, {"decay_steps": None, "decay_fraction": 0.001}, "decay_fraction"),
        (wc.join, {"boundaries": [10, -20]}, "boundaries[1]"),
        (wc.join, {"boundaries": [10, "20"]}, "boundaries[1]"),
        (wc.join, {"schedules": [DECAY, 0.1, DECAY]}, "schedules[1]"),
        (wc.join, {"schedules": np.array([DECAY, wc.constant, DECAY])}, "schedules[1]"),
        (wc.join, {"boundaries": np.array([10, 20.5])}, "boundaries[1]"),
        (wc.piecewise_constant, {"values": np.array([0.1, np.nan, 0.3])}, "values[1]"),
        (wc.piecewise_constant, {"values": [0.1, 0.2, DECAY]}, "values[2]"),
        (wc.exponential_decay, {"decay_rate": 2.0}, "end_value"),
        (
            wc.exponential_decay,
            {"decay_rate": 2.0, "init_value": 0.0, "end_value": 1.0},
            "init_value",
        ),
    ],
)
def test_what_was_said_is_what_the_message_names(
    factory: Callable[..., wc.Schedule], arguments: dict[str, Any], name: str
):
    with pytest.raises((ValueError, TypeError)) as caught:
        of(factory, **arguments)
    assert str(caught.value).startswith(f"{factory.__name__}: {name}")


@pytest.mark.parametrize("factory", GOOD)
def test_numbers_are_keyword_only_and_names_are_checked(factory: Callable[..., wc.Schedule]):
    with pytest.raises(TypeError, match="positional"):
        factory(*GOOD[factory].values())
    with pytest.raises(TypeError, match=f"{factory.__name__}: there is no argument 'warmup_step'"):
        of(factory, warmup_step=1)


#: The package and a schedule as no type checker sees them.
loose: Any = wc
DECAY_: Any = DECAY
#: A call, and what its message needs: the name of the function, what is wrong, and what to write
#: instead.
BAD_CALLS: list[tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = [
    # A name that no argument has.
    (
        lambda: loose.linear_warmup(peak=1.0, warmup_steps=10),
        TypeError,
        ("linear_warmup", "'peak'", "'peak_value'"),
    ),
    (
        lambda: loose.cosine_decay(init=1.0, decay_steps=10),
        TypeError,
        ("cosine_decay", "'init'", "'init_value'"),
    ),
    (lambda: loose.repeat(DECAY, periods=3), TypeError, ("repeat", "'periods'", "'period'")),
    (lambda: loose.join([DECAY], boundary=[]), TypeError, ("join", "'boundary'", "'boundaries'")),
    (lambda: loose.shift(DECAY, qqq=3), TypeError, ("shift", "'qqq'", "there are by, schedule")),
    (
        lambda: loose.product(DECAY, operands=3),
        TypeError,
        ("product", "is called as product(*operands)"),
    ),
    (lambda: loose.minimum(a=3), TypeError, ("minimum", "'a'", "operands")),
    # A name that it has in another library.
    (
        lambda: loose.linear_warmup(peak_value=1.0, transition_steps=9),
        TypeError,
        ("linear_warmup", "'warmup_steps'"),
    ),
    (
        lambda: loose.polynomial_decay(init_value=1.0, transition_steps=9),
        TypeError,
        ("polynomial_decay", "'decay_steps'"),
    ),
    (
        lambda: loose.warmup_cosine_decay(peak_value=1.0, warmup_steps=1, decay_steps=9),
        TypeError,
        ("warmup_cosine_decay", "'total_steps', which includes the warm-up"),
    ),
    (
        lambda: loose.exponential_warmup(init_value=1.0, timescale=9),
        TypeError,
        ("exponential_warmup", "'peak_value'"),
    ),
    (
        lambda: loose.warmup_polynomial_decay(peak_lr=1.0, total_steps=9),
        TypeError,
        ("warmup_polynomial_decay", "'peak_value'"),
    ),
    (lambda: loose.constant(learning_rate=1.0), TypeError, ("constant", "'value'")),
    (
        lambda: loose.cosine_decay(learning_rate=1.0, decay_steps=9),
        TypeError,
        ("cosine_decay", "'init_value'"),
    ),
    (
        lambda: loose.cosine_decay(init_value=1.0, decay_steps=9, alpha=0.1),
        TypeError,
        ("'end_value', a value and not a share",),
    ),
    (
        lambda: loose.warmup_stable_decay(peak_value=1.0, end_lr=0.1),
        TypeError,
        ("warmup_stable_decay", "'end_value'"),
    ),
    # Too few, too many, in the wrong place.
    (
        lambda: loose.linear_warmup(peak_value=1.0),
        TypeError,
        ("linear_warmup", "'warmup_steps'", "is called as"),
    ),
    (
        lambda: loose.cosine_decay(1.0, 10),
        TypeError,
        ("cosine_decay", "positional", "(*, init_value, decay_steps"),
    ),
    (lambda: loose.with_warmup(10, DECAY), TypeError, ("with_warmup", "positional")),
    (
        lambda: loose.with_warmup(10, warmup_steps=DECAY),
        TypeError,
        ("with_warmup", "schedule", "10"),
    ),
    # A function where what it returns belongs.
    (
        lambda: loose.with_warmup(loose.cosine_decay, warmup_steps=3),
        TypeError,
        ("with_warmup", "cosine_decay(...)"),
    ),
    (
        lambda: loose.join([DECAY, loose.constant], boundaries=[3]),
        TypeError,
        ("schedules[1]", "constant(...)"),
    ),
    (lambda: loose.product(loose.constant, DECAY), TypeError, ("operands[0]", "constant(...)")),
    (lambda: 2 * DECAY_ * loose.linear_warmup, TypeError, ("operands[1]", "linear_warmup(...)")),
    (
        lambda: loose.shift(lambda count: optax.constant_schedule(0.1), by=1)(3),
        TypeError,
        ("another function", "its arguments"),
    ),
    (lambda: DECAY_(optax.adamw), TypeError, ("count", "adamw")),
    # What is no operand.
    (lambda: loose.product(), ValueError, ("product", "at least one")),
    (lambda: loose.maximum(), ValueError, ("maximum", "at least one")),
    (lambda: loose.product(DECAY, "2"), TypeError, ("operands[1]", "'2'")),
    (lambda: loose.minimum(DECAY, math.nan), ValueError, ("minimum", "operands[1]", "nan")),
    (lambda: loose.maximum([DECAY, DECAY]), TypeError, ("operands[0]", "list")),
    (lambda: DECAY_ * True, TypeError, ("product", "bool")),
    (lambda: None * DECAY_, TypeError, ("product", "None")),
    (lambda: DECAY_ * 1e39, ValueError, ("product", "1e+39")),
    (lambda: DECAY_ / 0, ValueError, ("other than 0",)),
    (lambda: DECAY_ / "2", TypeError, ("other than 0", "'2'")),
    (lambda: loose.parse(3), TypeError, ("text", "3")),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS)
def test_a_bad_call_is_refused_with_what_to_write_instead(
    call: Callable[[], Any], error: type[Exception], words: tuple[str, ...]
):
    with pytest.raises(error) as caught:
        call()
    assert caught.type is error
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "transition_steps",
        "decay_steps",
        "init_value",
        "peak_lr",
        "learning_rate",
        "alpha",
        "end_lr",
    ],
)
def test_a_name_of_another_library_is_known_wherever_its_meaning_exists(name: str):
    meanings = {
        "alpha": "end_value",
        "end_lr": "end_value",
        "decay_steps": "total_steps",
        "transition_steps": "_steps",
    }
    for factory in GOOD:
        arguments = inspect.signature(factory).parameters
        if name in arguments:
            continue
        with pytest.raises(TypeError) as caught:
            of(factory, **{name: 1.0})
        meant = [
            argument
            for argument in arguments
            if meanings.get(name, "value") in argument and "period" not in argument
        ]
        if name in ("init_value", "peak_lr", "learning_rate"):
            meant = [
                argument
                for argument in ("peak_value", "init_value", "value")
                if argument in arguments
            ]
            meant = meant[:1] if name != "init_value" or meant == ["peak_value"] else []
        elif name == "transition_steps":
            meant = [
                argument
                for argument in ("decay_steps", "warmup_steps", "total_steps")
                if argument in arguments
            ][:1]
        if meant:
            assert f"here it is {meant[0]!r}" in str(caught.value), factory


@pytest.mark.parametrize(
    "operation",
    [
        lambda schedule: schedule + 1,
        lambda schedule: 1 + schedule,
        lambda schedule: schedule - schedule,
        lambda schedule: 1 - schedule,
        lambda schedule: -schedule,
        lambda schedule: schedule**2,
        lambda schedule: 2**schedule,
        lambda schedule: 2 / schedule,
        lambda schedule: schedule / schedule,
        lambda schedule: schedule / np.ones(3),
        lambda schedule: schedule * np.ones(3),
        lambda schedule: np.ones(3) * schedule,
        lambda schedule: jnp.ones(3) * schedule,
        lambda schedule: jax.jit(lambda x: (x * schedule)(0))(jnp.ones(3)),
        lambda schedule: np.ones(3) + schedule,
        lambda schedule: jnp.float32(1) + schedule,
        lambda schedule: jnp.ones(3) / schedule,
    ],
)
def test_an_operator_that_makes_no_schedule_says_so(operation: Callable[[Any], Any]):
    with pytest.raises(TypeError, match=r"only a product with a scalar or another schedule"):
        operation(DECAY)


NUMERIC = (int, float)
TRACEABLE = [
    (factory, name, value)
    for factory, name, value, _, _ in BAD
    if isinstance(value, NUMERIC)
    and not isinstance(value, bool)
    and "schedule" not in name
    and abs(value) < 2**31
    if name
    not in (
        "cycle",
        "staircase",
        "decay_from",
        "boundaries",
        "values",
        "warmup_fraction",
        "decay_fraction",
    )
]


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize(("factory", "name", "value"), TRACEABLE)
def test_the_same_value_traced_passes_through_without_a_branch(
    factory: Callable[..., wc.Schedule], name: str, value: Any
):
    traced = jax.jit(lambda number, count: of(factory, **{name: number})(count))
    assert traced(value, jnp.arange(200)).shape == (200,)


@pytest.mark.usefixtures("strict_dtypes")
def test_every_number_of_every_factory_can_be_traced_and_gives_the_same_values():
    counts = jnp.arange(0, 120, 7)
    for factory in GOOD:
        schedule = of(factory)
        # Through the constructor, so that each check sees a tracer.
        rebuild = jax.jit(lambda arguments, factory=factory: factory(**arguments)(counts))
        arguments = {
            name: value
            for name, value in schedule.arguments.items()
            if not isinstance(value, (str, bool))
        }
        np.testing.assert_allclose(rebuild(arguments), schedule(counts), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("annotation", "inside", "outside"),
    [
        (_arguments.Finite, [0, 1e38, -1e38], [1.01e38, -1.01e38]),
        (_arguments.Steps, [0, 2**40], [-1, 0.5]),
        (_arguments.PositiveSteps, [1, 2**40], [0, 1.5]),
        (_arguments.SignedSteps, [0, 2**31 - 1, 1 - 2**31], [2**31, -(2**31), 0.5]),
        (_arguments.Timescale, [1e-3, 2.5], [0, -1]),
        (_arguments.Power, [1e-3, 2.5], [0, -1]),
        (_arguments.Fraction, [0, 0.999], [1, -1e-3]),
    ],
)
def test_a_rule_holds_up_to_its_limits(annotation: Any, inside: list[float], outside: list[float]):
    rule = typing.get_args(annotation)[-1]
    assert [rule.check("number", number) for number in inside] == inside
    for number in outside:
        with pytest.raises(ValueError, match="number must be"):
            rule.check("number", number)


def test_a_rule_between_arguments_waits_for_those_that_are_traced():
    def rate(total: Any) -> Any:
        return wc.warmup_stable_decay(
            peak_value=1.0, total_steps=total, warmup_steps=2, decay_steps=4
        )(3)

    assert float(jax.jit(rate)(10)) == float(rate(10)) == 1.0
    steps = jax.jit(
        lambda boundaries: wc.piecewise_constant(values=[1.0, 2.0, 3.0], boundaries=boundaries)(4)
    )
    assert [float(steps(boundaries)) for boundaries in ([2, 5], [2, 3], [5, 7])] == [2.0, 3.0, 1.0]
    half = jax.jit(
        lambda last: wc.piecewise_constant(values=[1.0, 2.0, 3.0], boundaries=[2, last])(4)
    )
    assert [float(half(last)) for last in (5, 3)] == [2.0, 3.0]
    with pytest.raises(
        ValueError, match="decay_steps must be at most what warmup_steps=2 leaves of total_steps=5"
    ):
        rate(5)


def test_a_traced_array_is_refused_like_any_other():
    with pytest.raises(ValueError, match=r"value must be .* a scalar"):
        jax.jit(lambda values: wc.constant(value=values)(0))(jnp.ones(3))
    with pytest.raises(TypeError, match="value must be"):
        jax.jit(lambda flag: wc.constant(value=flag)(0))(jnp.array(True))


@pytest.mark.parametrize(
    "number",
    [3, 3.0, np.int8(3), np.uint64(3), np.float16(3), jnp.int32(3), jnp.bfloat16(3), np.array(3)],
)
def test_a_number_of_any_dtype_is_kept_as_a_python_number(number: Any):
    assert repr(wc.linear_warmup(peak_value=number, warmup_steps=number)) == (
        "linear_warmup(peak_value=3.0, warmup_steps=3, init_value=0.0)"
    )


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64])
def test_a_number_is_the_shortest_decimal_of_its_dtype(dtype: Any):
    for decimal in (0.1, 0.3, 1e-4, 0.9, 5.0, 60000.0):
        for number in (dtype(decimal), np.asarray(dtype(decimal)), jnp.asarray(dtype(decimal))):
            assert checks.as_number(number) == float(
                dtype(decimal) if number.dtype.itemsize == 8 else decimal
            )
    for number in np.random.default_rng(0).uniform(1e-4, 10, 300).astype(dtype):
        decimal = checks.as_number(number)
        digits = len(np.format_float_scientific(decimal, trim="-").split("e")[0].replace(".", ""))
        assert dtype(decimal) == number
        assert digits == 1 or dtype(float(f"{float(number):.{digits - 2}e}")) != number


def test_a_length_past_int32_is_kept_as_a_float():
    assert (
        wc.linear_warmup(peak_value=1.0, warmup_steps=5_000_000_000).arguments["warmup_steps"]
        == 5e9
    )
    assert isinstance(
        wc.linear_warmup(peak_value=1.0, warmup_steps=2**31).arguments["warmup_steps"], float
    )
    assert isinstance(
        wc.linear_warmup(peak_value=1.0, warmup_steps=2.0**31 - 1).arguments["warmup_steps"], int
    )


def test_a_traced_length_past_int32_does_not_wrap_around():
    def value(length: Any) -> jax.Array:
        return wc.linear_warmup(peak_value=1.0, warmup_steps=length)(2**30)

    assert float(jax.jit(value)(jnp.uint32(2**32 - 2**8))) == pytest.approx(0.25, rel=1e-6)
    with jax.enable_x64(True):
        assert float(jax.jit(value)(5_000_000_000)) == pytest.approx(2**30 / 5e9, rel=1e-12)


def test_finite_means_finite_in_the_dtype_it_is_computed_in():
    rule = checks.Number("a finite number", "Pass a smaller one.", math.isfinite)
    with pytest.raises(ValueError, match="finite"):
        rule.check("value", 1e39)
    with jax.enable_x64(True):
        assert rule.check("value", 1e39) == 1e39
