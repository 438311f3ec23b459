"""Cross-validation of λ and the final fit, for the NTK and the fixed kernel alike, each in one compiled call.

The training rows of each fold are gathered and padded to one size by rows of zeros, which change neither kernels nor
fits, so that the grid of folds and values of λ is one batch.
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

from fixntk import ConvexProgram, Solution, solve
from fixntk._numerics import solve_kernel_ridge
from fixntk.convex.kernel_form import BestScale
from fixntk.estimators.folds import stratified_folds
from fixntk.gram import masked_apply

# The number of training rows of a fold is rounded up to a multiple of this.
_ROW_MULTIPLE = 16


class RidgeFit(NamedTuple):
    """Kernel ridge regression with a given kernel.

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
        Solution of the convex program at the chosen λ, on all training rows.
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
    # If there are fewer folds than requested, the remaining rows of the array hold nothing out.
    for row, (_, held_out) in zip(keep, stratified_folds(labels, num_folds, seed=seed), strict=False):
        row[held_out] = 0
    return keep


def fit_ridge(kernel: Array, test_kernel: Array, y: Array, keep: np.ndarray, regs: Array) -> RidgeFit:
    """Fit kernel ridge regression with the λ of ``regs`` that has the least squared error on held-out rows.

    kernel is (n, n), test_kernel (n_test, n), y (n, c), keep (folds, n), regs (R,).
    """
    return _fit_ridge(kernel, test_kernel, y, keep, _training_rows(keep), regs)


@jax.jit
def _fit_ridge(kernel: Array, test_kernel: Array, y: Array, keep: Array, training: Array, regs: Array) -> RidgeFit:
    def outputs(rows: Array, reg: Array) -> Array:
        columns = kernel.at[:, rows].get(mode="fill", fill_value=0)
        return columns @ solve_kernel_ridge(_take_rows(columns, rows), reg, _take_rows(y, rows))

    errors = _held_out_errors(outputs, y, keep, training, regs)
    chosen = jnp.argmin(errors)
    return RidgeFit(test_kernel @ solve_kernel_ridge(kernel, regs[chosen], y), chosen, errors)


def fit_fixed(x: Array, y: Array, masks: Array, keep: np.ndarray, regs: Array, *, steps: int, tol: float) -> FixedFit:
    """Fit the fixed kernel by iterative reweighting, at the λ that has the least squared error on held-out rows.

    The reweighting takes at most ``steps`` steps, in each fold as in the final fit: fewer in the folds would choose a λ
    that is too small for the final fit, since the NTK at the start is smoother than the optimum.
    """
    return _fit_fixed(x, y, masks, keep, _training_rows(keep), regs, steps=steps, tol=tol)


@partial(jax.jit, static_argnames=("steps", "tol"))
def _fit_fixed(
    x: Array, y: Array, masks: Array, keep: Array, training: Array, regs: Array, *, steps: int, tol: float
) -> FixedFit:
    def outputs(rows: Array, reg: Array) -> Array:
        program = ConvexProgram(_take_rows(x, rows), _take_rows(y, rows), _take_rows(masks, rows), reg)
        fold = solve(program, method="irls", max_iter=steps, tol=tol)
        return masked_apply(masks, x, fold.weights)

    errors = _held_out_errors(outputs, y, keep, training, regs)
    chosen = jnp.argmin(errors)
    program = ConvexProgram(x, y, masks, regs[chosen])
    num_gates = masks.shape[1]
    ntk = program.best_scale(jnp.full(num_gates, 1 / num_gates, x.dtype))
    return FixedFit(solve(program, method="irls", max_iter=steps, tol=tol), ntk, chosen, errors)


def _training_rows(keep: np.ndarray) -> np.ndarray:
    """(folds, m) indices of the rows that each fold keeps, padded by n; few values of m, as each one is compiled."""
    kept = [np.flatnonzero(rows) for rows in keep]
    size = -(-max(map(len, kept)) // _ROW_MULTIPLE) * _ROW_MULTIPLE
    return np.stack([np.pad(rows, (0, size - len(rows)), constant_values=keep.shape[1]) for rows in kept])


def _take_rows(array: Array, rows: Array) -> Array:
    """The rows with these indices, zeros for indices out of range."""
    return array.at[rows].get(mode="fill", fill_value=0)


def _held_out_errors(
    outputs: Callable[[Array, Array], Array], y: Array, keep: Array, training: Array, regs: Array
) -> Float[Array, " R"]:
    """Mean squared error over all held-out rows, for each λ."""
    every_fold = jax.vmap(lambda rows: jax.vmap(lambda reg: outputs(rows, reg))(regs))(training)
    squares = jnp.sum((every_fold - y) ** 2, axis=-1)
    held_out = 1 - keep
    return jnp.einsum("frn,fn->r", squares, held_out) / jnp.sum(held_out)
