"""Every public function refuses a wrong call in a message that begins with its name, shows what
came and says what to do; and no other error is renamed.
"""

import inspect
import operator
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc

FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(wc, name) for name in wc.__all__ if inspect.isfunction(getattr(wc, name))
}
PARAMETERS = {name: inspect.signature(function).parameters for name, function in FUNCTIONS.items()}
#: Those that refuse names that they do not have.
STRICT = [
    name
    for name, parameters in PARAMETERS.items()
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values())
]

decay = wc.linear_warmup(peak_value=1.0, warmup_steps=4)
params = {"w": jnp.ones(3), "b": jnp.ones(2)}
adam = optax.adam(0.1)
clip = wc.clip_by_global_norm(1.0)
by_group = wc.clip_by_group_norm(1.0, {"w": "x", "b": "y"})
guard = wc.skip_nonfinite(adam)
pipe = wc.pipeline(optax.adam, decay)
#: What the calls below are written with, beside the public functions, `jax`, `np` and `optax`.
WORDS = {
    "decay": decay,
    "shifted": lambda function: wc.shift(function, by=1),
    "times": operator.mul,
    "plus": operator.add,
    "minus": operator.sub,
    "operate": lambda function, *operands: function(*operands),
    "operator": operator,
    "jnp": jnp,
    "params": params,
    "adam": adam,
    "adam_state": adam.init(params),
    "clip": clip,
    "by_group": by_group,
    "guard": guard,
    "pipe": pipe,
    "clip_state": clip.init(params),
    "guard_state": guard.init(params),
    "pipe_state": pipe.init(params),
    "pipe_of": lambda schedule: wc.pipeline(optax.adam, schedule),
    "vector": lambda count: jnp.ones(2),
    "nothing": lambda count: None,
    "abstract": jax.eval_shape(clip.init, params),
    "numbered": lambda params: jax.tree.map(lambda leaf: 1, params),
}
#: What begins a message where it is not the function that is called first.
NAMES = {
    "decay": "Schedule",
    "shifted": "Schedule",
    "times": "product",
    "plus": "total",
    "minus": "total",
    "operate": "Schedule",
    "clip": "clip_by_global_norm",
    "by_group": "clip_by_group_norm",
    "guard": "skip_nonfinite",
    "pipe": "pipeline",
    "pipe_of": "Schedule",
}

