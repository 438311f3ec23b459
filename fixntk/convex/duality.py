r"""The certificate: dual objective, scaled residual and duality gap of a convex program.

Fenchel–Rockafellar duality of :math:`\min_W f(\sum_p D_p X W_p) + λ \sum_p τ_p \|W_p\| + \tfrac{α}{2}\|W\|^2` gives

.. math:: \max_Θ\; −f^*(−Θ) \quad\text{where}\quad \|X^⊤ D_p Θ\|_* ≤ λ τ_p \text{ for all } p

without a ridge (α = 0); with one, the excess e_p = (‖Xᵀ D_p Θ‖ − λτ_p)₊ costs e_p²/(2α) instead of being forbidden. The
residual R of any W, scaled by a number s ≤ 1 until it is feasible, is a dual point, and so bounds the optimum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from fixntk._checks import describe_fields
from fixntk._numerics import eps_of, matmul
from fixntk.convex.datafit import Datafit, Fit
from fixntk.convex.penalties import Penalty

PointT = TypeVar("PointT")

# The dual's constraints count as satisfied up to this many roundings.
_SLACK_IN_EPS = 100


class Certificate(NamedTuple):
    """Duality gap of weights, and the scale s of the residual that attains it: Θ = sR."""

    gap: Float[Array, ""]
    scale: Float[Array, ""]


class Evaluation(NamedTuple):
    """Everything that a solver asks of group weights.

    Attributes
    ----------
    weights
        (P, d, c) W.
    outputs
        (n, c) F, the intercept included.
    intercept
        (c,) b; zero without one.
    residual
        (n, c) R, the negative gradient of the loss in F.
    correlations
        (P, d, c) Xᵀ D_p R.
    primal
        Objective.
    gap
        Duality gap at the scaled residual.
    dual_scale
        s ≤ 1 of that dual point sR.
    """

    weights: Float[Array, "P d c"]
    outputs: Float[Array, "n c"]
    intercept: Float[Array, " c"]
    residual: Float[Array, "n c"]
    correlations: Float[Array, "P d c"]
    primal: Float[Array, ""]
    gap: Float[Array, ""]
    dual_scale: Float[Array, ""]

    def __repr__(self) -> str:
        return describe_fields("Evaluation", **self._asdict())


def evaluate_fit(datafit: Datafit, penalty: Penalty, weights: Array, fit: Fit, correlations: Array) -> Evaluation:
    """The evaluation of weights whose fit and correlations are known already."""
    gap, scale = certify(datafit, penalty, weights, fit.outputs, correlations)
    primal = fit.loss + penalty.value(weights)
    return Evaluation(weights, fit.outputs, fit.intercept, fit.residual, correlations, primal, gap, scale)


def evaluate_again(datafit: Datafit, penalty: Penalty, found: Evaluation) -> Evaluation:
    """The evaluation of the same weights with another penalty, which costs no product with the masks."""
    loss = jnp.sum(datafit.weight_rows(datafit.loss.values(found.outputs, datafit.targets)))
    fit = Fit(found.outputs, found.intercept, found.residual, loss)
    return evaluate_fit(datafit, penalty, found.weights, fit, found.correlations)


def certify(datafit: Datafit, penalty: Penalty, weights: Array, outputs: Array, correlations: Array) -> Certificate:
    """Duality gap of weights, from their outputs and the correlations of their residual.

    Written as a sum of terms that are not negative: for each row and for each group the Fenchel–Young inequality's two
    sides apart. The difference of primal and dual would lose the gap's digits to cancellation.
    """

    def divergence(scale: Array) -> Array:
        return jnp.sum(datafit.weight_rows(datafit.loss.divergences(outputs, datafit.targets, scale)))

    return certify_groups(penalty, weights, correlations, divergence)


def certify_groups(
    penalty: Penalty, weights: Array, correlations: Array, divergence: Callable[[Array], Array]
) -> Certificate:
    """:func:`certify`, with the sum over the rows as a function of the residual's scale s ≤ 1."""
    norms, duals = penalty.norm.values(weights), penalty.norm.duals(correlations)
    alignments = jnp.sum(weights * correlations, axis=(1, 2))
    thresholds = penalty.thresholds

    # The largest multiple of the residual, at most 1, that satisfies every group's constraint.
    scale = 1 / jnp.maximum(1.0, jnp.max(duals / thresholds))
    rows = divergence(scale)
    # Each term is the slack of ⟨W_p, Xᵀ D_p Θ⟩ ≤ λτ_p ‖W_p‖, which holds with equality at the optimum.
    excess = jnp.sum(thresholds * norms - scale * alignments)
    if penalty.ridge is None:
        return Certificate(jnp.maximum(rows + excess, 0.0), scale)
    feasible = jnp.maximum(rows + excess + 0.5 * penalty.ridge * jnp.sum(weights**2), 0.0)
    # R itself, the dual point of a divergence of zero. A ridge that is traced may be zero, which allows no excess.
    ridge = jnp.where(penalty.ridge > 0, penalty.ridge, 1.0)
    over, under = jnp.maximum(duals - thresholds, 0), jnp.maximum(thresholds - duals, 0)
    unscaled = jnp.sum(norms * duals - alignments + norms * under + 0.5 * ridge * (norms - over / ridge) ** 2)
    gaps = jnp.stack([feasible, jnp.where(penalty.ridge > 0, jnp.maximum(unscaled, 0.0), jnp.inf)])
    best = jnp.argmin(gaps)
    return Certificate(gaps[best], jnp.stack([scale, jnp.ones_like(scale)])[best])


