"""Candidates of a cross-validation: fits of one kind at many settings, and how their held-out outputs are judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from fixntk.convex import solve_quietly
from fixntk.estimators.fitting import GatedFit, GatedProblem, as_gated_fit
from fixntk.estimators.folds import Folds
from fixntk.estimators.gate_options import GateOptions
from fixntk.estimators.preprocessing import Training

# Share by which λ exceeds the λ_max of a program, from which on its solution is the constant.
_ABOVE_MAX_REG = 1e-6
# Candidates are given up after the first fold where the loss of each is too high by more than this number of standard
# errors.
_CLEARLY_BEHIND = 2.0
# Number of λ that the other folds try otherwise, those with the least loss on the first fold.
NUM_KEPT_REGS = 3

Losses = Callable[[Float[np.ndarray, "n c"]], Float[np.ndarray, " n"]]
"""The loss of each row from held-out outputs."""


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


class Judge(NamedTuple):
    """How held-out outputs are judged.

    Attributes
    ----------
    losses
        Loss of each row from (n, c) outputs.
    weights
        (n,) weights of the rows, zero for those that do not count. Their outputs may be missing.
    """

    losses: Losses
    weights: Float[np.ndarray, " n"]

    def mean_loss(self, outputs: Float[np.ndarray, "n c"]) -> float:
        """The mean loss of the rows; NaN where outputs of some are missing."""
        if not np.all(np.isfinite(outputs[self.weights > 0])):
            return np.nan
        return float(np.average(self._losses(outputs), weights=self.weights))

    def of_fold(self, held_out: Int[np.ndarray, " m"]) -> Judge:
        """One that looks at the rows of a single fold."""
        weights = np.zeros_like(self.weights)
        weights[held_out] = self.weights[held_out]
        return self._replace(weights=weights)

    def excess(self, outputs: Float[np.ndarray, "n c"], others: Float[np.ndarray, "n c"]) -> tuple[float, float]:
        """By how much the mean loss exceeds that of other outputs, and the standard error of this.

        The standard error is that of a weighted mean of the rows' differences, so that rows that are equally hard for
        both do not add to it.
        """
        excess, shares = self._losses(outputs) - self._losses(others), self.weights / self.weights.sum()
        mean = shares @ excess
        return float(mean), float(np.sqrt(np.sum((shares * (excess - mean)) ** 2)))

    def all_clearly_behind(self, outputs: Float[np.ndarray, "*k n c"], others: Float[np.ndarray, "n c"]) -> bool:
        """Whether the mean loss of each of many outputs exceeds that of others by more than chance.

        It does not where the mean loss of the others is NaN.
        """
        if np.isnan(self.mean_loss(others)):
            return False
        for each in outputs.reshape(-1, *others.shape):
            mean, error = self.excess(each, others)
            if mean <= _CLEARLY_BEHIND * error:
                return False
        return True

    def choose_regs(
        self, outputs: Float[np.ndarray, "R S n c"], others: Float[np.ndarray, "n c"] | None
    ) -> Int[np.ndarray, " k"]:
        """Which few λ are worth trying on further rows; none where all are clearly behind other outputs."""
        if others is not None and self.all_clearly_behind(outputs, others):
            return np.arange(0)
        if len(outputs) <= NUM_KEPT_REGS:
            return np.arange(len(outputs))
        least = [min(map(self.mean_loss, of_reg)) for of_reg in outputs]
        return np.sort(np.argsort(least, kind="stable")[:NUM_KEPT_REGS])

    def _losses(self, outputs: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
        return self.losses(np.where(self.weights[:, None] > 0, outputs, 0))


class Trial(NamedTuple):
    """What several kinds of candidates are tried on.

    Attributes
    ----------
    training, folds
        The rows, and for each fold those that are fitted and those that are held out.
    gates, problem
        Options for drawing gates, and the program of all rows with gates that are drawn.
    regs
        (R,) λ to try.
    judge
        How held-out outputs are judged.
    progress
        Whether to show a bar.
    """

    training: Training
    folds: Folds
    gates: GateOptions
    problem: GatedProblem
    regs: Float[np.ndarray, " R"]
    judge: Judge
    progress: bool = False


def give_up(
    outputs: Float[np.ndarray, "R S n c"], kept_regs: Int[np.ndarray, " k"], tried: Shaped[np.ndarray, " m"]
) -> None:
    """Mark the λ that are not kept as not tried on the rows of the other folds, by NaN in place."""
    given_up, rows = np.ones(len(outputs), bool), np.ones(outputs.shape[2], bool)
    given_up[kept_regs], rows[tried] = False, False
    outputs[np.ix_(given_up, np.ones(outputs.shape[1], bool), rows)] = np.nan


def constant_candidate(training: Training, problem: GatedProblem, folds: Folds) -> Candidates:
    """The mean of the targets: the program's solution for a large λ."""
    outputs = np.zeros((1, 1, *training.targets.shape))
    for kept, held_out in folds:
        outputs[0, 0, held_out] = np.average(training.targets[kept], axis=0, weights=training.weights[kept])

    def fit(_: int, __: int) -> GatedFit:
        reg = max(problem.max_reg, float(problem.program.max_reg())) * (1 + _ABOVE_MAX_REG)
        return as_gated_fit(solve_quietly(problem.program.with_reg(reg)), problem.gates, reg)

    return Candidates(outputs, fit)
