r"""The kernel form of the program: multiple kernel learning over the masked Gram kernels.

.. math:: J(η) = \tfrac{λ}{2} \operatorname{tr} Y^⊤ (K(η) + λI)^{-1} Y + \tfrac{λ}{2} \sum_p τ_p^2 η_p

is at least the program's optimum for every η ≥ 0, with equality at the optimal kernel weights. From the eigenvalues of
K(η) it costs a sum over the rows, along a whole ray s η.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import as_float_array, is_traced
from fixntk._numerics import matmul

# Largest absolute value of log s, in nepers, in the search for the best scale s.
_LARGEST_LOG_SCALE = 80.0
# Number of halvings of the interval of log s in this search.
_NUM_BISECTIONS = 100


class BestScale(NamedTuple):
    """The best multiple of given kernel weights.

    Attributes
    ----------
    scale
        s ≥ 0.
    objective
        J(s η).
    """

    scale: Float[Array, ""]
    objective: Float[Array, ""]


class Spectrum(NamedTuple):
    """A kernel matrix in its eigenvectors.

    Attributes
    ----------
    eigenvalues
        (n,) of K(η), none negative.
    targets
        (n,) squared lengths of the targets along the eigenvectors.
    cost
        Σ τ_p² η_p.
    """

    eigenvalues: Float[Array, " n"]
    targets: Float[Array, " n"]
    cost: Float[Array, ""]


def spectrum(kernel: Float[Array, "n n"], targets: Float[Array, "n c"], cost: Float[Array, ""]) -> Spectrum:
    """Eigenvalues of a kernel, and the targets along its eigenvectors."""
    # One decomposition serves every scale s, as s K(η) has the same eigenvectors.
    eigenvalues, vectors = jnp.linalg.eigh(kernel)
    rotated = matmul(vectors.T, targets)
    return Spectrum(jnp.maximum(eigenvalues, 0), jnp.sum(rotated**2, axis=1), cost)


def objective(spectrum: Spectrum, reg: Float[Array, ""], scale: Float[Array, ""] | float = 1.0) -> Float[Array, ""]:
    """J(s η)."""
    fit = jnp.sum(spectrum.targets / (scale * spectrum.eigenvalues + reg))
    return 0.5 * reg * (fit + scale * spectrum.cost)


def minimise_over_scale(spectrum: Spectrum, reg: Float[Array, ""]) -> BestScale:
    """The s ≥ 0 that minimises J(s η), which is convex in s: bisection in log s on its derivative."""
    eigenvalues, targets, cost = spectrum

    # (2/λ) dJ/ds.
    def slope(scale: Array) -> Array:
        return cost - jnp.sum(targets * eigenvalues / (scale * eigenvalues + reg) ** 2)

    def bisect(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        rising = slope(jnp.exp(middle)) > 0
        return jnp.where(rising, low, middle), jnp.where(rising, middle, high)

    limit = jnp.asarray(_LARGEST_LOG_SCALE, eigenvalues.dtype)
    low, high = lax.fori_loop(0, _NUM_BISECTIONS, bisect, (-limit, limit))
    # Where J rises from s = 0 on, the kernel explains nothing of the targets.
    scale = jnp.where(slope(jnp.zeros_like(limit)) >= 0, 0.0, jnp.exp(0.5 * (low + high)))
    return BestScale(scale, objective(spectrum, reg, scale))


def as_kernel_weights(kernel_weights: ArrayLike, num_gates: int, dtype: jnp.dtype) -> Float[Array, " P"]:
    """Kernel weights as a (P,) array of this dtype, checked to be non-negative.

    Raises
    ------
    ValueError
        If their shape is not (P,), or one is negative.
    """
    kernel_weights = as_float_array("kernel_weights", kernel_weights, (1,)).astype(dtype)
    if kernel_weights.shape != (num_gates,):
        raise ValueError(f"kernel_weights must have shape ({num_gates},), got {kernel_weights.shape}")
    if not is_traced(kernel_weights):
        with jax.ensure_compile_time_eval():
            smallest = float(jnp.min(kernel_weights))
        if smallest < 0:
            raise ValueError(f"kernel_weights must not be negative, got {smallest}")
    return kernel_weights


def weights_of_norms(norms: Float[Array, " P"], penalty_weights: Float[Array, " P"] | None) -> Float[Array, " P"]:
    """η_p = ‖W_p‖ / τ_p, the minimisers of (λ/2) Σ_p (‖W_p‖²/η_p + τ_p² η_p): the optimal η at the optimum."""
    return norms if penalty_weights is None else norms / penalty_weights