def sparsest(
    without: Callable[[Array], PointT],
    multiples: Float[Array, " k"],
    gap_of: Callable[[PointT], Array],
    enough: ArrayLike,
) -> PointT:
    """A point of an interior-point method without its small groups, as far as a gap allows.

    Points inside of a cone have no zeros; the groups whose share of the penalty is small compared with the barrier's
    cost are zero at the optimum within the certified gap.

    Parameters
    ----------
    without
        The point, certified anew, without the groups below a multiple of the barrier's cost.
    multiples
        Multiples to try, in rising order.
    gap_of
        The gaps of points that are stacked along a first axis.
    enough
        The gap allowed. Where none is so small, the point with the least gap is taken.
    """
    candidates = lax.map(without, multiples)
    chosen = last_within(gap_of(candidates), enough)
    return jax.tree.map(lambda leaves: leaves[chosen], candidates)


def last_within(gaps: Float[Array, " k"], enough: ArrayLike) -> Int[Array, ""]:
    """The last of several points whose gap is small enough; the one with the smallest gap where none is."""
    is_enough = gaps <= enough
    last = gaps.size - 1 - jnp.argmax(is_enough[::-1])
    return jnp.where(jnp.any(is_enough), last, jnp.argmin(gaps))


def dual_objective(datafit: Datafit, penalty: Penalty, theta: Array, correlations: Array) -> Float[Array, ""]:
    """−f*(−Θ) where Θ, with its correlations Xᵀ D_p Θ, is feasible up to rounding; −∞ elsewhere."""
    value = -datafit.conjugate(theta)
    excess = jnp.maximum(penalty.norm.duals(correlations) - penalty.thresholds, 0)
    slack = _SLACK_IN_EPS * eps_of(theta)
    feasible = jnp.all(excess <= penalty.thresholds * slack)
    if penalty.ridge is not None:
        cost = jnp.sum(excess**2) / (2 * jnp.where(penalty.ridge > 0, penalty.ridge, 1.0))
        value, feasible = jnp.where(penalty.ridge > 0, value - cost, value), feasible | (penalty.ridge > 0)
    if datafit.column is not None:
        # An intercept is not penalised, so that its correlation with Θ must vanish.
        sums = jnp.abs(matmul(datafit.column.T, theta))
        feasible &= jnp.all(sums <= slack * matmul(jnp.abs(datafit.column).T, jnp.abs(theta)))
    return jnp.where(feasible, value, -jnp.inf)
