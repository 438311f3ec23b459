"""Iterative reweighting, the paper's Algorithm 1: from the NTK's kernel weights to the optimal ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from fixntk._compilation import jit_for_host
from fixntk._numerics import solve_kernel_ridge, tiny_of
from fixntk.convex.groups import mask_number_bytes
from fixntk.convex.kernel_form import weights_of_norms
from fixntk.convex.method import Method, check_norm
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import (
    ConvexProgram,
    correlations_of,
    datafit_of,
    is_quadratic,
    kernel_of,
    penalty_of,
    targets_of,
    thresholds_of,
)

# Kernel matrices that are in memory at a time: K(η), with λ and with jitter on its diagonal, factors, and copies of
# these for their solves.
_NUM_MATRICES = 7
# What lowers the memory that reweighting takes.
MEMORY_REMEDY = "use method='newton' or 'fista', which make no such matrix"


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


def init(program: ConvexProgram, kernel_weights: Array, epsilon: Array | None) -> IRLSState:
    """Iteration 0: the kernel ridge solution of the start's weights; the NTK's when those are the NTK's."""
    assert epsilon is not None
    return _solve_ridge(program, kernel_weights, epsilon)


def step(program: ConvexProgram, state: IRLSState) -> IRLSState:
    """Reweight η_p = sqrt(‖W_p‖² + ε) / τ_p, then solve the kernel ridge problem: one masked Gram, one Cholesky."""
    kernel_weights = weights_of_norms(_smoothed_norms(state.weights, state.epsilon), program.penalty_weights)
    following = _solve_ridge(program, kernel_weights, state.epsilon)
    # A kernel that cannot be factorised even with jitter ends the loop with the last good state.
    kept = state._replace(failed=jnp.ones_like(state.failed))
    return IRLSState(*(jnp.where(following.failed, old, new) for old, new in zip(kept, following, strict=True)))


def watch_from_ntk(
    program: ConvexProgram,
    epsilon: Array,
    look: Callable[[IRLSState], Any],
    *,
    num_steps: int,
    kernel: Array | None = None,
) -> Any:
    """What ``look`` gives for the NTK's kernel weights 1/P and after each of the steps, stacked along a first axis.

    ``kernel`` is that of the NTK, by :func:`ntk_of`: it does not depend on λ, and so is made once for several.
    """

    def advance(state: IRLSState, _: None) -> tuple[IRLSState, Any]:
        state = step(program, state)
        return state, look(state)

    start = _solve_ridge(program, _ntk_weights(program), epsilon, kernel)
    _, following = lax.scan(advance, start, length=num_steps)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), look(start), following)


def ntk_of(program: ConvexProgram) -> Float[Array, "n n"]:
    """K(1/P) of a program without sample weights or ridge, on the subspace orthogonal to the intercept's column."""
    return kernel_of(program, _ntk_weights(program))


def _ntk_weights(program: ConvexProgram) -> Float[Array, " P"]:
    return jnp.full(program.num_gates, 1 / program.num_gates, program.x.dtype)


@jit_for_host
def default_epsilon(program: ConvexProgram, tol: float | Array) -> Float[Array, ""]:
    """An ε whose smoothing, at most λ Σ_p τ_p sqrt(ε), is a tenth of the gap that is asked for."""
    total = jnp.sum(jnp.broadcast_to(thresholds_of(program), program.num_gates))
    root = 0.1 * tol * program.primal_at_zero() / total
    return jnp.maximum(root**2, tiny_of(program.x))


def _smoothed_norms(weights: Array, epsilon: Array) -> Float[Array, " P"]:
    return jnp.sqrt(group_norms(weights) ** 2 + epsilon)


def _solve_ridge(
    program: ConvexProgram, kernel_weights: Array, epsilon: Array, kernel: Array | None = None
) -> IRLSState:
    """The ridge solution with the kernel of these weights, which is made where it is not given."""
    # With a ridge α, the group's share of the kernel shrinks: η_p / (1 + αη_p/λ).
    effective = kernel_weights * penalty_of(program).ridge_share(kernel_weights / program.reg)
    kernel = kernel_of(program, effective) if kernel is None else kernel
    targets = datafit_of(program).remove_intercept(targets_of(program))
    dual_weights = solve_kernel_ridge(kernel, program.reg, targets)
    # The representer theorem: W_p = η_p Xᵀ D_p A with the dual weights A of kernel ridge regression.
    weights = effective[:, None, None] * correlations_of(program, dual_weights)
    # Not Y − K(η) A or λA: where the system is ill-conditioned they are not the residual of these weights.
    found = program.evaluate(weights)
    smoothed = jnp.sum(thresholds_of(program) * (_smoothed_norms(weights, epsilon) - group_norms(weights)))
    return IRLSState(
        kernel_weights=kernel_weights,
        weights=weights,
        primal=found.primal,
        gap=found.gap,
        # With λ Σ_p τ_p sqrt(‖W_p‖² + ε) for the norms, which no step raises.
        objective=found.primal + smoothed,
        failed=~jnp.all(jnp.isfinite(dual_weights)),
        epsilon=epsilon,
    )


def check_program(name: str, program: ConvexProgram) -> None:
    """Raise ValueError if reweighting cannot solve a program."""
    if not is_quadratic(program):
        raise ValueError(
            f"method {name!r} is for the squared loss, not for {program.loss.name}: use 'newton' or 'fista'"
        )
    check_norm(name, program)


def bytes_needed(program: ConvexProgram) -> int | float:
    """Estimate of the memory for kernel matrices and their factors, and for masks as numbers."""
    return _NUM_MATRICES * program.x.shape[0] ** 2 * program.x.dtype.itemsize + mask_number_bytes(program)


METHOD = Method(
    name="irls",
    init=init,
    steps=lambda _: (step,),
    supports=partial(check_program, "irls"),
    max_iter=300,
    starts_at="kernel_weights",
    bytes_needed=bytes_needed,
    memory_remedy=MEMORY_REMEDY,
)
