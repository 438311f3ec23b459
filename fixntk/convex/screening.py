r"""Gap-safe screening: groups that the duality gap proves to be zero at the optimum.

The dual objective is strongly concave, so that the dual optimum lies within √(2 L gap) of any feasible Θ, with L the
loss's largest second derivative times the largest row weight. A group with

.. math:: \|X^⊤ D_p Θ\| + \sqrt{2 L\, \mathrm{gap}}\; \|D_p X\|_2 < λ τ_p

therefore satisfies its dual constraint strictly at the optimum, and is zero there.

Ndiaye, Fercoq, Gramfort and Salmon (2017).

See docs/mathematics.md, M9.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from fixntk._compilation import jit_for_host
from fixntk._numerics import eps_of
from fixntk.convex import duality
from fixntk.convex.duality import Evaluation
from fixntk.convex.program import ConvexProgram, as_group_weights, datafit_of, group_shape_of, penalty_of, thresholds_of
from fixntk.gram import masked_adjoint

# The spectral norms of the groups need (n + P)·d² numbers; above this number, Frobenius norms stand in for them.
_MAX_NUMBERS = 2**25
# Rounding of the quantities in the rule, in multiples of the dtype's epsilon.
_ROUNDING_IN_EPS = 10


def gap_safe(program: ConvexProgram, weights: ArrayLike, sizes: Array | None = None) -> Bool[Array, " P"]:
    """Groups that are proved to be zero at the optimum by the weights' duality gap.

    ‖Xᵀ D_p Θ‖ + √(2 gap) ‖D_p X‖₂ < λ, with Θ the scaled residual of the weights.

    Parameters
    ----------
    program
        The problem.
    weights
        (P, d, c) group weights, or (P, d) for targets (n,).
    sizes
        (P,) ‖D_p X‖₂ or upper bounds, in the unit of x; computed when None.

    Returns
    -------
    (P,) True for the groups that are proved to be zero.

    Raises
    ------
    TypeError
        If the weights are not real numbers.
    ValueError
        If the weights have another shape, or hold NaN or infinity.

    References
    ----------
    Ndiaye, Fercoq, Gramfort and Salmon, "Gap safe screening rules for sparsity enforcing penalties", Journal of Machine
    Learning Research, 2017.

    See docs/mathematics.md, M9.
    """
    sizes = group_sizes(program) if sizes is None else sizes
    return is_proved_zero(program, evaluate(program, as_group_weights(program, weights)), sizes)


@jit_for_host
def group_sizes(program: ConvexProgram) -> Float[Array, " P"]:
    """‖D_p X‖₂ of every group, or an upper bound on it, ‖D_p X‖_F, where (n + P)·d² numbers would be too many."""
    num_gates, num_features, _ = group_shape_of(program)
    if (program.x.shape[0] + num_gates) * num_features**2 > _MAX_NUMBERS:
        squares = jnp.sum(program.x**2, axis=1, keepdims=True)
        return jnp.sqrt(_sum_rows(program, squares)[:, 0])
    products = (program.x[:, :, None] * program.x[:, None, :]).reshape(-1, num_features**2)
    grams = _sum_rows(program, products).reshape(num_gates, num_features, num_features)
    largest = jnp.linalg.eigvalsh(grams)[:, -1]
    # Rounding must not make a group smaller than it is.
    slack = num_features * _ROUNDING_IN_EPS * eps_of(largest)
    return jnp.sqrt(jnp.maximum(largest, 0)) * (1 + slack)


@jit_for_host
def evaluate(program: ConvexProgram, weights: Array) -> Evaluation:
    """The program's evaluation of group weights, compiled."""
    return program.evaluate(weights)


@jit_for_host
def is_proved_zero(program: ConvexProgram, found: Evaluation, sizes: Float[Array, " P"]) -> Bool[Array, " P"]:
    """Which groups are proved to be zero, from weights that were evaluated at this λ or another."""
    here = duality.evaluate_again(datafit_of(program), penalty_of(program), found)
    gap, scale = here.gap, here.dual_scale
    residual = jnp.sqrt(jnp.sum(found.residual**2))
    eps = _ROUNDING_IN_EPS * eps_of(sizes)
    # What rounding may have taken from the gap, and from the correlations.
    gap += eps * here.primal
    heaviest = 1.0 if program.sample_weight is None else jnp.max(program.sample_weight)
    radius = jnp.sqrt(2 * program.loss.steepest * heaviest * gap) + eps * residual
    duals = program.norm.duals(found.correlations)
    return scale * duals + radius * sizes < thresholds_of(program) * (1 - eps)


def _sum_rows(program: ConvexProgram, rows: Array) -> Array:
    """Σ over the rows that each mask keeps of (n, k) numbers, (P, k)."""
    return masked_adjoint(program.masks, jnp.ones_like(rows[:, :1]), rows, program.num_gates)[:, 0, :]
