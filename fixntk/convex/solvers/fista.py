"""FISTA with adaptive restart: accelerated proximal gradient, a second way to the optimum.

Beck and Teboulle (2009) with the gradient restart of O'Donoghue and Candès (2015). Outputs and correlations are linear
in W under the squared loss, so those at the extrapolated point follow from the ones at the iterates: one product with
the masks each way an iteration, and the certificate of every iterate costs nothing more. Other losses take one more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from fixntk.convex import duality
from fixntk.convex.datafit import Fit
from fixntk.convex.method import Method
from fixntk.convex.penalties import Penalty
from fixntk.convex.program import ConvexProgram, correlations_of, datafit_of, is_quadratic, masked_outputs, penalty_of


class FISTAPoint(NamedTuple):
    """Group weights (P, d, c), their outputs Σ_p D_p X W_p (n, c), and the residual's correlations (P, d, c) there."""

    weights: Float[Array, "P d c"]
    fitted: Float[Array, "n c"]
    correlations: Float[Array, "P d c"]


class FISTAState(NamedTuple):
    """State of the accelerated proximal gradient method.

    Attributes
    ----------
    point, extrapolated
        The iterate, and where the next gradient is taken.
    momentum
        t of the acceleration; 1 after a restart.
    lipschitz
        Upper bound on the curvature so far; raised where a step shows more.
    primal, gap, objective, failed
        As for every method; the objective is the primal.
    """

    point: FISTAPoint
    extrapolated: FISTAPoint
    momentum: Float[Array, ""]
    lipschitz: Float[Array, ""]
    primal: Float[Array, ""]
    gap: Float[Array, ""]
    objective: Float[Array, ""]
    failed: Bool[Array, ""]

    @property
    def weights(self) -> Float[Array, "P d c"]:
        """The iterate's group weights."""
        return self.point.weights


def init(program: ConvexProgram, weights: Array, _: Array | None = None) -> FISTAState:
    """Start from the given group weights, without momentum."""
    point, fit = _evaluate(program, weights)
    return _state(program, point, fit, point, jnp.ones((), program.x.dtype), _curvature(program, point))


def step(program: ConvexProgram, state: FISTAState) -> FISTAState:
    """One proximal gradient step, or a larger curvature bound where the step went up against its model."""
    base, lipschitz = state.extrapolated, state.lipschitz
    point, fit = _evaluate(program, step_down(penalty_of(program), base, lipschitz))

    moved = jnp.sum((point.weights - base.weights) ** 2)
    curvature = _largest_curvature(program, point.fitted - base.fitted) / jnp.where(moved > 0, moved, 1.0)

    extrapolated, momentum = extrapolate(state.point, base, point, state.momentum)
    # The squared loss's correlations are affine in W and were extrapolated with it, which saves two products.
    if not is_quadratic(program):
        residual = datafit_of(program).fit(extrapolated.fitted).residual
        extrapolated = extrapolated._replace(correlations=correlations_of(program, residual))
    return accept(state, _state(program, point, fit, extrapolated, momentum, lipschitz), curvature)


def accept(state: Any, taken: Any, curvature: Array) -> Any:
    """The state after a step; where the step saw more curvature than the bound L, the state before with a larger L.

    L is valid for a step if the loss is at most its quadratic model there. A step beyond rounding error of that is not
    taken; the next one uses the curvature that was seen.
    """
    too_steep = curvature > state.lipschitz * (1 + 1e-3)
    refused = state._replace(lipschitz=1.1 * curvature)
    return jax.tree.map(lambda old, new: jnp.where(too_steep, old, new), refused, taken)


def step_down(penalty: Penalty, base: FISTAPoint, lipschitz: Array) -> Float[Array, "P d c"]:
    """Weights after a step of length 1/L from the base downhill, then the penalty's proximal operator."""
    # The correlations are the negative gradient.
    return penalty.prox(base.weights + base.correlations / lipschitz, 1 / lipschitz)


def extrapolate(
    last: FISTAPoint, base: FISTAPoint, point: FISTAPoint, momentum: Array
) -> tuple[FISTAPoint, Float[Array, ""]]:
    """Where the next gradient is taken after a step from a base to a point, and the momentum there.

    Outputs and correlations are extrapolated with the weights, as under the squared loss they are affine in them.
    """
    # Momentum that points uphill is dropped (the gradient scheme of adaptive restart, O'Donoghue and Candès 2015).
    overshot = jnp.sum((base.weights - point.weights) * (point.weights - last.weights)) > 0
    following = 0.5 * (1 + jnp.sqrt(1 + 4 * momentum**2))
    share = jnp.where(overshot, 0.0, (momentum - 1) / following)
    extrapolated = FISTAPoint(*(new + share * (new - old) for new, old in zip(point, last, strict=True)))
    return extrapolated, jnp.where(overshot, 1.0, following)


def _state(
    program: ConvexProgram, point: FISTAPoint, fit: Fit, extrapolated: FISTAPoint, momentum: Array, lipschitz: Array
) -> FISTAState:
    found = duality.evaluate_fit(datafit_of(program), penalty_of(program), point.weights, fit, point.correlations)
    failed = jnp.logical_not(jnp.isfinite(found.primal))
    return FISTAState(point, extrapolated, momentum, lipschitz, found.primal, found.gap, found.primal, failed)


def _evaluate(program: ConvexProgram, weights: Array) -> tuple[FISTAPoint, Fit]:
    fitted = masked_outputs(program, weights)
    fit = datafit_of(program).fit(fitted)
    return FISTAPoint(weights, fitted, correlations_of(program, fit.residual)), fit


def _largest_curvature(program: ConvexProgram, change: Array) -> Array:
    """Twice the largest rise of the loss above its tangent, for this change of the outputs."""
    weights = 1.0 if program.sample_weight is None else program.sample_weight[:, None]
    return program.loss.steepest * jnp.sum(weights * change**2)


def _curvature(program: ConvexProgram, point: FISTAPoint) -> Float[Array, ""]:
    """The curvature along the first gradient: a lower bound on the largest, which steps raise where they see more."""
    length = jnp.sum(point.correlations**2)
    largest = _largest_curvature(program, masked_outputs(program, point.correlations))
    curvature = largest / jnp.where(length > 0, length, 1.0)
    return jnp.where(curvature > 0, curvature, 1.0)


METHOD = Method(name="fista", init=init, steps=lambda _: (step,), supports=lambda _: None, max_iter=20_000)
