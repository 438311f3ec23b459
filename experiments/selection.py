"""Choose λ by cross-validation and fit, the NTK and the fixed kernel in the same way, each in one compiled call.

A fold's held-out rows are set to zero in the inputs and the targets, which takes them out of the program exactly (M2),
so all folds have one shape, and the grid folds × λ is one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int
from sklearn.model_selection import StratifiedKFold

from fixntk import ConvexProgram, Solution, gated_relu_ntk, solve
from fixntk.convex.irls import solve_kernel_ridge
from fixntk.convex.program import BestScale
from fixntk.gram import masked_apply


class NTKFit(NamedTuple):
    """Kernel ridge regression with the NTK.

    Attributes
    ----------
    outputs
        (n_test, c) outputs on the test inputs.
    chosen
        Index of the λ chosen.
    errors
        (R,) mean squared error on held-out rows for each λ.
    """

    outputs: Float[Array, "n c"]
    chosen: Int[Array, ""]
    errors: Float[Array, " R"]


class FixedFit(NamedTuple):
    """The fixed kernel.

    Attributes
    ----------
    solution
        Of the convex program at the λ chosen, on all training rows.
    ntk
        The NTK of the same gates at its best scale in the same program.
    chosen, errors
        As for the NTK.
    """

    solution: Solution
    ntk: BestScale
    chosen: Int[Array, ""]
    errors: Float[Array, " R"]


def fold_masks(labels: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """(num_folds, n) float32, 1 for the training rows of each stratified fold and 0 for its held-out rows."""
    keep = np.ones((num_folds, labels.size), np.float32)
    # A class with fewer members than folds is fine: it is absent from some held-out parts.
    num_folds = min(num_folds, int(np.bincount(labels).max()))
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    for row, (_, held_out) in zip(keep, folds.split(np.zeros(labels.size), labels), strict=False):
        row[held_out] = 0
    return keep


@jax.jit
def fit_ntk(x: Array, y: Array, x_test: Array, keep: Array, regs: Array) -> NTKFit:
    """Fit the NTK with the λ of ``regs`` that has the least squared error on held-out rows.

    x is (n, d), y (n, c), x_test (n_test, d), keep (folds, n), regs (R,).
    """
    kernel = gated_relu_ntk(x)

    def outputs(rows: Array, reg: Array) -> Array:
        return kernel @ solve_kernel_ridge(kernel * rows[:, None] * rows, reg, y * rows[:, None])

    errors = _held_out_errors(outputs, y, keep, regs)
    chosen = jnp.argmin(errors)
    dual_weights = solve_kernel_ridge(kernel, regs[chosen], y)
    return NTKFit(gated_relu_ntk(x_test, x) @ dual_weights, chosen, errors)


@partial(jax.jit, static_argnames=("cv_steps", "steps", "tol"))
def fit_fixed(
    x: Array, y: Array, masks: Array, keep: Array, regs: Array, *, cv_steps: int, steps: int, tol: float
) -> FixedFit:
    """Fit the fixed kernel by iterative reweighting, at the λ that has the least squared error on held-out rows.

    The reweighting takes at most ``cv_steps`` steps in each fold and ``steps`` in the final fit.
    """

    def outputs(rows: Array, reg: Array) -> Array:
        program = ConvexProgram(x * rows[:, None], y * rows[:, None], masks, reg)
        fold = solve(program, method="irls", max_iter=cv_steps, tol=tol)
        return masked_apply(masks, x, fold.weights)

    errors = _held_out_errors(outputs, y, keep, regs)
    chosen = jnp.argmin(errors)
    program = ConvexProgram(x, y, masks, regs[chosen])
    num_gates = masks.shape[1]
    ntk = program.best_scale(jnp.full(num_gates, 1 / num_gates, x.dtype))
    return FixedFit(solve(program, method="irls", max_iter=steps, tol=tol), ntk, chosen, errors)


def _held_out_errors(
    outputs: Callable[[Array, Array], Array], y: Array, keep: Array, regs: Array
) -> Float[Array, " R"]:
    """Mean squared error over all held-out rows, for each λ."""
    every_fold = jax.vmap(lambda rows: jax.vmap(lambda reg: outputs(rows, reg))(regs))(keep)
    squares = jnp.sum((every_fold - y) ** 2, axis=-1)
    held_out = 1 - keep
    return jnp.einsum("frn,fn->r", squares, held_out) / jnp.sum(held_out)
