"""First-order steps on working sets of groups, and the sizes to which Newton's active groups are padded (M8)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from fixntk._numerics import with_dtype
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import ConvexProgram
from fixntk.convex.solvers import fista, newton_system
from fixntk.gram import select_masks

_SMALLEST_BUCKET = 16
# Steps on a working set cost at most so many Newton steps before the next look at all groups, and end at this share of
# the gap.
_ROUND_COST, _ROUND_GAP = 3.0, 0.05
# Working sets have room for so many times the groups that are active before the round.
_ROOM = 1.2
# What a Newton step costs beside its products, in operations, and how much dearer those of its system are than those
# of first-order steps: factorisations use the machine less well.
_NEWTON_OVERHEAD, _SLOWNESS = 3e7, 2.0


def improved(program: ConvexProgram, weights: Array, correlations: Array, gap: Array) -> tuple[Array, Array]:
    """Weights after first-order steps on the groups that are active or nearest to it; what they cost in Newton steps.

    In single precision.

    Parameters
    ----------
    program
        The problem.
    weights, correlations
        (P, d, c) each; the correlations are those of the residual, or a multiple.
    gap
        That of the weights.
    """
    norms = group_norms(weights)
    near = nearness(program, weights, group_norms(correlations))

    def run(bucket: int) -> tuple[Array, Array]:
        _, chosen = lax.top_k(near, bucket)
        part = program.with_masks(select_masks(program.masks, chosen).astype(jnp.float32), chosen)
        each = newton_system.pass_flops(program, bucket)
        newton = _newton_flops(program, bucket // 2)
        most = max(50, int(_ROUND_COST * newton / each))
        part, start = with_dtype((part, weights[chosen]), jnp.float32)
        found, made = first_order(part, start, _ROUND_GAP * gap, most)
        return jnp.zeros(program.group_shape, jnp.float32).at[chosen].set(found), made * (each / newton)

    return in_bucket(size(program, norms > 0), _sizes(program), run)


def nearness(program: ConvexProgram, weights: Array, duals: Array) -> Array:
    """How near each group is to being active, infinite where it is, from the dual norms (P,) of its correlations."""
    return jnp.where(group_norms(weights) > 0, jnp.inf, duals / program.thresholds)


def first_order(program: ConvexProgram, weights: Array, gap: Array, most: int) -> tuple[Array, Array]:
    """First-order steps down to a gap, but at most so many; the weights there, and how many were made."""

    def unfinished(carry: tuple[Array, fista.FISTAState]) -> Array:
        made, inner = carry
        return (made < most) & (inner.gap > gap)

    start = (jnp.asarray(0), fista.init(program, weights))
    made, inner = lax.while_loop(unfinished, lambda c: (c[0] + 1, fista.step(program, c[1])), start)
    return inner.weights, made


def size(program: ConvexProgram, active: Array) -> Array:
    """The size of the working set: the smallest with room for more than the active groups; (P,), whether active."""
    sizes = jnp.asarray(_sizes(program))
    return sizes[jnp.minimum(jnp.searchsorted(sizes, _ROOM * jnp.sum(active)), sizes.size - 1)]


def _sizes(program: ConvexProgram) -> list[int]:
    """The buckets without the smallest, each of which compiles a solver."""
    sizes = buckets(program.num_gates)
    return sizes[1:] or sizes


def in_bucket(count: Array, sizes: list[int], run: Callable[[int], Any]) -> Any:
    """``run(bucket)`` with the smallest of the sizes that holds so many."""
    return lax.switch(jnp.searchsorted(jnp.asarray(sizes), count), [partial(run, bucket) for bucket in sizes])


def buckets(num_gates: int) -> list[int]:
    """Sizes to which active groups are padded, each compiled: doubling up to all gates; few gates have one alone."""
    sizes, bucket = [], _SMALLEST_BUCKET if num_gates > 2 * _SMALLEST_BUCKET else num_gates
    while bucket < num_gates:
        sizes.append(bucket)
        bucket *= 2
    return [*sizes, num_gates]


def _newton_flops(program: ConvexProgram, bucket: int) -> float:
    """Operations of a Newton step with so many active groups: the direction, and four products with all masks."""
    num_gates, num_features, _ = program.group_shape
    products = 8.0 * program.targets.size * num_gates * num_features
    return _SLOWNESS * newton_system.flops(program, bucket) + products + _NEWTON_OVERHEAD
