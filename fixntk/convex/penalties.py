"""Norms of groups of weights, with their dual norms and proximal operators.

The penalty of a program is λ Σ_p τ_p ‖W_p‖ with one of these norms; the dual norm bounds ‖Xᵀ D_p Θ‖_* ≤ λτ_p.

See docs/mathematics.md, M5, M7 and M10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from fixntk._numerics import matmul, safe_sqrt


@dataclass(frozen=True)
class Norm:
    """A norm of each group of a (P, d, c) array.

    Attributes
    ----------
    name
        For messages.
    values
        (P,) norms.
    duals
        (P,) dual norms.
    prox
        From groups V and (P,) or scalar thresholds t to argmin_W ½‖W_p − V_p‖_F² + t_p ‖W_p‖ of each group.

    See docs/mathematics.md, M7, M8 and M10.
    """

    name: str
    values: Callable[[Array], Array]
    duals: Callable[[Array], Array]
    prox: Callable[[Array, Array], Array]


def group_norms(groups: Array) -> Float[Array, " P"]:
    """Frobenius norm of each group of a (P, d, c) array, with gradient zero at zero."""
    return safe_sqrt(jnp.sum(groups**2, axis=(1, 2)))


def shares_kept(norms: Array, threshold: Array) -> Float[Array, " P"]:
    """(1 − threshold/‖V_p‖)₊, by which the proximal operator of threshold · Σ_p ‖·‖_F multiplies each group."""
    return jnp.where(norms > threshold, 1 - threshold / jnp.where(norms > 0, norms, 1.0), 0.0)


def _shrink(groups: Array, thresholds: Array) -> Float[Array, "P d c"]:
    return shares_kept(group_norms(groups), thresholds)[:, None, None] * groups


def _singular_values(groups: Array) -> Float[Array, "P k"]:
    return jnp.linalg.svd(groups, compute_uv=False)


def _nuclear_norms(groups: Array) -> Array:
    return jnp.sum(_singular_values(groups), axis=1)


def _spectral_norms(groups: Array) -> Array:
    return _singular_values(groups)[:, 0]


def _shrink_singular_values(groups: Array, thresholds: Array) -> Float[Array, "P d c"]:
    """The Frobenius norm's operator on the diagonal of an SVD: singular values are reduced by the threshold."""
    # The nuclear norm is the ℓ₁ norm of the singular values, whose proximal operator keeps the singular vectors.
    left, values, right = jnp.linalg.svd(groups, full_matrices=False)
    shrunk = jnp.maximum(values - jnp.reshape(thresholds, (-1, 1)), 0)
    return matmul(left * shrunk[:, None, :], right)


NORMS: dict[str, Norm] = {
    "frobenius": Norm("frobenius", group_norms, group_norms, _shrink),
    "nuclear": Norm("nuclear", _nuclear_norms, _spectral_norms, _shrink_singular_values),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Penalty:
    r"""The penalty :math:`\sum_p t_p \|W_p\| + \tfrac{α}{2} \sum_p \|W_p\|_F^2` of group weights.

    Attributes
    ----------
    norm
        The norm of a group.
    thresholds
        t = λτ, (P,), or λ alone where all τ are one.
    ridge
        α; None for none.

    See docs/mathematics.md, M5, M7 and M8.
    """

    norm: Norm = field(metadata={"static": True})
    thresholds: Float[Array, " P"] | Float[Array, ""]
    ridge: Float[Array, ""] | None

    def value(self, weights: Float[Array, "P d c"]) -> Float[Array, ""]:
        """The penalty of weights."""
        total = jnp.sum(self.thresholds * self.norm.values(weights))
        return total if self.ridge is None else total + 0.5 * self.ridge * jnp.sum(weights**2)

    def prox(self, groups: Float[Array, "P d c"], step: Float[Array, ""]) -> Float[Array, "P d c"]:
        """Proximal operator of step · penalty."""
        # A ridge only rescales the norm's operator, as both act along the same ray.
        return self.norm.prox(groups, step * self.thresholds) * self.ridge_share(step)

    def ridge_share(self, step: Array) -> Array:
        """The factor 1 / (1 + step · α) by which the proximal operator of the ridge shrinks."""
        return jnp.ones_like(step) if self.ridge is None else 1 / (1 + step * self.ridge)
