"""The result of a program or what stands in for it, selected so early that the one can take the other's place in memory.

An optimizer writes new moments over the old ones, then makes updates from the new. A select after all of that keeps both alive,
and a branch has to keep the updates: a copy of everything in every step. Here each result is selected where it is made, and the
program goes on with what was selected. Where the condition holds that is the same number; elsewhere nothing of it is kept.
"""

from collections.abc import Callable, Container, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core


def select_early(
    condition: jax.Array, function: Callable[..., Any], arguments: tuple[Any, ...], instead: Callable[[Any], Any]
) -> Any:
    """`function(*arguments)` where the scalar `condition` holds; elsewhere `instead` of its shapes, a tree like it."""
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    jaxpr = program.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *jax.tree.leaves(arguments)], strict=True))
    others, structure = jax.tree.flatten(instead(shapes))
    early = {
        variable: other
        for variable, other in zip(jaxpr.outvars, others, strict=True)
        if not isinstance(variable, core.Literal) and variable not in values
    }
    for piece in _pieces(jaxpr, early):
        made = core.jaxpr_as_fun(core.ClosedJaxpr(piece, []))(*[values[variable] for variable in piece.invars])
        for variable, value in zip(piece.outvars, made, strict=True):
            values[variable] = _select(condition, value, early[variable]) if variable in early else value

    def result(variable: Any, shape: jax.ShapeDtypeStruct, other: Any) -> jax.Array:
        if isinstance(variable, core.Literal):
            return _select(condition, jnp.full_like(shape, variable.val), other)
        return values[variable] if early.get(variable) is other else _select(condition, values[variable], other)

    return structure.unflatten(map(result, jaxpr.outvars, jax.tree.leaves(shapes), others))


def _pieces(jaxpr: core.Jaxpr, ends: Container[Any]) -> Iterator[core.Jaxpr]:
    """The program, cut after each equation that makes one of `ends`. A piece hands on all that it makes."""
    equations: list[Any] = []
    for equation in jaxpr.eqns:
        equations.append(equation)
        if equation is jaxpr.eqns[-1] or any(variable in ends for variable in equation.outvars):
            made = dict.fromkeys(v for each in equations for v in each.outvars)
            used = (v for each in equations for v in each.invars if not isinstance(v, core.Literal) and v not in made)
            yield jaxpr.replace(constvars=[], invars=list(dict.fromkeys(used)), outvars=list(made), eqns=equations)
            equations = []


def _select(condition: jax.Array, result: jax.Array, other: Any) -> jax.Array:
    if result is other:
        return result
    # A state may change its dtype in its first step, and does so in a step left out too.
    other = jnp.asarray(other)
    return lax.select(condition, result, other if other.dtype == result.dtype else other.astype(result.dtype))
