"""Choose between new and old values one by one, so that each new one can reuse the old buffer.

An optimizer writes new moments over the old ones, then makes updates from the new. In a compiled
step, a select after all of that keeps both alive, and a branch has to keep the updates: a copy of
everything in every step. So a traced step selects each result where it is made, and goes on with
what was selected. Outside of `jit` nothing is overwritten in place: there the optimizer runs as it
is, and one compiled select follows.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend import core

from warmclip_jax._norms import is_gradient
from warmclip_jax._values import ArgumentTypeError, is_traced


def choose(
    condition: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    before: tuple[Any, ...],
) -> Any:
    """What `function(*arguments)` returns where `condition` holds; else zero updates, and `before`.

    `function` takes updates first; it returns updates and what becomes of each entry of `before`. A
    leaf that is no number passes through. Where the result is dropped its derivative is 0.

    Raises:
      TypeError: when the structure of what `function` returns is not that of `before`.
    """
    return (_select_early if is_traced(condition) else _select_late)(
        condition, function, arguments, before
    )


def _select_late(
    condition: jax.Array, function: Callable[..., Any], arguments: tuple[Any, ...], before: Any
) -> Any:
    updates, structure = jax.tree.flatten(arguments[0])
    numbers = [index for index, leaf in enumerate(updates) if is_gradient(leaf)]
    zeroed = _selected(condition, [updates[index] for index in numbers], [None] * len(numbers))
    updates = structure.unflatten(_replaced(updates, numbers, zeroed))
    result = function(updates, *arguments[1:])
    leaves, structure = jax.tree.flatten(result)
    olds = _olds(result, before)
    chosen = [
        index
        for index, (new, old) in enumerate(zip(leaves, olds, strict=True))
        if _may_change(new, old)
    ]
    selected = _selected(
        condition, [leaves[index] for index in chosen], [olds[index] for index in chosen]
    )
    return structure.unflatten(_replaced(leaves, chosen, selected))


def _select_early(
    condition: jax.Array, function: Callable[..., Any], arguments: tuple[Any, ...], before: Any
) -> Any:
    given, structure = jax.tree.flatten(arguments)
    inputs = [
        index
        for index, leaf in enumerate(given)
        if isinstance(leaf, (jax.Array, np.ndarray)) and _is_number(leaf)
    ]
    result: Any = None

    def program(values: list[jax.Array]) -> list[Any]:
        nonlocal result
        result = function(*structure.unflatten(_replaced(given, inputs, values)))
        return [leaf for leaf in jax.tree.leaves(result) if _is_number(leaf)]

    closed = jax.make_jaxpr(program)([given[index] for index in inputs])
    leaves, structure_out = jax.tree.flatten(result)
    outputs = [index for index, leaf in enumerate(leaves) if _is_number(leaf)]
    olds = _olds(result, before)
    number = len(jax.tree.leaves(arguments[0]))
    gradients = [index for index in inputs if index < number and is_gradient(given[index])]
    others = [given[index] for index in sorted({*inputs} - {*gradients})]
    handed = _handed(condition, [given[index] for index in gradients], [*others, *closed.consts])
    given = _replaced(given, gradients, handed)
    made = _evaluated(
        condition, closed, [given[index] for index in inputs], [olds[index] for index in outputs]
    )
    return structure_out.unflatten(_replaced(leaves, outputs, made))


@jax.custom_jvp
def _handed(condition: jax.Array, gradients: list[Any], others: list[Any]) -> list[Any]:
    """Gradients as they are: zeros in the place of a bad one would be a copy."""
    return gradients


def _handed_jvp(primals: Any, tangents: Any) -> Any:
    # A dropped result has the cotangent 0, and 0 times NaN is NaN: in a derivative by anything, as
    # `others` are there to tell, the program gets zeros in the place of a bad gradient.
    condition, gradients, _ = primals
    zeroed = [_select(condition, gradient, None) for gradient in gradients]
    return zeroed, [_rate_unless_zero(condition, rate) for rate in tangents[1]]


def _rate_unless_zero(condition: jax.Array, rate: Any) -> Any:
    # Zeros as numbers would meet the infinite slopes that optimizers have at 0.
    return rate if isinstance(rate, SymbolicZero) else _select(condition, rate, None)


_handed.defjvp(_handed_jvp, symbolic_zeros=True)


def _replaced(leaves: list[Any], indices: list[int], values: Sequence[Any]) -> list[Any]:
    """The leaves, with `values` at `indices`."""
    new = dict(zip(indices, values, strict=True))
    return [new.get(index, leaf) for index, leaf in enumerate(leaves)]


def _evaluated(
    condition: jax.Array, closed: core.ClosedJaxpr, inputs: list[Any], olds: list[Any]
) -> list[jax.Array]:
    """The results of a program, each selected right after the equation that makes it."""
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *inputs], strict=True))
    old_of = {
        variable: old
        for variable, old in zip(jaxpr.outvars, olds, strict=True)
        if not isinstance(variable, core.Literal) and variable not in values
    }
    for piece in _pieces(jaxpr, old_of):
        made = core.jaxpr_as_fun(core.ClosedJaxpr(piece, []))(
            *[values[variable] for variable in piece.invars]
        )
        values |= {
            variable: _select(condition, value, old_of[variable]) if variable in old_of else value
            for variable, value in zip(piece.outvars, made, strict=True)
        }

    def result(variable: Any, old: Any) -> jax.Array:
        dtype, is_literal = variable.aval.dtype, isinstance(variable, core.Literal)
        value = jnp.asarray(variable.val, dtype) if is_literal else values[variable]
        is_selected = not is_literal and old_of.get(variable, ()) is old
        return value if is_selected else _select(condition, value, old)

    return list(map(result, jaxpr.outvars, olds))


def _pieces(jaxpr: core.Jaxpr, ends: Container[Any]) -> Iterator[core.Jaxpr]:
    """The program, cut after each equation that defines one of `ends`, with all results."""
    equations: list[Any] = []
    for equation in jaxpr.eqns:
        equations.append(equation)
        if equation is jaxpr.eqns[-1] or any(variable in ends for variable in equation.outvars):
            made = dict.fromkeys(v for each in equations for v in each.outvars)
            used = (
                v
                for each in equations
                for v in each.invars
                if not isinstance(v, core.Literal) and v not in made
            )
            yield jaxpr.replace(
                constvars=[], invars=list(dict.fromkeys(used)), outvars=list(made), eqns=equations
            )
            equations = []


def _olds(result: tuple[Any, ...], before: tuple[Any, ...]) -> list[Any]:
    """The old value for each leaf of `result`: None, for zero, in updates; else one of `before`."""
    updates, *after = result
    given, returned = jax.tree.structure(before), jax.tree.structure(tuple(after))
    if given != returned:
        raise ArgumentTypeError(
            "the optimizer must return a state of the structure it was given, which a skipped step "
            f"keeps; got {returned} for {given}. Pass the state that its init or update returned, "
            "not one with lists for tuples."
        )
    return [None] * len(jax.tree.leaves(updates)) + jax.tree.leaves(before)


def _is_number(leaf: Any) -> bool:
    if isinstance(leaf, (np.ndarray, np.generic)):
        return leaf.dtype.kind in "biufc" or jnp.issubdtype(leaf.dtype, jnp.number)
    return isinstance(leaf, (jax.Array, bool, int, float, complex))


def _may_change(new: Any, old: Any) -> bool:
    return new is not old and _is_number(new) and (old is None or _is_number(old))


@jax.jit
def _selected(condition: jax.Array, news: Sequence[Any], olds: Sequence[Any]) -> list[jax.Array]:
    return [_select(condition, new, old) for new, old in zip(news, olds, strict=True)]


def _select(condition: jax.Array, new: Any, old: Any) -> jax.Array:
    if new is old:
        return new
    new = jnp.asarray(new)
    old = jnp.zeros_like(new) if old is None else jnp.asarray(old)
    # If the first step changes the dtype of a state, a skipped first step changes it too.
    return lax.select(condition, new, old if old.dtype == new.dtype else old.astype(new.dtype))
