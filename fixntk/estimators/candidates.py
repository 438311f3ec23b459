"""Candidates of a cross-validation: fits of one kind at many settings, with their held-out outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fixntk.convex import solve_quietly
from fixntk.estimators.fitting import GatedFit, GatedProblem, as_gated_fit
from fixntk.estimators.folds import Folds
from fixntk.estimators.preprocessing import Training

# Share by which λ exceeds the λ_max of a program, from which on its solution is the constant.
_ABOVE_MAX_REG = 1e-6
# A path along λ ends where its held-out loss exceeds that of another kind at the same λ by this share.
_MOST_BEHIND = 0.05


class Candidates(NamedTuple):
    """Fits on a grid of settings.

    Attributes
    ----------
    outputs
        (R, S, n, c) outputs of each row by fits without its fold, at each setting; NaN where a setting was not tried.
    fit
        ``fit(r, s)``, the fit to all rows at a setting.
    """

    outputs: Float[np.ndarray, "R S n c"]
    fit: Callable[[int, int], GatedFit]


def is_behind(loss: float, other: float) -> bool:
    """Whether a path along λ has fallen behind another kind at the same λ; never behind NaN."""
    return bool(loss > (1 + _MOST_BEHIND) * other)


def constant_candidate(training: Training, problem: GatedProblem, folds: Folds) -> Candidates:
    """The mean of the targets: the program's solution for a large λ."""
    outputs = np.zeros((1, 1, *training.targets.shape))
    for kept, held_out in folds:
        outputs[0, 0, held_out] = np.average(training.targets[kept], axis=0, weights=training.weights[kept])

    def fit(_: int, __: int) -> GatedFit:
        reg = max(problem.max_reg, float(problem.program.max_reg())) * (1 + _ABOVE_MAX_REG)
        return as_gated_fit(solve_quietly(problem.program.with_reg(reg)), problem.gates, reg)

    return Candidates(outputs, fit)
