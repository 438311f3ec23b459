"""Outputs that depend on the parameters only through operations without a derivative, such as argmax.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal, Var

from fixntk.ntk.structure import called_jaxpr

# How a value depends on the parameters: not at all, with a derivative, or only through an operation of this name.
_Dependence = str | None
_SMOOTH = ""

# Operations whose result is a floating-point number, but whose derivative is zero.
_STEPS = ("ceil", "floor", "round", "sign")


def blocking_operation(f: Callable[..., Any], params: Any, x: Any) -> str | None:
    """The operation through which all dependence of f's outputs on the parameters goes, if it has no derivative.

    Returns
    -------
    Its name in JAX; None where a derivative may exist, and where the outputs do not depend on the parameters at all.
    """
    closed = jax.make_jaxpr(f)(params, x)
    num_params, num_inputs = (len(jax.tree.leaves(tree)) for tree in (params, x))
    found = _follow(closed.jaxpr, [*[_SMOOTH] * num_params, *[None] * num_inputs])
    return _join(found) or None


def _join(dependences: Sequence[_Dependence]) -> _Dependence:
    """The dependence of a value that is computed from others."""
    names = [each for each in dependences if each is not None]
    return _SMOOTH if _SMOOTH in names else next(iter(names), None)


def _follow(jaxpr: Jaxpr, arguments: Sequence[_Dependence]) -> list[_Dependence]:
    """The dependences of a jaxpr's outputs from those of its arguments."""
    known: dict[Var, _Dependence] = dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> _Dependence:
        return None if isinstance(atom, Literal) else known.get(atom)

    for equation in jaxpr.eqns:
        operands, called = [read(atom) for atom in equation.invars], called_jaxpr(equation)
        if called is not None:
            results = _follow(called.jaxpr, operands)
        else:
            # Loops, branches and functions with derivative rules of their own are one operation with a derivative.
            name, joint = equation.primitive.name, _join(operands)
            results = [
                name if joint == _SMOOTH and (name in _STEPS or _is_discrete(variable)) else joint
                for variable in equation.outvars
            ]
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _is_discrete(variable: Any) -> bool:
    dtype = getattr(variable.aval, "dtype", None)
    return dtype is not None and not jnp.issubdtype(dtype, jnp.inexact)
