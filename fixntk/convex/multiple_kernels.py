"""Multiple kernel learning over given kernel matrices, such as the layers' shares of a network's NTK."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from fixntk._checks import as_float_array, as_positive_int, describe_fields, is_traced, is_tracing
from fixntk._compilation import jit_for_host
from fixntk._numerics import ConvergenceWarning, allow_float64, blas_threads_for, default_tol, matmul, with_dtype
from fixntk._tiling import memory_for
from fixntk.convex.kernel_criteria import check_shapes
from fixntk.convex.kernel_interior_point import KernelPoint, KernelProblem, PathState, follow_path, is_idle
from fixntk.convex.progress import describe, keep_result, progress_bar

# Multiple of the dtype's resolution, relative to the largest entry, by which a kernel may be asymmetric or indefinite.
_KERNEL_SLACK = 1e3
# Copies of all kernels that are in memory at a time: transposed for a product.
_NUM_KERNEL_COPIES = 1
# Matrices of the size of one kernel that are in memory at a time: the sum of all, its factors, and copies of these.
_NUM_FACTORS = 9


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class KernelSolution:
    """Optimal weights of given kernels, with their certificate.

    Attributes
    ----------
    kernel_weights
        (m,) η ≥ 0.
    dual_weights
        (n, c) A, with (Σ_k η_k K_k + λI) A = Y.
    primal, dual
        Objective J(η) of the weights, and a lower bound on the objective of any weights.
    gap, relative_gap
        primal − dual, evaluated without cancellation, and its share of ½‖Y‖².
    iterations
        Newton steps made.
    converged
        Whether the relative gap is at most the tolerance.
    failed
        Whether rounding error stopped the solver above the tolerance.
    tol
        Tolerance of the relative gap.
    squeeze
        Whether the targets, and so the predictions, have shape (n,).

    See docs/mathematics.md, M5 and M7.
    """

    kernel_weights: Float[Array, "*batch m"]
    dual_weights: Float[Array, "*batch n c"]
    primal: Float[Array, "*batch"]
    dual: Float[Array, "*batch"]
    gap: Float[Array, "*batch"]
    relative_gap: Float[Array, "*batch"]
    iterations: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    failed: Bool[Array, "*batch"]
    tol: float = field(metadata={"static": True})
    squeeze: bool = field(metadata={"static": True})

    def __repr__(self) -> str:
        if is_traced(self.relative_gap) or jnp.ndim(self.relative_gap):
            return describe_fields("KernelSolution", kernel_weights=self.kernel_weights)
        num_active = int(np.sum(np.asarray(self.kernel_weights) > 0))
        return f"KernelSolution({self.message}; {num_active} of {self.kernel_weights.shape[0]} kernels in use)"

    @property
    def message(self) -> str:
        """One sentence that says why the solver stopped; not under ``jit`` and ``vmap``."""
        state = f"relative gap {float(self.relative_gap):.2e} after {int(self.iterations)} iterations"
        if bool(self.converged):
            return f"solve_kernels converged: {state}, within tol={self.tol:.1e}"
        if bool(self.failed):
            end = "limited by rounding error at this reg; raise tol or reg"
        else:
            end = "max_iter was reached; raise it or tol"
        return f"solve_kernels stopped early: {state}, above tol={self.tol:.1e}; {end}"

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
        return predict_with_mixture(kernels, self.kernel_weights, self.dual_weights, self.squeeze)


def predict_with_mixture(kernels: ArrayLike, kernel_weights: Array, dual_weights: Array, squeeze: bool) -> Array:
    """Outputs Σ_k η_k K_k A of kernels (m, n_new, n) between new inputs and those of training.

    Raises
    ------
    ValueError
        If the shape does not fit.
    """
    kernels = as_float_array("kernels", kernels, (3,))
    expected = (kernel_weights.shape[0], kernels.shape[1], dual_weights.shape[0])
    if kernels.shape != expected:
        raise ValueError(f"kernels must have shape {expected}, got {kernels.shape}")
    outputs = matmul(jnp.tensordot(kernel_weights, kernels, 1), dual_weights)
    return outputs[:, 0] if squeeze else outputs


def solve_kernels(
    kernels: ArrayLike,
    y: ArrayLike,
    reg: ArrayLike,
    *,
    penalty_weights: ArrayLike | None = None,
    tol: float | None = None,
    max_iter: int = 100,
    progress: bool = False,
) -> KernelSolution:
    r"""Learn the weights of given kernels with the ridge regression in their sum: multiple kernel learning.

    .. math:: \min_{f_k ∈ H_k} ½\|Σ_k f_k - Y\|^2 + λ Σ_k τ_k \|f_k\|_{H_k}
        = \min_{η ≥ 0} \tfrac{λ}{2} \mathrm{tr}\, Y^⊤(Σ_k η_k K_k + λI)^{-1} Y + \tfrac{λ}{2} Σ_k τ_k^2 η_k

    With the masked Gram kernels D_p X Xᵀ D_p it is the convex program of :class:`~fixntk.ConvexProgram`. Here the
    kernels may be any: the layers' shares of a network's NTK (:func:`~fixntk.layerwise_ntk`), kernels of several
    depths, widths or views of the data, dependent or of different scales. An interior-point method finds the m weights
    in 5 to 25 Newton steps, each of which costs two Cholesky factorisations of n × n, m c solves, and one factorisation
    of m × m. Works under ``jit`` and ``vmap``.

    Computes in float64 whatever the dtype of the kernels, in which the result comes back; under ``jit`` and ``vmap`` in
    their own dtype, where float32 certifies 1e-4 for λ down to about 0.001 of that from which the solution is zero.

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
        Relative gap to reach, as a share of ½‖Y‖². None is 1e-6 in float64 and 1e-4 in float32.
    max_iter
        Largest number of Newton steps.
    progress
        Show a bar with steps, gap and kernels in use. Not under ``jit`` and ``vmap``.

    Returns
    -------
    KernelSolution
        Weights that are zero within the tolerance are exactly zero.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, a kernel is not symmetric or has a negative eigenvalue beyond
        rounding error, λ or τ is not positive, or ``tol`` is not.
    OutOfMemoryError
        If memory does not suffice; a ValueError too.
    Interrupted
        A KeyboardInterrupt with the KernelSolution reached so far as ``result``, on Ctrl-C with ``progress``.

    Warns
    -----
    ConvergenceWarning
        If the relative gap is above ``tol`` at the end; not under ``jit`` and ``vmap``.

    References
    ----------
    Nesterov, Nemirovskii, "Interior-point polynomial algorithms in convex programming", 1994, for the barrier; Wächter,
    Biegler, "On the implementation of an interior-point filter line-search algorithm for large-scale nonlinear
    programming", Math. Program. 106, 2006, for the rule by which μ falls.

    Examples
    --------
    One of two kernels has nothing to do with the targets:

    >>> import jax.numpy as jnp, fixntk as fx
    >>> x, noise = jnp.array([1.0, -2.0, 3.0]), jnp.array([1.0, 1.0, -1.0])
    >>> solution = fx.solve_kernels(jnp.stack([jnp.outer(x, x), jnp.outer(noise, noise)]), 2 * x, reg=5.0)
    >>> print(solution.kernel_weights.round(1))
    [1.6 0. ]

    See docs/mathematics.md, M5 and M7.
    """
    problem, squeeze = _as_problem(kernels, y, reg, penalty_weights)
    dtype = problem.targets.dtype
    tol = default_tol(dtype) if tol is None else float(tol)
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}")
    max_iter = as_positive_int("max_iter", max_iter)
    if is_tracing(problem):
        if progress:
            raise ValueError("progress needs the host: not under jit or vmap")
        found = _as_fields(problem, *follow_path(problem, tol, max_iter), tol)
        return KernelSolution(**found, tol=tol, squeeze=squeeze)
    bar = progress_bar("solve_kernels", total=max_iter, shown=progress)
    with _memory_for(problem.kernels), allow_float64(), blas_threads_for(problem.kernels.shape[1]), bar as show:
        problem, last = with_dtype(problem, jnp.float64), None

        def watch(state: PathState) -> None:
            nonlocal last
            last = state
            num_active = int(np.sum(np.asarray(state.best.shares) > 0))
            show(int(state.iterations), describe(float(state.best.relative_gap), num_active))

        def as_solution(point: KernelPoint, state: PathState) -> KernelSolution:
            found = with_dtype(_as_fields(problem, point, state, tol), dtype)
            return KernelSolution(**found, tol=tol, squeeze=squeeze)

        with keep_result(lambda: None if last is None else as_solution(last.best, last), is_watched=progress):
            point, state = follow_path(problem, tol, max_iter, watch if progress else None)
        solution = as_solution(point, state)
    if not bool(solution.converged):
        warnings.warn(solution.message, ConvergenceWarning, stacklevel=2)
    return solution


def _as_problem(
    kernels: ArrayLike, y: ArrayLike, reg: ArrayLike, penalty_weights: ArrayLike | None
) -> tuple[KernelProblem, bool]:
    """The checked problem, and whether the targets have shape (n,)."""
    kernels, y = as_float_array("kernels", kernels, (3,)), as_float_array("y", y, (1, 2))
    check_shapes(kernels, y)
    m = kernels.shape[0]
    reg = as_float_array("reg", reg, (0,))
    weights = as_float_array("penalty_weights", np.ones(m) if penalty_weights is None else penalty_weights, (1,))
    if weights.shape != (m,):
        raise ValueError(f"penalty_weights must have shape ({m},), got {weights.shape}")
    for name, values in (("reg", reg), ("penalty_weights", weights)):
        with jax.ensure_compile_time_eval():
            if not is_traced(values) and not bool(jnp.all(values > 0)):
                raise ValueError(f"{name} must be positive, got {values}")
    if not is_traced(kernels):
        with jax.ensure_compile_time_eval(), _memory_for(kernels):
            check_kernels(kernels)
    targets = y[:, None] if y.ndim == 1 else y
    dtype = jnp.result_type(kernels, y)
    return with_dtype(KernelProblem(kernels, targets, reg, weights), dtype), y.ndim == 1


def _memory_for(kernels: Array) -> AbstractContextManager[Any]:
    """The memory for kernels in float64, for their products, and for factors of their sum."""
    m, n = kernels.shape[:2]
    num_copies = _NUM_KERNEL_COPIES + (kernels.dtype != jnp.float64)
    needed = (num_copies * m + _NUM_FACTORS) * n**2 * jnp.dtype(jnp.float64).itemsize
    return memory_for(f"solve_kernels on {m} kernels of {n}×{n}", needed, "take fewer kernels, or rows", kernels)


def check_kernels(kernels: Array) -> None:
    """Raise ValueError if a kernel is not symmetric or not positive semi-definite, beyond rounding error."""
    # A kernel computed in float32 is symmetric and semi-definite only to that dtype's rounding error.
    allowed = _KERNEL_SLACK * float(jnp.finfo(kernels.dtype).eps)
    with allow_float64():
        doubles = kernels.astype(jnp.float64)
        # A loop on the host: JAX below 0.7 compiles none of its own where compile-time evaluation is asked for.
        defects = jax.device_get([_kernel_defects(doubles, k, allowed) for k in range(kernels.shape[0])])
    for k, (skew, is_definite) in enumerate(defects):
        if skew > allowed:
            raise ValueError(
                f"kernels[{k}] must be symmetric, but it differs from its transpose by {skew:.1e} of its largest entry"
                f"{_hint_of_dtype(float(skew), kernels.dtype)}"
            )
        if not is_definite:
            kernel = np.asarray(kernels[k], np.float64)
            least, largest = np.linalg.eigvalsh(kernel)[0], np.abs(kernel).max()
            raise ValueError(
                f"kernels[{k}] must be positive semi-definite, its smallest eigenvalue is {least:.3g}, which is beyond"
                f" rounding error in {kernels.dtype} (its largest entry is {largest:.3g})"
                f"{_hint_of_dtype(float(-least / largest), kernels.dtype)}"
            )


def _hint_of_dtype(defect: float, dtype: Any) -> str:
    """What to do about a kernel in float64 whose defect, as a share of its largest entry, is rounding of float32."""
    if dtype != jnp.float64 or defect > _KERNEL_SLACK * float(jnp.finfo(jnp.float32).eps):
        return ""
    return "; if it was computed in float32, as where a network's parameters are, pass all kernels in float32"


@jit_for_host
def _kernel_defects(kernels: Array, k: ArrayLike, allowed: ArrayLike) -> tuple[Array, Array]:
    """Asymmetry of kernel k as a share of its largest entry, and whether it is positive semi-definite."""
    kernel = lax.dynamic_index_in_dim(kernels, k, keepdims=False)
    largest = jnp.max(jnp.abs(kernel))
    unit = kernel / jnp.where(largest > 0, largest, 1.0)
    # A Cholesky factor exists for a positive definite matrix alone, at a tenth of an eigenvalue's cost.
    factor = jnp.linalg.cholesky(unit + allowed * jnp.eye(kernel.shape[0], dtype=kernel.dtype))
    return jnp.max(jnp.abs(unit - unit.T)), jnp.all(jnp.isfinite(factor))


@jit_for_host
def _as_fields(problem: KernelProblem, best: KernelPoint, state: PathState, tol: ArrayLike) -> dict[str, Array]:
    """The fields of a KernelSolution."""
    # The interior-point method works on targets of length one: its objective is a share of ½‖Y‖².
    half_square = 0.5 * problem.square
    primal, gap = half_square * best.objective, half_square * best.relative_gap
    converged = best.relative_gap <= tol
    return {
        "kernel_weights": problem.units * best.shares,
        "dual_weights": best.dual_weights,
        "primal": primal,
        "dual": primal - gap,
        "gap": gap,
        "relative_gap": best.relative_gap,
        "iterations": state.iterations,
        "converged": converged,
        "failed": ~converged & is_idle(state),
    }
