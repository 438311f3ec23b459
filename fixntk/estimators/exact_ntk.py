"""The NTK of infinitely many gates, cross-validated: kernel ridge regression in closed form.

See docs/mathematics.md, M3.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from fixntk.convex import solve_quietly
from fixntk.estimators.candidates import Candidates
from fixntk.estimators.fitting import GatedFit, GatedProblem, as_gated_fit
from fixntk.estimators.folds import Folds
from fixntk.estimators.ntk_fits import DEFAULT_REGS, fit_ntk
from fixntk.estimators.predictors import NTKOutputs
from fixntk.estimators.preprocessing import Training, pad_rows


def exact_ntk_candidates(training: Training, problem: GatedProblem, folds: Folds) -> Candidates:
    """The NTK's ridge regression, at the ridge of the least leave-one-out error on the training rows of each fold."""
    # Rows that are not held out are not judged.
    outputs = np.zeros((1, 1, *training.targets.shape))
    for kept, held_out in folds:
        rows = training.select(kept)
        found = NTKOutputs(rows.x, fit_ntk(rows, DEFAULT_REGS).dual_coef)
        outputs[0, 0, held_out] = found(jnp.asarray(pad_rows(training.x[held_out])))[: len(held_out)]

    def fit(_: int, __: int) -> GatedFit:
        found = fit_ntk(training, DEFAULT_REGS)
        # Random gates with the same ridge approach it as their number grows.
        solution = solve_quietly(problem.program.with_reg(found.reg), method="irls", max_iter=0)
        exact = NTKOutputs(training.x, found.dual_coef)
        return as_gated_fit(solution, problem.gates, found.reg)._replace(exact_ntk=exact)

    return Candidates(outputs, fit)
