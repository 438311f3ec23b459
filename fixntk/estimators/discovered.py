"""Gates that the targets ask for, cross-validated: a path over λ in each fold, and ridges that undo its shrinkage.

See docs/mathematics.md, M6 and M11.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from fixntk._numerics import ignore_convergence_warnings
from fixntk.convex import solve_quietly
from fixntk.convex.discovery import discover_next
from fixntk.convex.discovery_results import Position
from fixntk.convex.groups import with_masks
from fixntk.convex.progress import progress_bar
from fixntk.convex.solution import ACTIVE_SHARE
from fixntk.estimators.candidates import Candidates, Judge, Trial
from fixntk.estimators.fitting import GatedFit, GatedProblem, as_gated_fit, program_of_rows
from fixntk.estimators.folds import Folds, as_splits, num_padded_rows
from fixntk.estimators.preprocessing import Training
from fixntk.estimators.ridges import RIDGE_SHARES, UsedGates, fit_ridges

# Number of random gates from which a path starts.
_NUM_STARTING_GATES = 64
# Options of the discovery at each λ. Held-out losses need no smaller tolerance, and no bound over all cells:
# max_cells=1 keeps these from being enumerated where there are few columns, and so few cells.
_SEARCH: dict[str, Any] = {"max_rounds": 2, "num_candidates": 1024, "per_round": 32, "tol": 1e-4, "max_cells": 1}
# A path ends where its last λ lower the loss by less than this share.
_LEAST_FALL = 0.01
# The last λ of a path are those within this factor of the smallest, so that a finer grid does not end it sooner.
_FACTOR_OF_LAST = 2.0


def discovered_candidates(
    trial: Trial, *, others: Float[np.ndarray, "R n c"] | None, best: Float[np.ndarray, "n c"] | None
) -> Candidates:
    """Discovered gates at each λ, from the largest on as long as the held-out loss falls, and the ridges of each.

    ``others`` are outputs of another kind at each λ, and ``best`` the best so far, or both None. With others the path
    on the first fold ends where it has more weights than rows, as it takes longest there and hardly selects anything,
    and the other folds are not tried where it is clearly behind: behind ``others`` at the same λ, or with each of its λ
    behind ``best``.
    """
    training, folds, gates, problem, regs, judge, progress = trial
    positions = _starts(training, problem, folds)
    order = np.argsort(-regs, kind="stable").tolist()
    outputs = np.full((len(regs), len(RIDGE_SHARES), *training.targets.shape), np.nan)
    on_first, done = judge.of_fold(folds[0][1]), itertools.count(1)
    with progress_bar("discovered gates", total=len(folds) * len(regs), unit="fit", shown=progress) as show:

        def advance(place: int, fold: int) -> bool:
            # Takes a fold's path to the next λ, fills in its outputs, and says whether it has more weights than rows.
            kept, held_out = folds[fold]
            positions[fold] = _advance(positions[fold], regs[place], gates.seed)
            rows = training.x[kept], training.targets[kept], training.weights[kept]
            fits = fit_ridges(_used(positions[fold]), *rows, regs[place] * np.array(RIDGE_SHARES))
            outputs[place][:, held_out] = fits.predict(training.x[held_out])
            show(next(done), f"fold {fold + 1} of {len(folds)}, λ {regs[place]:.3g}, {len(fits.gates)} gates")
            return bool(np.count_nonzero(fits.gates) > len(kept))

        tried = _follow_first_fold(order, regs, outputs, on_first, others, lambda place: advance(place, 0))
        if best is not None and on_first.all_clearly_behind(outputs[tried], best):
            tried = []
        # The other folds follow λ by λ, and end where the loss of all folds stops falling.
        losses: list[float] = []
        for place in tried:
            for fold in range(1, len(folds)):
                advance(place, fold)
            losses.append(min(map(judge.mean_loss, outputs[place])))
            if _has_stopped_falling(regs[order[: len(losses)]], losses):
                break
        show(len(folds) * len(regs), f"the path ended after {len(losses)} λ of all folds")

    def fit(place: int, ridge: int) -> GatedFit:
        position = _start(training.padded_x, training.padded_targets, training.padded_weights, problem.gates)
        for each in order[: order.index(place) + 1]:
            position = _advance(position, regs[each], gates.seed)
        return _fit_position(position, float(regs[place]), RIDGE_SHARES[ridge])

    return Candidates(outputs, fit)


def _follow_first_fold(
    order: list[int],
    regs: Float[np.ndarray, " R"],
    outputs: Float[np.ndarray, "R S n c"],
    judge: Judge,
    others: Float[np.ndarray, "R n c"] | None,
    advance: Callable[[int], bool],
) -> list[int]:
    """The λ that the other folds are to try, from the largest on; none where one is clearly behind another kind."""
    losses: list[float] = []
    had_stopped = False
    for place in order:
        is_large = advance(place)
        losses.append(min(map(judge.mean_loss, outputs[place])))
        if others is not None and judge.all_clearly_behind(outputs[place], others[place]):
            return []
        if others is not None and is_large:
            break
        has_stopped = _has_stopped_falling(regs[order[: len(losses)]], losses)
        # The loss of a single fold can stop falling by chance, so that it has to do so twice.
        if had_stopped and has_stopped:
            break
        had_stopped = has_stopped
    return order[: len(losses)]


def _has_stopped_falling(regs: Float[np.ndarray, " k"], losses: Sequence[float]) -> bool:
    """Whether the smallest λ so far, which are the last, have losses hardly below those before them."""
    is_recent = regs < _FACTOR_OF_LAST * regs[-1]
    before = np.array(losses)[~is_recent]
    return len(before) > 0 and not np.array(losses)[is_recent].min() < (1 - _LEAST_FALL) * before.min()


def _starts(training: Training, problem: GatedProblem, folds: Folds) -> list[Position]:
    """The start of each fold's path."""
    splits = as_splits(folds, training, num_padded_rows(training, folds))
    positions = []
    for rows, weights in zip(np.asarray(splits.train), np.asarray(splits.weights), strict=True):
        # Rows of weight zero are zero: no gate is drawn through them.
        x = training.padded_x[rows] * (weights > 0)[:, None]
        positions.append(_start(x, training.padded_targets[rows], weights, problem.gates))
    return positions


def _start(x: np.ndarray, targets: np.ndarray, weights: np.ndarray, gates: Array) -> Position:
    """The start of a path, from the first few of random gates."""
    gates = jnp.asarray(np.asarray(gates)[:_NUM_STARTING_GATES])
    return Position(program_of_rows(x, targets, weights, gates), gates)


def _advance(position: Position, reg: float, seed: int) -> Position:
    """Gates for the next, smaller λ, from those found before."""
    with ignore_convergence_warnings():
        return discover_next(position, reg, key=jax.random.key(seed), **_SEARCH)[1]


def _fit_position(position: Position, reg: float, ridge_share: float) -> GatedFit:
    """The group lasso's solution, or the ridge regression with its kernel weights at a smaller ridge."""
    found = position.found
    assert found is not None
    solution = found.solution
    if ridge_share != 1:
        program = with_masks(position.program.with_reg(reg * ridge_share), found.masks)
        solution = solve_quietly(program, method="irls", init=solution, max_iter=0)
    return as_gated_fit(solution, found.gates, reg * ridge_share)


def _used(position: Position) -> UsedGates:
    assert position.found is not None
    kernel_weights = np.asarray(position.found.solution.kernel_weights)
    is_used = kernel_weights > ACTIVE_SHARE * kernel_weights.max(initial=0.0)
    return UsedGates(np.asarray(position.found.gates)[is_used], kernel_weights[is_used])
