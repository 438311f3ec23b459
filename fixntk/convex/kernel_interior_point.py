r"""The weights of given kernels by a primal-dual interior-point method.

Let u_k = λ τ_k² η_k / ‖Y‖² be the share of kernel k in the penalty, C(u) = Σ_k η_k K_k + λI, A = C⁻¹ Y, and
q_k = tr(AᵀK_kA) / τ_k². In units of ½‖Y‖² the objective of the kernel weights is

.. math:: J(u) = \frac{λ}{‖Y‖²} \mathrm{tr}\, Y^⊤ C(u)^{-1} Y + Σ_k u_k, \qquad ∂J/∂u_k = 1 − q_k,

and u ≥ 0 is optimal with multipliers z ≥ 0 if 1 − q = z and u_k z_k = 0. The method follows the central path
u_k z_k = μ as μ goes to zero; the duality gap on it is m μ. As |D³J[h, h, h]| ≤ 3 max_k |h_k / u_k| D²J[h, h],
J − μ Σ_k log u_k is self-concordant up to a factor: Newton's method converges for any kernels. Neither dependent
kernels nor their scales matter, as the path is the same in any units of the u_k.

See docs/mathematics.md, M5 and M7.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from fixntk._checks import is_tracing
from fixntk._compilation import jit_for_host
from fixntk._line_search import longest_step, search_by_armijo
from fixntk._numerics import einsum, eps_of, matmul
from fixntk.convex.duality import sparsest
from fixntk.convex.kernel_criteria import factor_mixture

# Share of the slope's decrease by which a step has to lower the merit function (Armijo's constant).
_ARMIJO_SHARE = 1e-4
# Count of halvings of a step before the line search gives up.
_MAX_HALVINGS = 30
# A step goes at most this share of the way to the boundary of the orthant.
_BOUNDARY_SHARE = 0.995
# A point counts as central if its equations are violated by at most this multiple of μ.
_CENTRAL_MULTIPLE = 10.0
# At a central point μ is multiplied by this factor, or by less where the path is nearly straight.
_BARRIER_FACTOR = 0.1
# The last μ has a gap m μ of this share of the tolerance.
_LAST_BARRIER_SHARE = 0.1
# Multipliers stay within this factor of μ / u.
_PRICE_FACTOR = 1e3
# Number of steps that neither improve the certificate nor lower μ after which the solve stops for rounding error.
_MAX_IDLE_STEPS = 10
# Multiples of μ below which a kernel's share of the penalty is tried as zero at the end; all kernels for the last.
_ZERO_MULTIPLES = (0.0, 1e1, 1e2, 1e3, 1e4, np.inf)


class KernelProblem(NamedTuple):
    """Kernels, targets Y, λ and the penalty weights τ."""

    kernels: Float[Array, "m n n"]
    targets: Float[Array, "n c"]
    reg: Float[Array, ""]
    penalty_weights: Float[Array, " m"]

    @property
    def square(self) -> Float[Array, ""]:
        """‖Y‖², or 1 for targets of zero, whose every gap is zero."""
        square = jnp.sum(self.targets**2)
        return jnp.where(square > 0, square, 1.0)

    @property
    def units(self) -> Float[Array, " m"]:
        """η_k / u_k = ‖Y‖² / (λ τ_k²)."""
        return self.square / (self.reg * self.penalty_weights**2)


class KernelPoint(NamedTuple):
    """Shares u of the penalty, with everything that a Newton step and a certificate need."""

    shares: Float[Array, " m"]
    dual_weights: Float[Array, "n c"]  # A
    functions: Float[Array, "m n c"]  # f_k = η_k K_k A
    factor: Float[Array, "n n"]  # Cholesky factor of C(u)
    constraints: Float[Array, " m"]  # q_k, at most 1 at the optimum
    objective: Float[Array, ""]  # J(u)
    relative_gap: Float[Array, ""]


class PathState(NamedTuple):
    """A point near the central path, and the best point so far."""

    point: KernelPoint
    prices: Float[Array, " m"]  # z
    barrier: Float[Array, ""]  # μ
    best: KernelPoint
    iterations: Int[Array, ""]
    idle_steps: Int[Array, ""]


def follow_path(
    problem: KernelProblem, tol: float, max_iter: int, watch: Callable[[PathState], None] | None = None
) -> tuple[KernelPoint, PathState]:
    """The best point with the most zeros that the tolerance allows, and the last state.

    Traced as a loop under a JAX transformation; on the host otherwise, where ``watch`` is called at each state.
    """
    state = _start(problem)
    if is_tracing(problem):
        state = lax.while_loop(partial(_is_unfinished, tol, max_iter), partial(_step, problem, tol), state)
        return _without_small_kernels(problem, state.best, tol), state
    while True:
        if watch is not None:
            watch(state)
        if not bool(_is_unfinished(tol, max_iter, state)):
            return _without_small_kernels(problem, state.best, tol), state
        state = _step(problem, tol, state)


@jit_for_host
def _is_unfinished(tol: ArrayLike, max_iter: ArrayLike, state: PathState) -> Array:
    return (state.best.relative_gap > tol) & (state.iterations < max_iter) & ~is_idle(state)


def is_idle(state: PathState) -> Bool[Array, ""]:
    """Whether the last steps neither improved the certificate nor brought the point near the central path."""
    return state.idle_steps >= _MAX_IDLE_STEPS


@jit_for_host
def _start(problem: KernelProblem) -> PathState:
    """A point inside of the orthant with multipliers on the central path, and zero as the best point so far."""
    m, n = problem.kernels.shape[:2]
    # For one kernel κI with ½‖Y‖² far above the penalty the optimal share is λτ / (‖Y‖ √κ).
    sizes = jnp.trace(problem.kernels, axis1=1, axis2=2) / n
    lengths = jnp.sqrt(problem.square * jnp.maximum(sizes, 0))
    is_costly = problem.reg * problem.penalty_weights >= lengths
    shares = jnp.where(is_costly, 1.0, problem.reg * problem.penalty_weights / jnp.where(is_costly, 1.0, lengths)) / m
    point, zero = _evaluate(problem, shares), _evaluate(problem, jnp.zeros_like(shares))
    barrier = _BARRIER_FACTOR * jnp.minimum(point.relative_gap, 1.0) / m
    best = _better(point, zero)
    return PathState(point, barrier / shares, barrier, best, jnp.asarray(0), jnp.asarray(0))


@jit_for_host
def _step(problem: KernelProblem, tol: ArrayLike, state: PathState) -> PathState:
    """Linearise, find the direction, its length, accept, and lower μ where the new point is near the central path."""
    step, price_step, slope = _direction(problem, state)
    length = _step_length(problem, state, step, slope)
    point = _evaluate(problem, state.point.shares * (1 + length * step))
    return _accept(state, point, _next_prices(state, point, price_step), tol)


def _evaluate(problem: KernelProblem, shares: Array) -> KernelPoint:
    """Everything at u: A = C⁻¹Y, f_k = η_k K_k A, q_k = tr(AᵀK_kA)/τ_k², J, and the gap."""
    factor = _cholesky(problem, shares)
    dual_weights = jsl.cho_solve((factor, True), problem.targets)
    images = einsum("kij,jc->kic", problem.kernels, dual_weights)
    functions = (problem.units * shares)[:, None, None] * images
    squares = einsum("ic,kic->k", dual_weights, images)
    constraints = jnp.maximum(squares, 0) / problem.penalty_weights**2
    objective = _objective(problem, shares, dual_weights)
    gap = _relative_gap(problem, shares, dual_weights, functions, constraints)
    return KernelPoint(shares, dual_weights, functions, factor, constraints, objective, gap)


def _cholesky(problem: KernelProblem, shares: Array) -> Array:
    """Lower factor of C(u) = Σ_k η_k K_k + λI."""
    return factor_mixture(problem.kernels, problem.units * shares, problem.reg)


def _objective(problem: KernelProblem, shares: Array, dual_weights: Array) -> Array:
    """J(u) = λ tr YᵀA / ‖Y‖² + Σ_k u_k."""
    return problem.reg * jnp.sum(dual_weights * problem.targets) / problem.square + jnp.sum(shares)


def _relative_gap(
    problem: KernelProblem, shares: Array, dual_weights: Array, functions: Array, constraints: Array
) -> Array:
    """Gap between J and the dual objective of Θ = sλA, in units of ½‖Y‖², for any A.

    With s = min(1, min_k q_k^−½), which makes Θ feasible, and R = Y − Σ_k f_k it is a sum of squares and of products
    that are not negative,

        Σ_k u_k (√q_k − 1)² + 2 Σ_k u_k √q_k (1 − s √q_k) + ‖R − sλA‖² / ‖Y‖²:

    the excess of J over the objective of the functions f_k, and the Fenchel–Young inequalities of penalty and loss.
    """
    lengths = jnp.sqrt(constraints)
    scale = 1 / jnp.maximum(1.0, jnp.max(lengths))
    # The three terms of the sum above, in its order.
    excess = jnp.sum(shares * (lengths - 1) ** 2)
    of_penalty = 2 * jnp.sum(shares * lengths * jnp.maximum(1 - scale * lengths, 0))
    residual = problem.targets - jnp.sum(functions, axis=0)
    of_loss = jnp.sum((residual - scale * problem.reg * dual_weights) ** 2) / problem.square
    gap = excess + of_penalty + of_loss
    return jnp.where(jnp.isfinite(gap), gap, jnp.inf)


def _direction(problem: KernelProblem, state: PathState) -> tuple[Array, Array, Array]:
    """Newton step of 1 − q = z, u z = μ, in units of u: δu / u, u δz, and the slope of J − μ Σ log u along it.

    Without δz it solves (U H U + diag(u z)) (δu / u) = μ − u (1 − q) with the Hessian of J,

        u_k u_l H_kl = (2λ / ‖Y‖²) tr f_kᵀ C⁻¹ f_l.

    The matrix is positive definite even where kernels are dependent and H is singular.
    """
    point, mu = state.point, state.barrier
    num_kernels, num_rows = point.shares.size, problem.targets.shape[0]
    columns = jnp.moveaxis(point.functions, 0, 1).reshape(num_rows, -1)
    roots = lax.linalg.triangular_solve(point.factor, columns, left_side=True, lower=True)
    roots = jnp.moveaxis(roots.reshape(num_rows, num_kernels, -1), 1, 0).reshape(num_kernels, -1)
    products = point.shares * state.prices
    matrix = 2 * problem.reg / problem.square * matmul(roots, roots.T) + jnp.diag(products)
    # The diagonal is brought to one, as it differs by orders between used and unused kernels.
    unit = 1 / jnp.sqrt(jnp.diagonal(matrix))
    gradient = point.shares * (1 - point.constraints) - mu
    factor = jnp.linalg.cholesky(unit[:, None] * matrix * unit[None, :])
    step = -unit * jsl.cho_solve((factor, True), unit * gradient)
    # No step where rounding error makes the matrix indefinite; the solver then stops and says so.
    step = jnp.where(jnp.all(jnp.isfinite(step)), step, 0.0)
    return step, mu - products - products * step, jnp.sum(gradient * step)


def _step_length(problem: KernelProblem, state: PathState, step: Array, slope: Array) -> Array:
    """Backtracking from near the boundary of the orthant, by Armijo's rule on J − μ Σ log u."""
    shares, mu = state.point.shares, state.barrier
    before = state.point.objective - mu * jnp.sum(jnp.log(shares))

    # J is not quadratic in the shares: each trial takes a factorisation of its kernel.
    def change(length: Array) -> Array:
        moved = shares * (1 + length * step)
        dual_weights = jsl.cho_solve((_cholesky(problem, moved), True), problem.targets)
        return _objective(problem, moved, dual_weights) - mu * jnp.sum(jnp.log(moved)) - before

    search = search_by_armijo(
        change,
        slope,
        longest_step(jnp.ones_like(step), step, share=_BOUNDARY_SHARE),
        share=_ARMIJO_SHARE,
        slack=10 * eps_of(shares) * jnp.abs(before),
        max_halvings=_MAX_HALVINGS,
    )
    return jnp.where(search.accepted, search.length, 0.0)


