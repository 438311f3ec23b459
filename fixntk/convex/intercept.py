"""The intercept that minimises the loss of given outputs: in closed form for the squared loss, by Newton otherwise.

It is differentiable in the outputs and the targets: the derivative is that of one Newton step from the minimum, which
changes nothing there.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from fixntk._line_search import backtrack
from fixntk._numerics import eps_of, matmul
from fixntk.convex.losses import Loss

# Largest number of Newton steps.
_MAX_STEPS = 50
# Largest number of halvings of a step.
_MAX_HALVINGS = 30
# Added to the Hessian, as a share of its largest possible value: outliers and idle margins have no curvature.
_DAMPING_SHARE = 1e-4


def weight_rows(sample_weight: Float[Array, " n"] | None, rows: Array) -> Array:
    """(n, …) rows times their weights, unchanged where there are none."""
    if sample_weight is None:
        return rows
    return sample_weight.reshape(-1, *(1,) * (rows.ndim - 1)) * rows


@jax.jit
def least_squares(
    column: Float[Array, " n *q"],
    fitted: Float[Array, "n c"],
    targets: Float[Array, "n c"],
    sample_weight: Float[Array, " n"] | None,
) -> Float[Array, "*q c"]:
    """The intercept of the squared loss: the weighted regression of the remaining residual on the column.

    Several columns are orthogonal, and have an intercept each.
    """
    rest = weight_rows(sample_weight, targets - fitted)
    return matmul(column.T, rest) / jnp.sum(weight_rows(sample_weight, column**2), axis=0)[..., None]


@partial(jax.jit, static_argnums=0)
def minimise_by_newton(
    loss: Loss,
    fitted: Float[Array, "n c"],
    targets: Float[Array, "n c"],
    sample_weight: Float[Array, " n"] | None,
) -> Float[Array, " c"]:
    """The intercept of any loss, by Newton steps that never raise it."""
    # The loop is not differentiated: its result satisfies an equation, whose derivative a last step carries.
    frozen = lax.stop_gradient((fitted, targets, sample_weight))
    found = lax.stop_gradient(_minimise(loss, *frozen))
    hessian = -jax.jacfwd(lambda intercept: _residual_sum(loss, frozen[0] + intercept[None, :], *frozen[1:]))(found)
    # A Newton step from the minimum, which changes nothing but has the minimum's derivative.
    pull = _residual_sum(loss, fitted + found[None, :], targets, sample_weight)
    return found + matmul(jnp.linalg.pinv(hessian, hermitian=True), pull)


def _residual_sum(loss: Loss, outputs: Array, targets: Array, sample_weight: Array | None) -> Array:
    """Sum of the residuals, (c,): the negative gradient in the intercept."""
    return jnp.sum(weight_rows(sample_weight, loss.residuals(outputs, targets)), axis=0)


def _minimise(loss: Loss, fitted: Array, targets: Array, sample_weight: Array | None) -> Array:
    num_outputs, eps = fitted.shape[1], eps_of(fitted)
    steepest = loss.steepest * jnp.sum(weight_rows(sample_weight, jnp.ones(fitted.shape[0], fitted.dtype)))
    damping = _DAMPING_SHARE * steepest * jnp.eye(num_outputs, dtype=fitted.dtype)

    def value(intercept: Array) -> Array:
        return jnp.sum(weight_rows(sample_weight, loss.values(fitted + intercept[None, :], targets)))

    def pull(intercept: Array) -> Array:
        return _residual_sum(loss, fitted + intercept[None, :], targets, sample_weight)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, intercept, downhill = state
        # The pull is minus the gradient, so that minus its Jacobian is the Hessian, of c unknowns.
        direction = jnp.linalg.solve(damping - jax.jacfwd(pull)(intercept), downhill)
        # Rounding must not stop the full step at the minimum.
        highest = (1 + 10 * eps) * value(intercept)
        search = backtrack(
            lambda length: value(intercept + length * direction) <= highest,
            jnp.ones_like(steepest),
            max_halvings=_MAX_HALVINGS,
        )
        intercept = intercept + search.length * direction
        return count + 1, intercept, pull(intercept)

    def is_unfinished(state: tuple[Array, Array, Array]) -> Array:
        count, intercept, downhill = state
        # The pull is a sum of terms of this total size, so that it is known to a few eps of it and no better.
        size = jnp.sum(jnp.abs(weight_rows(sample_weight, loss.residuals(fitted + intercept[None, :], targets))))
        return (count < _MAX_STEPS) & (jnp.max(jnp.abs(downhill)) > 8 * eps * size)

    zero = jnp.zeros(num_outputs, fitted.dtype)
    return lax.while_loop(is_unfinished, step, (jnp.asarray(0), zero, pull(zero)))[1]
