"""The convex program of the gated-ReLU network: its fields, its constructor, and what a user asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, UInt8

from fixntk._checks import (
    as_float_array,
    as_matrix,
    check_same_rows,
    is_floating,
    is_traced,
    place_rows_like,
    to_device,
)
from fixntk._compilation import jit_for_host
from fixntk.convex import arguments, duality, kernel_form
from fixntk.convex.datafit import Datafit
from fixntk.convex.duality import Evaluation
from fixntk.convex.kernel_form import BestScale, Spectrum
from fixntk.convex.losses import LOSSES, Loss, as_loss
from fixntk.convex.penalties import Norm, Penalty
from fixntk.gram import masked_adjoint, masked_apply, masked_gram


@dataclass(frozen=True, eq=False, init=False, repr=False)
class ConvexProgram:
    r"""The training problem of a gated-ReLU network as a group lasso over data masks.

    .. math:: \min_{W, b} \sum_i ω_i ℓ\bigl(F(x_i); y_i\bigr) + λ \sum_p τ_p \|W_p\| + \tfrac{α}{2} \sum_p \|W_p\|_F^2,
        \qquad F = 1 b^⊤ + \sum_p D_p X W_p

    With the default options, ℓ the squared loss, ω = τ = 1, α = 0 and no b, it has for one output the value
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
        One of the names above, or a :class:`~fixntk.convex.losses.Loss`, such as ``huber(delta)``; ``"huber"`` is
        ``huber(1.0)``.
    num_gates
        P, needed for packed masks only.
    sample_weight
        (n,) ω ≥ 0; ones when None.
    intercept
        Whether to add b, which is not penalised.
    penalty_weights
        (P,) τ > 0, a prior on the gates: larger values penalise a gate more; ones when None.
    ridge
        α ≥ 0, the elastic penalty's second part.
    norm
        ``"frobenius"``, or ``"nuclear"``, the sum of singular values, which is what weight decay of gated networks
        with vector outputs amounts to.

    Raises
    ------
    ValueError
        If x or y hold NaN or infinity, rows do not match, there is no data or no mask, the squares of y are out of the
        dtype's range, the labels do not fit the loss, λ or τ is not positive, ω or α negative, the loss or norm
        unknown, or a ridge is asked for with the nuclear norm.

    See docs/mathematics.md, M5 and M7.
    """

    x: Float[Array, "n d"]
    y: Float[Array, " n *c"]
    masks: Bool[Array, "n P"] | UInt8[Array, "n bytes"] | Float[Array, "n P"]
    reg: Float[Array, ""]
    sample_weight: Float[Array, " n"] | None
    column: Float[Array, " n *q"] | None
    penalty_weights: Float[Array, " P"] | None
    ridge: Float[Array, ""] | None
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
        given, y = y, loss.encode(y)
        check_same_rows("x", x, "y", y)
        masks = arguments.as_program_masks(masks, num_gates)
        check_same_rows("x", x, "masks", masks)
        # Integer labels do not decide the precision, floating-point targets do.
        dtype = jnp.result_type(x.dtype, y.dtype) if is_floating("y", given) else x.dtype
        # Where the rows of x are divided over devices, those of all else are too.
        y, masks = place_rows_like(x, y.astype(dtype)), place_rows_like(x, masks)
        arguments.check_scale(x, y)
        num_gates = masks.shape[1] if num_gates is None else num_gates
        group_norm = arguments.as_norm(norm)
        sample_weight = arguments.as_sample_weight(sample_weight, x, dtype)
        if sample_weight is not None:
            sample_weight = place_rows_like(x, sample_weight)
        if intercept and not is_traced(y) and not is_traced(sample_weight):
            arguments.check_intercept_exists(loss, y, sample_weight)
        _set_fields(
            self,
            x=x.astype(dtype),
            y=y,
            masks=masks,
            reg=arguments.as_reg(reg, dtype),
            sample_weight=sample_weight,
            column=place_rows_like(x, to_device(np.ones(x.shape[0], dtype))) if intercept else None,
            penalty_weights=arguments.as_penalty_weights(penalty_weights, num_gates, dtype),
            ridge=arguments.as_ridge(ridge, group_norm, dtype),
            loss=loss,
            norm=group_norm,
            num_gates=num_gates,
        )

    def __repr__(self) -> str:
        shape = f"{self.x.shape[0]} rows, {self.x.shape[1]} features, {self.num_gates} gates, {self.x.dtype}"
        reg = "traced" if is_traced(self.reg) or jnp.ndim(self.reg) else f"{float(self.reg):.3g}"
        norm = [] if self.norm.name == "frobenius" else [f"norm {self.norm.name}"]
        names = {"sample_weight": "weighted rows", "column": "intercept", "penalty_weights": "weighted gates"}
        options = [shown for name, shown in names.items() if getattr(self, name) is not None]
        ridge = [] if self.ridge is None else ["ridge"]
        return f"ConvexProgram({shape}, λ {reg}, {', '.join([f'loss {self.loss.name}', *norm, *options, *ridge])})"

    def with_reg(self, reg: ArrayLike) -> ConvexProgram:
        """The program at another λ, unchecked."""
        value = reg if isinstance(reg, Array) else to_device(np.asarray(reg, self.x.dtype))
        return replace_fields(self, reg=value.astype(self.x.dtype))

    def evaluate(self, weights: ArrayLike) -> Evaluation:
        """Outputs, residual, correlations, primal and gap of group weights, in one product with the masks each way.

        Parameters
        ----------
        weights
            (P, d, c) or, for targets (n,), (P, d).
        """
        weights = as_group_weights(self, weights)
        fit = datafit_of(self).fit(masked_outputs(self, weights))
        return duality.evaluate_fit(
            datafit_of(self), penalty_of(self), weights, fit, correlations_of(self, fit.residual)
        )

    def primal(self, weights: ArrayLike) -> Float[Array, ""]:
        """The objective of the group weights, (P, d, c) or, for targets (n,), (P, d), at the best intercept.

        See docs/mathematics.md, M5.
        """
        weights = as_group_weights(self, weights)
        return datafit_of(self).fit(masked_outputs(self, weights)).loss + penalty_of(self).value(weights)

    def primal_at_zero(self) -> Float[Array, ""]:
        """The objective of W = 0, ½‖Y‖² for the squared loss, by which relative gaps are measured.

        See docs/mathematics.md, M7.
        """
        return datafit_of(self).fit_at_zero().loss

    def dual(self, theta: ArrayLike) -> Float[Array, ""]:
        """Dual objective of Θ, shaped like y: a lower bound on every primal value.

        −ℓ*(−Θ), for the squared loss ½‖Y‖² − ½‖Y − Θ‖², where ‖Xᵀ D_p Θ‖ ≤ λτ_p for all p and, with an intercept,
        1ᵀΘ = 0 (both up to rounding); −∞ elsewhere. With a ridge, the excess over λτ_p is penalised instead.

        Raises
        ------
        ValueError
            If Θ has another shape than y.

        See docs/mathematics.md, M7.
        """
        theta = as_float_array("theta", theta, (1, 2)).astype(self.x.dtype)
        if theta.shape not in (self.y.shape, targets_of(self).shape):
            raise ValueError(f"theta must have y's shape {self.y.shape}, got {theta.shape}")
        theta = theta.reshape(targets_of(self).shape)
        return duality.dual_objective(datafit_of(self), penalty_of(self), theta, correlations_of(self, theta))

    def dual_point(self, weights: ArrayLike) -> Float[Array, "n c"]:
        """The residual of W scaled into the dual's feasible set, Θ = R·min(1, min_p λτ_p / ‖Xᵀ D_p R‖).

        With a ridge R itself, if that bounds the optimum better.

        See docs/mathematics.md, M7.
        """
        found = self.evaluate(weights)
        return found.residual * found.dual_scale

    def gap(self, weights: ArrayLike) -> Float[Array, ""]:
        """Duality gap of W at the scaled residual: how far its objective can be above the optimum.

        See docs/mathematics.md, M7.
        """
        return self.evaluate(weights).gap

    def max_reg(self) -> Float[Array, ""]:
        """λ_max: from this λ on, the solution is W = 0; max_p ‖Xᵀ D_p Y‖_F for the squared loss.

        See docs/mathematics.md, M7.
        """
        return _max_reg(self)

    def kernel_objective(self, kernel_weights: ArrayLike) -> Float[Array, ""]:
        """J(η) = (λ/2) tr Yᵀ(K(η)+λI)⁻¹Y + (λ/2) Σ τ_p² η_p: at least the program's optimum, for every η ≥ 0.

        Raises
        ------
        ValueError
            If the program is not multiple kernel learning: the loss not squared, the norm nuclear, or a ridge.

        See docs/mathematics.md, M5.
        """
        return kernel_form.objective(_spectrum(self, kernel_weights), self.reg)

    def best_scale(self, kernel_weights: ArrayLike) -> BestScale:
        """The s ≥ 0 that minimises J(s η), and J there: the NTK at its best when η are the NTK's weights.

        J(s η) is convex in s; its derivative is brought to zero by bisection in log s. Zero where J rises from s = 0.

        Raises
        ------
        ValueError
            As for :meth:`kernel_objective`.

        See docs/mathematics.md, M5.
        """
        return kernel_form.minimise_over_scale(_spectrum(self, kernel_weights), self.reg)


def program_at_share(x: ArrayLike, y: ArrayLike, masks: ArrayLike, reg_share: float) -> ConvexProgram:
    """The program with λ = ``reg_share`` λ_max, so that the setting fits data of any scale."""
    program = ConvexProgram(x, y, masks, 1.0)
    return program.with_reg(reg_share * program.max_reg())


def targets_of(program: ConvexProgram) -> Float[Array, "n c"]:
    """Y as a matrix, whatever the shape of y."""
    return program.y[:, None] if program.y.ndim == 1 else program.y


def group_shape_of(program: ConvexProgram) -> tuple[int, int, int]:
    """(P, d, c), the shape of the group weights W."""
    # From shapes alone: outside of compiled functions an array of targets would have to be made.
    return program.num_gates, program.x.shape[1], 1 if program.y.ndim == 1 else program.y.shape[1]


def is_quadratic(program: ConvexProgram) -> bool:
    """Whether the loss is the squared one, whose residual is linear in the outputs."""
    return program.loss == LOSSES["squared"]


def thresholds_of(program: ConvexProgram) -> Array:
    """λτ, (P,), or λ alone without penalty weights."""
    return program.reg if program.penalty_weights is None else program.reg * program.penalty_weights


def datafit_of(program: ConvexProgram) -> Datafit:
    """The loss with its targets, sample weights and intercept."""
    return Datafit(program.loss, targets_of(program), program.sample_weight, program.column)


def penalty_of(program: ConvexProgram) -> Penalty:
    """The norm with its thresholds λτ, and the ridge."""
    return Penalty(program.norm, thresholds_of(program), program.ridge)


def as_group_weights(program: ConvexProgram, weights: ArrayLike) -> Float[Array, "P d c"]:
    """Group weights as (P, d, c); for targets (n,), (P, d) is taken as well.

    Raises
    ------
    ValueError
        If the shape is another.
    """
    groups = arguments.as_groups("weights", weights, group_shape_of(program), is_vector=program.y.ndim == 1)
    return groups.astype(program.x.dtype)


def masked_outputs(program: ConvexProgram, weights: ArrayLike) -> Float[Array, "n c"]:
    """Outputs on the training data without an intercept, Σ_p D_p X W_p."""
    return masked_apply(program.masks, program.x, as_group_weights(program, weights))


def correlations_of(program: ConvexProgram, residual: Float[Array, "n c"]) -> Float[Array, "P d c"]:
    """Xᵀ D_p R of every group with a residual R."""
    return masked_adjoint(program.masks, program.x, residual, program.num_gates)


@jit_for_host
def _max_reg(program: ConvexProgram) -> Float[Array, ""]:
    # W = 0 is optimal if the residual there is dual feasible: ‖Xᵀ D_p R(0)‖ ≤ λτ_p for every group.
    duals = program.norm.duals(correlations_of(program, datafit_of(program).fit_at_zero().residual))
    return jnp.max(duals if program.penalty_weights is None else duals / program.penalty_weights)


def kernel_of(program: ConvexProgram, kernel_weights: Float[Array, " P"]) -> Float[Array, "n n"]:
    """K(η) on the subspace orthogonal to the intercept's column, for a program without sample weights."""
    datafit = datafit_of(program)
    # From the left and, by the transpose of a symmetric matrix, from the right.
    return datafit.remove_intercept(datafit.remove_intercept(masked_gram(kernel_weights, program.masks, program.x)).T)


