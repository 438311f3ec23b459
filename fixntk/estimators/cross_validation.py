"""Choosing a gated estimator's gates, λ and number of reweighting steps by held-out outputs.

See docs/mathematics.md, M6 and M11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fixntk._checks import as_positive_int
from fixntk._numerics import allow_float64, blas_threads_for
from fixntk.convex.progress import announce
from fixntk.estimators.average import average_fits, average_kinds
from fixntk.estimators.candidates import Candidates, Judge, Losses, Trial, constant_candidate
from fixntk.estimators.discovered import discovered_candidates
from fixntk.estimators.exact_ntk import exact_ntk_candidates, held_out_ntk_candidates
from fixntk.estimators.fitting import GatedFit, check_regs, gated_problem
from fixntk.estimators.folds import Folds
from fixntk.estimators.gate_options import AUTO, DISCOVERED, STARTING_AT_RANDOM, TRAINED, GateOptions
from fixntk.estimators.large import MAX_KERNEL_ROWS, optimum_candidates
from fixntk.estimators.linear import gate_of_every_row, linear_candidates
from fixntk.estimators.ntk_fits import MAX_EXACT_ROWS
from fixntk.estimators.preprocessing import Training
from fixntk.estimators.reweighted import reweighted_candidates
from fixntk.estimators.ridges import RIDGE_SHARES
from fixntk.estimators.trained import trained_candidates

# The kinds of fits, from the smallest model to the largest.
CONSTANT = "constant"
LINEAR = "linear"
EXACT_NTK = "exact_ntk"
NTK = "ntk"
REWEIGHTED = "reweighted"
OPTIMUM = "optimum"
RELU = "relu"
# An average of several kinds.
AVERAGE = "average"
# Kinds that are never part of an average: the constant, and the NTK of infinitely many gates, which is not a network.
_NO_PARTS = (CONSTANT, EXACT_NTK)


class GatedChoice(NamedTuple):
    """The fit with the least held-out loss.

    Attributes
    ----------
    kind
        ``"constant"``; ``"linear"``, one gate that is active on every row; ``"exact_ntk"``, the NTK of infinitely many
        gates; ``"ntk"``, the kernel of the gates without a reweighting step; ``"reweighted"``; ``"discovered"``;
        ``"relu"``, a trained ReLU network, and ``"trained"``, a ridge regression with the kernel of its gates;
        ``"optimum"``, the end of the reweighting, which takes the place of the NTK, its reweighting and discovered
        gates for many rows; or ``"average"``, of several of these.
    shares
        Share of each kind in the fit: 1 for a single one.
    losses_of_kinds
        The least held-out loss of each kind, from the smallest model to the largest.
    given_up
        Kinds that were clearly behind on the first fold, and so were not tried on the others, or diverged.
    fit
        Fit to all rows.
    share
        λ/λ_max.
    num_steps
        Number of reweighting steps.
    ridge_share
        Ridge as a share of λ; below 1 where the shrinkage of discovered or trained gates is undone.
    losses
        (R, steps + 1) held-out loss of the NTK and each step, or (R, 1) of the optimum; NaN where a λ was not tried on
        all folds; empty where only discovered gates were tried.
    discovered_losses
        (R, ridges) held-out loss of discovered gates with each ridge, NaN where a λ was not tried; empty where these
        gates were not asked for.
    trained_losses
        (R, 1 + ridges) held-out loss of trained networks, and of ridge regressions with their gates.
    held_out_outputs
        (n, c) held-out outputs of the choice.
    held_out_weights
        (n,) weights of the rows, zero for those that were not held out.
    """

    kind: str
    shares: Mapping[str, float]
    losses_of_kinds: Mapping[str, float]
    given_up: tuple[str, ...]
    fit: GatedFit
    share: float
    num_steps: int
    ridge_share: float
    losses: Float[np.ndarray, "R S"]
    discovered_losses: Float[np.ndarray, "R T"]
    trained_losses: Float[np.ndarray, "R U"]
    held_out_outputs: Float[np.ndarray, "n c"]
    held_out_weights: Float[np.ndarray, " n"]


class _Tried(NamedTuple):
    """Candidates, the mean held-out loss of each, NaN where it was not tried, and which columns are of this kind."""

    candidates: Candidates
    losses: Float[np.ndarray, "R S"]
    columns: slice = slice(None)


class _Best(NamedTuple):
    """Where a kind has its least loss: position on its grid, held-out outputs, and their mean loss."""

    row: int
    column: int
    outputs: Float[np.ndarray, "n c"]
    mean: float


def choose_gated(
    training: Training,
    gates: GateOptions,
    folds: Folds,
    losses: Losses,
    *,
    regs: Sequence[Any],
    max_steps: Any,
    average_slack: float = 0.0,
    one_standard_error: bool = False,
    progress: bool = False,
) -> GatedChoice:
    """Choose among fits by held-out outputs, and fit all rows with the choice.

    Parameters
    ----------
    training
        Rows, with targets for the squared loss.
    gates
        Options for drawing the gates: "discovered" and "trained" try these gates alone, "auto" both and random ones.
    folds
        Each row is held out once; for many rows the first of them alone is.
    losses
        Loss of each of (n, c) held-out outputs, whose weighted mean is minimised; rows that are not held out have
        outputs of zero, and do not count.
    regs
        Candidates for λ/λ_max.
    max_steps
        Largest number of reweighting steps.
    average_slack
        By how many standard errors the loss of an average may exceed that of the best single kind.
    one_standard_error
        Whether to take the smallest model whose loss is within one standard error of the least.
    progress
        Show bars with the number of fits done.
    """
    shares = np.array(check_regs(regs, 1.0))
    max_steps = as_positive_int("max_steps", max_steps)
    folds = folds[:1] if _has_many_rows(training, gates) else folds
    announce(_describe_work(training, gates, folds), shown=progress)
    judge = Judge(losses, _held_out_weights(training, folds))
    with allow_float64(), blas_threads_for(training.num_rows):
        problem = gated_problem(training, gates, "squared")
        trial = Trial(training, folds, gates, problem, problem.max_reg * shares, judge, progress)
        tried = _try_kinds(trial, shares, max_steps)
        best = {kind: _find_best(each, shares) for kind, each in tried.items() if _are_some_tried(each)}
        parts: Mapping[str, float] = {}
        if gates.name == AUTO and len(folds) > 1:
            best, parts = _with_average(best, training, folds, judge)
        kind = _choose_kind(best, judge, average_slack, one_standard_error=one_standard_error)
        parts = parts if kind == AVERAGE else {kind: 1.0}
        fit = _fit_parts(parts, best, tried, training)
    row, column, outputs, _ = best[kind]
    has_no_share = kind in (CONSTANT, LINEAR, EXACT_NTK, AVERAGE)
    return GatedChoice(
        kind=kind,
        shares=parts,
        losses_of_kinds={name: each.mean for name, each in best.items()},
        given_up=tuple(name for name in tried if name not in best),
        fit=fit,
        share=fit.reg / problem.max_reg if has_no_share else float(shares[row]),
        num_steps=best[REWEIGHTED].column if REWEIGHTED in parts else 0,
        ridge_share=_ridge_share(kind, column),
        losses=_losses_of(tried, NTK, OPTIMUM),
        discovered_losses=_losses_of(tried, DISCOVERED),
        trained_losses=_losses_of(tried, TRAINED),
        held_out_outputs=outputs,
        held_out_weights=judge.weights,
    )


def _fit_parts(
    parts: Mapping[str, float], best: Mapping[str, _Best], tried: Mapping[str, _Tried], training: Training
) -> GatedFit:
    """The fit to all rows at the setting of a kind's least loss, or the average of such fits of several kinds."""
    fits = [(share, tried[kind].candidates.fit(best[kind].row, best[kind].column)) for kind, share in parts.items()]
    return average_fits(fits, training) if len(fits) > 1 else fits[0][1]


