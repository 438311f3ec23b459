r"""Kernel ridge regression with a Nyström approximation, and how far it can be from that with the kernel itself.

With E = K − K̃ of diagonal e, τ = tr E, α̃ = (K̃ + λI)⁻¹ y and s = Σ_i √e_i \|α̃_i\|, the outputs of both regressions at x
differ by at most s (√e(x) + √(k(x, x) τ/(τ + λ))).

See docs/mathematics.md, M15.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import as_float_array
from fixntk._numerics import matmul, solve_kernel_ridge
from fixntk._tiling import num_rows
from fixntk.ntk.kernel_functions import as_rows, diagonal_at, evaluate, take_rows
from fixntk.ntk.kernel_matrices import as_scalar
from fixntk.ntk.nystrom import Nystrom


@dataclass(frozen=True, eq=False)
class NystromRidge:
    """Kernel ridge regression with K̃ in place of K, made by :func:`nystrom_ridge`.

    Attributes
    ----------
    approximation
        K̃.
    reg
        λ, in the kernel's unit.
    coefficients
        (r, …) of the landmarks: the output at x is K(x, landmarks) @ coefficients.
    feature_coefficients
        (r, …) of the features.
    outputs
        (n, …) at the training rows.
    dual_weights
        (n, …) α̃ = (K̃ + λI)⁻¹ y.
    sensitivity
        (…) s of each output, by which the bounds are multiplied: √e_i times the size of α̃_i, summed over rows.

    See docs/mathematics.md, M15.
    """

    approximation: Nystrom
    reg: Float[Array, ""]
    coefficients: Float[Array, "r ..."]
    feature_coefficients: Float[Array, "r ..."]
    outputs: Float[Array, "n ..."]
    dual_weights: Float[Array, "n ..."]
    sensitivity: Float[Array, " ..."]

    @property
    def training_bound(self) -> Float[Array, " ..."]:
        """Bound on the Euclidean norm of the difference to exact kernel ridge at the training rows, for each output."""
        return jnp.sqrt(self.reg * self._share()) * self.sensitivity

    def predict(self, x: Any) -> Float[Array, "m ..."]:
        """Outputs (m, …) at rows.

        Raises
        ------
        TypeError, ValueError
            As :meth:`Nystrom.features`.

        See docs/mathematics.md, M15.
        """
        columns = self.approximation.columns(x)
        flat = self.coefficients.reshape(columns.shape[1], self.sensitivity.size)
        return matmul(columns, flat).reshape(len(columns), *self.coefficients.shape[1:])

    def error_bound(self, x: Any) -> Float[Array, "m ..."]:
        """Bound on the difference to exact kernel ridge at rows, (m, …).

        Raises
        ------
        TypeError, ValueError
            As :meth:`Nystrom.features`.

        See docs/mathematics.md, M15.
        """
        found, rows = self.approximation, as_rows(x)
        residual = found.residual_at(rows)
        diagonal = diagonal_at(found.diagonal_of, rows, residual.dtype)
        each = jnp.sqrt(residual) + jnp.sqrt(diagonal * self._share())
        return each.reshape(-1, *(1,) * self.sensitivity.ndim) * self.sensitivity

    def training_residual(self, x: Any) -> Float[Array, "n ..."]:
        """Residual (K + λI) α̃ − y of the exact system, whose norm bounds the difference at the training rows.

        It bounds what is there, where ``training_bound`` bounds the worst case of a trace, and is often a hundred times
        smaller. It costs n² evaluations of the kernel, in tiles.

        Parameters
        ----------
        x
            (n, …) the training rows.

        Returns
        -------
        (n, …). The norm of each column bounds the difference to exact kernel ridge there. √(k(x, x)/λ) times the norm
        bounds, at any x, the difference between the exact output and K(x, X) @ ``dual_weights``.

        Raises
        ------
        TypeError, ValueError
            As :meth:`Nystrom.features`; also if the number of rows is another.

        See docs/mathematics.md, M15.
        """
        found, rows = self.approximation, as_rows(x)
        size, tile = num_rows(rows), found.batch_size
        if size != found.factor.shape[0]:
            raise ValueError(f"x must be the {found.factor.shape[0]} training rows, got {size}")
        flat = self.dual_weights.reshape(size, -1)
        # K α̃ less K̃ α̃, as K̃ α̃ + λα̃ = y.
        total = -self.outputs.reshape(size, -1)
        for begin in range(0, size, tile):
            columns = evaluate(found.kernel, rows, take_rows(rows, slice(begin, begin + tile)), tile, flat.dtype)
            total = total + matmul(columns, flat[begin : begin + tile])
        return total.reshape(self.dual_weights.shape)

    def _share(self) -> Array:
        """τ / (τ + λ), which bounds E (E + λI)⁻¹."""
        trace = jnp.sum(self.approximation.residual)
        return trace / (trace + self.reg)


def nystrom_ridge(approximation: Nystrom, y: ArrayLike, *, reg: ArrayLike) -> NystromRidge:
    r"""Kernel ridge regression K̃(·, X) (K̃ + λI)⁻¹ y with the approximation of :func:`nystrom`.

    O(n r²) operations, and no matrix larger than the factor, n×r.

    Parameters
    ----------
    approximation
        K̃.
    y
        (n,) or (n, c) targets, of the rows of the approximation.
    reg
        λ > 0 in the unit of the kernel, as for :func:`fixntk.kernel_ridge`.

    Returns
    -------
    NystromRidge

    Raises
    ------
    TypeError
        If ``approximation`` is no Nystrom or an argument not numeric.
    ValueError
        If y has another number of rows or is not finite, or λ is not positive.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, fixntk as fx
    >>> x = jax.random.normal(jax.random.key(0), (400, 2))
    >>> kernel = fx.nystrom(fx.gated_relu_ntk, x, key=jax.random.key(1), tol=1e-4)
    >>> ridge = fx.nystrom_ridge(kernel, x[:, 0], reg=1.0)
    >>> exact = fx.kernel_ridge(fx.gated_relu_ntk(x), x[:, 0], reg=1.0)
    >>> bool(jnp.linalg.norm(ridge.outputs - exact) <= ridge.training_bound)
    True

    See docs/mathematics.md, M15.
    """
    if not isinstance(approximation, Nystrom):
        raise TypeError(f"approximation must be a Nystrom, got {type(approximation).__name__}")
    factor = approximation.factor
    targets = as_float_array("y", y, (1, 2)).astype(factor.dtype)
    if targets.shape[0] != factor.shape[0]:
        raise ValueError(f"y must have a row for each of the {factor.shape[0]} rows, got shape {targets.shape}")
    reg = as_scalar("reg", reg, factor.dtype, positive=True)
    flat = targets if targets.ndim == 2 else targets[:, None]
    of_features, of_landmarks, outputs, dual, sensitivity = _solve(
        factor, approximation.triangle, approximation.residual, flat, reg
    )
    shape = targets.shape[1:]
    return NystromRidge(
        approximation=approximation,
        reg=reg,
        coefficients=of_landmarks.reshape(approximation.rank, *shape),
        feature_coefficients=of_features.reshape(approximation.rank, *shape),
        outputs=outputs.reshape(targets.shape),
        dual_weights=dual.reshape(targets.shape),
        sensitivity=sensitivity.reshape(shape),
    )


@jax.jit
def _solve(
    factor: Array, triangle: Array, residual: Array, targets: Array, reg: Array
) -> tuple[Array, Array, Array, Array, Array]:
    # (F Fᵀ + λI)⁻¹ y = (y − F (FᵀF + λI)⁻¹ Fᵀ y) / λ, whose matrix has r rows.
    of_features = solve_kernel_ridge(matmul(factor.T, factor), reg, matmul(factor.T, targets))
    outputs = matmul(factor, of_features)
    dual = (targets - outputs) / reg
    # φ(x) = triangle⁻¹ K(landmarks, x), so that the coefficients of landmarks are those of features times its inverse.
    of_landmarks = jsl.solve_triangular(triangle, of_features, lower=True, trans="T")
    sensitivity = jnp.sum(jnp.sqrt(residual)[:, None] * jnp.abs(dual), axis=0)
    return of_features, of_landmarks, outputs, dual, sensitivity
