"""The convex program of the gated-ReLU network: primal, dual, certificate, and the NTK inside it (M5, M7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import as_float_array, as_matrix, check_same_rows, is_traced
from fixntk._numerics import matmul, safe_sqrt
from fixntk.gates import as_masks
from fixntk.gram import masked_adjoint, masked_apply, masked_gram

LOSSES = ("squared",)


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


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False, init=False)
class ConvexProgram:
    r"""The training problem of a gated-ReLU network as a group lasso over data masks (M5).

    .. math:: \min_W \tfrac12 \|\sum_p D_p X W_p - Y\|_F^2 + λ \sum_p \|W_p\|_F

    For one output it has the value of the weight-decayed network with at least one neuron a gate; for several the
    Frobenius norm shares one kernel among them. A pytree: it goes through ``jit`` and ``vmap``, over ``reg`` (a path),
    ``x`` and ``y`` (folds, seeds) or ``masks``. Rows of zeros in x and y change nothing, so programs of different
    sizes can be brought to one shape.

    Parameters
    ----------
    x
        (n, d) inputs; a bias is a column of ones. No unit.
    y
        (n,) or (n, c) targets.
    masks
        (n, P) masks, bool, or packed with ``num_gates`` given.
    reg
        λ > 0, the weight of the penalty.
    loss
        ``"squared"``.
    num_gates
        P, needed for packed masks only.

    Raises
    ------
    ValueError
        If x or y hold NaN or infinity, rows do not match, there is no data or no mask, the squares of y are out of the
        dtype's range, λ is not positive, or the loss is unknown.
    """

    x: Array
    y: Array
    masks: Array
    reg: Array
    loss: str
    num_gates: int

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        masks: ArrayLike,
        reg: ArrayLike,
        loss: str = "squared",
        *,
        num_gates: int | None = None,
    ) -> None:
        x, y = as_matrix("x", x), as_float_array("y", y, (1, 2))
        check_same_rows("x", x, "y", y)
        masks = as_masks("masks", masks, num_gates)
        check_same_rows("x", x, "masks", masks)
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        dtype = jnp.result_type(x.dtype, y.dtype)
        _check_scale(y.astype(dtype))
        reg = as_float_array("reg", reg, (0, 1)).astype(dtype)
        if reg.ndim != 0:
            raise ValueError(f"reg must be a number (vmap over several), got shape {reg.shape}")
        if not is_traced(reg) and not 0 < float(reg) < float("inf"):
            raise ValueError(f"reg must be positive and finite, got {float(reg)}")
        num_gates = masks.shape[1] if num_gates is None else num_gates
        self._set(x.astype(dtype), y.astype(dtype), masks, reg, loss, num_gates)

    def _set(self, *values: object) -> None:
        for name, value in zip(self.__dataclass_fields__, values, strict=True):
            object.__setattr__(self, name, value)

    def tree_flatten(self) -> tuple[tuple[Array, Array, Array, Array], tuple[str, int]]:
        """Leaves and structure for JAX."""
        return (self.x, self.y, self.masks, self.reg), (self.loss, self.num_gates)

    @classmethod
    def tree_unflatten(cls, aux: tuple[str, int], leaves: tuple[Array, ...]) -> ConvexProgram:
        """Rebuild from leaves, which JAX may have replaced by anything: no checks."""
        program = object.__new__(cls)
        program._set(*leaves, *aux)
        return program

    def with_masks(self, masks: Array) -> ConvexProgram:
        """The program of other (n, P') masks on the same data, unchecked; bools, or numbers of x's dtype."""
        return self.tree_unflatten((self.loss, masks.shape[1]), (self.x, self.y, masks, self.reg))

    def with_reg(self, reg: ArrayLike) -> ConvexProgram:
        """The program at another λ, unchecked."""
        leaves = (self.x, self.y, self.masks, jnp.asarray(reg, self.x.dtype))
        return self.tree_unflatten((self.loss, self.num_gates), leaves)

    @property
    def targets(self) -> Float[Array, "n c"]:
        """Y as a matrix, whatever the shape of y."""
        return self.y[:, None] if self.y.ndim == 1 else self.y

    @property
    def group_shape(self) -> tuple[int, int, int]:
        """(P, d, c), the shape of the group weights W."""
        return self.num_gates, self.x.shape[1], self.targets.shape[1]

    def as_group_weights(self, weights: ArrayLike) -> Float[Array, "P d c"]:
        """Group weights as (P, d, c), given so or, for targets (n,), as (P, d)."""
        given = as_float_array("weights", weights, (2, 3)).astype(self.x.dtype)
        groups = given[:, :, None] if given.ndim == 2 and self.y.ndim == 1 else given
        if groups.shape != self.group_shape:
            raise ValueError(f"weights must have shape {self.group_shape}, got {given.shape}")
        return groups

    def fitted(self, weights: ArrayLike) -> Float[Array, "n c"]:
        """Outputs on the training data, Σ_p D_p X W_p."""
        return masked_apply(self.masks, self.x, self.as_group_weights(weights))

    def correlations(self, residual: Array) -> Float[Array, "P d c"]:
        """Xᵀ D_p R of every group with an (n, c) residual."""
        return masked_adjoint(self.masks, self.x, residual, self.num_gates)

    def primal(self, weights: ArrayLike) -> Float[Array, ""]:
        """The objective of the group weights, (P, d, c) or, for targets (n,), (P, d) (M5)."""
        weights = self.as_group_weights(weights)
        return self.primal_of(weights, self.targets - self.fitted(weights))

    def primal_of(self, weights: Array, residual: Array) -> Float[Array, ""]:
        """The objective from a residual that is known already (M5)."""
        return 0.5 * jnp.sum(residual**2) + self.reg * jnp.sum(group_norms(weights))

    def primal_at_zero(self) -> Float[Array, ""]:
        """½‖Y‖², the objective of W = 0, by which relative gaps are measured (M7)."""
        return 0.5 * jnp.sum(self.y**2)

    def dual(self, theta: ArrayLike) -> Float[Array, ""]:
        """Dual objective of Θ, shaped like y: a lower bound on every primal value (M7).

        ½‖Y‖² − ½‖Y − Θ‖² where ‖Xᵀ D_p Θ‖_F ≤ λ for all p (up to rounding), −∞ elsewhere.
        """
        theta = as_float_array("theta", theta, (1, 2)).astype(self.x.dtype)
        if theta.shape not in (self.y.shape, self.targets.shape):
            raise ValueError(f"theta must have y's shape {self.y.shape}, got {theta.shape}")
        theta = theta.reshape(self.targets.shape)
        value = jnp.sum(self.targets * theta) - 0.5 * jnp.sum(theta**2)
        largest = jnp.max(group_norms(self.correlations(theta)))
        slack = 100 * jnp.finfo(self.x.dtype).eps
        return jnp.where(largest <= self.reg * (1 + slack), value, -jnp.inf)

    def dual_point(self, weights: ArrayLike) -> Float[Array, "n c"]:
        """The residual of W scaled into the dual's feasible set, Θ = R·min(1, λ / max_p ‖Xᵀ D_p R‖) (M7)."""
        residual = self.targets - self.fitted(weights)
        return residual * feasible_scale(self.reg, group_norms(self.correlations(residual)))

    def gap(self, weights: ArrayLike) -> Float[Array, ""]:
        """Duality gap of W at the scaled residual: how far its objective can be above the optimum (M7)."""
        weights = self.as_group_weights(weights)
        residual = self.targets - self.fitted(weights)
        return self.gap_of(weights, residual, self.correlations(residual))

    def gap_of(self, weights: Array, residual: Array, correlations: Array) -> Float[Array, ""]:
        """Duality gap from a residual and its correlations that are known already (M7).

        Written as ½(1−s)²‖R‖² + Σ_p (λ‖W_p‖ − s⟨W_p, Xᵀ D_p R⟩), a sum of non-negative terms: the difference of primal
        and dual would lose the gap's digits to cancellation.
        """
        scale = feasible_scale(self.reg, group_norms(correlations))
        alignments = jnp.sum(weights * correlations, axis=(1, 2))
        excess = jnp.sum(self.reg * group_norms(weights) - scale * alignments)
        return jnp.maximum(0.5 * (1 - scale) ** 2 * jnp.sum(residual**2) + excess, 0.0)

    def max_reg(self) -> Float[Array, ""]:
        """λ_max = max_p ‖Xᵀ D_p Y‖_F: from this λ on, the solution is W = 0 (M7)."""
        return jnp.max(group_norms(self.correlations(self.targets)))

    def kernel_objective(self, kernel_weights: ArrayLike) -> Float[Array, ""]:
        """J(η) = (λ/2) tr Yᵀ(K(η)+λI)⁻¹Y + (λ/2) Σ η_p: at least the program's optimum, for every η ≥ 0 (M5)."""
        eigenvalues, rotated, total = self._spectrum(kernel_weights)
        return 0.5 * self.reg * (jnp.sum(rotated / (eigenvalues + self.reg)) + total)

    def best_scale(self, kernel_weights: ArrayLike) -> BestScale:
        """The s ≥ 0 that minimises J(s η), and J there: the NTK at its best when η are the NTK's weights (M5).

        J(s η) is convex in s; its derivative is brought to zero by bisection in log s. Zero where J rises from s = 0.
        """
        eigenvalues, rotated, total = self._spectrum(kernel_weights)

        def slope(scale: Array) -> Array:
            return total - jnp.sum(rotated * eigenvalues / (scale * eigenvalues + self.reg) ** 2)

        def bisect(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = 0.5 * (low + high)
            rising = slope(jnp.exp(middle)) > 0
            return jnp.where(rising, low, middle), jnp.where(rising, middle, high)

        limit = jnp.asarray(80.0, self.x.dtype)
        low, high = lax.fori_loop(0, 100, bisect, (-limit, limit))
        scale = jnp.where(slope(jnp.zeros_like(limit)) >= 0, 0.0, jnp.exp(0.5 * (low + high)))
        value = 0.5 * self.reg * (jnp.sum(rotated / (scale * eigenvalues + self.reg)) + scale * total)
        return BestScale(scale, value)

    def _spectrum(self, kernel_weights: ArrayLike) -> tuple[Array, Array, Array]:
        """Eigenvalues of K(η), squared lengths of Y along the eigenvectors, and Σ η."""
        kernel_weights = self.as_kernel_weights(kernel_weights)
        kernel = masked_gram(kernel_weights, self.masks, self.x)
        eigenvalues, vectors = jnp.linalg.eigh(kernel)
        rotated = matmul(vectors.T, self.targets)
        return jnp.maximum(eigenvalues, 0), jnp.sum(rotated**2, axis=1), jnp.sum(kernel_weights)

    def as_kernel_weights(self, kernel_weights: ArrayLike) -> Float[Array, " P"]:
        """Kernel weights as a (P,) array of the program's dtype, checked to be non-negative."""
        kernel_weights = as_float_array("kernel_weights", kernel_weights, (1,)).astype(self.x.dtype)
        if kernel_weights.shape != (self.num_gates,):
            raise ValueError(f"kernel_weights must have shape ({self.num_gates},), got {kernel_weights.shape}")
        if not is_traced(kernel_weights):
            with jax.ensure_compile_time_eval():
                smallest = float(jnp.min(kernel_weights))
            if smallest < 0:
                raise ValueError(f"kernel_weights must not be negative, got {smallest}")
        return kernel_weights


def _check_scale(y: Array) -> None:
    """Raise ValueError if ½‖Y‖², by which gaps are measured, under- or overflows."""
    if is_traced(y):
        return
    with jax.ensure_compile_time_eval():
        largest, square = float(jnp.max(jnp.abs(y))), float(jnp.sum(y**2))
    if largest > 0 and not 0 < square < float("inf"):
        raise ValueError(
            f"y has entries up to {largest:.1e}, whose squares are out of {y.dtype}'s range: divide y by {largest:.1e}"
        )


def group_norms(groups: Array) -> Float[Array, " P"]:
    """Frobenius norm of each group of a (P, d, c) array, with gradient zero at zero."""
    return safe_sqrt(jnp.sum(groups**2, axis=(1, 2)))


def shares_kept(norms: Array, threshold: Array) -> Float[Array, " P"]:
    """(1 − threshold/‖V_p‖)₊ of groups with these norms: what the proximal operator of threshold · Σ_p ‖·‖ leaves."""
    return jnp.where(norms > threshold, 1 - threshold / jnp.where(norms > 0, norms, 1.0), 0.0)


def feasible_scale(reg: Array, norms: Array) -> Array:
    """The largest s ≤ 1 with s·‖Xᵀ D_p R‖ ≤ λ for all p."""
    return reg / jnp.maximum(reg, jnp.max(norms))
