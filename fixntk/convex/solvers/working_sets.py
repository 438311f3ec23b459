"""Working sets: which sizes Newton's active groups are padded to, and first-order steps on the nearest groups.

A size is a number of groups that a step is compiled for. Sizes double, so that few of them occur.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from fixntk._numerics import with_dtype
from fixntk.convex.groups import with_masks
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import ConvexProgram, group_shape_of, thresholds_of
from fixntk.convex.solvers import fista, newton_system
from fixntk.gram import select_masks

# Groups in the smallest size.
_SMALLEST_SIZE = 16
# The first-order steps of a round take at most the operations of this number of Newton steps.
_ROUND_COST_IN_NEWTON_STEPS = 3.0
# Number of first-order steps that a round may make in any case.
_LEAST_STEPS_OF_A_ROUND = 50
# A round ends at this share of the gap before it.
_ROUND_GAP_SHARE = 0.05
# A size is merged into the next if a Newton step then takes at most this factor more operations: one less to compile.
_MERGED_FLOPS = 1.6
# A working set has room for this multiple of the number of groups that were active before the round.
ROOM = 1.2
# Operations of a Newton step in addition to its products.
NEWTON_OVERHEAD_FLOPS = 1e8
# Factorisations use the machine less well than products: their operations count by this factor more.
_FACTORISATION_SLOWNESS = 2.0


class Schedule(NamedTuple):
    """The kinds of steps that a Newton solver has, in this order: Newton steps, rounds, and a last resort.

    Attributes
    ----------
    newton_sizes
        Sizes to which the active groups of a Newton step are padded, ascending.
    round_sizes
        Sizes of working sets, ascending; none where there are no rounds.
    """

    newton_sizes: tuple[int, ...]
    round_sizes: tuple[int, ...]

    @property
    def last_resort(self) -> int:
        """Index of the last resort."""
        return len(self.newton_sizes) + len(self.round_sizes)

    def newton_index(self, num_active: Int[Array, ""]) -> Int[Array, ""]:
        """Index of the Newton step for this number of active groups."""
        return jnp.searchsorted(jnp.asarray(self.newton_sizes), num_active).astype(jnp.int32)

    def round_index(self, num_active: Int[Array, ""]) -> Int[Array, ""]:
        """Index of the round after which there is still room for groups that enter; ``last_resort`` where none has."""
        found = jnp.searchsorted(jnp.asarray(self.round_sizes), ROOM * num_active)
        return (len(self.newton_sizes) + found).astype(jnp.int32)


def schedule_of(program: ConvexProgram) -> Schedule:
    """Sizes that double up to all gates, less those that are hardly cheaper than the next."""
    sizes, size = [], _SMALLEST_SIZE
    while size < program.num_gates:
        sizes.append(size)
        size *= 2
    sizes.append(program.num_gates)
    newton_sizes = _merge_sizes(program, sizes)
    if len(newton_sizes) == 1:
        # Where a Newton step on all groups costs little more than one on few, rounds gain nothing.
        return Schedule(newton_sizes, ())
    # Every second size, as a round takes long to compile. The smallest is not worth one, and where most groups are
    # active Newton steps are better.
    return Schedule(newton_sizes, tuple(sizes[1:-1:2]))


def _merge_sizes(program: ConvexProgram, sizes: list[int]) -> tuple[int, ...]:
    """The largest size, and each of the others for which the next size kept takes more operations by a factor."""
    kept = sizes[-1:]
    for size in reversed(sizes[:-1]):
        if _MERGED_FLOPS * newton_flops(program, size) < newton_flops(program, kept[0]):
            kept.insert(0, size)
    return tuple(kept)


def run_round(
    program: ConvexProgram, weights: Array, correlations: Array, gap: Array, *, size: int
) -> tuple[Float[Array, "P d c"], Float[Array, ""]]:
    """First-order steps, in single precision, on the groups that are active or nearest to it.

    Parameters
    ----------
    program
        The problem.
    weights, correlations
        (P, d, c) each; the correlations are those of the residual, or a multiple.
    gap
        That of the weights.
    size
        Number of groups in the working set.

    Returns
    -------
    The weights, and their cost in Newton steps.
    """
    near = nearness(weights, group_norms(correlations), thresholds_of(program))
    _, chosen = lax.top_k(near, size)
    part = with_masks(program, select_masks(program.masks, chosen).astype(jnp.float32), chosen)
    each, newton = newton_system.pass_flops(program, size), newton_flops(program, size // 2)
    max_steps = max_round_steps(program, size)
    part, start = with_dtype((part, weights[chosen]), jnp.float32)
    found, num_steps = run_first_order(part, start, _ROUND_GAP_SHARE * gap, max_steps)
    return jnp.zeros(group_shape_of(program), jnp.float32).at[chosen].set(found), num_steps * (each / newton)


def max_round_steps(program: ConvexProgram, size: int) -> int:
    """Largest number of first-order steps of a round on ``size`` groups."""
    each, newton = newton_system.pass_flops(program, size), newton_flops(program, size // 2)
    return max(_LEAST_STEPS_OF_A_ROUND, int(_ROUND_COST_IN_NEWTON_STEPS * newton / each))


def run_first_order(
    program: ConvexProgram, weights: Array, gap: Array, max_steps: int | Array
) -> tuple[Float[Array, "P d c"], Int[Array, ""]]:
    """First-order steps down to a gap, at most ``max_steps``; the weights there, and the number of steps."""

    def is_unfinished(carry: tuple[Array, fista.FISTAState]) -> Array:
        num_steps, state = carry
        return (num_steps < max_steps) & (state.gap > gap)

    start = (jnp.asarray(0), fista.init(program, weights))
    num_steps, state = lax.while_loop(is_unfinished, lambda c: (c[0] + 1, fista.step(program, c[1])), start)
    return state.weights, num_steps


def nearness(weights: Float[Array, "P d c"], duals: Float[Array, " P"], thresholds: Array) -> Float[Array, " P"]:
    """How near each group is to being active, infinite where it is, from the dual norms of its correlations."""
    return jnp.where(is_nonzero(weights), jnp.inf, duals / thresholds)


def is_nonzero(weights: Float[Array, "P d c"]) -> Bool[Array, " P"]:
    """Which groups are not zero."""
    return group_norms(weights) > 0


def newton_flops(program: ConvexProgram, size: int) -> float:
    """Operations of a Newton step of a size: the direction, and four products with all masks."""
    num_gates, num_features, _ = group_shape_of(program)
    products = 8.0 * program.y.size * num_gates * num_features
    return _FACTORISATION_SLOWNESS * newton_system.flops(program, size) + products + NEWTON_OVERHEAD_FLOPS
