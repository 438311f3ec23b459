"""Ridge regression with the NTK as a pure function of scaled rows, and the choice of the NTK, by leave-one-out outputs.

See docs/mathematics.md, M3, M13 and M15.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int
from scipy.linalg import solve_triangular

from fixntk._numerics import allow_float64, ignore_convergence_warnings
from fixntk.convex.progress import progress_bar
from fixntk.estimators.fitting import check_regs, kernel_matrix, memory_for_kernels
from fixntk.estimators.gaussian_process import LEAST_FREEDOM
from fixntk.estimators.kernels import ntk_of_depth
from fixntk.estimators.preprocessing import Training
from fixntk.ntk import nystrom

# Candidates for the ridge, in units of the kernel's mean diagonal.
DEFAULT_REGS = tuple(10.0**k for k in range(-6, 3))
# Largest number of rows whose whole kernel is decomposed. That of more rows is approximated by landmark rows.
MAX_EXACT_ROWS = 10_000
# Largest number of landmark rows.
_MAX_LANDMARKS = 2048
# No more landmark rows are taken when the approximation leaves this share of the kernel's trace.
_TRACE_LEFT = 1e-4

# Matrices of a kernel's size in memory at a time: the kernel twice, its eigenvectors, and LAPACK's work.
_NUM_SPECTRAL_MATRICES = 6


class NTKFit(NamedTuple):
    """Kernel ridge regression with the NTK.

    Attributes
    ----------
    dual_coef
        (n, c) coefficients of the rows.
    share
        Ridge in units of the kernel's mean diagonal.
    reg
        Ridge in units of the kernel.
    errors
        (R,) mean squared error of leave-one-out outputs for each ridge.
    left_out_outputs
        (n, c) outputs for each row of the regression without that row, at the ridge chosen; NaN for rows of weight
        zero.
    depth
        Number of hidden layers of the network whose NTK the kernel is.
    landmarks
        (r,) the rows that the coefficients, (r, c), belong to where the kernel is approximated; None where it is exact.
    trace_left
        Share of the kernel's trace that the approximation leaves out.
    """

    dual_coef: Float[np.ndarray, "n c"]
    share: float
    reg: float
    errors: Float[np.ndarray, " R"]
    left_out_outputs: Float[np.ndarray, "n c"]
    depth: int
    landmarks: Int[np.ndarray, " r"] | None = None
    trace_left: float = 0.0


class NTKChoice(NamedTuple):
    """The NTK with the least squared error of leave-one-out outputs, and ridge regression with it.

    Attributes
    ----------
    fit
        The regression, of the chosen depth.
    training
        The rows, with the chosen value of their bias column.
    bias_scale
        That value; 0 where there is no such column.
    errors
        The error of each pair of a depth and a value of the bias column, at its best ridge.
    """

    fit: NTKFit
    training: Training
    bias_scale: float
    errors: dict[tuple[int, float], float]


def choose_ntk(
    training: Training,
    regs: Sequence[Any],
    *,
    depths: Sequence[int],
    bias_scales: Sequence[float],
    bias_column: int | None,
    progress: bool = False,
) -> NTKChoice:
    """Fit each NTK at its best ridge, and choose the one with the least error; of equal ones the first.

    Parameters
    ----------
    training, regs
        As for :func:`fit_ntk`.
    depths, bias_scales
        Numbers of hidden layers, and values of the bias column, each of which is tried with each.
    bias_column
        Index of that column, None where there is none.
    progress
        Show a bar with the number of kernels.
    """
    best: NTKChoice | None = None
    errors: dict[tuple[int, float], float] = {}
    bias_scales = bias_scales if bias_column is not None else (0.0,)
    with progress_bar("NTK", total=len(bias_scales) * len(depths), unit="kernel", shown=progress) as show:
        method = "a kernel of all rows" if training.num_rows <= MAX_EXACT_ROWS else "landmark rows"
        show(0, f"{training.num_rows} rows, by {method}")
        for bias_scale in bias_scales:
            rows = training if bias_column is None else training.with_bias(bias_column, bias_scale)
            for depth in depths:
                fit = fit_ntk(rows, regs, depth)
                errors[depth, bias_scale] = float(fit.errors.min())
                show(len(errors), f"depth {depth}, bias_scale {bias_scale:g}: error {errors[depth, bias_scale]:.3g}")
                if best is None or errors[depth, bias_scale] < errors[best.fit.depth, best.bias_scale]:
                    best = NTKChoice(fit, rows, bias_scale, errors)
    assert best is not None, "there is at least one depth and one value"
    return best


def fit_ntk(training: Training, regs: Sequence[Any], depth: int = 1) -> NTKFit:
    """Ridge regression with the NTK, at the ridge with the least squared error of leave-one-out outputs.

    The kernel is that of :func:`fixntk.estimators.kernels.ntk_of_depth`.

    One eigendecomposition √ω K √ω = V diag(s) Vᵀ serves all ridges: the residual is V diag(λ/(s + λ)) Vᵀ y, and leaving
    a row out divides its residual by 1 − h, the diagonal of the same matrix. Above 10,000 rows K is approximated from
    landmark rows, and nothing larger than rows × landmarks is made.
    """
    shares = check_regs(regs, np.inf)
    if training.num_rows > MAX_EXACT_ROWS:
        return _fit_by_landmarks(training, shares, depth)
    with memory_for_kernels(training.num_rows, _NUM_SPECTRAL_MATRICES):
        return fit_kernel(kernel_matrix(ntk_of_depth(depth), training), training, shares, depth)


def fit_kernel(kernel: Float[np.ndarray, "n n"], training: Training, shares: Sequence[float], depth: int = 1) -> NTKFit:
    """Ridge regression as of :func:`fit_ntk`, with a given kernel matrix of the rows."""
    weights, targets = training.weights, training.targets
    unit = unit_of_ridge(kernel, weights)
    root = np.sqrt(weights)
    eigenvalues, vectors = np.linalg.eigh(root[:, None] * kernel * root)
    eigenvalues = np.maximum(eigenvalues, 0)
    rotated = vectors.T @ (root[:, None] * targets)

    def left_out_residuals(share: float) -> np.ndarray:
        # The residuals are multiplied by the roots of the rows' weights.
        left = share * unit / (eigenvalues + share * unit)
        # 1 − h of a row of weight zero is 1.
        freedom = np.maximum(vectors**2 @ left, LEAST_FREEDOM)
        return vectors @ (left[:, None] * rotated) / freedom[:, None]

    residuals, reg, errors, best = _choose_ridge(left_out_residuals, shares, unit, weights)
    return NTKFit(
        dual_coef=root[:, None] * (vectors @ (rotated / (eigenvalues + reg)[:, None])),
        share=shares[best],
        reg=reg,
        errors=errors / targets.shape[1],
        left_out_outputs=_without_weights(targets, residuals, root),
        depth=depth,
    )


def unit_of_ridge(kernel: Float[np.ndarray, "n n"], weights: Float[np.ndarray, " n"]) -> float:
    """The mean diagonal of a kernel, of which a ridge is a share."""
    return float(weights @ np.diag(kernel)) / weights.sum() or 1.0


def _fit_by_landmarks(training: Training, shares: list[float], depth: int) -> NTKFit:
    """Ridge regression with a Nyström approximation F Fᵀ of √ω K √ω: FᵀF = V diag(s) Vᵀ serves all ridges."""
    weights, targets = training.weights, training.targets
    root = np.sqrt(weights)
    with allow_float64(), ignore_convergence_warnings():
        rows = {"root": jnp.asarray(root), "x": jnp.asarray(training.x)}
        found = nystrom(_weighted_ntk(depth), rows, key=jax.random.key(0), tol=_TRACE_LEFT, max_rank=_MAX_LANDMARKS)
    factor, triangle = np.asarray(found.factor), np.asarray(found.triangle)
    total = float(np.sum(np.asarray(found.diagonal)))
    unit = total / weights.sum() or 1.0
    # The matrix has the rank's size: F V are the eigenvectors of F Fᵀ, scaled by the roots of their eigenvalues.
    eigenvalues, vectors = np.linalg.eigh(factor.T @ factor)
    features = factor @ vectors
    rotated = features.T @ (root[:, None] * targets)

    def left_out_residuals(share: float) -> np.ndarray:
        # The residuals are multiplied by the roots of the rows' weights.
        inverse = 1 / (np.maximum(eigenvalues, 0) + share * unit)
        # A residual divided by 1 minus its row's leverage is that of the fit without the row.
        freedom = np.maximum(1 - features**2 @ inverse, LEAST_FREEDOM)
        return (root[:, None] * targets - features @ (inverse[:, None] * rotated)) / freedom[:, None]

    residuals, reg, errors, best = _choose_ridge(left_out_residuals, shares, unit, weights)
    inverse = 1 / (np.maximum(eigenvalues, 0) + reg)
    of_features = vectors @ (inverse[:, None] * rotated)
    # F = K_landmarks L⁻ᵀ: the weights of the features are brought to coefficients of the landmark rows.
    of_landmarks = solve_triangular(triangle, of_features, lower=True, trans="T")
    return NTKFit(
        dual_coef=root[found.indices, None] * of_landmarks,
        share=shares[best],
        reg=reg,
        errors=errors / targets.shape[1],
        left_out_outputs=_without_weights(targets, residuals, root),
        depth=depth,
        landmarks=found.indices,
        trace_left=found.trace_bound / (total or 1.0),
    )


@functools.cache
def _weighted_ntk(depth: int) -> Callable[[dict[str, Array], dict[str, Array]], Array]:
    """The kernel √ω K √ω of rows with roots of weights, one function for each depth, as JAX compiles for each anew."""
    kernel = ntk_of_depth(depth)

    def weighted(rows: dict[str, Array], others: dict[str, Array]) -> Array:
        return rows["root"][:, None] * kernel(rows["x"], others["x"]) * others["root"][None, :]

    return weighted


def _choose_ridge(
    left_out_residuals: Callable[[float], np.ndarray], shares: Sequence[float], unit: float, weights: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray, int]:
    """The residuals at the best ridge, that ridge, the error of each ridge, and which is the best."""
    residuals = [left_out_residuals(share) for share in shares]
    errors = np.array([np.sum(residual**2) for residual in residuals]) / weights.sum()
    best = int(np.argmin(errors))
    return residuals[best], shares[best] * unit, errors, best


def _without_weights(targets: np.ndarray, residuals: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Outputs from residuals times the roots of weights; NaN for rows of weight zero."""
    blank = np.full(targets.shape, np.nan)
    return targets - np.divide(residuals, root[:, None], out=blank, where=root[:, None] > 0)