#: Wrong calls, each with parts of its message: what is wrong, what came, what to do.
CALLS = {
    # Numbers.
    "constant(value=np.nan)": "value must be a finite number | got nan.",
    "constant(value=1e39)": "value must be | from -1e38 to 1e38; got 1e+39. Learning rates are finite",
    "constant(value=10**400)": "value must be | finite",
    "constant(value=True)": "value must be | got True (bool). Pass a Python number",
    "constant(value='1e-4')": "got '1e-4' (str). Pass a number, not text; YAML reads 1.0e-4 as a",
    "constant(value='a')": "got 'a' (str). Pass a number, not text",
    "constant(value=b'1')": "got b'1' (bytes)",
    "constant(value=None)": "got None (NoneType)",
    "constant(value=1j)": "got 1j (complex)",
    "constant(value=[0.1])": "got [0.1] (list)",
    "constant(value=np.bool_(True))": "(bool",
    "constant(value=np.array([0.1, 0.2]))": "a scalar; got array([0.1, 0.2]) | (2,); use jax.vmap",
    "constant(value=np.array(['a']))": "(ndarray). Pass a Python number or a scalar array.",
    "jax.jit(lambda x: constant(value=x)(0))(np.ones(3))": "a scalar; got | use jax.vmap",
    "jax.jit(lambda x: constant(value=x)(0))(np.bool_(True))": "value must be | bool",
    "linear_warmup(peak_value=-np.inf, warmup_steps=4)": "peak_value must be | got -inf",
    "linear_warmup(peak_value=1, warmup_steps=4, init_value=np.nan)": "init_value must be",
    "linear_warmup(peak_value=1, warmup_steps=-1)": "warmup_steps must be a whole number of steps, 0 or more; got -1. Count optimizer steps; 0 means none.",
    "linear_warmup(peak_value=1, warmup_steps=2.5)": "warmup_steps must be a whole | got 2.5",
    "linear_warmup(peak_value=1, warmup_steps=np.inf)": "warmup_steps must be a whole | got inf",
    "linear_warmup(peak_value=1, warmup_steps=False)": "warmup_steps must be | got False (bool)",
    "polynomial_warmup(peak_value=1, warmup_steps=4, power=0)": "power must be a number above 0; got 0. 1 changes nothing, 2 is a square",
    "exponential_warmup(peak_value=1, timescale=0)": "timescale must be a number of steps above 0",
    "polynomial_decay(init_value=1, decay_steps=0)": "decay_steps must be | 1 or more; got 0.",
    "polynomial_decay(init_value=1, decay_steps=4, cycle=1)": "cycle must be one of False, True; got 1 (int). It is fixed",
    "cosine_decay(init_value=1, decay_steps=-100)": "decay_steps must be | got -100",
    "exponential_decay(init_value=1, decay_steps=4, decay_rate=0)": "decay_rate must be a number above 0; got 0. It is the factor",
    "exponential_decay(init_value=0.1, decay_steps=4, decay_rate=0.5, end_value=0.2)": "end_value must be at most init_value=0.1; got 0.2. It is the floor",
    "exponential_decay(init_value=1, decay_steps=4, decay_rate=2)": "end_value must be the ceiling of growth, where decay_rate is above 1: above init_value=1.0, which must be above 0. Give the value to stop at.",
    "exponential_decay(init_value=0.1, decay_steps=4, decay_rate=1, end_value=0.2)": "end_value must be at most init_value=0.1; got 0.2. It is the floor",
    "exponential_decay(init_value=1, decay_steps=4, decay_rate=2, end_value=1)": "above init_value=1.0, which must be above 0; got 1.0. Give",
    "exponential_decay(init_value=0, decay_steps=4, decay_rate=2, end_value=1)": "above init_value=0.0, which must be above 0; got 1.0. Give",
    "inverse_power_decay(init_value=1, timescale=4, power=-1)": "power must be a number above 0; got -1.",
    "inverse_sqrt_decay(init_value=1, timescale=0)": "timescale must be | got 0.",
    "shift(decay, by=0.5)": "by must be a whole number between -2**31 and 2**31; got 0.5",
    "shift(decay, by=2**31)": "by must be a whole number between -2**31 and 2**31; got 2147483648",
    "stretch(decay, factor=0)": "factor must be | 1 or more; got 0",
    "repeat(decay, period=1.5)": "period must be | got 1.5",
    "untuned_warmup_steps(1)": "b2 must be a number in [0, 1); got 1. It is Adam's b2",
    "running_bound(deviations=0)": "deviations must be a positive number; got 0. 3 suits a clip",
    "running_bound(ceiling=-1)": "ceiling must be a non-negative number, a schedule or None; got -1",
    "running_bound(decay=1)": "decay must be between 0 and 1; got 1",
    # Numbers that do not go together.
    "warmup_polynomial_decay(peak_value=1, total_steps=9, warmup_steps=9)": "warmup_steps must be short of total_steps=9, which includes the warm-up; got 9. Leave at least",
    "warmup_polynomial_decay(peak_value=1, total_steps=9, warmup_fraction=0.999)": "warmup_fraction must be short of total_steps=9",
    "warmup_polynomial_decay(peak_value=1, total_steps=9, warmup_fraction=1)": "warmup_fraction must be a fraction in [0, 1); got 1",
    "warmup_polynomial_decay(peak_value=1, total_steps=9)": "exactly one of warmup_steps, warmup_fraction must be given; got none.",
    "warmup_polynomial_decay(peak_value=1, total_steps=9, warmup_steps=1, warmup_fraction=0.1)": "exactly one of | got warmup_steps=1, warmup_fraction=0.1.",
    "warmup_polynomial_decay(peak_value=1, total_steps=9, warmup_steps=1, decay_from='Zero')": "decay_from must be one of 'warmup_end', 'zero'; got 'Zero'. Check the spelling.",
    "warmup_cosine_decay(peak_value=1, total_steps=9, warmup_steps=1, decay_from=0)": "decay_from must be one of | got 0 (int)",
    "warmup_stable_decay(peak_value=1, total_steps=9, warmup_steps=5, decay_steps=5)": "decay_steps must be at most what warmup_steps=5 leaves of total_steps=9; got 5.",
    "warmup_stable_decay(peak_value=1, total_steps=9, warmup_steps=5, decay_fraction=0.9)": "decay_fraction must be at most what warmup_steps=5 leaves",
    "steps(epochs=3)": "dataset_size must be given with epochs; got None. epochs needs dataset_size and batch_size.",
    "steps()": "exactly one of epochs, examples, tokens, fraction must be given; got none.",
    "steps(epochs=1, tokens=2)": "exactly one of | got epochs=1, tokens=2.",
    "steps(tokens=1, batch_size=2)": "sequence_length must be given with tokens; got None.",
    "steps(examples=1, batch_size=2, dataset_size=3)": "dataset_size must be left out with examples, which does not use it; got 3.",
    "steps(fraction=1.1, total_steps=3)": "fraction must be a fraction in [0, 1]; got 1.1",
    "steps(examples=-1, batch_size=2)": "examples must be a finite number, 0 or more; got -1",
    "steps(examples='1', batch_size=2)": "examples must be | Pass a number, not text",
    "steps(examples=1, batch_size=2.5)": "batch_size must be a whole number, 1 or more; got 2.5",
    "steps(examples=1, batch_size=2, accumulation=0)": "accumulation must be | got 0",
    "steps(examples=1, batch_size=2, updates_per_batch=True)": "updates_per_batch must be | (bool)",
    "steps(examples=1, batch_size=2, drop_remainder=1)": "drop_remainder must be one of",
    "steps(fraction=0.1, total_steps=3, drop_remainder=True)": "drop_remainder must be False with fraction, which counts no batches; got True.",
    "jax.jit(lambda x: steps(examples=9, batch_size=x))(2)": "batch_size must be | and not traced; got | before tracing; pass a Python number",
    # Sequences.
    "piecewise_constant(values=0.1, boundaries=[])": "values must be a list, tuple or array of one dimension; got 0.1 (float). Put the entries in brackets",
    "piecewise_constant(values='0.1', boundaries=[])": "values must be a list | got '0.1' (str)",
    "piecewise_constant(values={0.1: 1}, boundaries=[])": "values must be a list | (dict)",
    "piecewise_constant(values=[], boundaries=[])": "values must be a sequence of one or more; got []",
    "piecewise_constant(values=[1, 2, 3], boundaries=[10])": "boundaries must be one fewer than the 3 values; got [10]. Each is the step",
    "piecewise_constant(values=[1, 2], boundaries=np.ones((2, 2)))": "boundaries must be | of one dimension",
    "piecewise_constant(values=np.array([1, np.nan]), boundaries=[3])": "values[1] must be a finite",
    "join([], boundaries=[])": "schedules must be a sequence of one or more",
    "join(decay, boundaries=[])": "schedules must be a list, tuple or array",
    "join([decay, 0.1], boundaries=[3])": "schedules[1] must be a schedule; got 0.1 (float)",
    "join([decay] * 3, boundaries=range(20, 0, -10))": "boundaries must be strictly increasing; got [20, 10]. Count each from the start",
    "join([decay] * 3, boundaries=[10, 10])": "boundaries must be strictly increasing",
    "join([decay] * 3, boundaries=[10, -20])": "boundaries[1] must be | got -20",
    "join([decay] * 3, boundaries=np.array(10))": "boundaries must be a list, tuple or array",
    "product()": "operands must be a sequence of one or more; got []",
    "maximum([decay, decay])": "operands[0] must be a schedule, or a finite number | (list)",
    "minimum(decay, np.nan)": "operands[1] must be a schedule, or a finite number | got nan",
    "times(decay, True)": "operands[1] must be | got True (bool)",
    "times(2 * decay, linear_warmup)": "operands[1] must be | linear_warmup(...)",
    "total()": "operands must be a sequence of one or more",
    "plus(decay, '2')": "operands[1] must be a schedule, or a finite number | got '2' (str)",
    "minus(decay, True)": "operands[1] must be | got True (bool)",
    "minus(decay, np.nan)": "operands[1] must be | got nan.",
    "minus(None, decay)": "operands[0] must be | got None",
    "operate(plus(decay, vector), 3)": "operands[1] must return one number for a count; got",
    **{f"operate({call})": "makes no Schedule of a Schedule and | Sums and products with another schedule or a number do (s + t, 1 - s, 2 * s, s * t, s / 2)." for call in (
        "lambda s: s**2, decay", "lambda s: 2**s, decay", "lambda s: 2 / s, decay", "lambda s: s / s, decay",
        *(f"operator.{name}, {pair}" for name in ("add", "sub", "mul", "truediv") for pair in ("decay, np.ones(3)", "jnp.ones(3), decay")),
        "jax.jit(lambda x: (x * decay)(0)), np.ones(3)",
    )},
    # Schedules.
    "with_warmup(0.1, warmup_steps=3)": "schedule must be a schedule; got 0.1 (float). Pass warmclip_jax.linear_warmup(...), any optax schedule, or",
    "with_warmup(Schedule, warmup_steps=3)": "schedule must be a schedule; got <class",
    "with_warmup(cosine_decay, warmup_steps=3)": "schedule must be a schedule; got the function cosine_decay itself. Call it with its arguments: cosine_decay(...).",
    "shift(product, by=3)": "got the function product itself. Call it with its arguments",
    "shift(optax.cosine_decay_schedule, by=3)": "got the function cosine_decay_schedule itself",
    "repeat('constant(value=3)', period=9)": "got 'constant(value=3)' (str). Read a schedule from text with warmclip_jax.parse; YAML",
    "product(decay, '1e-4')": "operands[1] must be | got '1e-4' (str). Read a schedule from text | YAML reads 1.0e-4 as a number",
    "product(decay, 'constant(value=3)')": "operands[1] must be | with warmclip_jax.parse",
    "shifted(optax.constant_schedule)(3)": "schedule must return one number for a count; got <function constant_schedule | Pass a schedule; a function that makes schedules is called with its arguments",
    "shifted(optax.adam)(3)": "schedule must return one number | from <function adam",
    **dict.fromkeys(
        ("plot(label_by_path)", "clip_by_global_norm(label_by_path)", "skip_nonfinite(adam, above=label_by_path)", "pipeline(optax.sgd, label_by_path)"),
        "got the function label_by_path itself. Call it with its arguments: label_by_path",
    ),
    **dict.fromkeys(
        ("operate(product(0.5, optax.adam), 3)", "plot(optax.adam)", "clip_by_global_norm(optax.adam).update(params, clip_state)", "skip_nonfinite(adam, above=optax.adam).update(params, guard_state)", "pipe_of(optax.adam).update(params, pipe_state)"),
        "must return one number for a count; got | with its arguments",
    ),
    "shifted(vector)(3)": "schedule must return one number | got Array([1., 1.]",
    "shifted(nothing)(3)": "schedule must return one number | got None from",
    "decay(optax.adamw)": "count must be a step number or an array of them; got <function adamw",
    "decay / 0": "divisor must be a finite number other than 0; got 0. Divide by a number",
    "decay / '2'": "divisor must be | got '2' (str)",
    "decay(step=3)": "there is no argument 'step'. It is called as schedule(count).",
    "Schedule(nothing)": "it is built by calling one of constant, | pass it as it is.",
    "plot(cosine_decay)": "schedules must be a schedule; got the function cosine_decay itself. Call it",
    "plot(['constant(value=3)'])": "schedules[0] must be | with warmclip_jax.parse",
    "plot([])": "schedules must be a schedule, or a list or dict of at least one; got []",
    "plot(decay, steps='10')": "steps must be a whole number of steps from 1 | Pass a number, not text",
    "plot(decay, log_scale=1)": "log_scale must be one of False, True; got 1",
    # Text.
    "parse(3)": "text must be a string; got 3 (int). Pass what repr printed.",
    "parse('constant(value=1')": "cannot read 'constant(value=1': '(' was never closed.",
    "parse('constant')": "'constant' must be a call, such as constant(value=0.1).",
    "parse('constant(value=1) * 2')": "'constant(value=1) * 2' must be a call",
    "parse('constants(value=1)')": "there is no 'constants' to call; did you mean 'constant'?",
    "parse('steps(fraction=0.1, total_steps=10)')": "there is no 'steps' to call; there are constant,",
    "parse('os.system(3)')": "there is no 'os.system' to call",
    "parse('shift(<function f at 0x7f>, by=1)')": "cannot rebuild <function f at 0x7f> from text",
    "parse('shift(<function a.<locals>.<lambda> at 0x7f>, by=1)')": "cannot rebuild <function a.<locals>.<lambda> at 0x7f>",
    "parse('shift(abs, by=1)')": "'abs' is neither a number nor a call. Write the number itself.",
    "parse('constant(value=10**9**9)')": "'10 ** 9 ** 9' is neither a number nor a call",
    "parse('constant(value=-True)')": "'-True' is neither a number nor a call",
    "parse('constant(**x)')": "write each argument of constant out, instead of **.",
    "parse('constant(value=1, value=2)')": "value is repeated in constant(...).",
    # Norms.
    "global_norm(params, axis_name=3)": "axis_name must be a name, a tuple of names, or a pytree prefix | got 3 | write PartitionSpec('data')",
    "global_norm(params, axis_name='x')": "axis_name must name axes in scope; got 'x' | leave axis_name out",
    "leaf_norms(params, axis_name=3)": "axis_name must be a name | got 3",
    "leaf_norms(params, axis_name={'w': jax.P()})": "axis_name must be | does not match the gradients",
    # Clipping.
    "clip_tree(params, -1)": "max_norm must be a non-negative number, a schedule, running_bound(...) or None; got -1. None or inf is no bound.",
    "clip_tree(params, np.nan)": "max_norm must be a non-negative | got nan",
    "clip_tree(params, 10**400)": "max_norm must be a non-negative | got 1000",
    "clip_tree(params, np.ones(2))": "a scalar; got array([1., 1.]). | use jax.vmap",
    "clip_tree(params, decay)": "max_norm must be a number or None, since there is no step | got linear_warmup( | Call a schedule with the step first",
    "clip_tree(params, running_bound())": "max_norm must be a number or None | needs clip_by_global_norm.",
    "clip_tree(params, 1.0, axis_name=3)": "axis_name must be a name | got 3",
    "clip_tree(params)": "missing a required argument: 'max_norm'. It is called as clip_tree(tree, max_norm, *,",
    "clip_by_global_norm(True)": "max_norm must be | got True (bool)",
    "clip_by_global_norm('1e-4')": "max_norm must be | got '1e-4' (str). Read a schedule from text | YAML reads 1.0e-4 as a number",
    "clip_by_global_norm([1.0])": "max_norm must be | got [1.0] (list)",
    "clip_by_global_norm(float)": "max_norm must be | got <class 'float'>",
    "clip_by_global_norm({'w': 1.0})": "max_norm must be one rule where there are no groups; got {'w': 1.0} (dict). Pass groups too.",
    "clip_by_global_norm(1.0, axis_name=('data', 0))": "axis_name must be | got ('data', 0)",
    "clip_by_global_norm(1.0, nonfinite='skip')": "nonfinite must be one of 'propagate', 'zero'; got 'skip'. Check the spelling.",
    "clip_by_global_norm(1.0, nonfinite=None)": "nonfinite must be one of | (NoneType)",
    "clip_by_global_norm(1.0, 'data')": "too many positional arguments. It is called as clip_by_global_norm(max_norm, *,",
    "clip_by_global_norm(vector).update(params, clip_state)": "max_norm must return one number for a count; got Array([1., 1.]",
    "clip_by_global_norm(nothing).update(params, clip_state)": "max_norm must return one number for a count; got None",
    "clip_by_global_norm(label_by_path()).update(params, clip_state)": "max_norm must return one number for a count; got ''",
    "clip_by_global_norm(running_bound()).update(params, clip_state)": "state must be that of an optimizer with the options of this one; got a ClipState without a running bound.",
    "clip.update(params, None)": "state must be the ClipState that init or the last update returned; got None. | call adopt_state(",
    "clip.update(params, 0.5)": "got 0.5.",
    "clip.update(params, ())": "got a tuple of nothing.",
    "clip.update(params, {'count': 1})": "got a dict of 'count'.",
    "clip.update(params, adam_state)": "got a tuple of ScaleByAdamState, EmptyState. For the state of another optimizer",
    "clip.update(params, pipe_state)": "got a PipelineState.",
    "clip.update(clip_state, params)": "updates and state are swapped: got the ClipState first. Call update(updates, state, params).",
    "clip.update(params)": "missing a required argument: 'state'. It is called as update(updates, state,",
    "clip_by_group_norm({'w': 'x', 'b': 'y'}, 1.0)": "groups must be labels, each a str, or a function of the parameters that returns them; got 1.0 (float). Bounds go into max_norm.",
    "clip_by_group_norm(label_by_path(), decay)": "groups must be labels | Bounds go into max_norm.",
    "clip_by_group_norm(label_by_path(), {'w': 1.0})": "groups must be labels | Bounds go into max_norm.",
    "clip_by_group_norm({'w': '1'}, 'w')": "max_norm['w'] must be a non-negative number | got '1'",
    "clip_by_group_norm(1.0, None)": "groups must be labels or a function of the parameters; got None. Without groups use clip_by_global_norm.",
    "clip_by_group_norm(1.0, {'w': 3, 'b': 'x'})": "groups must be labels | got 3 (int)",
    "clip_by_group_norm(1.0, numbered).init(params)": "groups must be labels | got 1 (int)",
    "clip_by_group_norm(1.0, {'w': 'x'}).init(params)": "groups must be a pytree prefix of the parameters with a label for each leaf, or a function that makes one of them, such as label_by_path(...); got {'w': 'x'}, which does not match the gradients: ",
    "clip_by_group_norm({'x': 1.0}, {'w': 'x', 'b': 'y'}).init(params)": "max_norm must have a rule for each group; there is none for 'y'. There are rules for ['x'] and groups ['x', 'y']. None as a rule",
    "clip_by_group_norm(1.0, {'w': 'x', 'b': 'z'}).update(params, by_group.init(params))": "groups must give the labels that init saw, ['x', 'y']; got 'z'. For other groups call init again",
    "clip_by_group_norm(1.0, 'w', record_leaves=1)": "record_leaves must be one of False, True; got 1",
    "by_group.update(params, clip_state)": "state must be that of | got a ClipState without groups. | adopt_state(",
    "label_by_path('moe/.*')": "patterns must be a mapping from labels to regular expressions, or None; got 'moe/.*' (str). Write {",
    "label_by_path({'x': 3})": "patterns must be regular expressions by label, both str; got 'x': 3.",
    "label_by_path({3: 'moe/.*'})": "patterns must be regular expressions by label, both str; got 3: 'moe/.*'.",
    "label_by_path({'x': 'moe/('})": "'moe/(', for 'x', is no regular expression: missing )",
    "label_by_path(default=None)": "default must be a label, a str; got None (NoneType)",
    # Skipping.
    "skip_nonfinite(optax.adam)": "inner must be an optax.GradientTransformation; got a function. Build it first: optax.adamw(1e-3), not",
    "skip_nonfinite(0.1)": "inner must be an optax.GradientTransformation; got 0.1.",
    "skip_nonfinite(adam, 10.0)": "too many positional arguments. It is called as skip_nonfinite(inner, *, above=None,",
    "skip_nonfinite(adam, above=-1)": "above must be a non-negative number | got -1",
    "skip_nonfinite(adam, above=running_bound)": "above must be | running_bound(...).",
    "skip_nonfinite(adam, value_above=np.nan)": "value_above must be a finite number | got nan",
    "skip_nonfinite(adam, record=1.5)": "record must be a whole number from 0 to 1,000,000; got 1.5. It is how many calls",
    "pipeline(optax.adam, 0.1, record=2**31)": "record must be a whole number from 0 to 1,000,000; got 2147483648",
    "skip_nonfinite(adam, record_leaves='yes')": "record_leaves must be one of",
    "skip_nonfinite(adam, axis_name=3)": "axis_name must be a name | got 3",
    "skip_nonfinite(adam, above=nothing).update(params, guard_state)": "above must return one number for a count; got None",
    "skip_nonfinite(adam, record=3).update(params, guard_state)": "got a SkipState without record.",
    "guard.update(params, adam_state)": "state must be the SkipState that init | got a tuple of ScaleByAdamState",
    "guard.update(params, guard_state, params, loss=1.0)": "there is no argument 'loss'; here it is 'value'.",
    "guard.update(params, guard_state, params, value='1')": "value must be the loss, a real scalar | got '1' (str)",
    "guard.update(params, guard_state, params, value=np.ones(2))": "value must be the loss | Average it first",
    # The pipeline.
    "pipeline(adam, decay)": "optimizer must be a function from a learning rate to a GradientTransformation; got one that is built already | Pass optax.adamw",
    "pipeline(decay, optax.adam)": "optimizer must be a function | got linear_warmup( | the schedule comes second.",
    "pipeline('adamw', decay)": "optimizer must be a function | got 'adamw' (str)",
    "pipeline(lambda rate: rate, 0.1)": "what optimizer returns must be an optax.GradientTransformation; got 0.1. Build it first",
    "pipeline(optax.adam, '1e-4')": "schedule must be a schedule or a finite number; got '1e-4' (str). Read a schedule from text | YAML reads 1.0e-4 as a number",
    "pipeline(optax.adam, 'constant(value=3)')": "schedule must be | with warmclip_jax.parse",
    "pipeline(optax.adam, None)": "schedule must be a schedule or a finite number; got None",
    "pipeline(optax.adam, np.nan)": "schedule must be a schedule or a finite number; got nan",
    "pipeline(optax.adam, running_bound())": "schedule must be a schedule | got running_bound(",
    "pipeline(optax.adam)": "missing a required argument: 'schedule'. It is called as pipeline(optimizer, schedule, *,",
    "pipeline(optax.adam, learning_rate=1e-3)": "there is no argument 'learning_rate'. It is called as pipeline(optimizer, schedule,",
    "pipeline(optax.adam, decay, skip_above=1.0, nonfinite='zero')": "skip_above needs nonfinite='skip'; got skip_above=1.0 with nonfinite='zero'.",
    "pipeline(optax.adam, decay, groups='w', max_norm=None)": "groups need a max_norm, one rule for all or a dict | got groups with max_norm=None. To measure groups only",
    "pipeline(optax.adam, decay, nonfinite='ignore')": "nonfinite must be one of 'skip', 'propagate', 'zero'; got 'ignore'.",
    "pipeline(optax.adam, decay, axis_name=3)": "axis_name must be a name | got 3",
    "pipeline(optax.adam, decay, record=True)": "record must be | got True (bool)",
    "pipeline(optax.adam, decay, skip_value_above='x')": "skip_value_above must be | got 'x'",
    "pipeline(lambda rate: optax.MultiSteps(adam, 2), decay).init(params)": "optimizer must not hold an optax.MultiSteps | Put it outside: skip_nonfinite(optax.MultiSteps(pipeline(",
    "pipe.update(params, guard_state)": "state must be the PipelineState that init | got a SkipState.",
    "pipe.update(params, pipe_state, params, loss=1.0)": "there is no argument 'loss'; here it is 'value'.",
    "apply_gradients(optax.adam, params, adam_state, grads=params)": "optimizer must be an optax.GradientTransformation; got a function.",
    "apply_gradients(adam, adam_state, params, grads=params)": "params must be parameters; got an optimizer's state. The order is (optimizer, params, opt_state).",
    "apply_gradients(adam, (params, adam_state), adam_state, grads=params)": "params must be parameters; got an optimizer's state.",
    "apply_gradients(pipe, pipe_state, params, grads=params)": "params must be parameters; got an optimizer's state.",
    "apply_gradients(adam, params, adam_state, params)": "too many positional arguments. It is called as apply_gradients(optimizer, params, opt_state, *, grads, **extra).",
    "apply_gradients(adam, params, adam_state, value=1)": "missing a required argument: 'grads'",
    # Telling.
    "clip_tree(params, 1.0, norm=np.ones(2))": "norm must be a real scalar; got array([1., 1.])",
    "clip_tree(params, 1.0, norm=2j)": "norm must be a real scalar; got 2j (complex). Pass what",
    "clip_tree(params, 1.0, norm=True)": "norm must be a real scalar; got True (bool). Pass what",
    "clip_tree(params, 1.0, norm={})": "norm must be a real scalar; got {} (dict). Pass what",
    "clip_tree(params, 1.0, norm='1')": "norm must be a real scalar; got '1' (str). Pass what",
    "metrics(3)": "opt_state must hold a state of clip_by_global_norm, skip_nonfinite or pipeline; got 3 without one. Pass the state that init or update returned",
    "metrics(adam_state)": "got a tuple of ScaleByAdamState, EmptyState without one",
    "metrics(abstract)": "opt_state must hold arrays; got their shapes alone",
    "records(clip_state)": "opt_state must hold a recorder; got one without. Build the optimizer with record=256",
    "unless_skipped(clip_state, 1, 2)": "opt_state must hold one guard or pipeline that stands outermost; got 0. Pass the part",
    "unless_skipped((guard_state, guard_state), 1, 2)": "outermost; got 2.",
    "read_state(3)": "path must be that of a checkpoint; got 3 (int). Pass its folder or file.",
    "report(params)": "opt_state must hold a state | got a dict of 'w', 'b' without one",
    "report(abstract)": "opt_state must hold arrays; got their shapes alone | Pass the state that",
    "metrics(clip_state, plain=1)": "plain must be one of False, True; got 1 (int)",
    "records(clip_state, since=-1)": "opt_state must hold a recorder",
    "plot_records(clip_state)": "opt_state must hold a recorder",
    # Adopting.
    "adopt_state(adam, adam_state, params, step=3)": "params must be parameters; got an optimizer's state. The order is (optimizer, params, opt_state).",
    "adopt_state(adam, params, adam_state, step=-1)": "step must be a whole number, 0 or more; got -1. Count the updates made.",
    "adopt_state(adam, params, optax.sgd(0.1).init(params), step=1)": "opt_state must hold the moments that optimizer.init(params) does, and no others; got no ScaleByAdamState for its [0].count. Pass",
    # Too few, too many.
    "linear_warmup(peak_value=1.0)": "missing a required argument: 'warmup_steps'. It is called as linear_warmup(*, peak_value, warmup_steps, init_value=0.0).",
    "cosine_decay(1.0, 10)": "too many positional arguments. It is called as cosine_decay(*, init_value",
    "with_warmup(10, decay)": "too many positional arguments",
    "with_warmup(10, warmup_steps=decay)": "schedule must be a schedule; got 10 (int)",
    "product(decay, operands=3)": "'operands'. It is called as product(*operands).",
    "steps(3, 50_000, 32)": "too many positional arguments. It is called as steps(*, epochs=None,",
    "adopt_state(adam, params, adam_state)": "missing a required argument: 'step'. It is called as adopt_state(optimizer, params, opt_state, *, step).",
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_call_is_refused_by_name_with_what_came_and_what_to_do(call: str):
    first = re.findall(r"\w+", call.removeprefix("jax.jit(lambda x: "))[0]
    scope = {**FUNCTIONS, **WORDS, "Schedule": wc.Schedule, "jax": jax, "np": np, "optax": optax}
    with pytest.raises((TypeError, ValueError)) as caught:
        eval(call, scope)
    message = str(caught.value)
    assert caught.type in (TypeError, ValueError)  # and no class of this package's own
    assert message.startswith(f"{NAMES.get(first, first)}: ")
    assert message.endswith((".", "?"))
    assert [part for part in CALLS[call].split(" | ") if part not in message] == [], message


def test_every_public_function_is_among_the_wrong_calls():
    assert {
        name for name in FUNCTIONS if not any(call.startswith(f"{name}(") for call in CALLS)
    } == set()


# Names that a function does not have.


def refusal(name: str, *wrong: str) -> str:
    """The message of a call with these names, without the function's own."""
    with pytest.raises(TypeError) as caught:
        FUNCTIONS[name](**dict.fromkeys(wrong, 1))
    assert caught.type is TypeError
    start = f"{name}: there is no argument {wrong[0]!r}"
    assert str(caught.value).startswith(start), caught.value
    return str(caught.value).removeprefix(start)


def hint(name: str, wrong: str) -> str | None:
    found = re.match(r"; (?:here it is|did you mean) '(\w+)'", refusal(name, wrong))
    return found and found[1]


@pytest.mark.parametrize("name", STRICT)
def test_a_name_that_means_nothing_gets_the_call_with_all_names(name: str):
    for wrong in ("qqq", "stable_steps", "min_lr_ratio", "lr_max"):
        rest = refusal(name, wrong)
        assert rest.startswith(f". It is called as {name}(")
        assert all(re.search(rf"\b{argument}\b", rest) for argument in PARAMETERS[name])


def test_a_slip_of_spelling_gets_the_name_that_is_meant():
    slips = [
        (name, slip, argument)
        for name in STRICT
        for argument, parameter in PARAMETERS[name].items()
        for slip in (argument[:-1], f"{argument}s")
        if len(argument) > 5 and slip not in PARAMETERS[name]
        if parameter.kind is not parameter.VAR_POSITIONAL
    ]
    assert len(slips) > 100
    assert [slip for slip in slips if hint(*slip[:2]) != slip[2]] == []
    assert hint("linear_warmup", "num_warmup_steps") == "warmup_steps"


def of_elsewhere(name: str, wrong: str) -> str | None:
    """What a name of other libraries means here; None where it may mean several, or nothing."""
    has = PARAMETERS[name].keys()
    is_decay = "init_value" in has and not has & {"peak_value", "warmup_steps"}
    first = "peak_value" if "peak_value" in has else "init_value" if is_decay else None
    if wrong in ("peak_lr", "learning_rate"):
        return first or ("value" if name == "constant" else None)
    if wrong == "peak_value":
        return "init_value" if is_decay else None
    if wrong == "transition_steps":
        lengths = has & {"decay_steps", "warmup_steps", "total_steps"}
        return lengths.pop() if len(lengths) == 1 and name != "steps" else None
    if wrong == "decay_steps":
        return "total_steps" if has >= {"total_steps", "peak_value"} else None
    return "end_value" if "end_value" in has else None


@pytest.mark.parametrize("wrong", ["alpha", "decay_steps", "end_lr", "eta_min", "final_value", "learning_rate", "lr_min", "min_lr", "peak_lr", "peak_value", "transition_steps"])  # fmt: skip
def test_a_name_of_other_libraries_is_hinted_where_it_is_surely_meant_and_nowhere_else(wrong: str):
    functions = [name for name in STRICT if wrong not in PARAMETERS[name]]
    assert {name: hint(name, wrong) for name in functions} == {
        name: of_elsewhere(name, wrong) for name in functions
    }


def test_a_hint_says_what_else_differs_and_names_nothing_that_is_given_already():
    assert (
        refusal("cosine_decay", "alpha")
        == "; here it is 'end_value', a value and not a share of the first one."
    )
    assert (
        refusal("warmup_cosine_decay", "decay_steps")
        == "; here it is 'total_steps', which includes the warm-up."
    )
    assert refusal("constant", "values") == "; did you mean 'value'?"
    assert refusal("constant", "values", "value") == ". It is called as constant(*, value)."
    assert refusal("cosine_decay", "min_lr", "end_value").startswith(". It is called as")


# Errors of other code.


class UsersError(Exception):
    pass


@pytest.mark.parametrize("error", [TypeError("no"), ValueError("no"), UsersError("no")], ids=repr)
def test_an_error_of_the_users_own_code_passes_as_it_is(error: Exception):
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    class Fails:
        __jax_array__ = fails

    stateless = wc.skip_nonfinite(optax.GradientTransformation(optax.identity().init, fails))
    calls: list[Callable[[], Any]] = [
        lambda: wc.shift(fails, by=1)(3),
        lambda: jax.jit(wc.shift(fails, by=1))(3),
        lambda: wc.constant(value=Fails()),  # pyright: ignore[reportArgumentType]
        lambda: wc.plot(fails),
        lambda: wc.clip_by_global_norm(fails).update(params, clip.init(params)),
        lambda: wc.clip_by_group_norm(1.0, fails).init(params),
        lambda: wc.pipeline(fails, 0.1),
        lambda: wc.pipeline(optax.sgd, fails).update(
            params, wc.pipeline(optax.sgd, decay).init(params)
        ),
        lambda: wc.skip_nonfinite(optax.GradientTransformation(fails, fails)).init(params),
        lambda: jax.jit(stateless.update)(params, stateless.init(params)),
        lambda: wc.apply_gradients(
            optax.GradientTransformation(fails, fails), params, (), grads=params
        ),
    ]
    for call in calls:
        with pytest.raises(type(error)) as caught:
            call()
        assert caught.value is error


def test_a_message_is_named_once_by_the_function_that_wrote_it():
    def inner(count: Any) -> Any:
        return wc.constant(value="x")(count)  # pyright: ignore[reportArgumentType]

    calls = [
        lambda: wc.shift(inner, by=1)(3),
        lambda: wc.plot(inner),
        lambda: wc.pipeline(inner, 0.1),
        lambda: wc.clip_by_global_norm(inner).update(params, clip.init(params)),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"^constant: value must be"):
            call()
    with pytest.raises(ValueError, match=r"^constant: there is no argument 'qqq'"):
        wc.parse("shift(constant(qqq=1), by=1)")