def absorb_sample_weight(program: ConvexProgram) -> ConvexProgram:
    """The same program without sample weights under the squared loss: rows are multiplied by √ω."""
    if not is_quadratic(program) or program.sample_weight is None:
        return program
    return _multiply_rows(program, program.sample_weight)


@jit_for_host
def _multiply_rows(program: ConvexProgram, sample_weight: Float[Array, " n"]) -> ConvexProgram:
    return as_squared_loss(program, jnp.sqrt(sample_weight), program.y)


def as_squared_loss(program: ConvexProgram, root: Float[Array, " n"], y: Float[Array, " n *c"]) -> ConvexProgram:
    """The program of the squared loss of targets y, its rows multiplied by roots of weights."""
    return replace_fields(
        program,
        x=root[:, None] * program.x,
        y=root.reshape(-1, *(1,) * (y.ndim - 1)) * y,
        sample_weight=None,
        column=None if program.column is None else root * program.column,
        loss=LOSSES["squared"],
    )


def replace_fields(program: ConvexProgram, **changes: Any) -> ConvexProgram:
    """The program with some fields replaced, unchecked."""
    fields = {name: getattr(program, name) for name in ConvexProgram.__dataclass_fields__}
    return _set_fields(object.__new__(ConvexProgram), **(fields | changes))


