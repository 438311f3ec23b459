"""Choosing a gated estimator's gates, λ and number of reweighting steps by held-out outputs.

See docs/mathematics.md, M6 and M11.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fixntk._checks import as_positive_int
from fixntk._numerics import allow_float64
from fixntk.estimators.candidates import Candidates, constant_candidate
from fixntk.estimators.discovered import RIDGE_SHARES, discovered_candidates
from fixntk.estimators.fitting import GatedFit, check_regs, gated_problem
from fixntk.estimators.folds import Folds
from fixntk.estimators.gate_options import AUTO, DISCOVERED, GateOptions
from fixntk.estimators.preprocessing import Training
from fixntk.estimators.reweighted import reweighted_candidates

# The kinds of fits, from the smallest model to the largest.
CONSTANT = "constant"
NTK = "ntk"
REWEIGHTED = "reweighted"


class GatedChoice(NamedTuple):
    """The fit with the least held-out loss.

    Attributes
    ----------
    kind
        ``"constant"``; ``"ntk"``, the kernel of the gates without a reweighting step; ``"reweighted"``; or
        ``"discovered"``.
    losses_of_kinds
        The least held-out loss of each kind, from the smallest model to the largest.
    fit
        Fit to all rows.
    share
        λ/λ_max.
    num_steps
        Number of reweighting steps.
    ridge_share
        Ridge as a share of λ; below 1 where discovered gates' shrinkage is undone.
    losses
        (R, steps + 1) held-out loss of the NTK and each step; empty where only discovered gates were tried.
    discovered_losses
        (R, ridges) the same for discovered gates, NaN where a λ was not tried; empty where they were not asked for.
    held_out_outputs
        (n, c) held-out outputs of the choice.
    """

    kind: str
    losses_of_kinds: Mapping[str, float]
    fit: GatedFit
    share: float
    num_steps: int
    ridge_share: float
    losses: Float[np.ndarray, "R S"]
    discovered_losses: Float[np.ndarray, "R T"]
    held_out_outputs: Float[np.ndarray, "n c"]


class _Best(NamedTuple):
    """The candidate of a kind with the least loss: its position, its loss by row, and the mean."""

    candidates: Candidates
    row: int
    column: int
    losses: Float[np.ndarray, " n"]
    mean: float


def choose_gated(
    training: Training,
    gates: GateOptions,
    folds: Folds,
    losses: Callable[[np.ndarray], np.ndarray],
    *,
    regs: Sequence[Any],
    max_steps: Any,
    one_standard_error: bool = False,
    progress: bool = False,
) -> GatedChoice:
    """Choose among fits by held-out outputs, and fit all rows with the choice.

    Parameters
    ----------
    training
        Rows, with targets for the squared loss.
    gates
        Options for drawing the gates: "discovered" tries discovered gates alone, "auto" these and random ones.
    folds
        Each row is held out once.
    losses
        Loss of each of (n, c) held-out outputs, whose weighted mean is minimised.
    regs
        Candidates for λ/λ_max.
    max_steps
        Largest number of reweighting steps.
    one_standard_error
        Whether to take the smallest model whose loss is within one standard error of the least.
    progress
        Show bars with the number of fits done.
    """
    shares = np.array(check_regs(regs, 1.0))
    max_steps = as_positive_int("max_steps", max_steps)
    source = gates.source if isinstance(gates.source, str) else ""
    kinds: dict[str, _Best] = {}
    of_steps, of_ridges = np.empty((0, 0)), np.empty((0, 0))
    with allow_float64():
        problem = gated_problem(training, gates, "squared")
        regs_tried = problem.max_reg * shares

        def mean_loss(outputs: Float[np.ndarray, "n c"]) -> float:
            return (
                float(np.average(losses(outputs), weights=training.weights)) if np.isfinite(outputs).all() else np.nan
            )

        def mean_losses(outputs: Float[np.ndarray, "R S n c"]) -> Float[np.ndarray, "R S"]:
            return np.array([[mean_loss(each) for each in row] for row in outputs])

        def add(kind: str, candidates: Candidates, grid: Float[np.ndarray, "R S"]) -> None:
            row, column = _least(grid, shares if len(grid) > 1 else np.ones(1))
            of_rows = losses(candidates.outputs[row, column])
            kinds[kind] = _Best(candidates, row, column, of_rows, float(grid[row, column]))

        constant = constant_candidate(training, problem, folds)
        add(CONSTANT, constant, mean_losses(constant.outputs))
        if source != DISCOVERED:
            tried = reweighted_candidates(training, gates, problem, folds, regs_tried, max_steps, progress=progress)
            of_steps = mean_losses(tried.outputs)
            add(NTK, tried, of_steps[:, :1])
            following = np.where(np.arange(max_steps + 1) == 0, np.nan, of_steps)
            add(REWEIGHTED, tried, following)
        if source in (AUTO, DISCOVERED):
            tried = discovered_candidates(training, gates, problem, folds, regs_tried, mean_loss, progress=progress)
            of_ridges = mean_losses(tried.outputs)
            add(DISCOVERED, tried, of_ridges)
        kind = _choose_kind(kinds, training.weights, one_standard_error=one_standard_error)
        best = kinds[kind]
        fit = best.candidates.fit(best.row, best.column)
    return GatedChoice(
        kind=kind,
        losses_of_kinds={name: each.mean for name, each in kinds.items()},
        fit=fit,
        share=1.0 if kind == CONSTANT else float(shares[best.row]),
        num_steps=best.column if kind == REWEIGHTED else 0,
        ridge_share=RIDGE_SHARES[best.column] if kind == DISCOVERED else 1.0,
        losses=of_steps,
        discovered_losses=of_ridges,
        held_out_outputs=best.candidates.outputs[best.row, best.column],
    )


def _least(grid: Float[np.ndarray, "R S"], shares: Float[np.ndarray, " R"]) -> tuple[int, int]:
    """Where the loss is least; among equal losses at the largest λ, then in the first column."""
    order = np.argsort(-shares, kind="stable")
    first, column = divmod(int(np.nanargmin(grid[order])), grid.shape[1])
    return int(order[first]), column


def _choose_kind(kinds: Mapping[str, _Best], weights: Float[np.ndarray, " n"], *, one_standard_error: bool) -> str:
    """The kind with the least loss, of equal ones the smallest model; or the smallest that is not clearly worse."""
    best = min(kinds, key=lambda kind: kinds[kind].mean)
    if not one_standard_error:
        return best
    shares = weights / weights.sum()
    for kind, candidate in kinds.items():
        excess = candidate.losses - kinds[best].losses
        deviation = np.sqrt(np.sum(shares**2 * (excess - shares @ excess) ** 2))
        if candidate.mean - kinds[best].mean <= deviation:
            return kind
    return best
