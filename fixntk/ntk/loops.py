"""Loops of a fixed length written out, so that products inside are found: stacked layers, recurrent networks.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from fixntk.ntk.structure import Path, bind_equation, called_jaxpr, evaluate

# Largest number of equations into which a loop is written out: the time to compile a program grows with it.
MAX_EQUATIONS = 1000


def unroll_loops(closed: ClosedJaxpr) -> ClosedJaxpr | None:
    """The jaxpr with each ``lax.scan`` written out that has at most ``MAX_EQUATIONS`` then; None if there is none.

    Loops inside jitted and checkpointed calls are found, those inside conditionals and custom derivatives are not.
    """
    if not has_short_loop(closed.jaxpr):
        return None
    arguments = [
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type) for v in closed.jaxpr.invars
    ]
    return jax.make_jaxpr(lambda *values: evaluate(closed.jaxpr, closed.consts, values, _outputs_of))(*arguments)


def has_short_loop(jaxpr: Jaxpr) -> bool:
    """Whether :func:`unroll_loops` would write a loop out."""
    inner = [(equation, called_jaxpr(equation)) for equation in jaxpr.eqns]
    return any(_is_short_loop(equation) or (body and has_short_loop(body.jaxpr)) for equation, body in inner)


def _is_short_loop(equation: JaxprEqn) -> bool:
    return equation.primitive.name == "scan" and 0 < _count_equations(equation) <= MAX_EQUATIONS


def _count_equations(equation: JaxprEqn) -> int:
    """Number of equations after loops inside are written out."""
    inner = called_jaxpr(equation)
    if inner is not None:
        return sum(map(_count_equations, inner.jaxpr.eqns))
    if equation.primitive.name != "scan":
        return 1
    # Each step also takes its entries of each array that the loop runs over.
    params = equation.params
    num_arrays = len(equation.invars) - params["num_consts"] - params["num_carry"]
    return params["length"] * (num_arrays + sum(map(_count_equations, params["jaxpr"].jaxpr.eqns)))


def _outputs_of(jaxpr: Jaxpr, equation: JaxprEqn, path: Path, operands: list[Any]) -> list[Any]:
    inner = called_jaxpr(equation)
    if _is_short_loop(equation):
        return _unroll(equation, path, operands)
    if inner is not None and has_short_loop(inner.jaxpr):
        return evaluate(inner.jaxpr, inner.consts, operands, _outputs_of, path)
    return bind_equation(jaxpr, equation, operands)


def _unroll(equation: JaxprEqn, path: Path, operands: Sequence[Any]) -> list[Any]:
    params, body = equation.params, equation.params["jaxpr"]
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, arrays = list(operands[:first]), list(operands[first:last]), operands[last:]
    steps = range(params["length"])
    results: dict[int, list[Any]] = {}
    for step in reversed(steps) if params["reverse"] else steps:
        entries = [lax.index_in_dim(array, step, keepdims=False) for array in arrays]
        outputs = evaluate(body.jaxpr, body.consts, [*consts, *carry, *entries], _outputs_of, path)
        carry, results[step] = outputs[: len(carry)], outputs[len(carry) :]
    stacked = [jnp.stack(each) for each in zip(*(results[step] for step in steps), strict=True)]
    return [*carry, *stacked]
