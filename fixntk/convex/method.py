"""What a solver is: an initial state, the steps from it, and which programs it can solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from fixntk.convex.program import ConvexProgram
from fixntk.convex.units import Units

# A state is a pytree with ``weights``, ``primal``, ``gap``, ``objective`` (what the method itself lowers) and
# ``failed`` (whether arithmetic has broken down); see `Method` for what it has beyond these.
Step = Callable[[ConvexProgram, Any], Any]


def without_units(program: ConvexProgram) -> tuple[ConvexProgram, Units]:
    """The program as it is, for methods whose steps do not depend on the scale of the data."""
    one = jnp.ones((), program.x.dtype)
    return program, Units(one, one)


class Method(NamedTuple):
    """A solver of convex programs, chosen once in ``solve`` and handed to the loop.

    Attributes
    ----------
    name
        As in ``solve(method=…)``.
    init
        ``init(program, start, epsilon) -> state``; ε is None for methods that do not smooth.
    steps
        ``steps(program) -> tuple of steps``, each ``step(program, state) -> state``. Where there are several,
        ``state.next_step`` is the index of the one that comes next; each is compiled when it comes for the first time.
    supports
        ``supports(program)`` raises ValueError where the method cannot solve a program, with the remedy.
    max_iter
        Largest number of steps when none is given.
    starts_at
        What a start is: (P, d, c) group weights, or (P,) kernel weights. The state of a method that starts at kernel
        weights has ``kernel_weights``, and smooths by ε.
    prepare
        ``prepare(program) -> (program, units)``: what the loop works on, in those units.
    on_active_groups
        The variant for a program most of whose groups are active; None for the method itself.
    """

    name: str
    init: Callable[[ConvexProgram, Array, Array | None], Any]
    steps: Callable[[ConvexProgram], tuple[Step, ...]]
    supports: Callable[[ConvexProgram], None]
    max_iter: int
    starts_at: Literal["weights", "kernel_weights"] = "weights"
    prepare: Callable[[ConvexProgram], tuple[ConvexProgram, Units]] = without_units
    on_active_groups: Method | None = None

    @property
    def reweights(self) -> bool:
        """Whether the method works on kernel weights."""
        return self.starts_at == "kernel_weights"


def step_any(method: Method, program: ConvexProgram, state: Any) -> Any:
    """The next step, whichever it is: all of them are compiled."""
    steps = method.steps(program)
    return steps[0](program, state) if len(steps) == 1 else lax.switch(state.next_step, steps, program, state)


def check_norm(name: str, program: ConvexProgram) -> None:
    """Raise ValueError unless the norm is the Frobenius norm, for a method that is made for it."""
    if program.norm.name != "frobenius":
        raise ValueError(f"method {name!r} is for norm 'frobenius', not for {program.norm.name!r}: use 'fista'")