def _ridge_share(kind: str, column: int) -> float:
    return RIDGE_SHARES[column - (kind == TRAINED)] if kind in (DISCOVERED, TRAINED) else 1.0


def _losses_of(tried: Mapping[str, _Tried], *kinds: str) -> Float[np.ndarray, "R S"]:
    """The losses of the first kind that was tried."""
    return next((tried[kind].losses for kind in kinds if kind in tried), np.empty((0, 0)))


def _has_many_rows(training: Training, gates: GateOptions) -> bool:
    """Whether kernel matrices of the rows are too large to be made for each fold, λ and step."""
    return training.num_rows > MAX_KERNEL_ROWS and gates.name not in STARTING_AT_RANDOM


def _describe_work(training: Training, gates: GateOptions, folds: Folds) -> str:
    """What is going to be done, in a line."""
    size = f"{training.num_rows:,} distinct rows, gates {gates.name or 'given'}"
    if _has_many_rows(training, gates):
        return f"{size}: {len(folds[0][1]):,} rows are held out once, and optima are followed along λ"
    if gates.name in STARTING_AT_RANDOM:
        return f"{size}: {len(folds)} folds, each along λ"
    return f"{size}: {len(folds)} folds, with a kernel matrix for each fold, λ and step"


def _held_out_weights(training: Training, folds: Folds) -> Float[np.ndarray, " n"]:
    weights = np.zeros(training.num_rows)
    for _, held_out in folds:
        weights[held_out] = training.weights[held_out]
    return weights


