"""Tables too large for kernel matrices: the optimum of drawn or given gates along λ, judged on rows held out once.

See docs/mathematics.md, M9.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fixntk._numerics import ignore_convergence_warnings, with_dtype
from fixntk.convex import Solution, solve_path
from fixntk.estimators.candidates import Candidates, Trial
from fixntk.estimators.fitting import GatedFit, as_gated_fit, program_of_rows
from fixntk.estimators.gate_options import draw_gates
from fixntk.estimators.preprocessing import pad_rows

# Number of distinct rows above which reweighting, with its kernel matrix for each fold, λ and step, takes minutes.
MAX_KERNEL_ROWS = 2000
# Relative gap of the solutions that are compared on held-out rows.
_TOL_OF_CANDIDATES = 1e-2
# Relative gap of the solution on all rows, at the λ that was chosen.
_TOL_OF_CHOICE = 1e-3


def optimum_candidates(trial: Trial, *, others: Float[np.ndarray, "R n c"] | None) -> Candidates:
    """Optima on the training rows of a single fold, from the largest λ on as long as the held-out loss falls.

    ``others`` are outputs of another kind at each λ, or None: a path that is clearly behind them ends. In single
    precision and by first-order steps, which take no matrix of rows by rows.
    """
    training, folds, gates, problem, regs, judge, progress = trial
    ((kept, held_out),) = folds
    drawn = draw_gates(gates, training.x[kept, : gates.num_columns], training.targets[kept])
    kept_rows = training.select(kept)
    program = program_of_rows(kept_rows.padded_x, kept_rows.padded_targets, kept_rows.padded_weights, drawn)
    program, drawn = with_dtype((program, drawn), jnp.float32)
    held_out_x = jnp.asarray(pad_rows(training.x[held_out]), jnp.float32)
    outputs = np.full((len(regs), 1, *training.targets.shape), np.nan)
    order = np.argsort(-regs, kind="stable")
    losses: list[float] = []

    def is_past_best(solution: Solution) -> bool:
        place = order[len(losses)]
        # Rows that are not held out are not judged.
        outputs[place] = 0.0
        predicted = np.asarray(solution.predict(held_out_x, drawn))
        outputs[place, 0, held_out] = predicted.reshape(len(predicted), -1)[: len(held_out)]
        losses.append(judge.mean_loss(outputs[place, 0]))
        is_futile = others is not None and judge.all_clearly_behind(outputs[place], others[place])
        return is_futile or losses[-1] >= min([*losses[:-1], np.inf])

    options: dict[str, Any] = {"method": "fista", "progress": progress}
    with ignore_convergence_warnings():
        solve_path(program, regs[order], tol=_TOL_OF_CANDIDATES, callback=is_past_best, **options)

    def fit(place: int, _: int) -> GatedFit:
        # Along λ again, as steps on the few gates that are active at first cost less.
        down_to = order[: int(np.flatnonzero(order == place)[0]) + 1]
        on_all_rows = with_dtype(problem.program, jnp.float32)
        with ignore_convergence_warnings():
            solution = solve_path(on_all_rows, regs[down_to], tol=_TOL_OF_CHOICE, **options)[-1]
        return as_gated_fit(with_dtype(solution, jnp.float64), problem.gates, float(regs[place]))

    return Candidates(outputs, fit)
