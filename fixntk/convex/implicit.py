"""Derivatives of a solution by implicit differentiation of its optimality conditions on the active groups (M8)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from fixntk._checks import is_traced
from fixntk._numerics import matmul
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import ConvexProgram, with_masks
from fixntk.convex.solution import is_active
from fixntk.convex.solve import solve
from fixntk.gram import select_masks

# Up to so many unknowns the linear system is made and factorised; above, conjugate gradients.
_MOST_UNKNOWNS = 1500
_MOST_PRODUCTS = 2000


def optimal_weights(
    program: ConvexProgram, *, method: str = "auto", tol: float | None = None, max_iter: int | None = None
) -> Float[Array, "P d c"]:
    r"""Group weights of the solution, differentiable by everything the program is made of (M8).

    On its active groups the solution satisfies :math:`X^⊤ D_p R = λτ_p W_p/\|W_p\| + αW_p`. Differentiating these
    equations gives the derivative by λ, x, y, ω, τ and α, in both modes, as long as the set of active groups does not
    change: at the points of a path where it does, the two one-sided derivatives differ. No iteration is unrolled.
    ``program.primal(weights)`` has its derivative without this, by the envelope theorem.

    Parameters
    ----------
    program
        The problem, with Frobenius norm. Masks are constants.
    method, tol, max_iter
        As for :func:`fixntk.solve`, but ``tol`` is 1e-8 in float64 and 1e-5 in float32 when None. The derivative is as
        accurate as the weights are, whose error goes with the root of the gap. Under ``jit`` nothing warns where
        ``tol`` is not reached: ``program.gap(weights)`` tells.

    Returns
    -------
    (P, d, c) group weights. Those of inactive groups are zero.

    Raises
    ------
    ValueError
        As for :func:`fixntk.solve`; also for the nuclear norm, whose derivative is another.

    Warns
    -----
    ConvergenceWarning
        As for :func:`fixntk.solve`.
    """
    if not isinstance(program, ConvexProgram):
        raise TypeError(f"program must be a ConvexProgram, got {type(program).__name__}")
    if program.norm.name != "frobenius":
        raise ValueError(f"optimal_weights is for norm 'frobenius', not for {program.norm.name!r}")
    if tol is None:
        tol = 1e-8 if program.x.dtype == jnp.float64 else 1e-5
    return _optimal_weights(program, method, tol, max_iter)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _optimal_weights(program: ConvexProgram, method: str, tol: float, max_iter: int | None) -> Array:
    weights = solve(program, method=method, tol=tol, max_iter=max_iter).weights
    return weights * is_active(weights)[:, None, None]


@_optimal_weights.defjvp
def _optimal_weights_jvp(
    method: str, tol: float, max_iter: int | None, primals: tuple[ConvexProgram], tangents: tuple[Any]
) -> tuple[Array, Array]:
    (program,), (change,) = primals, tangents
    weights = _optimal_weights(program, method, tol, max_iter)
    active = group_norms(weights) > 0
    if is_traced(weights):
        # Which groups are active is not known: all of them, and W_p = 0 for those that are not.
        kept = active[:, None, None].astype(weights.dtype)
        _, forced = jax.jvp(lambda program: kept * _slope(program, weights), (program,), (change,))
        return weights, _by_products(program, weights, kept, -forced)
    chosen = jnp.asarray(np.flatnonzero(np.asarray(active)))
    if chosen.size == 0:
        return weights, jnp.zeros_like(weights)

    def part(program: ConvexProgram) -> ConvexProgram:
        return with_masks(program, select_masks(program.masks, chosen).astype(program.x.dtype), chosen)

    _, forced = jax.jvp(lambda program: _slope(part(program), weights[chosen]), (program,), (change,))
    if forced.size <= _MOST_UNKNOWNS:
        solution = _directly(part(program), weights[chosen], -forced)
    else:
        solution = _by_products(part(program), weights[chosen], jnp.ones((1, 1, 1), weights.dtype), -forced)
    return weights, jnp.zeros_like(weights).at[chosen].set(solution, unique_indices=True)


def _slope(program: ConvexProgram, weights: Array) -> Array:
    """Gradient of the objective by weights that are not zero (of zero groups, without the norm's)."""
    fit = program.datafit.fit(program.fitted(weights))
    norms = group_norms(weights)
    units = weights / jnp.where(norms > 0, norms, 1.0)[:, None, None]
    pulls = jnp.broadcast_to(program.thresholds, norms.shape)[:, None, None] * units
    ridge = 0.0 if program.ridge is None else program.ridge * weights
    return pulls + ridge - program.correlations(fit.residual)


def _directly(program: ConvexProgram, weights: Array, right: Array) -> Array:
    """Solution of least length, which is the only one unless features of active groups are dependent."""
    _, curve = jax.linearize(partial(_slope, program), weights)
    basis = jnp.eye(right.size, dtype=right.dtype).reshape(right.size, *right.shape)
    matrix = jax.vmap(curve)(basis).reshape(right.size, right.size)
    inverse = jnp.linalg.pinv(0.5 * (matrix + matrix.T), hermitian=True)
    return matmul(inverse, right.ravel()).reshape(right.shape)


def _by_products(program: ConvexProgram, weights: Array, kept: Array, right: Array) -> Array:
    """The same by conjugate gradients, on the groups that are kept; a symmetric map of the right-hand side."""

    def solve(known: tuple[ConvexProgram, Array, Array], right: Array) -> Array:
        program, weights, kept = known
        _, curve = jax.linearize(partial(_slope, program), weights)
        tol = 100 * float(jnp.finfo(right.dtype).eps)

        def product(vector: Array) -> Array:
            return kept * curve(kept * vector) + (1 - kept) * vector

        return jax.scipy.sparse.linalg.cg(product, right, tol=tol, maxiter=_MOST_PRODUCTS)[0]

    return jax.custom_derivatives.linear_call(solve, solve, (program, weights, kept), right)
