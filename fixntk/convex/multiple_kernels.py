"""Multiple kernel learning over given kernel matrices, such as a network's NTK layer by layer (M5, M7)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from fixntk._checks import as_float_array, as_positive_int, is_traced
from fixntk._numerics import einsum, matmul, safe_sqrt
from fixntk._warnings import ConvergenceWarning

# Of the line search: each step is halved at most so often, and lowers J by this share of what its slope promises.
_HALVINGS, _SHARE = 30, 1e-4


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["kernel_weights", "dual_weights", "primal", "dual", "gap", "relative_gap", "iterations", "converged"],
    meta_fields=["squeeze"],
)
@dataclass(frozen=True, eq=False)
class KernelSolution:
    """Optimal weights of given kernels, with their certificate (M7).

    Attributes
    ----------
    kernel_weights
        (m,) η ≥ 0.
    dual_weights
        (n, c) A, with (Σ_k η_k K_k + λI) A = Y.
    primal, dual
        Objective J(η) of the weights, and the lower bound on that of any weights that comes with it.
    gap, relative_gap
        primal − dual, evaluated without cancellation, and its share of ½‖Y‖².
    iterations
        Newton steps made.
    converged
        Whether the relative gap is at most the tolerance.
    squeeze
        Whether the targets, and so the predictions, have shape (n,).
    """

    kernel_weights: Float[Array, " m"]
    dual_weights: Float[Array, "n c"]
    primal: Float[Array, ""]
    dual: Float[Array, ""]
    gap: Float[Array, ""]
    relative_gap: Float[Array, ""]
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]
    squeeze: bool

    def predict(self, kernels: ArrayLike) -> Array:
        """Outputs Σ_k η_k K_k A on new inputs, (n_new,) or (n_new, c), like the targets.

        Parameters
        ----------
        kernels
            (m, n_new, n), each kernel between the new inputs and those of training, in the same order.

        Raises
        ------
        ValueError
            If the shape does not fit.
        """
        kernels = as_float_array("kernels", kernels, (3,))
        expected = (self.kernel_weights.shape[0], kernels.shape[1], self.dual_weights.shape[0])
        if kernels.shape != expected:
            raise ValueError(f"kernels must have shape {expected}, got {kernels.shape}")
        outputs = matmul(jnp.tensordot(self.kernel_weights, kernels, 1), self.dual_weights)
        return outputs[:, 0] if self.squeeze else outputs


class _State(NamedTuple):
    kernel_weights: Array
    dual_weights: Array
    images: Array  # (m, n, c) K_k A
    factor: Array  # of Σ_k η_k K_k + λI
    value: Array  # J
    gap: Array
    iterations: Array
    stuck: Array


def solve_kernels(
    kernels: ArrayLike,
    y: ArrayLike,
    reg: ArrayLike,
    *,
    penalty_weights: ArrayLike | None = None,
    tol: float | None = None,
    max_iter: int = 50,
) -> KernelSolution:
    r"""Learn the weights of given kernels with the ridge regression in their sum: multiple kernel learning (M5).

    .. math:: \min_{f_k ∈ H_k} ½\|Σ_k f_k - Y\|^2 + λ Σ_k τ_k \|f_k\|_{H_k}
        = \min_{η ≥ 0} \tfrac{λ}{2} \mathrm{tr}\, Y^⊤(Σ_k η_k K_k + λI)^{-1} Y + \tfrac{λ}{2} Σ_k τ_k^2 η_k

    With the masked Gram kernels D_p X Xᵀ D_p it is the convex program of :class:`~fixntk.ConvexProgram`. Here the
    kernels may be any, as long as they are few: the layers' shares of a network's NTK (:func:`~fixntk.layerwise_ntk`),
    kernels of several depths, widths or views of the data. The m weights are found by projected Newton on the second
    form, where a step costs a Cholesky factorisation and m c solves. Works under ``jit`` and ``vmap``.

    Parameters
    ----------
    kernels
        (m, n, n) symmetric positive semi-definite. All are kept: m n² numbers.
    y
        (n,) or (n, c) targets, which share the weights.
    reg
        λ > 0. From max_k (tr YᵀK_kY)^½ / τ_k on the solution is zero.
    penalty_weights
        (m,) τ > 0; ones when None. (tr K_k)^½ makes kernels of different scales comparable.
    tol
        Relative gap to reach, as a share of ½‖Y‖². None is 1e-6 in float64, and 2e-3 in float32, whose certificate
        has rounding errors of up to 1e-3, as the processor has it.
    max_iter
        Largest number of Newton steps.

    Returns
    -------
    KernelSolution

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, a kernel is not symmetric, λ or τ is not positive, or ``tol`` is
        not.

    Warns
    -----
    ConvergenceWarning
        If the relative gap is above ``tol`` at the end; not under ``jit`` and ``vmap``.

    References
    ----------
    Bertsekas, "Projected Newton methods for optimization problems with simple constraints", SIAM J. Control 20, 1982,
    for the method.

    Examples
    --------
    One of two kernels has nothing to do with the targets:

    >>> import jax.numpy as jnp, fixntk as fx
    >>> x, noise = jnp.array([1.0, -2.0, 3.0]), jnp.array([1.0, 1.0, -1.0])
    >>> solution = fx.solve_kernels(jnp.stack([jnp.outer(x, x), jnp.outer(noise, noise)]), 2 * x, reg=5.0)
    >>> print(solution.kernel_weights.round(1))
    [1.6 0. ]
    """
    kernels, y = as_float_array("kernels", kernels, (3,)), as_float_array("y", y, (1, 2))
    m, n = kernels.shape[:2]
    if kernels.shape != (m, n, n) or y.shape[0] != n:
        raise ValueError(f"kernels must be (m, n, n) for y of n rows, got shapes {kernels.shape} and {y.shape}")
    dtype = jnp.result_type(kernels, y)
    reg = as_float_array("reg", reg, (0,)).astype(dtype)
    weights = as_float_array("penalty_weights", np.ones(m) if penalty_weights is None else penalty_weights, (1,))
    if weights.shape != (m,):
        raise ValueError(f"penalty_weights must have shape ({m},), got {weights.shape}")
    for name, values in (("reg", reg), ("penalty_weights", weights)):
        with jax.ensure_compile_time_eval():
            if not is_traced(values) and not bool(jnp.all(values > 0)):
                raise ValueError(f"{name} must be positive, got {values}")
    if tol is None:
        tol = 1e-6 if dtype == jnp.float64 else 2e-3
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}")
    if not is_traced(kernels):
        with jax.ensure_compile_time_eval():
            _check_symmetric(kernels)
    targets = (y[:, None] if y.ndim == 1 else y).astype(dtype)
    steps = as_positive_int("max_iter", max_iter)
    solution = _solve(kernels.astype(dtype), targets, reg, weights.astype(dtype), tol, steps, y.ndim == 1)
    if not is_traced(solution) and not bool(solution.converged):
        warnings.warn(
            f"solve_kernels stopped early: relative gap {float(solution.relative_gap):.2e} after "
            f"{int(solution.iterations)} steps in {dtype}, above tol={tol:.1e}",
            ConvergenceWarning,
            stacklevel=2,
        )
    return solution


def _check_symmetric(kernels: Array) -> None:
    largest = jnp.max(jnp.abs(kernels), axis=(1, 2))
    skew = jnp.max(jnp.abs(kernels - kernels.mT), axis=(1, 2)) / jnp.maximum(largest, jnp.finfo(kernels.dtype).tiny)
    allowed = 1e3 * jnp.finfo(kernels.dtype).eps
    if bool(jnp.any(skew > allowed)):
        worst = int(jnp.argmax(skew))
        raise ValueError(
            f"kernels[{worst}] must be symmetric, it is not by {float(skew[worst]):.1e} of its largest entry"
        )


@partial(jax.jit, static_argnames=("tol", "max_iter", "squeeze"))
def _solve(
    kernels: Array, targets: Array, reg: Array, tau: Array, tol: float, max_iter: int, squeeze: bool
) -> KernelSolution:
    half_square = 0.5 * jnp.sum(targets**2)
    identity = jnp.eye(targets.shape[0], dtype=targets.dtype)

    def value_at(eta: Array) -> tuple[Array, Array, Array]:
        factor = jnp.linalg.cholesky(jnp.tensordot(eta, kernels, 1) + reg * identity)
        solved = jsl.cho_solve((factor, True), targets)
        return 0.5 * reg * (jnp.sum(solved * targets) + jnp.sum(tau**2 * eta)), solved, factor

    def certified(eta: Array, solved: Array) -> tuple[Array, Array, Array]:
        """J(η), its gap, and K_k A, by the functions η_k K_k A, whatever A is."""
        images = einsum("kij,jc->kic", kernels, solved)
        parts = eta[:, None, None] * images
        residual = targets - jnp.sum(parts, axis=0)
        slopes = safe_sqrt(jnp.einsum("ic,kic->k", solved, images))  # ‖f_k‖ / η_k
        norms = eta * slopes
        of_residual = einsum("kij,jc->kic", kernels, residual)
        correlations = safe_sqrt(jnp.einsum("ic,kic->k", residual, of_residual))
        worst = jnp.max(correlations / (reg * tau))
        scale = jnp.where(worst > 1, 1 / worst, 1.0)
        square = 0.5 * jnp.sum(residual**2)
        # J(η) is above the objective of the functions by so much.
        excess = 0.5 * reg * jnp.sum(eta * (slopes - tau) ** 2)
        shares = reg * tau * norms - scale * jnp.einsum("ic,kic->k", residual, parts)
        # Rounding alone makes a share negative.
        gap = (1 - scale) ** 2 * square + jnp.sum(jnp.maximum(shares, 0)) + excess
        return square + reg * jnp.sum(tau * norms) + excess, gap, images

    def state_at(eta: Array, iterations: Array) -> _State:
        value, solved, factor = value_at(eta)
        _, gap, images = certified(eta, solved)
        return _State(eta, solved, images, factor, value, gap, iterations, jnp.asarray(False))

    def step(state: _State) -> _State:
        eta = state.kernel_weights
        m = eta.shape[0]
        gradient = 0.5 * reg * (tau**2 - jnp.einsum("ic,kic->k", state.dual_weights, state.images))
        flat = jnp.moveaxis(state.images, 0, 1).reshape(targets.shape[0], -1)
        solved = jsl.cho_solve((state.factor, True), flat).reshape(targets.shape[0], m, -1)
        hessian = reg * einsum("kic,ilc->kl", state.images, solved)
        # In units in which the diagonal is one; the kernels' scales may differ by orders.
        unit = 1 / jnp.sqrt(jnp.maximum(jnp.diagonal(hessian), jnp.finfo(eta.dtype).tiny))
        fixed = (eta <= 0) & (gradient > 0)
        free = jnp.where(fixed, 0.0, unit)
        scaled = free[:, None] * hessian * free + jnp.diag(jnp.where(fixed, 1.0, 10 * jnp.finfo(eta.dtype).eps))
        direction = -free * jnp.linalg.solve(scaled, free * gradient)

        def moved(length: Array) -> Array:
            return jnp.maximum(eta + length * direction, 0.0)

        def too_long(trial: tuple[Array, Array, Array]) -> Array:
            halvings, length, value = trial
            promised = _SHARE * gradient @ (moved(length) - eta)
            return (halvings < _HALVINGS) & ~(value <= state.value + promised)

        def halved(trial: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            halvings, length, _ = trial
            return halvings + 1, 0.5 * length, value_at(moved(0.5 * length))[0]

        one = jnp.ones_like(reg)
        halvings, length, _ = lax.while_loop(too_long, halved, (jnp.asarray(0), one, value_at(moved(one))[0]))
        failed = halvings >= _HALVINGS
        # Where rounding hides how J changes, the whole step may still lower the gap.
        following = state_at(moved(jnp.where(failed, one, length)), state.iterations + 1)
        stuck = failed & ~(following.gap < state.gap)
        return jax.tree.map(partial(jnp.where, stuck), state._replace(stuck=stuck), following)

    def unfinished(state: _State) -> Array:
        return (state.gap > tol * half_square) & (state.iterations < max_iter) & ~state.stuck

    # Optimal for a single kernel that is a multiple of the identity, whatever the units of kernels and targets.
    sizes = jnp.trace(kernels, axis1=1, axis2=2) / targets.shape[0]
    scales = jnp.maximum(jnp.sqrt(2 * half_square * jnp.maximum(sizes, 0)) / tau, reg) / kernels.shape[0]
    start = jnp.where(sizes > 0, scales / jnp.where(sizes > 0, sizes, 1.0), 0.0)
    state = lax.while_loop(unfinished, step, state_at(start, jnp.asarray(0)))
    primal, gap, _ = certified(state.kernel_weights, state.dual_weights)
    relative_gap = gap / jnp.where(half_square > 0, half_square, 1.0)
    return KernelSolution(
        state.kernel_weights,
        state.dual_weights,
        primal,
        primal - gap,
        gap,
        relative_gap,
        state.iterations,
        relative_gap <= tol,
        squeeze,
    )
