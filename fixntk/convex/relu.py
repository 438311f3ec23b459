r"""The convex program of the ReLU network, a group lasso with cones, solved along its central path.

.. math:: \min_{v, u, b} ℓ\bigl(1 b + \sum_p D_p X (v_p − u_p); y\bigr) + λ \sum_p (\|v_p\| + \|u_p\|)
    \quad\text{s.t.}\quad (2D_p − I) X v_p ≥ 0,\; (2D_p − I) X u_p ≥ 0

Over all arrangements its optimum is that of the weight-decayed ReLU network, for some of them an upper bound on it.
With the pair (v, u), the logarithmic barriers B of the cones and of the norms, and a weight t, the central path is the
set of minimisers of

.. math:: F_t(v, u) = ℓ(v, u) + B_t(v, u),

whose barrier costs 1/t. A Newton step costs a weighted masked Gram kernel, Σ_p D_p X C_p Xᵀ D_p with small matrices
C_p, and a Cholesky factorisation.

See docs/mathematics.md, M10.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import as_positive_int, is_traced
from fixntk._compilation import jit_for_host
from fixntk._numerics import allow_float64, default_tol, einsum, matmul, with_dtype
from fixntk._warnings import ConvergenceWarning
from fixntk.convex.groups import check_gates, with_masks
from fixntk.convex.program import (
    ConvexProgram,
    absorb_sample_weight,
    correlations_of,
    datafit_of,
    is_quadratic,
    masked_outputs,
    targets_of,
    thresholds_of,
)
from fixntk.convex.progress import Progress, describe, progress_bar
from fixntk.gates.masks import activation_masks
from fixntk.networks.cones import (
    Cones,
    armijo_length,
    barrier_values,
    cone_barrier,
    longest_step,
    make_cones,
    next_multipliers,
    next_weight,
)
from fixntk.networks.convert import from_signed_cones
from fixntk.networks.models import ReLUNetwork

# A certificate is accepted if its gap is below this share of the tolerance, because it is recomputed at the end.
_GOAL_SHARE = 0.99
# Multiples of the barrier's cost below which a group's penalty is tried as zero.
_ZERO_MULTIPLES = (0.0, 1.0, 10.0, 1e2, 1e3)
# Start: length of the vectors as a share of the one at which the penalty alone costs the barrier's terms.
_START_SHARE = 0.5
# Multiple of the dtype's resolution, relative to a Hessian's largest entry, that is added to its diagonal.
_JITTER_MULTIPLE = 4.0


@dataclass(frozen=True, eq=False)
class ReLUSolution:
    """A solution of the ReLU network's convex program with its certificate.

    Attributes
    ----------
    positive, negative
        (P, d) v and u, each exactly in its cone (up to rounding).
    intercept
        (1,) b; None for a program without one.
    primal, dual
        Objective of v and u, and a lower bound on the optimum.
    gap, relative_gap
        primal − dual, and its share of the objective of zero.
    iterations
        Number of iterations made.
    converged
        Whether the relative gap is at most the tolerance.
    history
        (k, 3) seconds, primal and gap at each look at the certificate.
    tol
        Tolerance of the relative gap.
    squeeze
        Whether predictions have shape (n,).

    See docs/mathematics.md, M10.
    """

    positive: Float[Array, "P d"]
    negative: Float[Array, "P d"]
    intercept: Float[Array, " 1"] | None
    primal: float
    dual: float
    gap: float
    relative_gap: float
    iterations: int
    converged: bool
    history: Float[np.ndarray, "k 3"]
    tol: float
    squeeze: bool

    def __repr__(self) -> str:
        num_active = int(np.sum(np.any(np.asarray(self.positive) != 0, 1) | np.any(np.asarray(self.negative) != 0, 1)))
        return f"ReLUSolution({self.message}; {num_active} of {self.positive.shape[0]} gates active)"

    @property
    def message(self) -> str:
        """One sentence that says why the solver stopped."""
        state = f"relative gap {self.relative_gap:.2e} after {self.iterations} iterations"
        if self.converged:
            return f"converged: {state}, within tol={self.tol:.1e}"
        return f"stopped early: {state}, above tol={self.tol:.1e}; raise max_iter or tol"

    def to_network(self) -> ReLUNetwork:
        """The ReLU network with this objective; it needs no gates."""
        return from_signed_cones(self.positive, self.negative, self.intercept, squeeze=self.squeeze)


class _Certified(NamedTuple):
    """Vectors in the cones with their certificate."""

    pair: Float[Array, "2 P d"]
    intercept: Float[Array, " 1"]
    primal: Float[Array, ""]
    gap: Float[Array, ""]


class _State(NamedTuple):
    """A point inside of the cones, and the weight t of the objective against the barrier."""

    pair: Float[Array, "2 P d"]
    weight: Float[Array, ""]


def solve_relu(
    program: ConvexProgram,
    gates: ArrayLike,
    *,
    tol: float | None = None,
    max_iter: int = 200,
    callback: Callable[[Progress], bool | None] | None = None,
    progress: bool = False,
) -> ReLUSolution:
    """Solve the ReLU network's convex program for the masks and λ of a gated one, to a certified relative gap.

    Computes in float64 whatever the dtype of x, in which the result comes back: near the boundary of a cone the
    matrices of a Newton step have condition numbers that float32 cannot hold.

    Parameters
    ----------
    program
        The gated program: one output, the squared loss, no ridge.
    gates
        (P, d) gates that give its masks; no row of x may lie on the boundary of one.
    tol
        Relative gap to reach, as a share of the objective of zero. None is 1e-6 in float64 and 1e-4 in float32.
    max_iter
        Largest number of Newton steps; 30 to 60 are usual.
    callback
        Called with a :class:`Progress` at the start and after each step; a true answer stops.
    progress
        Show a bar with steps, gap and active groups.

    Raises
    ------
    ValueError
        If the gates do not give the program's masks, one has a row on its boundary, or the program is not of the kind
        above.

    Warns
    -----
    ConvergenceWarning
        If the relative gap is above ``tol`` at the end.

    Notes
    -----
    The dual asks for ‖Π_C(±Xᵀ D_p Θ)‖ ≤ λ, with the projection onto the cone, and any μ ≥ 0 bounds it:
    ‖Π_C(z)‖ ≤ ‖z + Gᵀμ‖. The gap is evaluated for the barrier's own μ.

    See docs/mathematics.md, M10.
    """
    program, gates = _as_single_output(program, gates)
    dtype, max_iter = program.x.dtype, as_positive_int("max_iter", max_iter)
    tol = default_tol(dtype) if tol is None else float(tol)
    with allow_float64(), progress_bar("solve_relu", shown=progress) as show:

        def watch(seen: Progress) -> bool | None:
            show(seen.iteration, describe(seen.relative_gap, seen.num_active))
            return callback(seen) if callback is not None else None

        wide, wide_gates = with_dtype((absorb_sample_weight(program), gates), jnp.float64)
        solution = _follow_path(wide, wide_gates, tol, max_iter, watch)
    narrow = with_dtype((solution.positive, solution.negative, solution.intercept), dtype)
    solution = replace(solution, positive=narrow[0], negative=narrow[1], intercept=narrow[2])
    if not solution.converged:
        warnings.warn(f"solve_relu {solution.message}", ConvergenceWarning, stacklevel=2)
    return solution


def _follow_path(
    program: ConvexProgram,
    gates: Array,
    tol: float,
    max_iter: int,
    callback: Callable[[Progress], bool | None],
) -> ReLUSolution:
    cones = make_cones(program.x, gates, program.masks)
    at_zero = float(program.primal_at_zero())
    state = _start(program, cones)
    best = _certify(program, cones, state.pair, jnp.zeros_like(cones.apply(state.pair)))
    began, history, iterations = time.perf_counter(), [], 0
    while True:
        seconds = time.perf_counter() - began
        primal, gap = float(best.primal), float(best.gap)
        relative_gap = gap / (at_zero or 1.0)
        history.append((seconds, primal, gap))
        num_active = int(jnp.sum(jnp.any(best.pair != 0, axis=2)))
        progress = Progress(iterations, primal, gap, relative_gap, num_active, seconds)
        if relative_gap <= tol or iterations >= max_iter or callback(progress):
            break
        state, best = _step(program, cones, state, best, _GOAL_SHARE * tol * at_zero)
        iterations += 1
    return ReLUSolution(
        positive=best.pair[0],
        negative=best.pair[1],
        intercept=None if program.column is None else best.intercept,
        primal=primal,
        dual=primal - gap,
        gap=gap,
        relative_gap=relative_gap,
        iterations=iterations,
        converged=relative_gap <= tol,
        history=np.array(history),
        tol=tol,
        squeeze=program.y.ndim == 1,
    )


def _as_single_output(program: ConvexProgram, gates: ArrayLike) -> tuple[ConvexProgram, Array]:
    """The program with bool masks, and its gates, checked."""
    if is_traced(program, gates):
        raise ValueError("solve_relu cannot be traced by jit, vmap or grad: the number of its steps is open")
    if not is_quadratic(program) or program.ridge is not None or targets_of(program).shape[1] != 1:
        raise ValueError(
            "program must have one output, the squared loss and no ridge for the ReLU network, got "
            f"{targets_of(program).shape[1]} output(s), loss {program.loss.name!r}"
            f"{'' if program.ridge is None else ', a ridge'}"
        )
    gates = check_gates(program, gates)
    return with_masks(program, activation_masks(program.x, gates)), gates


@jit_for_host
def _start(program: ConvexProgram, cones: Cones) -> _State:
    """Well inside of the cones, where their barrier and the norms balance."""
    terms = jnp.asarray(cones.num_terms, program.x.dtype)
    at_zero = program.primal_at_zero()
    weight = program.num_gates * terms / jnp.where(at_zero > 0, at_zero, 1.0)
    lengths = _START_SHARE * terms / (jnp.broadcast_to(thresholds_of(program), (program.num_gates,)) * weight)
    return _State(jnp.stack(2 * [lengths[:, None] * cones.directions]), weight)


@jit_for_host
def _step(
    program: ConvexProgram, cones: Cones, state: _State, best: _Certified, enough: ArrayLike
) -> tuple[_State, _Certified]:
    """A Newton step on F_t, its certificate, and a larger t where the step was short.

    Linearise: ∇F = ∇B − (±Xᵀ D_p R) and ∇²F = ∇²B + AᵀA, with the outputs A(v − u) and their residual R. Find the
    direction −(∇²F)⁻¹ ∇F, its length, and keep the better of the new certificate and the best one so far.
    """
    pair, weight = state
    barrier = cone_barrier(cones, pair, thresholds_of(program), weight)
    fit = datafit_of(program).fit(_outputs(program, pair))
    gradient = barrier.gradient - _signed_correlations(program, fit.residual)
    direction = _direction(program, barrier.hessian, gradient)
    slope = jnp.sum(gradient * direction)
    before = fit.loss + jnp.sum(barrier.value)
    pair = pair + _step_length(program, cones, state, direction, before, slope) * direction
    # The multipliers are those of the old point, moved to first order along the step.
    prices = next_multipliers(cones, barrier, direction, weight)
    found = _sparsest(program, cones, pair, prices, weight, enough)
    best = jax.tree.map(lambda new, old: jnp.where(found.gap < best.gap, new, old), found, best)
    return _State(pair, next_weight(weight, slope)), best


def _step_length(
    program: ConvexProgram, cones: Cones, state: _State, direction: Array, before: Array, slope: Array
) -> Float[Array, ""]:
    """Backtracking from near the cones' boundary by Armijo's rule, F(pair + s δ) ≤ F(pair) + 0.1 s ⟨∇F, δ⟩."""
    pair, weight = state

    def value(length: Array) -> Array:
        moved = pair + length * direction
        loss = datafit_of(program).fit(_outputs(program, moved)).loss
        return loss + jnp.sum(barrier_values(cones, moved, thresholds_of(program), weight))

    return armijo_length(value, before, slope, jnp.min(longest_step(cones, pair, direction)))


def _sparsest(
    program: ConvexProgram, cones: Cones, pair: Array, prices: Array, weight: Array, enough: ArrayLike
) -> _Certified:
    """The pair without the groups whose penalty is small beside their barrier's cost, up to what the gap allows.

    Interior points have no zeros; those groups are zero at the optimum, as far as the gap can tell.
    """
    penalties = thresholds_of(program) * jnp.linalg.norm(pair, axis=2)

    def without(multiple: Array) -> _Certified:
        small = penalties <= multiple * cones.num_terms / weight
        return _certify(program, cones, jnp.where(small[..., None], 0.0, pair), prices)

    candidates = lax.map(without, jnp.asarray(_ZERO_MULTIPLES, program.x.dtype))
    good = candidates.gap <= enough
    last = good.size - 1 - jnp.argmax(good[::-1])
    chosen = jnp.where(jnp.any(good), last, jnp.argmin(candidates.gap))
    return jax.tree.map(lambda leaves: leaves[chosen], candidates)


def _direction(program: ConvexProgram, hessian: Array, gradient: Array) -> Float[Array, "2 P d"]:
    """−(H + AᵀA)⁻¹ g with the groups' (2, P, d, d) own matrices H and the outputs A, by Woodbury's formula.

        (H + AᵀA)⁻¹ = H⁻¹ − H⁻¹Aᵀ (I + A H⁻¹ Aᵀ)⁻¹ A H⁻¹

    Near a cone's boundary the condition numbers of H reach the inverse of the dtype's resolution: the direction is
    refined once, by solving for its residual.
    """
    factors = _block_factors(hessian)
    kernel = _output_kernel(program, factors) + jnp.eye(program.x.shape[0], dtype=program.x.dtype)
    kernel_factor = (jnp.linalg.cholesky(kernel), True)

    def apply_inverse(right: Array) -> Array:
        return _solve_lower(factors, _solve_lower(factors, right[..., None]), transposed=True)[..., 0]

    def solve(right: Array) -> Array:
        start = apply_inverse(right)
        outputs = jsl.cho_solve(kernel_factor, datafit_of(program).remove_intercept(_outputs(program, start)))
        return start - apply_inverse(_signed_correlations(program, datafit_of(program).remove_intercept(outputs)))

    def apply(direction: Array) -> Array:
        own = einsum("spde,spe->spd", hessian, direction)
        return own + _signed_correlations(program, datafit_of(program).remove_intercept(_outputs(program, direction)))

    direction = -solve(gradient)
    return direction - solve(gradient + apply(direction))


def _block_factors(hessian: Array) -> Float[Array, "2 P d d"]:
    """Cholesky factors of the groups' matrices."""
    largest = jnp.max(jnp.abs(hessian), axis=(2, 3), keepdims=True)
    jitter = _JITTER_MULTIPLE * jnp.finfo(hessian.dtype).eps * largest
    return jnp.linalg.cholesky(hessian + jitter * jnp.eye(hessian.shape[2], dtype=hessian.dtype))


