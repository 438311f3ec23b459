"""Iterative reweighting, the paper's Algorithm 1: from the NTK's kernel weights to the optimal ones (M6)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from fixntk._numerics import solve_kernel_ridge
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import ConvexProgram


class IRLSState(NamedTuple):
    """State of the reweighting: the kernel weights, and the ridge solution with them.

    Attributes
    ----------
    kernel_weights
        (P,) η.
    weights
        (P, d, c), W_p = η_p Xᵀ D_p A with (K(η) + λI) A = Y; a ridge α makes it η_p / (1 + αη_p/λ) in both places.
    primal, gap, objective
        P(W), its duality gap, and the ε-smoothed objective.
    failed
        Whether no jitter made K(η) + λI positive definite.
    epsilon
        ε of sqrt(‖W_p‖² + ε).
    """

    kernel_weights: Float[Array, " P"]
    weights: Float[Array, "P d c"]
    primal: Float[Array, ""]
    gap: Float[Array, ""]
    objective: Float[Array, ""]
    failed: Bool[Array, ""]
    epsilon: Float[Array, ""]


def init(program: ConvexProgram, kernel_weights: Array, epsilon: Array) -> IRLSState:
    """Iteration 0: the kernel ridge solution of the start's weights; the NTK's when those are the NTK's."""
    return _solve_ridge(program, kernel_weights, epsilon)


def step(program: ConvexProgram, state: IRLSState) -> IRLSState:
    """Reweight η_p = sqrt(‖W_p‖² + ε) / τ_p, then solve the kernel ridge problem: one masked Gram, one Cholesky."""
    kernel_weights = program.kernel_weights_of(_smoothed_norms(state.weights, state.epsilon))
    following = _solve_ridge(program, kernel_weights, state.epsilon)
    kept = state._replace(failed=jnp.ones_like(state.failed))
    return IRLSState(*(jnp.where(following.failed, old, new) for old, new in zip(kept, following, strict=True)))


def default_epsilon(program: ConvexProgram, tol: float | Array) -> Float[Array, ""]:
    """An ε whose smoothing, at most λ Σ_p τ_p sqrt(ε), is a tenth of the gap that is asked for."""
    total = jnp.sum(jnp.broadcast_to(program.thresholds, program.num_gates))
    root = 0.1 * tol * program.primal_at_zero() / total
    return jnp.maximum(root**2, jnp.finfo(program.x.dtype).tiny)


def _smoothed_norms(weights: Array, epsilon: Array) -> Float[Array, " P"]:
    return jnp.sqrt(group_norms(weights) ** 2 + epsilon)


def _solve_ridge(program: ConvexProgram, kernel_weights: Array, epsilon: Array) -> IRLSState:
    effective = kernel_weights * program.ridge_share(kernel_weights / program.reg)
    targets = program.centred(program.targets)
    dual_weights = solve_kernel_ridge(program.kernel(effective), program.reg, targets)
    weights = effective[:, None, None] * program.correlations(dual_weights)
    # Not Y − K(η) A or λA: where the system is ill-conditioned they are not the residual of these weights.
    fit = program.fit(program.fitted(weights))
    smoothed = jnp.sum(program.thresholds * (_smoothed_norms(weights, epsilon) - group_norms(weights)))
    primal = program.primal_of(weights, fit)
    return IRLSState(
        kernel_weights=kernel_weights,
        weights=weights,
        primal=primal,
        gap=program.certificate(weights, fit, program.correlations(fit.residual)).gap,
        # With λ Σ_p τ_p sqrt(‖W_p‖² + ε) for the norms, which no step raises.
        objective=primal + smoothed,
        failed=~jnp.all(jnp.isfinite(dual_weights)),
        epsilon=epsilon,
    )