def _next_prices(state: PathState, point: KernelPoint, price_step: Array) -> Array:
    """Multipliers z after a step of their own length, near enough to μ / u for the Newton matrix to be sound."""
    shares = state.point.shares
    products = shares * state.prices
    length = longest_step(products, price_step, share=_BOUNDARY_SHARE)
    prices = (products + length * price_step) / shares
    central = state.barrier / point.shares
    return jnp.clip(prices, central / _PRICE_FACTOR, central * _PRICE_FACTOR)


def _accept(state: PathState, point: KernelPoint, prices: Array, tol: ArrayLike) -> PathState:
    """The state at the new point; μ is lowered if |u z − μ| and |u (1 − q − z)| are at most 10 μ."""
    mu, num_kernels = state.barrier, point.shares.size
    off_path = jnp.abs(point.shares * prices - mu)
    off_duals = jnp.abs(point.shares * (1 - point.constraints - prices))
    is_central = jnp.max(jnp.maximum(off_path, off_duals)) <= _CENTRAL_MULTIPLE * mu
    # The gap m μ falls by a factor or, near the end, like its power 3/2.
    lower = jnp.minimum(_BARRIER_FACTOR * mu, (num_kernels * mu) ** 1.5 / num_kernels)
    lower = jnp.maximum(lower, _LAST_BARRIER_SHARE * tol / num_kernels)
    barrier = jnp.where(is_central, jnp.minimum(lower, mu), mu)
    best = _better(point, state.best)
    is_progress = (barrier < mu) | (point.relative_gap < state.best.relative_gap)
    idle_steps = jnp.where(is_progress, 0, state.idle_steps + 1)
    return PathState(point, prices, barrier, best, state.iterations + 1, idle_steps)


def _better(new: KernelPoint, old: KernelPoint) -> KernelPoint:
    """The point with the smaller certified gap."""
    return jax.tree.map(partial(jnp.where, new.relative_gap < old.relative_gap), new, old)


@jit_for_host
def _without_small_kernels(problem: KernelProblem, point: KernelPoint, tol: ArrayLike) -> KernelPoint:
    """The point without the kernels whose shares are small compared with μ, up to what the tolerance allows."""
    mu = point.relative_gap / point.shares.size

    def without(multiple: Array) -> KernelPoint:
        return _evaluate(problem, jnp.where(point.shares <= multiple * mu, 0.0, point.shares))

    multiples = jnp.asarray(_ZERO_MULTIPLES, point.shares.dtype)
    return sparsest(without, multiples, lambda candidates: candidates.relative_gap, tol)
