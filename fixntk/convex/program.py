"""The convex program of the gated-ReLU network: primal, dual, certificate, and the NTK inside it (M5, M7)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import as_float_array, as_matrix, check_same_rows, is_traced
from fixntk._numerics import matmul
from fixntk.convex.losses import LOSSES, Loss, as_loss
from fixntk.convex.penalties import NORMS, Norm
from fixntk.gates.masks import activation_masks, as_masks
from fixntk.gram import as_numbers, masked_adjoint, masked_apply, masked_gram, select_masks

# Newton steps for an intercept, each halved at most so many times.
_INTERCEPT_STEPS, _HALVINGS = 50, 30

# Masks of so many entries at most are kept as numbers by solvers.
_MOST_NUMBERS = 2**25


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


class Fit(NamedTuple):
    """What the loss makes of outputs, with the best intercept for them.

    Attributes
    ----------
    outputs
        (n, c) F, the intercept included.
    intercept
        (c,) b; zero without one.
    residual
        (n, c) R, the negative gradient of the loss by F; orthogonal to the intercept's column.
    loss
        Sum over the rows.
    """

    outputs: Float[Array, "n c"]
    intercept: Float[Array, " c"]
    residual: Float[Array, "n c"]
    loss: Float[Array, ""]


class Point(NamedTuple):
    """Weights with what a certificate is made of.

    Attributes
    ----------
    weights
        (P, d, c) W.
    fit
        That of W.
    correlations
        (P, d, c) Xᵀ D_p R.
    """

    weights: Float[Array, "P d c"]
    fit: Fit
    correlations: Float[Array, "P d c"]


class Certificate(NamedTuple):
    """Duality gap of weights, and the s with which Θ = sR reaches it (M7)."""

    gap: Float[Array, ""]
    scale: Float[Array, ""]


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False, init=False)
class ConvexProgram:
    r"""The training problem of a gated-ReLU network as a group lasso over data masks (M5).

    .. math:: \min_{W, b} \sum_i ω_i ℓ\bigl(F(x_i); y_i\bigr) + λ \sum_p τ_p \|W_p\| + \tfrac{α}{2} \sum_p \|W_p\|_F^2,
        \qquad F = 1 b^⊤ + \sum_p D_p X W_p

    As it stands without options, with ℓ the squared loss, ω = τ = 1, α = 0 and no b, it has for one output the value
    of the weight-decayed network with at least one neuron a gate; for several the Frobenius norm shares one kernel
    among them. A pytree: it goes through ``jit`` and ``vmap``, over ``reg`` (a path), ``x`` and ``y`` (folds, seeds),
    ``sample_weight`` or ``masks``. Rows of weight zero change nothing, nor do rows of zeros in x and y under the
    squared loss, so programs of different sizes can be brought to one shape.

    Parameters
    ----------
    x
        (n, d) inputs; a penalised bias is a column of ones. No unit.
    y
        Targets. ``"squared"``, ``"huber"``: (n,) or (n, c) numbers. ``"logistic"``, ``"squared_hinge"``: (n,) labels
        −1 and 1, 0 and 1, or bools. ``"softmax"``: (n,) classes 0, …, c − 1, or (n, c) one-hot.
    masks
        (n, P) masks, bool, or packed with ``num_gates`` given.
    reg
        λ > 0, the weight of the penalty.
    loss
        One of the names above, each ½r² or its like per row, or a :class:`~fixntk.convex.losses.Loss`, such as
        ``huber(delta)``; delta is 1 for the name.
    num_gates
        P, needed for packed masks only.
    sample_weight
        (n,) ω ≥ 0; ones when None.
    intercept
        Whether to add b, which is not penalised.
    penalty_weights
        (P,) τ > 0, a prior on the gates: the larger, the dearer; ones when None.
    ridge
        α ≥ 0, the elastic penalty's second part.
    norm
        ``"frobenius"``, or ``"nuclear"``, the sum of singular values, which is what weight decay of gated networks
        with vector outputs amounts to (M10).

    Raises
    ------
    ValueError
        If x or y hold NaN or infinity, rows do not match, there is no data or no mask, the squares of y are out of the
        dtype's range, the labels do not fit the loss, λ or τ is not positive, ω or α negative, the loss or norm
        unknown, or a ridge is asked for with the nuclear norm.
    """

    x: Array
    y: Array
    masks: Array
    reg: Array
    sample_weight: Array | None
    column: Array | None
    penalty_weights: Array | None
    ridge: Array | None
    loss: Loss
    norm: Norm
    num_gates: int

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        masks: ArrayLike,
        reg: ArrayLike,
        loss: str | Loss = "squared",
        *,
        num_gates: int | None = None,
        sample_weight: ArrayLike | None = None,
        intercept: bool = False,
        penalty_weights: ArrayLike | None = None,
        ridge: ArrayLike = 0.0,
        norm: str = "frobenius",
    ) -> None:
        x, loss = as_matrix("x", x), as_loss(loss)
        is_floating = jnp.issubdtype(y.dtype if hasattr(y, "dtype") else np.asarray(y).dtype, jnp.floating)
        y = loss.encode(y)
        check_same_rows("x", x, "y", y)
        masks = as_masks("masks", masks, num_gates)
        check_same_rows("x", x, "masks", masks)
        dtype = jnp.result_type(x.dtype, y.dtype) if is_floating else x.dtype
        y = y.astype(dtype)
        _check_scale(x, y)
        reg = as_float_array("reg", reg, (0, 1)).astype(dtype)
        if reg.ndim != 0:
            raise ValueError(f"reg must be a number (vmap over several), got shape {reg.shape}")
        if not is_traced(reg) and not 0 < float(reg) < math.inf:
            raise ValueError(f"reg must be positive and finite, got {float(reg)}")
        num_gates = masks.shape[1] if num_gates is None else num_gates
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        with jax.ensure_compile_time_eval():  # so that a number stays one under jit
            ridge = as_float_array("ridge", ridge, (0, 1)).astype(dtype)
        if ridge.ndim != 0 or (not is_traced(ridge) and float(ridge) < 0):
            raise ValueError(f"ridge must be a finite number that is not negative, got {ridge}")
        has_ridge = is_traced(ridge) or float(ridge) > 0
        if has_ridge and norm == "nuclear":
            raise ValueError("ridge must be 0 with norm 'nuclear'")
        sample_weight = _as_sample_weight(sample_weight, x, dtype)
        if intercept and not is_traced(y) and not is_traced(sample_weight):
            _check_intercept_exists(loss, y, sample_weight)
        self._set(
            x.astype(dtype),
            y,
            masks,
            reg,
            sample_weight,
            jnp.ones(x.shape[0], dtype) if intercept else None,
            _as_penalty_weights(penalty_weights, num_gates, dtype),
            ridge if has_ridge else None,
            loss,
            NORMS[norm],
            num_gates,
        )

    def _set(self, *values: object) -> None:
        for name, value in zip(self.__dataclass_fields__, values, strict=True):
            object.__setattr__(self, name, value)

    def tree_flatten(self) -> tuple[tuple[Array | None, ...], tuple[Loss, Norm, int]]:
        """Leaves and structure for JAX."""
        leaves = (
            self.x,
            self.y,
            self.masks,
            self.reg,
            self.sample_weight,
            self.column,
            self.penalty_weights,
            self.ridge,
        )
        return leaves, (self.loss, self.norm, self.num_gates)

    @classmethod
    def tree_unflatten(cls, aux: tuple[Loss, Norm, int], leaves: tuple[Any, ...]) -> ConvexProgram:
        """Rebuild from leaves, which JAX may have replaced by anything: no checks."""
        program = object.__new__(cls)
        program._set(*leaves, *aux)
        return program

    def _replaced(self, **changes: Any) -> ConvexProgram:
        program = object.__new__(type(self))
        program._set(*(changes.get(name, getattr(self, name)) for name in self.__dataclass_fields__))
        return program

    def with_masks(self, masks: Array, chosen: Array | None = None) -> ConvexProgram:
        """The program of other (n, P') masks on the same data, unchecked; bools, or numbers of x's dtype.

        ``chosen`` are the gates that they belong to, where the program has penalty weights.
        """
        weights = self.penalty_weights
        if weights is not None and chosen is not None:
            weights = weights[chosen]
        return self._replaced(masks=masks, num_gates=masks.shape[1], penalty_weights=weights)

    def with_numbers(self) -> ConvexProgram:
        """The program with masks as numbers, so that they are not turned into such for each product, if these are few.

        Meant for the inside of solvers: such masks are no longer bools.
        """
        if self.x.shape[0] * self.num_gates > _MOST_NUMBERS:
            return self
        return self._replaced(masks=as_numbers(self.masks, self.num_gates, self.x.dtype))

    def in_units(self, x_unit: Array, y_unit: Array) -> ConvexProgram:
        """The program of x and y divided by their units, whose solution is W x_unit / y_unit; squared loss only."""
        return self._replaced(
            x=self.x / x_unit,
            y=self.y / y_unit,
            reg=self.reg / x_unit / y_unit,
            ridge=None if self.ridge is None else self.ridge / x_unit**2,
        )

    def with_reg(self, reg: ArrayLike) -> ConvexProgram:
        """The program at another λ, unchecked."""
        return self._replaced(reg=jnp.asarray(reg, self.x.dtype))

    @property
    def is_quadratic(self) -> bool:
        """Whether the loss is the squared one, whose residual is linear in the outputs."""
        return self.loss == LOSSES["squared"]

    def canonical(self) -> ConvexProgram:
        """The same program without sample weights under the squared loss: rows are multiplied by √ω."""
        if not self.is_quadratic or self.sample_weight is None:
            return self
        root = jnp.sqrt(self.sample_weight)
        return self.weighted(root, self.x, self.y, self.column)

    def weighted(self, root: Array, x: Array, y: Array, column: Array | None) -> ConvexProgram:
        """The program of the squared loss for rows of x and y that are multiplied by (n,) roots of weights."""
        return self._replaced(
            x=root[:, None] * x,
            y=root.reshape(-1, *(1,) * (y.ndim - 1)) * y,
            sample_weight=None,
            column=None if column is None else root * column,
            loss=LOSSES["squared"],
        )

    @property
    def targets(self) -> Float[Array, "n c"]:
        """Y as a matrix, whatever the shape of y."""
        return self.y[:, None] if self.y.ndim == 1 else self.y

    @property
    def thresholds(self) -> Array:
        """λτ, (P,), or λ alone without penalty weights."""
        return self.reg if self.penalty_weights is None else self.reg * self.penalty_weights

    def check_gates(self, gates: ArrayLike) -> Array:
        """Gates as a (P, d) array, checked to give the program's masks on its x.

        Raises
        ------
        ValueError
            If the shape is wrong or a mask differs; masks are not looked at under a JAX transformation.
        """
        gates = as_matrix("gates", gates)
        if gates.shape != self.group_shape[:2]:
            raise ValueError(f"gates must have shape {self.group_shape[:2]}, got {gates.shape}")
        if not is_traced(gates, self):
            given = select_masks(self.masks, jnp.arange(self.num_gates)).astype(bool)
            if differing := int(jnp.sum(jnp.any(given != activation_masks(self.x, gates), axis=0))):
                raise ValueError(
                    f"gates must give the program's masks on its x: {differing} of {gates.shape[0]} do not; "
                    "are they those of other data?"
                )
        return gates

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
        """Outputs on the training data without an intercept, Σ_p D_p X W_p."""
        return masked_apply(self.masks, self.x, self.as_group_weights(weights))

    def correlations(self, residual: Array) -> Float[Array, "P d c"]:
        """Xᵀ D_p R of every group with an (n, c) residual."""
        return masked_adjoint(self.masks, self.x, residual, self.num_gates)

    def fit(self, fitted: Array) -> Fit:
        """Residual and loss of outputs Σ_p D_p X W_p, with the best intercept added where the program has one."""
        intercept = jnp.zeros(self.group_shape[2], self.x.dtype)
        if self.column is not None:
            intercept = self._best_intercept(fitted, self.column)
            fitted = fitted + self.column[:, None] * intercept
        residual = self._weighted(self.loss.residuals(fitted, self.targets))
        return Fit(fitted, intercept, residual, jnp.sum(self._weighted(self.loss.values(fitted, self.targets))))

    def centred(self, array: Array) -> Array:
        """What of an (n, …) array is orthogonal to the intercept's column; all of it without an intercept."""
        if self.column is None:
            return array
        unit = self.column / jnp.linalg.norm(self.column)
        along = matmul(unit, array.reshape(unit.size, -1))
        return array - (unit[:, None] * along).reshape(array.shape)

    def _weighted(self, rows: Array) -> Array:
        if self.sample_weight is None:
            return rows
        return self.sample_weight.reshape(-1, *(1,) * (rows.ndim - 1)) * rows

    @jax.jit
    def _best_intercept(self, fitted: Array, column: Array) -> Array:
        """Intercept b that minimises the loss of fitted + column bᵀ."""
        if self.is_quadratic:
            rest = self._weighted(self.targets - fitted)
            return matmul(column, rest) / jnp.sum(self._weighted(column**2))
        frozen, outputs = lax.stop_gradient((self, fitted))
        found = lax.stop_gradient(frozen._intercept_by_newton(outputs))
        # A Newton step from the minimum, which changes nothing but has its derivative.
        hessian = -jax.jacfwd(lambda intercept: frozen._pull(outputs + intercept))(found)
        return found + matmul(jnp.linalg.pinv(hessian, hermitian=True), self._pull(fitted + found))

    def _pull(self, outputs: Array) -> Array:
        """Sum of the residuals, (c,)."""
        return jnp.sum(self._weighted(self.loss.residuals(outputs, self.targets)), axis=0)

    def _intercept_by_newton(self, fitted: Array) -> Array:
        """Newton steps that never raise the loss."""
        ones = jnp.ones(self.x.shape[0], fitted.dtype)
        bound = self.loss.steepest * jnp.sum(self._weighted(ones))
        # Keeps the matrix definite where outliers or idle margins have no curvature.
        damping = 1e-4 * bound * jnp.eye(self.group_shape[2], dtype=fitted.dtype)
        eps = jnp.finfo(fitted.dtype).eps

        def value(intercept: Array) -> Array:
            return jnp.sum(self._weighted(self.loss.values(fitted + intercept, self.targets)))

        def pull(intercept: Array) -> Array:
            return self._pull(fitted + intercept)

        def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            count, intercept, downhill = state
            direction = jnp.linalg.solve(damping - jax.jacfwd(pull)(intercept), downhill)
            before = value(intercept)

            def too_long(trial: tuple[Array, Array]) -> Array:
                halvings, length = trial
                lower = value(intercept + length * direction) <= (1 + 10 * eps) * before
                return (halvings < _HALVINGS) & ~lower

            start = (jnp.asarray(0), jnp.ones_like(bound))
            _, length = lax.while_loop(too_long, lambda trial: (trial[0] + 1, 0.5 * trial[1]), start)
            moved = intercept + length * direction
            return count + 1, moved, pull(moved)

        def unfinished(state: tuple[Array, Array, Array]) -> Array:
            count, intercept, downhill = state
            size = jnp.sum(jnp.abs(self._weighted(self.loss.residuals(fitted + intercept, self.targets))))
            return (count < _INTERCEPT_STEPS) & (jnp.max(jnp.abs(downhill)) > 8 * eps * size)

        zero = jnp.zeros(self.group_shape[2], fitted.dtype)
        return lax.while_loop(unfinished, step, (jnp.asarray(0), zero, pull(zero)))[1]

    def penalty(self, weights: Array) -> Float[Array, ""]:
        """λ Σ_p τ_p ‖W_p‖ + (α/2) Σ_p ‖W_p‖²."""
        total = jnp.sum(self.thresholds * self.norm.values(weights))
        return total if self.ridge is None else total + 0.5 * self.ridge * jnp.sum(weights**2)

    def prox(self, groups: Array, step: Array) -> Float[Array, "P d c"]:
        """Proximal operator of step · penalty."""
        return self.norm.prox(groups, step * self.thresholds) * self.ridge_share(step)

    def ridge_share(self, step: Array) -> Array:
        """1 / (1 + step · α), by which the proximal operator of the ridge shrinks."""
        return jnp.ones_like(step) if self.ridge is None else 1 / (1 + step * self.ridge)

    def primal(self, weights: ArrayLike) -> Float[Array, ""]:
        """The objective of the group weights, (P, d, c) or, for targets (n,), (P, d), at the best intercept (M5)."""
        weights = self.as_group_weights(weights)
        return self.primal_of(weights, self.fit(self.fitted(weights)))

    def primal_of(self, weights: Array, fit: Fit) -> Float[Array, ""]:
        """The objective from a fit that is known already (M5)."""
        return fit.loss + self.penalty(weights)

    def fit_at_zero(self) -> Fit:
        """The fit of W = 0."""
        return self.fit(jnp.zeros_like(self.targets))

    def primal_at_zero(self) -> Float[Array, ""]:
        """The objective of W = 0, ½‖Y‖² for the squared loss, by which relative gaps are measured (M7)."""
        return self.fit_at_zero().loss

    def dual(self, theta: ArrayLike) -> Float[Array, ""]:
        """Dual objective of Θ, shaped like y: a lower bound on every primal value (M7).

        −ℓ*(−Θ), for the squared loss ½‖Y‖² − ½‖Y − Θ‖², where ‖Xᵀ D_p Θ‖ ≤ λτ_p for all p and, with an intercept,
        1ᵀΘ = 0 (both up to rounding); −∞ elsewhere. With a ridge, what ‖Xᵀ D_p Θ‖ exceeds λτ_p by costs instead.
        """
        theta = as_float_array("theta", theta, (1, 2)).astype(self.x.dtype)
        if theta.shape not in (self.y.shape, self.targets.shape):
            raise ValueError(f"theta must have y's shape {self.y.shape}, got {theta.shape}")
        theta = theta.reshape(self.targets.shape)
        value = -self._conjugate(theta)
        excess = jnp.maximum(self.norm.duals(self.correlations(theta)) - self.thresholds, 0)
        slack = 100 * jnp.finfo(self.x.dtype).eps
        feasible = jnp.all(excess <= self.thresholds * slack)
        if self.ridge is not None:
            cost = jnp.sum(excess**2) / (2 * jnp.where(self.ridge > 0, self.ridge, 1.0))
            value, feasible = jnp.where(self.ridge > 0, value - cost, value), feasible | (self.ridge > 0)
        if self.column is not None:
            sums = jnp.abs(matmul(self.column, theta))
            feasible &= jnp.all(sums <= slack * matmul(jnp.abs(self.column), jnp.abs(theta)))
        return jnp.where(feasible, value, -jnp.inf)

    def _conjugate(self, theta: Array) -> Array:
        if self.sample_weight is None:
            return jnp.sum(self.loss.conjugates(theta, self.targets))
        present = self.sample_weight > 0
        shares = theta / jnp.where(present, self.sample_weight, 1.0)[:, None]
        ignored = jnp.where(jnp.any(theta != 0, axis=1), jnp.inf, 0.0)
        return jnp.sum(jnp.where(present, self.sample_weight * self.loss.conjugates(shares, self.targets), ignored))

    def dual_point(self, weights: ArrayLike) -> Float[Array, "n c"]:
        """The residual of W scaled into the dual's feasible set, Θ = R·min(1, min_p λτ_p / ‖Xᵀ D_p R‖) (M7).

        With a ridge R itself, if that bounds the optimum better.
        """
        point = self.point(self.as_group_weights(weights))
        return point.fit.residual * self.certificate(*point).scale

    def gap(self, weights: ArrayLike) -> Float[Array, ""]:
        """Duality gap of W at the scaled residual: how far its objective can be above the optimum (M7)."""
        return self.certificate(*self.point(self.as_group_weights(weights))).gap

    def point(self, weights: Array) -> Point:
        """The fit of (P, d, c) group weights and its correlations."""
        fit = self.fit(self.fitted(weights))
        return Point(weights, fit, self.correlations(fit.residual))

    def certificate(self, weights: Array, fit: Fit, correlations: Array) -> Certificate:
        """Duality gap from a fit and its correlations that are known already (M7).

        Written as a sum of terms that are not negative, for each row and for each group the Fenchel–Young inequality's
        two sides apart: the difference of primal and dual would lose the gap's digits to cancellation.
        """
        norms, duals = self.norm.values(weights), self.norm.duals(correlations)
        alignments = jnp.sum(weights * correlations, axis=(1, 2))
        thresholds = self.thresholds

        scale = 1 / jnp.maximum(1.0, jnp.max(duals / thresholds))
        divergence = jnp.sum(self._weighted(self.loss.divergences(fit.outputs, self.targets, scale)))
        excess = jnp.sum(thresholds * norms - scale * alignments)
        if self.ridge is None:
            return Certificate(jnp.maximum(divergence + excess, 0.0), scale)
        feasible = jnp.maximum(divergence + excess + 0.5 * self.ridge * jnp.sum(weights**2), 0.0)
        # R itself, the dual point of a divergence of zero. A ridge that is traced may be zero, which allows no excess.
        ridge = jnp.where(self.ridge > 0, self.ridge, 1.0)
        over, under = jnp.maximum(duals - thresholds, 0), jnp.maximum(thresholds - duals, 0)
        unscaled = jnp.sum(norms * duals - alignments + norms * under + 0.5 * ridge * (norms - over / ridge) ** 2)
        gaps = jnp.stack([feasible, jnp.where(self.ridge > 0, jnp.maximum(unscaled, 0.0), jnp.inf)])
        best = jnp.argmin(gaps)
        return Certificate(gaps[best], jnp.stack([scale, jnp.ones_like(scale)])[best])

    def max_reg(self) -> Float[Array, ""]:
        """λ_max: from this λ on, the solution is W = 0; max_p ‖Xᵀ D_p Y‖_F for the squared loss (M7)."""
        duals = self.norm.duals(self.correlations(self.fit_at_zero().residual))
        return jnp.max(duals if self.penalty_weights is None else duals / self.penalty_weights)

    def kernel_objective(self, kernel_weights: ArrayLike) -> Float[Array, ""]:
        """J(η) = (λ/2) tr Yᵀ(K(η)+λI)⁻¹Y + (λ/2) Σ τ_p² η_p: at least the program's optimum, for every η ≥ 0 (M5).

        Raises
        ------
        ValueError
            If the program is not multiple kernel learning: the loss not squared, the norm nuclear, or a ridge.
        """
        eigenvalues, rotated, total = self._spectrum(kernel_weights)
        return 0.5 * self.reg * (jnp.sum(rotated / (eigenvalues + self.reg)) + total)

    def best_scale(self, kernel_weights: ArrayLike) -> BestScale:
        """The s ≥ 0 that minimises J(s η), and J there: the NTK at its best when η are the NTK's weights (M5).

        J(s η) is convex in s; its derivative is brought to zero by bisection in log s. Zero where J rises from s = 0.

        Raises
        ------
        ValueError
            As for :meth:`kernel_objective`.
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
        """Eigenvalues of K(η), squared lengths of Y along the eigenvectors, and Σ τ² η."""
        if not self.is_quadratic or self.norm.name != "frobenius" or self.ridge is not None:
            raise ValueError("only a program of squared loss, Frobenius norm and no ridge is multiple kernel learning")
        kernel_weights = self.as_kernel_weights(kernel_weights)
        canonical = self.canonical()
        eigenvalues, vectors = jnp.linalg.eigh(canonical.kernel(kernel_weights))
        rotated = matmul(vectors.T, canonical.centred(canonical.targets))
        scales = 1.0 if self.penalty_weights is None else self.penalty_weights**2
        return jnp.maximum(eigenvalues, 0), jnp.sum(rotated**2, axis=1), jnp.sum(scales * kernel_weights)

    def kernel(self, kernel_weights: Array) -> Float[Array, "n n"]:
        """K(η), less what the intercept takes (M2)."""
        return self.centred(self.centred(masked_gram(kernel_weights, self.masks, self.x)).T)

    def kernel_weights_of(self, norms: Array) -> Float[Array, " P"]:
        """η_p = ‖W_p‖ / τ_p, the minimisers of (λ/2) Σ_p (‖W_p‖²/η_p + τ_p² η_p): the optimal η at the optimum (M5)."""
        return norms if self.penalty_weights is None else norms / self.penalty_weights

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


def _check_scale(x: Array, y: Array) -> None:
    """Raise ValueError if ½‖Y‖², by which gaps are measured, or squares of Xᵀ D_p Y under- or overflow."""
    if is_traced(x, y):
        return
    with jax.ensure_compile_time_eval():
        largest, square = float(jnp.max(jnp.abs(y))), float(jnp.sum(y**2))
        largest_x = float(jnp.max(jnp.abs(x)))
    if largest > 0 and not 0 < square < math.inf:
        raise ValueError(
            f"y has entries up to {largest:.1e}, whose squares are out of {y.dtype}'s range: divide y by {largest:.1e}"
        )
    limits = jnp.finfo(y.dtype)
    product, most = largest_x * largest, math.sqrt(float(limits.max)) / max(x.size, y.size)
    if product > 0 and not math.sqrt(float(limits.tiny) / float(limits.eps)) <= product <= most:
        raise ValueError(
            f"products of x, with entries up to {largest_x:.1e}, and y, up to {largest:.1e}, have squares out of "
            f"{y.dtype}'s range: divide x by {largest_x:.1e} and y by {largest:.1e}"
        )


def _as_sample_weight(sample_weight: ArrayLike | None, x: Array, dtype: Any) -> Array | None:
    if sample_weight is None:
        return None
    weights = as_float_array("sample_weight", sample_weight, (1,)).astype(dtype)
    check_same_rows("x", x, "sample_weight", weights)
    if not is_traced(weights):
        with jax.ensure_compile_time_eval():
            smallest, largest = float(jnp.min(weights)), float(jnp.max(weights))
        if smallest < 0 or largest == 0:
            raise ValueError(
                f"sample_weight must not be negative and not all zero, got from {smallest:g} to {largest:g}"
            )
    return weights


def _as_penalty_weights(penalty_weights: ArrayLike | None, num_gates: int, dtype: Any) -> Array | None:
    if penalty_weights is None:
        return None
    weights = as_float_array("penalty_weights", penalty_weights, (1,)).astype(dtype)
    if weights.shape != (num_gates,):
        raise ValueError(f"penalty_weights must have shape ({num_gates},), got {weights.shape}")
    if not is_traced(weights):
        with jax.ensure_compile_time_eval():
            smallest = float(jnp.min(weights))
        if smallest <= 0:
            raise ValueError(f"penalty_weights must be positive, got {smallest:g}")
    return weights


def _check_intercept_exists(loss: Loss, y: Array, sample_weight: Array | None) -> None:
    """Raise ValueError where a class does not occur among the rows that count: the best intercept is infinite then."""
    if loss.name not in ("logistic", "softmax"):
        return
    with jax.ensure_compile_time_eval():
        present = jnp.ones(y.shape[0], bool) if sample_weight is None else sample_weight > 0
        classes = jnp.stack([y > 0, y < 0], axis=1) if y.ndim == 1 else y > 0
        occur = jnp.any(classes & present[:, None], axis=0)
        if not bool(jnp.all(occur)):
            raise ValueError(f"y must have rows of every class for an intercept with the {loss.name} loss")
