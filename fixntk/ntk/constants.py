"""Values in a jaxpr that are known before it runs: indices that are written in a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from fixntk._checks import is_traced
from fixntk.ntk.structure import bind_equation


class Constants(NamedTuple):
    """Values that depend neither on the parameters of a network nor on its inputs, computed when they are asked for."""

    values: dict[Var, Callable[[], Any]]

    def of(self, atom: Literal | Var) -> Callable[[], Any] | None:
        """A function that returns the value, None if it is not known."""
        return partial(getattr, atom, "val") if isinstance(atom, Literal) else self.values.get(atom)

    def note(self, jaxpr: Jaxpr, equation: JaxprEqn) -> None:
        """Add the results of an equation, if its operands are constants."""
        operands = [value for atom in equation.invars if (value := self.of(atom)) is not None]
        if len(operands) == len(equation.invars):
            results = cache(lambda: bind_equation(jaxpr, equation, [operand() for operand in operands]))
            self.values.update({v: partial(_item, results, k) for k, v in enumerate(equation.outvars)})

    def indices(self, equation: JaxprEqn) -> tuple[np.ndarray, ...] | None:
        """Values of the operands behind the first one, None if one of them is not known."""
        found = [value for atom in equation.invars[1:] if (value := self.of(atom)) is not None]
        if len(found) < len(equation.invars) - 1:
            return None
        with jax.ensure_compile_time_eval():
            return tuple(np.asarray(value()) for value in found)


def constants_beside(jaxpr: Jaxpr, consts: Sequence[Any]) -> Constants:
    """The constants that a jaxpr comes with, but for traced ones."""
    pairs = zip(jaxpr.constvars, consts, strict=True)
    return Constants({v: partial(_itself, value) for v, value in pairs if not is_traced(value)})


def _itself(value: Any) -> Any:
    return value


def _item(results: Callable[[], Sequence[Any]], number: int) -> Any:
    return results()[number]
