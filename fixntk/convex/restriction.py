"""Solving on the groups that are active or nearest to it, certified on all groups.

See docs/mathematics.md, M9.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from fixntk._compilation import jit_for_host
from fixntk.convex import driver, screening
from fixntk.convex.duality import Evaluation
from fixntk.convex.groups import place_groups, with_masks
from fixntk.convex.method import Method
from fixntk.convex.padding import next_power_of_two
from fixntk.convex.program import ConvexProgram, thresholds_of
from fixntk.convex.solution import Solution
from fixntk.convex.solve import certify
from fixntk.convex.solvers import working_sets
from fixntk.gram import select_masks

# A working set has room for this multiple of the active groups.
_ROOM = 1.02
# A working set has room for this number of further groups, which is also the size of the smallest one.
_SMALLEST_SET = 16
# Maximum number of working sets for one λ.
_MAX_WORKING_SETS = 4
# Largest share of all groups that a working set may hold.
_LARGEST_SHARE = 0.7


class Restriction(NamedTuple):
    """How a program is solved on some of its groups, and on all of them if that fails.

    Attributes
    ----------
    method
        For the groups of a set.
    on_all
        ``on_all(program, weights) -> Solution``.
    sizes
        (P,) ‖D_p X‖₂.
    tol, max_iter
        Of a solve on a set.
    """

    method: Method
    on_all: Callable[..., Solution]
    sizes: Float[Array, " P"]
    tol: float
    max_iter: int


def solve_on_sets(
    program: ConvexProgram, restriction: Restriction, start: Array, last: Evaluation
) -> tuple[Solution, Evaluation]:
    """Solve from a start, on the groups that are active there or nearest to it, until the certificate holds on all.

    ``last``, the evaluation of the solution for the last λ, says which groups are near, and which are zero.
    """
    method = restriction.method.on_active_groups or restriction.method
    for _ in range(_MAX_WORKING_SETS):
        nearest, num_active, num_left = _order(program, start, last, restriction.sizes)
        size = _set_size(min(int(num_left), int(_ROOM * num_active) + _SMALLEST_SET))
        if size > _LARGEST_SHARE * program.num_gates:
            break
        part, weights, chosen = _restrict(program, start, nearest, num_left, size=size)
        outcome = driver.run_from_host(
            part, method, weights, None, restriction.tol, restriction.max_iter, is_timed=False
        )
        outcome = outcome._replace(weights=place_groups(start, chosen, outcome.weights))
        solution, last = certify(program, outcome, method, restriction.tol)
        if bool(solution.converged):
            return solution, last
        start = solution.weights
        if bool(solution.failed):  # By rounding: other groups do not help.
            break
    solution = restriction.on_all(program, start)
    return solution, screening.evaluate(program, solution.weights)


def _set_size(wanted: int) -> int:
    """2ᵏ or 3·2ᵏ, so that few shapes are compiled; the next nearest groups fill up, empty ones where none are left."""
    size = next_power_of_two(max(_SMALLEST_SET, wanted))
    return 3 * size // 4 if size > _SMALLEST_SET and wanted <= 3 * size // 4 else size


@jit_for_host
def _order(
    program: ConvexProgram, start: Array, last: Evaluation, sizes: Array
) -> tuple[Int[Array, " P"], Int[Array, ""], Int[Array, ""]]:
    """Groups, the nearest first; how many are active, and how many are not proved to be zero."""
    is_zero = screening.is_proved_zero(program, last, sizes)
    duals = program.norm.duals(last.correlations)
    near = jnp.where(is_zero, -1.0, working_sets.nearness(start, duals, thresholds_of(program)))
    return jnp.argsort(near, descending=True), jnp.sum(jnp.isinf(near)), jnp.sum(~is_zero)


@partial(jit_for_host, static_argnames=("size",))
def _restrict(
    program: ConvexProgram, weights: Array, nearest: Array, num_left: Array, *, size: int
) -> tuple[ConvexProgram, Array, Array]:
    """The program of the nearest groups, their weights, and which they are; those past ``num_left`` get empty masks."""
    chosen = nearest[:size]
    is_present = jnp.arange(size) < num_left
    masks = select_masks(program.masks, chosen)
    part = with_masks(program, jnp.where(is_present, masks, jnp.zeros_like(masks)), chosen)
    return part, weights[chosen] * is_present[:, None, None], chosen
