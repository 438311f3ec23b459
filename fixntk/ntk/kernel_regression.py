"""Kernel ridge regression, the limit of gradient flow, and the largest learning rate of gradient descent.

See docs/mathematics.md, M15.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk.ntk.dynamics import gradient_flow
from fixntk.ntk.kernel_matrices import absolute_reg, as_momentum, as_scalar, as_symmetric_kernel


def kernel_ridge(
    kernel_train: ArrayLike, y: ArrayLike, kernel_test_train: ArrayLike | None = None, *, reg: ArrayLike
) -> Array:
    """Kernel ridge regression Θ(X', X) (Θ + λI)⁻¹ y: the flow's limit t = ∞ with f₀ = 0.

    Parameters
    ----------
    kernel_train, y
        As in :func:`gradient_flow`.
    kernel_test_train
        As in :meth:`GradientFlow.predict`; None for the training points.
    reg
        λ ≥ 0 in the unit of the kernel, of the objective ½‖f − y‖² + (λ/2)‖f‖² in the kernel's norm. At 0 it is the
        least-norm interpolant, by a pseudo-inverse.

    Returns
    -------
    Predictions, (n, …) or (n_test, …) as y.

    Raises
    ------
    TypeError, ValueError
        As :func:`gradient_flow` and :meth:`GradientFlow.predict` do, naming λ ``reg``.

    See docs/mathematics.md, M15.
    """
    # Checked here, so that an error names this argument and not the flow's.
    reg = as_scalar("reg", reg, jnp.result_type(float))
    flow = gradient_flow(kernel_train, y, diag_reg=reg, diag_reg_absolute_scale=True)
    return flow.predict(None, kernel_test_train)


def max_learning_rate(
    kernel_train: ArrayLike,
    *,
    diag_reg: ArrayLike = 0.0,
    diag_reg_absolute_scale: bool = False,
    momentum: float = 0.0,
) -> Float[Array, ""]:
    """Learning rate 2 (1 + momentum) / (λ_max(Θ) + λ) below which gradient descent on ½‖f − y‖² converges.

    The loss is a sum. For the mean over all targets multiply by ``y.size``, as neural-tangents does.

    Parameters
    ----------
    kernel_train
        As in :func:`gradient_flow`, (n, n) or (n, n, c, c).
    diag_reg, diag_reg_absolute_scale
        The ridge, as there.
    momentum
        Of the heavy ball, at least 0 and below 1.

    Returns
    -------
    A scalar, infinite for the kernel zero.

    Raises
    ------
    TypeError
        If the kernel is not numeric.
    ValueError
        If it is not square, symmetric and finite, or ``diag_reg`` or ``momentum`` is out of range.

    See docs/mathematics.md, M15.
    """
    matrix = as_symmetric_kernel("kernel_train", kernel_train, None).matrix
    reg = absolute_reg(matrix, diag_reg, diag_reg_absolute_scale)
    beta = as_momentum(momentum, matrix.dtype)
    # Rounding can make the largest eigenvalue of a kernel near zero negative.
    return 2 * (1 + beta) / (jnp.maximum(jnp.linalg.eigvalsh(matrix)[-1], 0) + reg)
