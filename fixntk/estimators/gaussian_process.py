"""Gaussian processes with a kernel of this package as covariance: deviations and marginal likelihoods."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import cholesky, solve_triangular


class Posterior(NamedTuple):
    """y_i = f(x_i) + b + noise, f of covariance s²·K, noise of variance s²·reg/w_i, b a constant of flat prior, or 0.

    The mean is the ridge regression with K, whatever s² is; s² is where the likelihood is largest.

    Attributes
    ----------
    root : ndarray (n,)
        Roots of the rows' weights w.
    factor : ndarray (n, n)
        Lower Cholesky factor of A = root K root + reg·I.
    along : ndarray (n,) or None
        factor⁻¹ · root, None without a constant.
    whitened : ndarray (n, c)
        factor⁻¹ · (root · (y − b)).
    constant : ndarray (c,)
        b, 0 without one.
    scale : ndarray (c,)
        s², for each target.
    reg : float
        Ridge, in units of K.
    """

    root: np.ndarray
    factor: np.ndarray
    along: np.ndarray | None
    whitened: np.ndarray
    constant: np.ndarray
    scale: np.ndarray
    reg: float

    def log_marginal_likelihood(self, unit: np.ndarray) -> np.ndarray:
        """Log p(y · unit) of each target (c,), at its s²; the constant is integrated out (restricted likelihood).

        Raises
        ------
        ValueError
            If a target does not vary, so that it has no largest likelihood.
        """
        if not np.all(self.scale > 0):
            raise ValueError("the marginal likelihood needs targets that vary")
        log_determinant = np.sum(np.log(np.diag(self.factor)))
        degrees = len(self.root)
        if self.along is not None:
            log_determinant += 0.5 * np.log(self.along @ self.along)
            degrees -= 1
        fit = 0.5 * degrees * (np.log(2 * np.pi * self.scale * unit**2) + 1)
        return np.sum(np.log(self.root)) - log_determinant - fit

    def predict(self, cross: np.ndarray, diagonal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (m, c) of new observations of weight 1, noise included.

        Parameters
        ----------
        cross, diagonal
            K between the new rows and the given ones (m, n), and of the new rows with themselves (m,).
        """
        seen = solve_triangular(self.factor, self.root[:, None] * cross.T, lower=True)
        variance = diagonal + self.reg - np.sum(seen**2, axis=0)
        if self.along is not None:
            variance += (1 - self.along @ seen) ** 2 / (self.along @ self.along)
        # Rounding can take a little more than there is.
        variance = np.maximum(variance, np.finfo(float).eps * self.reg)
        return seen.T @ self.whitened + self.constant, np.sqrt(variance[:, None] * self.scale)


def condition(kernel: np.ndarray, targets: np.ndarray, reg: float, weights: np.ndarray, *, centre: bool) -> Posterior:
    """The Gaussian process with covariance ``kernel`` given targets (M5, M15: its mean is kernel ridge regression).

    Parameters
    ----------
    kernel : ndarray (n, n)
        K on the given rows.
    targets : ndarray (n, c)
        y.
    reg : float
        Ridge, positive.
    weights : ndarray (n,)
        Of the rows, positive.
    centre : bool
        Whether there is a constant.

    Raises
    ------
    ValueError
        If ``reg`` is so small that K + reg is not positive definite in float64.
    """
    root = np.sqrt(weights)
    matrix = root[:, None] * kernel * root
    matrix[np.diag_indices_from(matrix)] += reg
    try:
        factor = cholesky(matrix, lower=True, overwrite_a=True)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"the kernel plus reg = {reg:g} is not positive definite in float64: give a larger reg"
        ) from error
    whitened = solve_triangular(factor, root[:, None] * targets, lower=True)
    along, constant = None, np.zeros(targets.shape[1])
    if centre:
        along = solve_triangular(factor, root, lower=True)
        constant = along @ whitened / (along @ along)
        whitened = whitened - along[:, None] * constant
    scale = np.sum(whitened**2, axis=0) / max(len(root) - centre, 1)
    return Posterior(root, factor, along, whitened, constant, scale, float(reg))