def _try_kinds(trial: Trial, shares: Float[np.ndarray, " R"], max_steps: int) -> dict[str, _Tried]:
    """Candidates of each kind that the gates' source asks for, from the smallest model to the largest."""

    def with_losses(candidates: Candidates) -> _Tried:
        return _Tried(candidates, np.array([[judge.mean_loss(each) for each in row] for row in candidates.outputs]))

    training, folds, gates, problem, _, judge, _ = trial
    tried = {CONSTANT: with_losses(constant_candidate(training, problem, folds))}
    gate = gate_of_every_row(training, gates) if gates.name == AUTO else None
    if gate is not None:
        tried[LINEAR] = with_losses(linear_candidates(training, gate, problem, folds, shares))
    if gates.name == AUTO and training.num_rows <= MAX_EXACT_ROWS:
        find = held_out_ntk_candidates if _has_many_rows(training, gates) else exact_ntk_candidates
        tried[EXACT_NTK] = with_losses(find(training, problem, folds))
    of_networks: dict[str, _Tried] = {}
    at_regs, best = None, None
    if gates.name in (AUTO, TRAINED):
        networks = with_losses(trained_candidates(trial))
        of_networks = {RELU: networks._replace(columns=slice(1)), TRAINED: networks._replace(columns=slice(1, None))}
    # The kinds below take the most time. With "auto", one that is clearly behind the outputs so far is given up early.
    if gates.name == AUTO:
        on_first_fold = judge.of_fold(folds[0][1]).mean_loss
        at_regs = np.stack([min(row, key=on_first_fold) for row in networks.candidates.outputs])
        known = [_find_best(each, shares) for each in (tried | of_networks).values() if _are_some_tried(each)]
        best = min(known, key=lambda each: each.mean).outputs
    if _has_many_rows(training, gates):
        tried[OPTIMUM] = with_losses(optimum_candidates(trial, others=at_regs))
    elif gates.name not in STARTING_AT_RANDOM:
        steps = with_losses(reweighted_candidates(trial, max_steps, others=best))
        tried[NTK] = steps._replace(columns=slice(1))
        tried[REWEIGHTED] = steps._replace(columns=slice(1, None))
    if gates.name == DISCOVERED or (gates.name == AUTO and OPTIMUM not in tried):
        tried[DISCOVERED] = with_losses(discovered_candidates(trial, others=at_regs, best=best))
    tried |= of_networks
    return tried


def _are_some_tried(kind: _Tried) -> bool:
    """Whether some candidate of this kind has a loss: none has if training diverged or a path was given up early."""
    return bool(np.any(np.isfinite(kind.losses[:, kind.columns])))


def _find_best(tried: _Tried, shares: Float[np.ndarray, " R"]) -> _Best:
    """Where the loss is least; among equal ones at the largest λ, then in the first column."""
    grid = tried.losses
    # The constant has no λ.
    order = np.argsort(-shares, kind="stable") if len(grid) == len(shares) else np.arange(len(grid))
    of_kind = grid[order][:, tried.columns]
    first, position = divmod(int(np.nanargmin(of_kind)), of_kind.shape[1])
    row, column = int(order[first]), range(grid.shape[1])[tried.columns][position]
    return _Best(row, column, tried.candidates.outputs[row, column], float(grid[row, column]))


def _with_average(
    best: Mapping[str, _Best], training: Training, folds: Folds, judge: Judge
) -> tuple[dict[str, _Best], Mapping[str, float]]:
    """The best of each kind and their average, and the shares of this; without it where it has nothing to gain."""
    outputs = {kind: found.outputs for kind, found in best.items() if kind not in _NO_PARTS}
    # Where nothing is clearly better than the constant, an average would follow the noise.
    is_constant_enough = not judge.all_clearly_behind(best[CONSTANT].outputs[None], best[_least(best)].outputs)
    if len(outputs) < 2 or is_constant_enough:
        return dict(best), {}
    average = average_kinds(outputs, training.targets, judge.weights, folds)
    if len(average.shares) < 2:
        return dict(best), {}
    found = _Best(0, 0, average.outputs, judge.mean_loss(average.outputs))
    return {**best, AVERAGE: found}, average.shares


def _least(best: Mapping[str, _Best]) -> str:
    return min(best, key=lambda kind: best[kind].mean)


def _choose_kind(best: Mapping[str, _Best], judge: Judge, average_slack: float, *, one_standard_error: bool) -> str:
    """The single kind of the least loss, of equal ones the smallest model, or the average unless it is further behind.

    The least of many losses is the one that luck has helped most, so that the average need not be below it. With
    ``one_standard_error`` it is the smallest model whose loss is within one standard error of the least of all.
    """
    if not one_standard_error:
        least = _least({kind: found for kind, found in best.items() if kind != AVERAGE})
        if AVERAGE not in best:
            return least
        mean, error = judge.excess(best[AVERAGE].outputs, best[least].outputs)
        return AVERAGE if mean <= average_slack * error else least
    least = _least(best)
    for kind, found in best.items():
        mean, error = judge.excess(found.outputs, best[least].outputs)
        if mean <= error:
            return kind
    return least
