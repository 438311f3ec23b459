"""Reweighting steps from the NTK, cross-validated: λ and the number of steps.

See docs/mathematics.md, M6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from fixntk._compilation import jit_for_host
from fixntk.convex import ConvexProgram, solve_quietly
from fixntk.convex.program import absorb_sample_weight, datafit_of
from fixntk.convex.progress import progress_bar
from fixntk.convex.solvers import irls
from fixntk.estimators.candidates import Candidates, Trial, give_up
from fixntk.estimators.fitting import GatedFit, as_gated_fit
from fixntk.estimators.folds import Splits, as_splits
from fixntk.estimators.gate_options import draw_gates
from fixntk.estimators.preprocessing import padded_size
from fixntk.gates.masks import activation_masks
from fixntk.gram import masked_apply

# Relative gap that determines the smoothing ε of the reweighting. The reweighting itself stops by its number of steps.
_IRLS_TOL = 1e-6


def reweighted_candidates(trial: Trial, max_steps: int, *, others: Float[np.ndarray, "n c"] | None) -> Candidates:
    """The NTK of given or drawn gates and up to ``max_steps`` reweighting steps from it, at each λ.

    The first fold tries every λ, and the others those that were best there, or none where all are clearly behind
    ``others``, the outputs of another kind. What was not tried is NaN.
    """
    training, folds, gates, problem, regs, judge, progress = trial
    x, targets = training.x[:, : gates.num_columns], training.targets
    # Gates that are drawn from the data are drawn from the training rows of a fold alone.
    gates_of_folds = [draw_gates(gates, x[kept], targets[kept]) for kept, _ in folds]
    data = jnp.asarray(training.padded_x), jnp.asarray(training.padded_targets), gates_of_folds
    splits = as_splits(folds, training, padded_size(max(len(kept) for kept, _ in folds)))

    def choose_regs(outputs: Float[np.ndarray, "R S m c"]) -> Int[np.ndarray, " k"]:
        return judge.of_fold(folds[0][1]).choose_regs(outputs[:, :, : training.num_rows], others)

    outputs = _held_out_outputs(*data, splits, regs, max_steps, choose_regs, progress=progress)
    outputs = outputs[:, :, : training.num_rows]

    def fit(position: int, steps: int) -> GatedFit:
        reg = float(regs[position])
        solution = solve_quietly(problem.program.with_reg(reg), method="irls", tol=_IRLS_TOL, max_iter=steps)
        return as_gated_fit(solution, problem.gates, reg)

    return Candidates(outputs, fit)


def _held_out_outputs(
    x: Float[Array, "m w"],
    targets: Float[Array, "m c"],
    gates_of_folds: Sequence[Float[Array, "P w"]],
    splits: Splits,
    regs: Float[np.ndarray, " R"],
    max_steps: int,
    choose_regs: Callable[[np.ndarray], np.ndarray],
    *,
    progress: bool,
) -> Float[np.ndarray, "R S m c"]:
    """Outputs for each row of the fits without its fold, by λ and step; the folds after the first try a few λ.

    Folds and λ are taken one after another: several at once would need more memory and run no faster, as one
    factorisation uses all cores.
    """
    outputs = np.zeros((len(regs), max_steps + 1, *targets.shape))
    num_folds, places = len(splits.train), np.arange(len(regs))
    with progress_bar("cross-validation", total=num_folds * len(regs), unit="fit", shown=progress) as show:
        for number, fold in enumerate(zip(*splits, strict=True)):
            masks = activation_masks(x, gates_of_folds[number])
            (program, kernel), held_out = _start_fold(x, targets, masks, *fold[:2]), np.asarray(fold[2])
            for done, place in enumerate(places, start=1):
                at_reg = program.with_reg(regs[place])
                found = _outputs_at_reg(at_reg, kernel, x, masks, fold[0], max_steps=max_steps)
                outputs[place][:, held_out] = np.asarray(found)[:, held_out]
                # Folds that try a few λ count as if they tried every λ, so that the bar ends full.
                show(
                    number * len(regs) + done * len(regs) // len(places),
                    f"fold {number + 1} of {num_folds}, λ {regs[place]:.3g}",
                )
            if number == 0 and num_folds > 1:
                places = choose_regs(outputs)
                give_up(outputs, places, held_out)
        if not places.size:
            show(num_folds * len(regs), "clearly behind on the first fold")
    return outputs


@jit_for_host
def _start_fold(
    x: Array, targets: Array, masks: Array, train: Array, weights: Array
) -> tuple[ConvexProgram, Float[Array, "t t"]]:
    """The program of a fold's training rows at λ = 1, and the NTK's kernel, which is the same for every λ."""
    given = x[train], targets[train], masks[train], 1.0
    program = absorb_sample_weight(ConvexProgram(*given, sample_weight=weights, intercept=True))
    return program, irls.ntk_of(program)


@partial(jit_for_host, static_argnames=("max_steps",), optimised=True)
def _outputs_at_reg(
    program: ConvexProgram, kernel: Array, x: Array, masks: Array, train: Array, *, max_steps: int
) -> Float[Array, "S m c"]:
    """Outputs for all rows, of which ``train`` are the program's, at the NTK and after each reweighting step."""
    # The program's rows are multiplied by the roots of their weights, and so is its column of ones.
    assert program.column is not None
    roots = program.column[:, None]

    def outputs(state: irls.IRLSState) -> Array:
        fitted = masked_apply(masks, x, state.weights)
        return fitted + datafit_of(program).fit(roots * fitted[train]).intercept[None, :]

    epsilon = irls.default_epsilon(program, _IRLS_TOL)
    return irls.watch_from_ntk(program, epsilon, outputs, num_steps=max_steps, kernel=kernel)
