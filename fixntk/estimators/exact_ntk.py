"""The NTK of infinitely many gates, cross-validated: kernel ridge regression in closed form.

See docs/mathematics.md, M3.
"""

from __future__ import annotations

import numpy as np

from fixntk.convex import solve_quietly
from fixntk.estimators.candidates import Candidates
from fixntk.estimators.fitting import GatedFit, GatedProblem, as_gated_fit, kernel_matrix
from fixntk.estimators.folds import Folds
from fixntk.estimators.kernels import ntk_of_depth
from fixntk.estimators.ntk_fits import DEFAULT_REGS, fit_kernel
from fixntk.estimators.predictors import NTKOutputs
from fixntk.estimators.preprocessing import Training


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
        # Random gates with the same ridge approach it as their number grows.
        solution = solve_quietly(problem.program.with_reg(found.reg), method="irls", max_iter=0)
        exact = NTKOutputs(training.x, found.dual_coef)
        return as_gated_fit(solution, problem.gates, found.reg)._replace(exact_ntk=exact)

    return Candidates(outputs, fit)
