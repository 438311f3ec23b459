"""Cross-validation: folds, and λ and the number of reweighting steps by held-out outputs.

See docs/mathematics.md, M6.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int
from sklearn.model_selection import KFold, StratifiedKFold

from fixntk._checks import as_positive_int
from fixntk._compilation import jit_for_host
from fixntk._numerics import allow_float64
from fixntk.convex import ConvexProgram, solve_quietly
from fixntk.convex.program import absorb_sample_weight, datafit_of, masked_outputs
from fixntk.convex.progress import progress_bar
from fixntk.convex.solvers import irls
from fixntk.estimators.fitting import GatedFit, as_gated_fit, check_regs, gated_problem
from fixntk.estimators.gate_options import GateOptions, draw_gates
from fixntk.estimators.preprocessing import Training, padded_size
from fixntk.gates.masks import activation_masks
from fixntk.gram import masked_apply

# Relative gap that determines the smoothing ε of the reweighting. The reweighting itself stops by its number of steps.
_IRLS_TOL = 1e-6

Folds = Sequence[tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]]
"""Pairs of indices of training and held-out rows."""


class GatedChoice(NamedTuple):
    """The λ and the number of reweighting steps with the least held-out loss, and the fit that they give.

    Attributes
    ----------
    fit
        Fit to all rows.
    share
        λ/λ_max.
    num_steps
        Number of reweighting steps.
    losses
        (R, steps + 1) held-out loss of each candidate.
    held_out_outputs
        (n, c) held-out outputs at the chosen λ and number of steps.
    """

    fit: GatedFit
    share: float
    num_steps: int
    losses: Float[np.ndarray, "R S"]
    held_out_outputs: Float[np.ndarray, "n c"]


class Splits(NamedTuple):
    """Folds as arrays.

    Attributes
    ----------
    train
        (folds, t) indices of the training rows, padded to one size.
    weights
        (folds, t) weights of these rows, zero for the padding.
    held_out
        (folds, m) whether a row is held out.
    """

    train: Int[Array, "*folds t"]
    weights: Float[Array, "*folds t"]
    held_out: Bool[Array, "*folds m"]


def shuffled_folds(num_rows: int, num_folds: int, *, seed: int, num_copies: int = 0) -> Folds:
    """Folds in random order of distinct rows, of which there were ``num_copies`` with their copies.

    Fewer distinct rows than folds, but copies enough, are one fold that is trained on and held out: each row would
    leave copies of itself in training.

    Raises
    ------
    ValueError
        If there are fewer rows than folds.
    """
    if num_rows < num_folds <= num_copies:
        return _one_fold(num_rows)
    return list(KFold(num_folds, shuffle=True, random_state=seed).split(np.zeros(num_rows)))


def stratified_folds(labels: np.ndarray, num_folds: int, *, seed: int, num_copies: int = 0) -> Folds:
    """Stratified folds in random order, at most one for each row of the largest class.

    A class of fewer rows than folds is absent from some held-out parts. Where no class has two distinct rows, but there
    are copies enough, they are one fold as in :func:`shuffled_folds`.
    """
    largest = int(np.unique(labels, return_counts=True)[1].max())
    if largest < 2 and num_folds <= num_copies:
        return _one_fold(len(labels))
    splitter = StratifiedKFold(min(num_folds, largest), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        return list(splitter.split(np.zeros(len(labels)), labels))


def _one_fold(num_rows: int) -> Folds:
    return [(np.arange(num_rows), np.arange(num_rows))]


def squared_error(
    outputs: Float[np.ndarray, "n c"], *, targets: Float[np.ndarray, "n c"], weights: Float[np.ndarray, " n"]
) -> float:
    """Weighted mean of squared errors."""
    return float(np.average(np.mean((outputs - targets) ** 2, axis=1), weights=weights))


def choose_gated(
    training: Training,
    gates: GateOptions,
    folds: Folds,
    loss: Callable[[np.ndarray], float],
    *,
    regs: Sequence[Any],
    max_steps: Any,
    progress: bool = False,
) -> GatedChoice:
    """Choose λ and the number of reweighting steps by held-out outputs, and fit all rows with them.

    Parameters
    ----------
    training
        Rows, with targets for the squared loss.
    gates
        Options for drawing the gates.
    folds
        Each row is held out once.
    loss
        Loss of (n, c) held-out outputs, to be minimised.
    regs
        Candidates for λ/λ_max.
    max_steps
        Largest number of reweighting steps.
    progress
        Show a bar with the number of folds and λ done.
    """
    shares = check_regs(regs, 1.0)
    max_steps = as_positive_int("max_steps", max_steps)
    with allow_float64():
        problem = gated_problem(training, gates, "squared")
        candidates = problem.max_reg * np.asarray(shares)
        x, targets = training.x[:, : gates.num_columns], training.targets
        # Gates that are drawn from the data are drawn from the training rows of a fold alone.
        gates_of_folds = [draw_gates(gates, x[kept], targets[kept]) for kept, _ in folds]
        data = jnp.asarray(training.padded_x), jnp.asarray(training.padded_targets), gates_of_folds
        splits = _as_splits(folds, training)
        outputs = _held_out_outputs(*data, splits, candidates, max_steps, progress=progress)[:, :, : training.num_rows]
        losses = np.array([[loss(of_step) for of_step in of_reg] for of_reg in outputs])
        # Among equal losses the largest λ is chosen, then the smallest number of steps.
        order = np.argsort(-np.array(shares), kind="stable")
        first, steps = divmod(int(np.argmin(losses[order])), losses.shape[1])
        best = int(order[first])
        solution = solve_quietly(
            problem.program.with_reg(candidates[best]), method="irls", tol=_IRLS_TOL, max_iter=steps
        )
    fit = as_gated_fit(solution, problem.gates, problem.max_reg * shares[best])
    return GatedChoice(fit, shares[best], steps, losses, outputs[best, steps])


def _as_splits(folds: Folds, training: Training) -> Splits:
    sizes = np.array([len(train) for train, _ in folds])
    train = np.zeros((len(folds), padded_size(int(sizes.max()))), int)
    held_out = np.zeros((len(folds), len(training.padded_x)), bool)
    for k, (kept, others) in enumerate(folds):
        train[k, : len(kept)], held_out[k, others] = kept, True
    weights = np.where(np.arange(train.shape[1]) < sizes[:, None], training.padded_weights[train], 0)
    return Splits(jnp.asarray(train), jnp.asarray(weights), jnp.asarray(held_out))


def _held_out_outputs(
    x: Float[Array, "m w"],
    targets: Float[Array, "m c"],
    gates_of_folds: Sequence[Float[Array, "P w"]],
    splits: Splits,
    regs: Float[np.ndarray, " R"],
    max_steps: int,
    *,
    progress: bool,
) -> Float[np.ndarray, "R S m c"]:
    """Outputs for each row of the fits without its fold, by λ and step.

    One fold after another, and one λ after another: more at once would need more memory, and run no faster, as one
    factorisation uses all cores.
    """
    outputs = np.zeros((len(regs), max_steps + 1, *targets.shape))
    num_folds, done = len(splits.train), 0
    with progress_bar("cross-validation", total=num_folds * len(regs), unit="fit", shown=progress) as show:
        for number, fold in enumerate(zip(*splits, strict=True)):
            masks = activation_masks(x, gates_of_folds[number])
            program, held_out = _program_of_fold(x, targets, masks, *fold[:2]), np.asarray(fold[2])
            for position, reg in enumerate(regs):
                found = _outputs_at_reg(program.with_reg(reg), x, masks, max_steps=max_steps)
                outputs[position][:, held_out] = np.asarray(found)[:, held_out]
                done += 1
                show(done, f"fold {number + 1} of {num_folds}, λ {reg:.3g}")
    return outputs


@jit_for_host
def _program_of_fold(x: Array, targets: Array, masks: Array, train: Array, weights: Array) -> ConvexProgram:
    """The program of a fold's training rows at λ = 1."""
    given = x[train], targets[train], masks[train], 1.0
    return absorb_sample_weight(ConvexProgram(*given, sample_weight=weights, intercept=True))


@partial(jit_for_host, static_argnames=("max_steps",), optimised=True)
def _outputs_at_reg(program: ConvexProgram, x: Array, masks: Array, *, max_steps: int) -> Float[Array, "S m c"]:
    """Outputs for all rows at the NTK and after each reweighting step."""

    def outputs(state: irls.IRLSState) -> Array:
        intercept = datafit_of(program).fit(masked_outputs(program, state.weights)).intercept
        return masked_apply(masks, x, state.weights) + intercept[None, :]

    def step(state: irls.IRLSState, _: None) -> tuple[irls.IRLSState, Array]:
        state = irls.step(program, state)
        return state, outputs(state)

    start = jnp.full(program.num_gates, 1 / program.num_gates, x.dtype)
    first = irls.init(program, start, irls.default_epsilon(program, _IRLS_TOL))
    _, following = lax.scan(step, first, length=max_steps)
    return jnp.concatenate([outputs(first)[None], following])