def _output_kernel(program: ConvexProgram, factors: Array) -> Float[Array, "n n"]:
    """A H⁻¹ Aᵀ = Σ_p D_p X H_p⁻¹ Xᵀ D_p, the product of features L_p⁻¹ Xᵀ D_p with themselves."""
    rows = jnp.broadcast_to(program.x.T, (*factors.shape[:2], *program.x.T.shape))
    features = _solve_lower(factors, rows).swapaxes(1, 3) * program.masks[None, :, None, :]  # (2, n, d, P)
    features = datafit_of(program).remove_intercept(jnp.moveaxis(features, 1, 0).reshape(program.x.shape[0], -1))
    return matmul(features, features.T)


def _solve_lower(lower: Array, right: Array, *, transposed: bool = False) -> Array:
    """L⁻¹ or L⁻ᵀ times columns, for each of the leading axes."""
    return lax.linalg.triangular_solve(lower, right, left_side=True, lower=True, transpose_a=transposed)


@jit_for_host
def _certify(program: ConvexProgram, cones: Cones, pair: Array, prices: Array) -> _Certified:
    """Primal and gap of a pair in the cones, with multipliers μ of the cones.

    The dual point is sR with s = min(1, min_p λτ_p / ‖±Xᵀ D_p R + Gᵀμ‖). The gap is the sum of the Fenchel–Young
    divergences of the loss and of penalty − s⟨±Xᵀ D_p R, (v, u)⟩.
    """
    fit = datafit_of(program).fit(_outputs(program, pair))
    correlations = _signed_correlations(program, fit.residual)
    thresholds = thresholds_of(program)
    norms = jnp.linalg.norm(pair, axis=2)
    bounds = jnp.linalg.norm(correlations + cones.adjoint(prices), axis=2)
    scale = 1 / jnp.maximum(1.0, jnp.max(bounds / thresholds))
    divergence = jnp.sum(program.loss.divergences(fit.outputs, targets_of(program), scale))
    penalty = jnp.sum(thresholds * norms)
    gap = divergence + (penalty - scale * jnp.sum(correlations * pair))
    gap = jnp.where(jnp.isfinite(gap), jnp.maximum(gap, 0), jnp.inf)
    return _Certified(pair, fit.intercept, fit.loss + penalty, gap)


def _outputs(program: ConvexProgram, pair: Array) -> Float[Array, "n 1"]:
    """Σ_p D_p X (v_p − u_p), without the intercept."""
    return masked_outputs(program, (pair[0] - pair[1])[:, :, None])


def _signed_correlations(program: ConvexProgram, residual: Array) -> Float[Array, "2 P d"]:
    """Xᵀ D_p R for v and its negative for u."""
    correlations = correlations_of(program, residual)[:, :, 0]
    return jnp.stack([correlations, -correlations])
