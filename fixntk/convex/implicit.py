"""Derivatives of a solution by implicit differentiation of its optimality conditions on the active groups.

With G(W, θ) the gradient of the objective by the active groups W, and θ the program's arrays, G(W(θ), θ) = 0 gives

    ∂_W G · dW = −∂_θ G · dθ,

a symmetric system with the Hessian of the objective on the active groups.

See docs/mathematics.md, M8.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from fixntk._checks import is_traced
from fixntk._numerics import default_tol, matmul
from fixntk.convex.groups import with_masks
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import ConvexProgram, correlations_of, datafit_of, masked_outputs, thresholds_of
from fixntk.convex.solution import is_active
from fixntk.convex.solve import solve
from fixntk.gram import select_masks

# Largest count of unknowns of a dense system; conjugate gradients above.
_MOST_UNKNOWNS = 1500
# Largest count of steps of conjugate gradients, each a product with the Hessian.
_MOST_PRODUCTS = 2000
# Residual at which conjugate gradients stop, as a multiple of the dtype's resolution.
_RESIDUAL_MULTIPLE = 100


def optimal_weights(
    program: ConvexProgram, *, method: str = "auto", tol: float | None = None, max_iter: int | None = None
) -> Float[Array, "P d c"]:
    r"""Group weights of the solution, differentiable by everything the program is made of.

    On its active groups the solution satisfies :math:`X^⊤ D_p R = λτ_p W_p/\|W_p\| + αW_p`. Differentiating these
    equations gives the derivative by λ, x, y, ω, τ and α, in both modes, as long as the set of active groups does not
    change: at the points of a path where it does, the two one-sided derivatives differ. No iteration is unrolled.
    ``program.primal(weights)`` has its derivative without this, by the envelope theorem.

    Parameters
    ----------
    program
        The problem, with Frobenius norm. Masks are constants.
    method, tol, max_iter
        As for :func:`fixntk.solve`. The error of the weights, and with it that of the derivative, is of the order of
        the square root of ``tol``, so that accurate derivatives need a smaller one. Under ``jit`` nothing warns where
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

    See docs/mathematics.md, M8.
    """
    if not isinstance(program, ConvexProgram):
        raise TypeError(f"program must be a ConvexProgram, got {type(program).__name__}")
    if program.norm.name != "frobenius":
        raise ValueError(f"optimal_weights is for norm 'frobenius', not for {program.norm.name!r}")
    tol = default_tol(program.x.dtype) if tol is None else tol
    return _optimal_weights(program, method, tol, max_iter)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _optimal_weights(program: ConvexProgram, method: str, tol: float, max_iter: int | None) -> Array:
    weights = solve(program, method=method, tol=tol, max_iter=max_iter).weights
    return jnp.where(is_active(weights)[:, None, None], weights, 0)


@_optimal_weights.defjvp
def _optimal_weights_jvp(
    method: str, tol: float, max_iter: int | None, primals: tuple[ConvexProgram], tangents: tuple[Any]
) -> tuple[Array, Array]:
    """The derivative along a change of the program; ``forced`` is ∂_θ G · dθ of the module's equation."""
    (program,), (change,) = primals, tangents
    weights = _optimal_weights(program, method, tol, max_iter)
    # Groups of zero stay zero under a small change where the dual constraint is slack, as it is almost everywhere.
    active = group_norms(weights) > 0
    if is_traced(weights):
        # The active groups are not known while tracing: all groups are unknowns, with dW_p = 0 for inactive ones.
        kept = active[:, None, None].astype(weights.dtype)
        _, forced = jax.jvp(lambda program: kept * _gradient(program, weights), (program,), (change,))
        return weights, _solve_by_products(program, weights, kept, -forced)
    chosen = jnp.asarray(np.flatnonzero(np.asarray(active)))
    if chosen.size == 0:
        return weights, jnp.zeros_like(weights)

    def part(program: ConvexProgram) -> ConvexProgram:
        return with_masks(program, select_masks(program.masks, chosen).astype(program.x.dtype), chosen)

    # H dW = −∂_θ G · dθ, with H the derivative of G in the weights of the active groups alone.
    _, forced = jax.jvp(lambda program: _gradient(part(program), weights[chosen]), (program,), (change,))
    if forced.size <= _MOST_UNKNOWNS:
        solution = _solve_dense(part(program), weights[chosen], -forced)
    else:
        solution = _solve_by_products(part(program), weights[chosen], jnp.ones((1, 1, 1), weights.dtype), -forced)
    return weights, jnp.zeros_like(weights).at[chosen].set(solution, unique_indices=True)


def _gradient(program: ConvexProgram, weights: Array) -> Array:
    """G = λτ_p W_p/‖W_p‖ + αW_p − Xᵀ D_p R, without the first term for groups of zero."""
    fit = datafit_of(program).fit(masked_outputs(program, weights))
    norms = group_norms(weights)
    units = weights / jnp.where(norms > 0, norms, 1.0)[:, None, None]
    pulls = jnp.broadcast_to(thresholds_of(program), norms.shape)[:, None, None] * units
    ridge = 0.0 if program.ridge is None else program.ridge * weights
    return pulls + ridge - correlations_of(program, fit.residual)


def _solve_dense(program: ConvexProgram, weights: Array, right: Array) -> Float[Array, "a d c"]:
    """Solution of least length; it is unique unless features of active groups are dependent."""
    _, curve = jax.linearize(partial(_gradient, program), weights)
    basis = jnp.eye(right.size, dtype=right.dtype).reshape(right.size, *right.shape)
    matrix = jax.vmap(curve)(basis).reshape(right.size, right.size)
    inverse = jnp.linalg.pinv(0.5 * (matrix + matrix.T), hermitian=True)
    return matmul(inverse, right.ravel()).reshape(right.shape)


def _solve_by_products(program: ConvexProgram, weights: Array, kept: Array, right: Array) -> Array:
    """The same by conjugate gradients on the groups that are kept.

    As the system is symmetric, the map from the right-hand side to the solution is its own transpose, which is what
    reverse mode needs.
    """

    def solve(known: tuple[ConvexProgram, Array, Array], right: Array) -> Array:
        program, weights, kept = known
        _, curve = jax.linearize(partial(_gradient, program), weights)
        tol = _RESIDUAL_MULTIPLE * float(jnp.finfo(right.dtype).eps)

        def product(vector: Array) -> Array:
            return kept * curve(kept * vector) + (1 - kept) * vector

        return jax.scipy.sparse.linalg.cg(product, right, tol=tol, maxiter=_MOST_PRODUCTS)[0]

    return jax.custom_derivatives.linear_call(solve, solve, (program, weights, kept), right)
