"""What a solver is: an initial state, the steps from it, and which programs it can solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from fixntk._checks import is_tracing
from fixntk._tiling import rows_here
from fixntk.convex.groups import mask_number_bytes
from fixntk.convex.program import ConvexProgram, group_shape_of
from fixntk.convex.units import Units

# A state is a pytree with ``weights``, ``primal``, ``gap``, ``objective`` (the function that the method itself lowers)
# and ``failed`` (whether arithmetic has broken down); see `Method` for its further fields.
Step = Callable[[ConvexProgram, Any], Any]

# Arrays of the shape of group weights that are in memory at a time: iterates and correlations, of two states.
_NUM_GROUP_ARRAYS = 12


def keep_units(program: ConvexProgram) -> tuple[ConvexProgram, Units]:
    """The program as it is, for methods whose steps do not depend on the scale of the data."""
    one = jnp.ones((), program.x.dtype)
    return program, Units(one, one)


def bytes_of_groups(program: ConvexProgram) -> int | float:
    """Estimate of the memory for group weights and what goes with them, and for masks as numbers."""
    num_gates, num_features, num_outputs = group_shape_of(program)
    # A product also has a number for each row, feature and output, before or after the masks.
    num_numbers = (_NUM_GROUP_ARRAYS * num_gates + rows_here(program.x)) * num_features * num_outputs
    return num_numbers * program.x.dtype.itemsize + mask_number_bytes(program)


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
        Kind of initial value: (P, d, c) group weights, or (P,) kernel weights. The state of a method that starts at
        kernel weights has ``kernel_weights``, and smooths by ε.
    prepare
        ``prepare(program) -> (program, units)``: the program that the loop works on, in those units.
    bytes_needed
        ``bytes_needed(program)`` estimates the memory that it takes besides the program, from shapes.
    step_bytes
        ``step_bytes(program, size)`` estimates what a step on ``size`` active groups takes besides.
    memory_remedy
        What lowers that.
    on_active_groups
        The variant for a program most of whose groups are active; None for the method itself.
    steps_from_host
        ``steps_from_host(program)``: whether a step is for the host to call, one at a time, as it compiles its own
        parts; else many steps are compiled into one loop, as they are short.
    """

    name: str
    init: Callable[[ConvexProgram, Array, Array | None], Any]
    steps: Callable[[ConvexProgram], tuple[Step, ...]]
    supports: Callable[[ConvexProgram], None]
    max_iter: int
    starts_at: Literal["weights", "kernel_weights"] = "weights"
    prepare: Callable[[ConvexProgram], tuple[ConvexProgram, Units]] = keep_units
    bytes_needed: Callable[[ConvexProgram], int | float] = bytes_of_groups
    step_bytes: Callable[[ConvexProgram, int], int | float] = lambda _, __: 0
    memory_remedy: str = "take fewer gates, or rows"
    on_active_groups: Method | None = None
    steps_from_host: Callable[[ConvexProgram], bool] = lambda _: False

    @property
    def reweights(self) -> bool:
        """Whether the method works on kernel weights."""
        return self.starts_at == "kernel_weights"


def step_any(method: Method, program: ConvexProgram, state: Any) -> Any:
    """The next step, whichever it is: all of them are compiled."""
    steps = method.steps(program)
    return steps[0](program, state) if len(steps) == 1 else lax.switch(state.next_step, steps, program, state)


def run_steps(
    method: Method, program: ConvexProgram, state: Any, is_unfinished: Callable[[Any, Any], Any], limit: int
) -> Any:
    """At most ``limit`` steps from a state, while ``is_unfinished(primal, gap)`` and arithmetic does not fail.

    Under a JAX transformation it is a loop that is traced, else one on the host, which compiles only steps that occur.
    """
    if not is_tracing(program, state):
        steps = method.steps(program)
        for _ in range(limit):
            primal, gap, failed, step = jax.device_get((state.primal, state.gap, state.failed, state.next_step))
            if failed or not is_unfinished(primal, gap):
                break
            state = steps[step](program, state)
        return state

    def is_wanted(carry: tuple[Array, Any]) -> Array:
        count, state = carry
        return (count < limit) & ~state.failed & is_unfinished(state.primal, state.gap)

    def advance(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        count, state = carry
        return count + 1, step_any(method, program, state)

    return lax.while_loop(is_wanted, advance, (jnp.asarray(0), state))[1]


def check_norm(name: str, program: ConvexProgram) -> None:
    """Raise ValueError unless the norm is the Frobenius norm, for a method that is made for it."""
    if program.norm.name != "frobenius":
        raise ValueError(f"method {name!r} is for norm 'frobenius', not for {program.norm.name!r}: use 'fista'")
