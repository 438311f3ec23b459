"""The data term of a convex program: outputs, residual and loss, with the optimal intercept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from fixntk._numerics import matmul
from fixntk.convex import intercept
from fixntk.convex.losses import LOSSES, Loss


class Fit(NamedTuple):
    """Outputs, residual and loss, with the optimal intercept.

    Attributes
    ----------
    outputs
        (n, c) F, the intercept included.
    intercept
        (c,) b; zero without one.
    residual
        (n, c) R, the negative gradient of the loss in F, times the rows' weights; orthogonal to the intercept's column.
    loss
        Sum over the rows, weighted.
    """

    outputs: Float[Array, "n c"]
    intercept: Float[Array, " c"]
    residual: Float[Array, "n c"]
    loss: Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Datafit:
    r"""The sum of losses :math:`\sum_i ω_i ℓ(F_i; Y_i)`, minimised over the intercept.

    Attributes
    ----------
    loss
        ℓ.
    targets
        (n, c) Y.
    sample_weight
        (n,) ω; None for ones.
    column
        (n,) the column that the intercept multiplies; None for a program without one. (n, q) orthonormal columns where
        the model of a loss needs several, with an intercept of its own for each.
    """

    loss: Loss = field(metadata={"static": True})
    targets: Float[Array, "n c"]
    sample_weight: Float[Array, " n"] | None
    column: Float[Array, " n *q"] | None

    def fit(self, fitted: Float[Array, "n c"]) -> Fit:
        """The fit of outputs without an intercept, Σ_p D_p X W_p."""
        added = jnp.zeros(fitted.shape[1], self.targets.dtype)
        if self.column is not None:
            added = self.best_intercept(fitted)
            fitted = fitted + matmul(_as_matrix(self.column), jnp.atleast_2d(added))
        # At the best intercept the residual is orthogonal to the intercept's column, as the dual asks.
        residual = self.weight_rows(self.loss.residuals(fitted, self.targets))
        return Fit(fitted, added, residual, jnp.sum(self.weight_rows(self.loss.values(fitted, self.targets))))

    def best_intercept(self, fitted: Float[Array, "n c"]) -> Float[Array, "*q c"]:
        """The intercept b that minimises the loss of fitted + column bᵀ."""
        if self.loss == LOSSES["squared"]:
            return intercept.least_squares(self.column, fitted, self.targets, self.sample_weight)
        return intercept.minimise_by_newton(self.loss, fitted, self.targets, self.sample_weight)

    def fit_at_zero(self) -> Fit:
        """The fit of W = 0."""
        return self.fit(jnp.zeros_like(self.targets))

    def weight_rows(self, rows: Array) -> Array:
        """Rows times their weights."""
        return intercept.weight_rows(self.sample_weight, rows)

    def remove_intercept(self, array: Array) -> Array:
        """The part of an (n, …) array that is orthogonal to the intercept's column; all of it without an intercept."""
        if self.column is None:
            return array
        # A projection, I − uuᵀ for one column, which is all that an intercept changes in a kernel of the squared loss.
        columns = _as_matrix(self.column)
        units = columns / jnp.linalg.norm(columns, axis=0, keepdims=True)
        along = matmul(units.T, array.reshape(units.shape[0], -1))
        return array - matmul(units, along).reshape(array.shape)

    def conjugate(self, theta: Float[Array, "n c"]) -> Float[Array, ""]:
        """The conjugate Σ_i ω_i ℓ*(−Θ_i/ω_i); infinite where a row of weight zero has Θ_i ≠ 0."""
        if self.sample_weight is None:
            return jnp.sum(self.loss.conjugates(theta, self.targets))
        # The conjugate of ω ℓ is ω ℓ*(·/ω); a row of weight zero has the conjugate of zero, infinite away from 0.
        present = self.sample_weight > 0
        shares = theta / jnp.where(present, self.sample_weight, 1.0)[:, None]
        ignored = jnp.where(jnp.any(theta != 0, axis=1), jnp.inf, 0.0)
        return jnp.sum(jnp.where(present, self.sample_weight * self.loss.conjugates(shares, self.targets), ignored))


def _as_matrix(column: Float[Array, " n *q"]) -> Float[Array, "n q"]:
    return column.reshape(column.shape[0], -1)
