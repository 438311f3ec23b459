"""The NTK of infinitely many gates, cross-validated: kernel ridge regression in closed form.

See docs/mathematics.md, M3.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from jaxtyping import Float

from fixntk.convex import solve_quietly
from fixntk.estimators.candidates import Candidates
from fixntk.estimators.fitting import GatedFit, GatedProblem, as_gated_fit, kernel_matrix, memory_for_kernels
from fixntk.estimators.folds import Folds
from fixntk.estimators.kernels import ntk_of_depth
from fixntk.estimators.ntk_fits import DEFAULT_REGS, fit_kernel, unit_of_ridge
from fixntk.estimators.predictors import NTKOutputs
from fixntk.estimators.preprocessing import Training

# Matrices of a kernel's size in memory at a time: the kernel, its weighted copy, and a factor.
_NUM_FACTORED_MATRICES = 3


def exact_ntk_candidates(training: Training, problem: GatedProblem, folds: Folds) -> Candidates:
    """The NTK's ridge regression, at the ridge of the least leave-one-out error on the training rows of each fold."""
    kernel = kernel_matrix(ntk_of_depth(1), training)
    # Rows that are not held out are not judged.
    outputs = np.zeros((1, 1, *training.targets.shape))
    for kept, held_out in folds:
        found = fit_kernel(kernel[np.ix_(kept, kept)], training.select(kept), DEFAULT_REGS)
        outputs[0, 0, held_out] = kernel[np.ix_(held_out, kept)] @ found.dual_coef

    def fit(_: int, __: int) -> GatedFit:
        found = fit_kernel(kernel, training, DEFAULT_REGS)
        return _as_fit(training, problem, found.dual_coef, found.reg)

    return Candidates(outputs, fit)


def held_out_ntk_candidates(training: Training, problem: GatedProblem, folds: Folds) -> Candidates:
    """The NTK's ridge regression on the training rows of a single fold, at each ridge.

    For many rows, whose kernel is factorised nine times in less time than it is decomposed.
    """
    ((kept, held_out),) = folds
    outputs = np.zeros((len(DEFAULT_REGS), 1, *training.targets.shape))
    with memory_for_kernels(training.num_rows, _NUM_FACTORED_MATRICES):
        kernel = kernel_matrix(ntk_of_depth(1), training)
        rows, of_kept, of_held_out = training.select(kept), kernel[np.ix_(kept, kept)], kernel[np.ix_(held_out, kept)]
        for place, share in enumerate(DEFAULT_REGS):
            outputs[place, 0, held_out] = of_held_out @ _fit_by_factor(of_kept, rows, share)[0]

    def fit(place: int, _: int) -> GatedFit:
        return _as_fit(training, problem, *_fit_by_factor(kernel, training, DEFAULT_REGS[place]))

    return Candidates(outputs, fit)


def _fit_by_factor(
    kernel: Float[np.ndarray, "n n"], training: Training, share: float
) -> tuple[Float[np.ndarray, "n c"], float]:
    """Coefficients √ω (√ω K √ω + λ I)⁻¹ √ω Y of rows with weights ω, and λ."""
    root, reg = np.sqrt(training.weights)[:, None], share * unit_of_ridge(kernel, training.weights)
    matrix = root * kernel * root.T
    matrix[np.diag_indices_from(matrix)] += reg
    return root * scipy.linalg.solve(matrix, root * training.targets, assume_a="pos", overwrite_a=True), reg


def _as_fit(training: Training, problem: GatedProblem, dual_coef: Float[np.ndarray, "n c"], reg: float) -> GatedFit:
    # Random gates with the same ridge approach it as their number grows.
    solution = solve_quietly(problem.program.with_reg(reg), method="irls", max_iter=0)
    return as_gated_fit(solution, problem.gates, reg)._replace(exact_ntk=NTKOutputs(training.x, dual_coef))
