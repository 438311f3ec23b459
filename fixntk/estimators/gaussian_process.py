"""Gaussian processes with a kernel of this package as covariance: deviations, likelihoods, leave-one-out outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float
from scipy.linalg import cholesky, solve_triangular

# Kernel matrix of rows with each other, or with others.
Kernel = Callable[..., Array]

# Smallest value of 1 − h for a row of leverage h (no unit). It avoids a division by zero for a row that determines its
# own output.
LEAST_FREEDOM = 1e-12


class Posterior(NamedTuple):
    """y_i = f(x_i) + b + noise, f of covariance s²·K, noise of variance s²·reg/w_i, b a constant of flat prior, or 0.

    The mean is the ridge regression with K for every s²; s² maximises the likelihood.

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

    root: Float[np.ndarray, " n"]
    factor: Float[np.ndarray, "n n"]
    along: Float[np.ndarray, " n"] | None
    whitened: Float[np.ndarray, "n c"]
    constant: Float[np.ndarray, " c"]
    scale: Float[np.ndarray, " c"]
    reg: float

    def log_marginal_likelihood(self, unit: Float[np.ndarray, " c"]) -> Float[np.ndarray, " c"]:
        """Log p(y · unit) of each target (c,), at its s²; the constant is integrated out (restricted likelihood).

        Raises
        ------
        ValueError
            If a target does not vary, so that it has no largest likelihood.
        """
        if not np.all(self.scale > 0):
            raise ValueError("the marginal likelihood needs targets that vary")
        # Half the log-determinant of A; integrating out the constant adds half the logarithm of rootᵀ A⁻¹ root.
        log_determinant = np.sum(np.log(np.diag(self.factor)))
        degrees = len(self.root)
        if self.along is not None:
            log_determinant += 0.5 * np.log(self.along @ self.along)
            degrees -= 1
        # At the most likely s² the quadratic form equals the degrees of freedom.
        fit = 0.5 * degrees * (np.log(2 * np.pi * self.scale * unit**2) + 1)
        # The first term converts the density of root · y to the density of y.
        return np.sum(np.log(self.root)) - log_determinant - fit

    def predict(
        self, cross: Float[np.ndarray, "m n"], diagonal: Float[np.ndarray, " m"]
    ) -> tuple[Float[np.ndarray, "m c"], Float[np.ndarray, "m c"]]:
        """Mean and standard deviation (m, c) of new observations of weight 1, noise included.

        Parameters
        ----------
        cross, diagonal
            K between the new rows and the given ones (m, n), and of the new rows with themselves (m,).
        """
        # The columns are factor⁻¹ · (root · cross), whose squared lengths are the variance explained by the given rows.
        seen = solve_triangular(self.factor, self.root[:, None] * cross.T, lower=True)
        variance = diagonal + self.reg - np.sum(seen**2, axis=0)
        if self.along is not None:
            # The variance of the estimated constant, times the square of its weight in the mean.
            variance += (1 - self.along @ seen) ** 2 / (self.along @ self.along)
        # Rounding errors can make the difference negative.
        variance = np.maximum(variance, np.finfo(float).eps * self.reg)
        return seen.T @ self.whitened + self.constant, np.sqrt(variance[:, None] * self.scale)

    def leave_one_out(self, targets: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        """Outputs (n, c) for each given row of the ridge regression without that row.

        With G = A⁻¹, less its part along the roots where there is a constant, they are y_i − (G root y)_i / (G_ii
        root_i): the residual reg · G root y, divided by 1 − h_i = reg · G_ii.

        Parameters
        ----------
        targets
            y, as given to :func:`condition`.
        """
        inverse = solve_triangular(self.factor, np.eye(len(self.root)), lower=True)
        # The diagonal of A⁻¹ = factor⁻ᵀ factor⁻¹.
        diagonal = np.sum(inverse**2, axis=0)
        if self.along is not None:
            diagonal -= (self.along @ inverse) ** 2 / (self.along @ self.along)
        freedom = np.maximum(self.reg * diagonal, LEAST_FREEDOM)
        residual = self.reg * (inverse.T @ self.whitened)
        return targets - residual / freedom[:, None] / self.root[:, None]


class Process(NamedTuple):
    """The Gaussian process of which a fitted regression is the mean.

    Attributes
    ----------
    posterior
        Given the training rows.
    kernel
        K as a function of rows.
    """

    posterior: Posterior
    kernel: Kernel

    def deviations(self, rows: Float[Array, "m w"], given: Float[Array, "k w"]) -> Float[np.ndarray, "m c"]:
        """Standard deviations of new observations, noise included.

        Parameters
        ----------
        rows
            (m, w) new rows.
        given
            Training rows, followed by padding.
        """
        cross = np.asarray(self.kernel(rows, given))[:, : len(self.posterior.root)]
        return self.posterior.predict(cross, np.diag(self.kernel(rows)))[1]


def condition(
    kernel: Float[np.ndarray, "n n"],
    targets: Float[np.ndarray, "n c"],
    reg: float,
    weights: Float[np.ndarray, " n"],
    *,
    centre: bool,
) -> Posterior:
    """Condition the Gaussian process with covariance ``kernel`` on targets; its mean is kernel ridge regression.

    Parameters
    ----------
    kernel : ndarray (n, n)
        K on the given rows.
    targets : ndarray (n, c)
        y.
    reg : float
        Ridge, positive.
    weights : ndarray (n,)
        Positive weights of the rows.
    centre : bool
        Whether there is a constant.

    Raises
    ------
    ValueError
        If ``reg`` is so small that K + reg is not positive definite in float64.

    See docs/mathematics.md, M5 and M15.
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
        # Generalised least squares for the constant: b = (rootᵀ A⁻¹ root y) / (rootᵀ A⁻¹ root).
        along = solve_triangular(factor, root, lower=True)
        constant = along @ whitened / (along @ along)
        whitened = whitened - along[:, None] * constant
    # The most likely s², with one degree of freedom less for the constant.
    scale = np.sum(whitened**2, axis=0) / max(len(root) - centre, 1)
    return Posterior(root, factor, along, whitened, constant, scale, float(reg))
