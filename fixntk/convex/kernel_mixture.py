"""Weights of given kernels by the training objective, by the leave-one-out error, or by the alignment risk.

See docs/mathematics.md, M5 and M15.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float
from scipy.optimize import OptimizeResult, minimize

from fixntk._checks import as_float_array, as_positive_int, is_traced
from fixntk._compilation import jit_for_host
from fixntk._numerics import (
    ConvergenceWarning,
    allow_float64,
    blas_threads_for,
    eps_of,
    ignore_convergence_warnings,
    matmul,
    with_dtype,
)
from fixntk._tiling import memory_for
from fixntk.convex.kernel_criteria import alignment_risk, as_mixture, check_shapes, inverse_of_mixture, leave_one_out
from fixntk.convex.multiple_kernels import check_kernels, predict_with_mixture, solve_kernels

Criterion = Literal["leave_one_out", "kare", "objective"]

_CRITERIA = {"leave_one_out": leave_one_out, "kare": alignment_risk}
# Largest bound on |log η| in the search.
_LARGEST_LOG = 18.0
# Number of scales of the kernels' sum from which the search starts.
_NUM_STARTS = 13
# Values of λ, as shares of the one from which all weights are zero, among which the leave-one-out error chooses.
_REG_SHARES = tuple(10.0 ** (-k / 2) for k in range(1, 10))
# The search ends at this largest entry of the gradient of the criterion's logarithm.
_GRADIENT_TOL = 1e-6
# The search also ends where a step lowers the criterion's logarithm by less than this share.
_VALUE_TOL = 1e-12
# The search has converged if no entry of that gradient is larger than this, even if rounding error has ended it.
_CONVERGED_GRADIENT = 1e-4
# Number of copies of all kernels that are in memory at a time.
_NUM_KERNEL_COPIES = 3
# Number of other matrices of the size of one kernel that are in memory at a time.
_NUM_MATRICES = 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class KernelMixture:
    """Learnt weights of given kernels, with the ridge regression in their sum.

    Attributes
    ----------
    kernel_weights
        (m,) η ≥ 0.
    dual_weights
        (n, c) A, with (Σ_k η_k K_k + λI) A = Y.
    reg
        λ.
    value
        The criterion at these weights.
    value_of_sum
        The criterion of the sum of all kernels at its best scale, such as the NTK that the layers' shares make.
    relative_gap
        Certified bound on the distance from the optimum as a share of ½‖Y‖², of the criterion "objective"; NaN for the
        others, which are not convex: their weights are a local minimum.
    converged
        Whether the solver or the search reached its tolerance.
    criterion
        Its name.
    squeeze
        Whether the targets, and so the predictions, have shape (n,).

    See docs/mathematics.md, M5 and M15.
    """

    kernel_weights: Float[Array, " m"]
    dual_weights: Float[Array, "n c"]
    reg: Float[Array, ""]
    value: Float[Array, ""]
    value_of_sum: Float[Array, ""]
    relative_gap: Float[Array, ""]
    converged: bool = field(metadata={"static": True})
    criterion: str = field(metadata={"static": True})
    squeeze: bool = field(metadata={"static": True})

    def __repr__(self) -> str:
        if is_traced(self.value):
            return f"KernelMixture({self.criterion})"
        gap = f"relative gap {float(self.relative_gap):.1e}" if self.criterion == "objective" else "local minimum"
        values = f"{self.criterion} {float(self.value):.4g}, of the sum of the kernels {float(self.value_of_sum):.4g}"
        return f"KernelMixture({values}; {gap}; {self.kernel_weights.shape[0]} kernels)"

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


def mix_kernels(
    kernels: ArrayLike,
    y: ArrayLike,
    *,
    criterion: Criterion = "leave_one_out",
    reg: ArrayLike | None = None,
    max_iter: int = 200,
) -> KernelMixture:
    """Learn the weights of a few kernels, by an estimate of the error on fresh rows or by the training objective.

    Computes in float64, whatever the dtype of the kernels, in which the result comes back. Not under ``jit``; the
    criteria themselves are differentiable functions, :func:`leave_one_out_error` and :func:`kernel_alignment_risk`.

    Parameters
    ----------
    kernels
        (m, n, n) symmetric positive semi-definite. Their scales do not matter.
    y
        (n,) or (n, c) targets, which share the weights. There is no intercept: subtract the mean.
    criterion
        ``"leave_one_out"``: the error of each row's prediction from all others. ``"kare"``: the Kernel Alignment Risk
        Estimator. Both are minimised over log η by L-BFGS, from the sum of the kernels and from kernels of equal traces
        at their best scales: a local minimum without a certificate, no worse than the sum but for kernels whose scales
        are further apart than the bounds of the search.
        ``"objective"``: the training objective of :func:`solve_kernels` with penalties of unit trace, which is convex
        and certified, and sets weights to zero.
    reg
        λ > 0. The first two criteria depend on η/λ alone, so that λ only sets the unit of η: 1 when None. For the third
        it is the regularisation; when None, the leave-one-out error chooses among nine shares of the smallest λ at
        which all weights are zero.
    max_iter
        Largest number of iterations of L-BFGS, or Newton steps for each λ.

    Returns
    -------
    KernelMixture
        With the criterion's value for the sum of the kernels, to see what the weights gain.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, a kernel has no positive trace, λ is not positive, the targets are
        zero, or arrays are traced.
    OutOfMemoryError
        If memory does not suffice; a ValueError too.

    Warns
    -----
    ConvergenceWarning
        If the solver or the search stopped before its tolerance.

    References
    ----------
    Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", Math. Program. 45, 1989, in
    SciPy; for the criteria see their functions.

    Examples
    --------
    Of a wide and a narrow kernel, the smooth targets have use for the wide one:

    >>> import jax.numpy as jnp, fixntk as fx
    >>> x = jnp.linspace(-1, 1, 20)
    >>> squares = (x[:, None] - x) ** 2
    >>> kernels = jnp.stack([jnp.exp(-squares), jnp.exp(-100 * squares)])
    >>> print(fx.mix_kernels(kernels, jnp.sin(3 * x) + 0.1 * jnp.cos(40 * x)))
    KernelMixture(leave_one_out 0.007685, of the sum of the kernels 0.04154; local minimum; 2 kernels)

    See docs/mathematics.md, M5 and M15.
    """
    names = (*_CRITERIA, "objective")
    if criterion not in names:
        raise ValueError(f"criterion must be one of {', '.join(map(repr, names))}, got {criterion!r}")
    kernels, y = as_float_array("kernels", kernels, (3,)), as_float_array("y", y, (1, 2))
    if is_traced(kernels, y, reg):
        raise ValueError("mix_kernels cannot be traced: under jit use the criteria, such as leave_one_out_error")
    check_shapes(kernels, y)
    max_iter, dtype = as_positive_int("max_iter", max_iter), jnp.result_type(kernels, y)
    m, n = kernels.shape[:2]
    needed = (_NUM_KERNEL_COPIES * m + _NUM_MATRICES) * n**2 * jnp.dtype(jnp.float64).itemsize
    memory = memory_for(f"mix_kernels on {m} kernels of {n}×{n}", needed, "take fewer kernels, or rows", kernels)
    check_kernels(kernels)
    with memory, allow_float64(), blas_threads_for(n):
        problem = _as_problem(kernels, y, reg)
        find = _find_by_objective if criterion == "objective" else partial(_find_by_search, criterion)
        found, converged = find(problem, max_iter)
        inverse = inverse_of_mixture(problem.kernels, found["kernel_weights"], found["reg"])
        found["dual_weights"] = matmul(inverse, problem.targets)
        found = {name: jnp.asarray(value).astype(dtype) for name, value in found.items()}
    if not converged:
        message = f"mix_kernels: the weights by {criterion} have not converged; raise max_iter"
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
    return KernelMixture(**found, converged=converged, criterion=criterion, squeeze=y.ndim == 1)


class _Problem(NamedTuple):
    """What weights are learnt from.

    Attributes
    ----------
    given
        (m, n, n) the kernels in the dtype in which they came, whose rounding errors they have.
    kernels, targets
        (m, n, n) kernels and (n, c) targets in float64.
    scales
        (m,) means of the kernels' diagonals.
    reg
        λ or None.
    largest_log
        Bound on the absolute value of log η in the search, for kernels of mean diagonal 1 and λ = 1.
    """

    given: Array
    kernels: Array
    targets: Array
    scales: Float[np.ndarray, " m"]
    reg: Array | None
    largest_log: float


def _as_problem(given: Array, y: Array, reg: ArrayLike | None) -> _Problem:
    kernels, targets = with_dtype((given, y[:, None] if y.ndim == 1 else y), jnp.float64)
    scales = np.asarray(jnp.trace(kernels, axis1=1, axis2=2)) / kernels.shape[1]
    if not np.all(scales > 0):
        raise ValueError(f"kernels must have positive traces, got {scales * kernels.shape[1]}")
    if not bool(jnp.any(targets != 0)):
        raise ValueError("y must not be zero everywhere")
    # Beyond this multiple of a kernel its rounding errors reach λ, and the sum may be indefinite.
    largest = min(_LARGEST_LOG, -np.log(kernels.shape[1] * eps_of(given)))
    # The checks of λ are those of the criteria.
    reg = None if reg is None else as_mixture(kernels, targets, scales, reg)[3]
    return _Problem(given, kernels, targets, scales, reg, largest)


def _find_by_search(criterion: str, problem: _Problem, max_iter: int) -> tuple[dict[str, Any], bool]:
    """The weights that minimise a criterion, by L-BFGS over log η."""
    kernels, targets, scales = problem.kernels, problem.targets, problem.scales
    reg = jnp.ones(()) if problem.reg is None else problem.reg
    search = partial(_search, criterion, targets=targets, largest_log=problem.largest_log, max_iter=max_iter)
    # A mixture of fixed proportions has one weight, which is found from the best of a grid.
    grid = np.linspace(-1, 1, _NUM_STARTS)[:, None] * problem.largest_log

    def search_scale(mixture: Array) -> OptimizeResult:
        values = [_value_and_gradient(start, mixture, targets, criterion=criterion)[0] for start in grid]
        return search(mixture, start=grid[int(np.nanargmin(np.asarray(values)))])

    units = kernels / scales[:, None, None]
    # From the sum of the kernels, and from kernels of equal traces, each at its best scale.
    proportions = (scales / np.sum(scales), np.full(scales.shape, 1 / scales.size))
    fixed = [search_scale(jnp.tensordot(shares, units, 1)[None]) for shares in proportions]
    starts = [scale.x + np.log(shares) for scale, shares in zip(fixed, proportions, strict=True)]
    best = min(
        (search(units, start=start) for start in starts),
        key=lambda result: float(np.nan_to_num(result.fun, nan=np.inf)),
    )
    steepest = np.max(np.abs(best.x - np.clip(best.x - best.jac, -problem.largest_log, problem.largest_log)))
    return {
        "kernel_weights": reg * np.exp(best.x) / scales,
        "reg": reg,
        "value": np.exp(best.fun),
        "value_of_sum": np.exp(fixed[0].fun),
        "relative_gap": np.nan,
    }, bool(steepest <= _CONVERGED_GRADIENT)


def _search(
    criterion: str, kernels: Array, *, targets: Array, start: np.ndarray, largest_log: float, max_iter: int
) -> OptimizeResult:
    """A local minimum of the logarithm of a criterion over log η, for kernels of mean diagonal 1 and λ = 1."""

    def evaluate(logs: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _value_and_gradient(logs, kernels, targets, criterion=criterion)
        return float(value), np.asarray(gradient)

    bounds = [(-largest_log, largest_log)] * start.size
    options = {"maxiter": max_iter, "gtol": _GRADIENT_TOL, "ftol": _VALUE_TOL}
    start = np.clip(start, -largest_log, largest_log)
    return minimize(evaluate, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)


def _log_criterion(logs: Array, kernels: Array, targets: Array, criterion: str) -> Array:
    return jnp.log(_CRITERIA[criterion](kernels, targets, jnp.exp(logs), jnp.ones((), kernels.dtype)))


@partial(jit_for_host, static_argnames=("criterion",))
def _value_and_gradient(logs: Array, kernels: Array, targets: Array, *, criterion: str) -> tuple[Array, Array]:
    return jax.value_and_grad(partial(_log_criterion, criterion=criterion))(logs, kernels, targets)


def _find_by_objective(problem: _Problem, max_iter: int) -> tuple[dict[str, Any], bool]:
    """The weights of the convex program, at a λ that is given or has the least leave-one-out error."""
    # The solver tells rounding errors of the kernels from negative eigenvalues by their dtype.
    given, kernels, targets, scales = problem.given, problem.kernels, problem.targets, problem.scales
    penalties = np.sqrt(scales)
    # From this λ on all weights are zero.
    largest = jnp.sqrt(jnp.max(jnp.einsum("ic,kij,jc->k", targets, kernels, targets) / scales))
    regs = [share * largest for share in _REG_SHARES] if problem.reg is None else [problem.reg]
    with ignore_convergence_warnings():
        solutions = [solve_kernels(given, targets, r, penalty_weights=penalties, max_iter=max_iter) for r in regs]
        errors = [leave_one_out(kernels, targets, s.kernel_weights, r) for s, r in zip(solutions, regs, strict=True)]
        best = int(np.nanargmin(np.asarray(errors)))
        total = jnp.sum(given, axis=0, keepdims=True)
        penalty = np.sqrt(np.sum(scales))[None]
        of_sum = solve_kernels(total, targets, regs[best], penalty_weights=penalty, max_iter=max_iter)
    solution = solutions[best]
    return {
        "kernel_weights": solution.kernel_weights,
        "reg": regs[best],
        "value": solution.primal,
        "value_of_sum": of_sum.primal,
        "relative_gap": solution.relative_gap,
    }, bool(solution.converged)
