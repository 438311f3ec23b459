r"""Semismooth Newton on the dual augmented Lagrangian: second order, with a masked Gram matrix to factorise (M8).

With A the dual variable, W the multiplier, Z_p = Xᵀ D_p A and U_p = W_p + σ Z_p, each outer step minimises

.. math:: φ(A) = ½\|A\|² − ⟨Y, A⟩ + \tfrac{1}{2σ} \sum_p (\|U_p\| − σλ)_+^2

by Newton steps with Armijo's rule, then W ← prox(U) and σ grows. Every Newton step costs one masked Gram kernel of the
active groups, gathered into the smallest of a few fixed sizes that holds them, and one Cholesky factorisation. Li, Sun
and Toh (2018) for the lasso, Zhang, Zhang, Sun and Toh (2020) for the group lasso.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from fixntk.convex import fista
from fixntk.convex.irls import solve_kernel_ridge
from fixntk.convex.program import ConvexProgram, group_norms
from fixntk.gram import masked_gram, select_masks

# First-order steps before the first Newton step: they cost little and rid it of most groups.
_WARM_UP_STEPS = 60
# σ starts at this multiple of ‖W_p‖ / λ, which is what makes W_p and σ Z_p alike in size, and grows by the second.
_FIRST_SIGMA, _GROWTH = 30.0, 5.0
_SMALLEST_BUCKET = 32
# Newton steps without a smaller gap after which rounding must be the reason.
_PATIENCE = 25


class NewtonState(NamedTuple):
    """State of the semismooth Newton method.

    Attributes
    ----------
    weights
        (P, d, c) prox(U), the primal iterate with the smallest gap so far.
    primal, gap, objective, failed
        As for every method; the objective is the primal.
    multiplier
        (P, d, c) W of the augmented Lagrangian.
    theta, correlations
        (n, c) A and (P, d, c) Z.
    sigma
        σ; zero before the first-order steps.
    stalled
        Newton steps since the gap was last lowered.
    """

    weights: Float[Array, "P d c"]
    primal: Float[Array, ""]
    gap: Float[Array, ""]
    objective: Float[Array, ""]
    failed: Bool[Array, ""]
    multiplier: Float[Array, "P d c"]
    theta: Float[Array, "n c"]
    correlations: Float[Array, "P d c"]
    sigma: Float[Array, ""]
    stalled: Int[Array, ""]

    @property
    def kernel_weights(self) -> Float[Array, " P"]:
        """η_p = ‖W_p‖ (M5)."""
        return group_norms(self.weights)


class _Prox(NamedTuple):
    """prox of U, group by group: norms of U, shares c_p kept, and c_p U_p."""

    norms: Float[Array, " P"]
    kept: Float[Array, " P"]
    weights: Float[Array, "P d c"]


def init(program: ConvexProgram, weights: Array) -> NewtonState:
    """Start at rest from the given group weights, with the residual for A."""
    residual = program.targets - program.fitted(weights)
    correlations = program.correlations(residual)
    primal = program.primal_of(weights, residual)
    gap = program.gap_of(weights, residual, correlations)
    return NewtonState(
        weights=weights,
        primal=primal,
        gap=gap,
        objective=primal,
        failed=~jnp.isfinite(primal),
        multiplier=weights,
        theta=residual,
        correlations=correlations,
        sigma=jnp.zeros((), program.x.dtype),
        stalled=jnp.zeros((), jnp.int32),
    )


def step(program: ConvexProgram, state: NewtonState) -> NewtonState:
    """The first-order steps when it is the first, a Newton step else."""
    return lax.cond(state.sigma == 0, _warm_up, _newton_step, program, state)


def _warm_up(program: ConvexProgram, state: NewtonState) -> NewtonState:
    first_order = lax.fori_loop(
        0, _WARM_UP_STEPS, lambda _, s: fista.step(program, s), fista.init(program, state.weights)
    )
    weights, norms = first_order.weights, group_norms(first_order.weights)
    typical = jnp.sum(norms) / jnp.maximum(jnp.sum(norms > 0), 1)
    sigma = jnp.maximum(_FIRST_SIGMA * typical / program.reg, 1 / first_order.lipschitz)
    return state._replace(
        weights=weights,
        primal=first_order.primal,
        gap=first_order.gap,
        objective=first_order.primal,
        failed=first_order.failed,
        multiplier=weights,
        theta=program.targets - first_order.point.fitted,
        correlations=first_order.point.correlations,
        sigma=sigma,
    )


def _newton_step(program: ConvexProgram, state: NewtonState) -> NewtonState:
    shifted = state.multiplier + state.sigma * state.correlations
    prox = _shrunk(program, shifted, state.sigma)
    slope = state.theta - program.targets + program.fitted(prox.weights)
    direction = _direction(program, state.sigma, shifted, prox, slope)
    along = program.correlations(direction)
    length = _step_length(program, state, shifted, slope, direction, along)

    theta = state.theta + length * direction
    correlations = state.correlations + length * along
    prox = _shrunk(program, state.multiplier + state.sigma * correlations, state.sigma)
    residual = program.targets - program.fitted(prox.weights)
    primal = program.primal_of(prox.weights, residual)
    gap = program.gap_of(prox.weights, residual, program.correlations(residual))

    # A gradient shorter than the multiplier's own step: the inner problem is solved as well as it needs to be.
    moved = jnp.sqrt(jnp.sum((prox.weights - state.multiplier) ** 2)) / state.sigma
    solved = jnp.sqrt(jnp.sum((theta - residual) ** 2)) <= moved
    better = gap < state.gap
    stalled = jnp.where(better, 0, state.stalled + 1)
    return NewtonState(
        weights=jnp.where(better, prox.weights, state.weights),
        primal=jnp.where(better, primal, state.primal),
        gap=jnp.where(better, gap, state.gap),
        objective=jnp.where(better, primal, state.objective),
        failed=~jnp.all(jnp.isfinite(direction)) | (stalled > _PATIENCE),
        multiplier=jnp.where(solved, prox.weights, state.multiplier),
        theta=theta,
        correlations=correlations,
        sigma=jnp.where(solved, jnp.minimum(_GROWTH * state.sigma, _largest_sigma(program, prox)), state.sigma),
        stalled=stalled,
    )


def _shrunk(program: ConvexProgram, shifted: Array, sigma: Array) -> _Prox:
    norms, threshold = group_norms(shifted), sigma * program.reg
    kept = jnp.where(norms > threshold, 1 - threshold / jnp.where(norms > 0, norms, 1.0), 0.0)
    return _Prox(norms, kept, kept[:, None, None] * shifted)


def _largest_sigma(program: ConvexProgram, prox: _Prox) -> Array:
    """σ beyond which I + σ K(c) cannot be factorised in this dtype."""
    largest = jnp.sum(program.x**2) * jnp.sum(prox.kept) / program.x.shape[0]
    return 0.01 / (jnp.finfo(program.x.dtype).eps * jnp.maximum(largest, jnp.finfo(program.x.dtype).tiny))


def _step_length(
    program: ConvexProgram, state: NewtonState, shifted: Array, slope: Array, direction: Array, along: Array
) -> Array:
    """Armijo's rule by halving. φ along the direction needs inner products of groups alone, no product with masks."""
    sigma, threshold = state.sigma, state.sigma * program.reg
    quadratic = 0.5 * jnp.sum(direction**2)
    linear = jnp.sum((state.theta - program.targets) * direction)
    squares, mixed, steepness = (
        jnp.sum(one * two, axis=(1, 2)) for one, two in ((shifted, shifted), (shifted, along), (along, along))
    )

    def change(length: Array) -> Array:
        """φ(A + length·direction) − φ(A), group by group so that nothing large cancels."""
        before = jnp.sqrt(squares)
        after = jnp.sqrt(jnp.maximum(squares + 2 * length * sigma * mixed + (length * sigma) ** 2 * steepness, 0))
        over_before, over_after = jnp.maximum(before - threshold, 0), jnp.maximum(after - threshold, 0)
        hinge = jnp.sum((over_after - over_before) * (over_after + over_before)) / (2 * sigma)
        return length * linear + length**2 * quadratic + hinge

    expected = jnp.sum(slope * direction)
    # What rounding leaves of φ near its minimum must not stop the full step there.
    slack = 10 * jnp.finfo(program.x.dtype).eps * jnp.sum(program.targets**2)

    def too_long(length: Array) -> Array:
        return (change(length) > 1e-4 * length * expected + slack) & (length > 1e-6)

    return lax.while_loop(too_long, lambda length: 0.5 * length, jnp.ones((), program.x.dtype))


