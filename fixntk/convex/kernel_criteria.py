"""Estimates of the error on fresh rows of kernel ridge regression with a mixture of kernels, in closed form.

See docs/mathematics.md, M15.
"""

from __future__ import annotations

import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import as_float_array, is_traced
from fixntk._numerics import matmul


def leave_one_out_error(
    kernels: ArrayLike, y: ArrayLike, kernel_weights: ArrayLike, reg: ArrayLike
) -> Float[Array, ""]:
    r"""Mean squared error of each row's prediction by kernel ridge regression on all other rows, in closed form.

    .. math:: \frac{1}{nc} \sum_{i,o} \bigl(\, [G Y]_{io} / G_{ii} \bigr)^2, \quad G = (Σ_k η_k K_k + λI)^{-1}

    Differentiable in everything, and works under ``jit``. Kernels and λ that are multiplied by one number have the
    same error. There is no intercept: subtract the mean from the targets.

    Parameters
    ----------
    kernels
        (m, n, n) symmetric positive semi-definite.
    y
        (n,) or (n, c) targets.
    kernel_weights
        (m,) η ≥ 0.
    reg
        λ > 0.

    Returns
    -------
    A number in the unit of the squared targets, NaN where rounding error leaves no factorisation.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, a weight is negative or λ is not positive.

    Examples
    --------
    The other of two rows predicts zero for each:

    >>> import jax.numpy as jnp, fixntk as fx
    >>> fx.leave_one_out_error(jnp.eye(2)[None], jnp.array([1.0, 2.0]), jnp.ones(1), 0.5)
    Array(2.5, dtype=float32)

    See docs/mathematics.md, M15.
    """
    return leave_one_out(*as_mixture(kernels, y, kernel_weights, reg))


def kernel_alignment_risk(
    kernels: ArrayLike, y: ArrayLike, kernel_weights: ArrayLike, reg: ArrayLike
) -> Float[Array, ""]:
    r"""Kernel Alignment Risk Estimator (KARE): an estimate of the error on fresh rows from the training rows alone.

    .. math:: \frac{\frac{1}{nc} \|G Y\|^2}{(\frac1n \mathrm{tr}\, G)^2}, \quad G = (Σ_k η_k K_k + λI)^{-1}

    With λ = n ridge it is that of the source. It is the same number as generalised cross-validation, which replaces
    the diagonal of G in :func:`leave_one_out_error` by its mean.

    Parameters
    ----------
    kernels, y, kernel_weights, reg
        As for :func:`leave_one_out_error`, which also describes the errors.

    Returns
    -------
    A number in the unit of the squared targets.

    References
    ----------
    Jacot, Şimşek, Spadaro, Hongler and Gabriel, "Kernel Alignment Risk Estimator: Risk prediction from training data",
    NeurIPS 2020; Golub, Heath and Wahba, "Generalized cross-validation as a method for choosing a good ridge
    parameter", Technometrics 21, 1979.

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> fx.kernel_alignment_risk(jnp.eye(2)[None], jnp.array([1.0, 2.0]), jnp.ones(1), 0.5)
    Array(2.5, dtype=float32)

    See docs/mathematics.md, M15.
    """
    return alignment_risk(*as_mixture(kernels, y, kernel_weights, reg))


def leave_one_out(kernels: Array, targets: Array, weights: Array, reg: Array) -> Float[Array, ""]:
    """:func:`leave_one_out_error` of checked arrays."""
    inverse = inverse_of_mixture(kernels, weights, reg)
    return jnp.mean((matmul(inverse, targets) / jnp.diagonal(inverse)[:, None]) ** 2)


def alignment_risk(kernels: Array, targets: Array, weights: Array, reg: Array) -> Float[Array, ""]:
    """:func:`kernel_alignment_risk` of checked arrays."""
    inverse = inverse_of_mixture(kernels, weights, reg)
    return jnp.mean(matmul(inverse, targets) ** 2) / jnp.mean(jnp.diagonal(inverse)) ** 2


def inverse_of_mixture(kernels: Array, weights: Array, reg: Array) -> Float[Array, "n n"]:
    """(Σ_k η_k K_k + λI)⁻¹ by a Cholesky factorisation; NaN where rounding error leaves none."""
    factor = factor_mixture(kernels, weights, reg)
    return jsl.cho_solve((factor, True), jnp.eye(kernels.shape[1], dtype=kernels.dtype))


def factor_mixture(kernels: Array, weights: Array, reg: Array) -> Float[Array, "n n"]:
    """Lower Cholesky factor of Σ_k η_k K_k + λI; NaN where rounding error leaves none."""
    kernel = jnp.tensordot(weights, kernels, 1, precision=lax.Precision.HIGHEST)
    return jnp.linalg.cholesky(kernel + reg * jnp.eye(kernels.shape[1], dtype=kernels.dtype))


def as_mixture(
    kernels: ArrayLike, y: ArrayLike, kernel_weights: ArrayLike, reg: ArrayLike
) -> tuple[Array, Array, Array, Array]:
    """Kernels, targets (n, c), weights and λ, checked and of one dtype."""
    kernels, y = as_float_array("kernels", kernels, (3,)), as_float_array("y", y, (1, 2))
    weights, reg = as_float_array("kernel_weights", kernel_weights, (1,)), as_float_array("reg", reg, (0,))
    check_shapes(kernels, y)
    if weights.shape != kernels.shape[:1]:
        raise ValueError(f"kernel_weights must have shape {kernels.shape[:1]}, got {weights.shape}")
    if not is_traced(weights) and not bool(jnp.all(weights >= 0)):
        raise ValueError(f"kernel_weights must not be negative, got {weights}")
    if not is_traced(reg) and not float(reg) > 0:
        raise ValueError(f"reg must be positive, got {float(reg):g}")
    dtype = jnp.result_type(kernels, y)
    targets = y[:, None] if y.ndim == 1 else y
    return kernels.astype(dtype), targets.astype(dtype), weights.astype(dtype), reg.astype(dtype)


def check_shapes(kernels: Array, y: Array) -> None:
    """Raise ValueError unless kernels are (m, n, n) for targets of n rows."""
    m, n = kernels.shape[:2]
    if kernels.shape != (m, n, n) or y.shape[0] != n:
        raise ValueError(f"kernels must be (m, n, n) for y of n rows, got shapes {kernels.shape} and {y.shape}")