def _set_fields(program: ConvexProgram, **fields: Any) -> ConvexProgram:
    for name, value in fields.items():
        object.__setattr__(program, name, value)
    return program


def _spectrum(program: ConvexProgram, kernel_weights: ArrayLike) -> Spectrum:
    if not is_quadratic(program) or program.norm.name != "frobenius" or program.ridge is not None:
        raise ValueError("only a program of squared loss, Frobenius norm and no ridge is multiple kernel learning")
    # Sample weights, intercept and penalty weights come to plain kernel ridge by three changes: rows times √ω, a
    # projection against the intercept's column, and a cost of τ_p² for each kernel weight.
    weights = kernel_form.as_kernel_weights(kernel_weights, program.num_gates, program.x.dtype)
    scales = 1.0 if program.penalty_weights is None else program.penalty_weights**2
    program = absorb_sample_weight(program)
    targets = datafit_of(program).remove_intercept(targets_of(program))
    return kernel_form.spectrum(kernel_of(program, weights), targets, jnp.sum(scales * weights))


# Written out, as JAX's registration of dataclasses would call the constructor, whose checks tracers and placeholders
# do not pass.
_STATIC = ("loss", "norm", "num_gates")
_LEAVES = tuple(name for name in ConvexProgram.__dataclass_fields__ if name not in _STATIC)
jax.tree_util.register_pytree_with_keys(
    ConvexProgram,
    lambda program: (
        tuple((jax.tree_util.GetAttrKey(name), getattr(program, name)) for name in _LEAVES),
        tuple(getattr(program, name) for name in _STATIC),
    ),
    lambda static, leaves: _set_fields(
        object.__new__(ConvexProgram),
        **dict(zip(_LEAVES, leaves, strict=True)),
        **dict(zip(_STATIC, static, strict=True)),
    ),
)