def _direction(program: ConvexProgram, sigma: Array, shifted: Array, prox: _Prox, slope: Array) -> Array:
    """−H⁻¹∇φ with H/σ = I/σ + K(c) + Σ_p s_p q_p q_pᵀ over the active groups, s_p = 1 − c_p (M8)."""
    num_rows, num_outputs = slope.shape
    active = prox.kept > 0
    count = jnp.sum(active)

    def solve(bucket: int) -> Array:
        chosen = jnp.nonzero(active, size=bucket, fill_value=0)[0]
        present = (jnp.arange(bucket) < count).astype(program.x.dtype)
        masks = select_masks(program.masks, chosen)
        kept, norms = present * prox.kept[chosen], prox.norms[chosen]
        units = shifted[chosen] / jnp.where(norms > 0, norms, 1.0)[:, None, None]
        kernel = masked_gram(kept, masks, program.x)
        rays = jnp.einsum("nd,pdc->ncp", program.x, units, precision=lax.Precision.HIGHEST) * masks[:, None, :]
        rays = rays.reshape(num_rows * num_outputs, bucket)
        matrix = jnp.kron(kernel, jnp.eye(num_outputs, dtype=kernel.dtype)) if num_outputs > 1 else kernel
        matrix += jnp.matmul(rays * (present * (1 - prox.kept[chosen])), rays.T, precision=lax.Precision.HIGHEST)
        return -solve_kernel_ridge(matrix, 1 / sigma, slope.reshape(-1, 1) / sigma).reshape(slope.shape)

    buckets = _buckets(program.num_gates)
    fits = jnp.searchsorted(jnp.asarray(buckets), count)
    return lax.switch(fits, [lambda bucket=bucket: solve(bucket) for bucket in buckets])


def _buckets(num_gates: int) -> list[int]:
    """Sizes to which active groups are padded: each about 1.4 times the one before, the last all gates."""
    sizes, size = [], _SMALLEST_BUCKET
    while size < num_gates:
        sizes += [size, size * 3 // 2]
        size *= 2
    return [size for size in sizes if size < num_gates] + [num_gates]
