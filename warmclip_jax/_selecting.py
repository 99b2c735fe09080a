"""The result of a program or what stands in for it, selected so early that the one can take the place of the other in memory.

An optimizer writes new moments over old ones, then makes updates from the new. A select after all of that keeps both alive, and
so does a branch: a copy of everything, in every step. Here each result is selected where it is made, and what the program goes
on to make of it is made of what was selected. Where the condition holds that is the same number; elsewhere nothing of it is kept.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax
from jax.extend import core


def select_early(condition: jax.Array, function: Callable[..., Any], arguments: tuple[Any, ...], instead: Any) -> Any:
    """`function(*arguments)` where the scalar `condition` holds, and `instead`, a tree like it, elsewhere."""
    program = jax.make_jaxpr(function)(*arguments)
    jaxpr = program.jaxpr
    others, structure = jax.tree.flatten(instead)
    values = dict(zip(jaxpr.constvars + jaxpr.invars, program.consts + jax.tree.leaves(arguments), strict=True))
    made = {variable for equation in jaxpr.eqns for variable in equation.outvars}
    early = {variable: other for variable, other in zip(jaxpr.outvars, others, strict=True) if _is_in(variable, made)}
    for piece in _pieces(jaxpr, early):
        inputs = [values[variable] for variable in piece.invars]
        values.update(zip(piece.outvars, core.jaxpr_as_fun(core.ClosedJaxpr(piece, []))(*inputs), strict=True))
        values.update({v: _select(condition, values[v], early[v]) for v in piece.eqns[-1].outvars if v in early})
    results = [values[variable] if _is_in(variable, values) else variable.val for variable in jaxpr.outvars]
    return structure.unflatten(
        result if _is_in(variable, early) and early[variable] is other else _select(condition, result, other)
        for variable, result, other in zip(jaxpr.outvars, results, others, strict=True)
    )


def _is_in(variable: Any, collection: Any) -> bool:
    return not isinstance(variable, core.Literal) and variable in collection  # a literal has no hash


def _pieces(jaxpr: core.Jaxpr, ends: Any) -> Iterator[core.Jaxpr]:
    """The program cut after every equation that makes one of `ends`. A piece hands on all that it makes."""
    equations = []
    for equation in jaxpr.eqns:
        equations.append(equation)
        if equation is jaxpr.eqns[-1] or any(variable in ends for variable in equation.outvars):
            made = [variable for equation in equations for variable in equation.outvars]
            used = [v for equation in equations for v in equation.invars if not isinstance(v, core.Literal)]
            needed = list(dict.fromkeys(used))
            known = set(made)
            yield jaxpr.replace(
                constvars=[], invars=[v for v in needed if v not in known], outvars=made, eqns=equations
            )
            equations = []


def _select(condition: jax.Array, result: jax.Array, other: jax.Array) -> jax.Array:
    """A state that changes its dtype, as some do in their first step, does so in a step left out too."""
    if result is other:
        return result
    return lax.select(condition, result, other if other.dtype == result.dtype else lax.convert_element_type(other, result.dtype))
