"""A gated-ReLU network at one λ: its convex program with gates that are drawn, discovered or trained.

See docs/mathematics.md, M5 and M11.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from fixntk._numerics import allow_float64
from fixntk.convex import ConvexProgram, Solution, discover_quietly, solve
from fixntk.convex.groups import with_masks
from fixntk.estimators.fitting import GatedFit, GatedProblem, as_gated_fit, check_reg, gated_problem
from fixntk.estimators.gate_options import DISCOVERED, TRAINED, GateOptions
from fixntk.estimators.neurons import train_networks
from fixntk.estimators.preprocessing import Training
from fixntk.gates.masks import activation_masks

# Largest number of rounds of gate discovery.
_MAX_ROUNDS = 20


def fit_gated(
    training: Training,
    gates: GateOptions,
    *,
    reg: Any,
    loss: str,
    tol: float | None,
    max_iter: int | None,
    progress: bool = False,
) -> GatedFit:
    """Solve the convex program at λ = ``reg`` · λ_max.

    Parameters
    ----------
    training
        Rows; the targets are ±1 for classification losses.
    gates
        Options for drawing the gates.
    reg
        λ/λ_max, between 0 and 1.
    loss, tol, max_iter, progress
        As for :class:`fixntk.ConvexProgram` and :func:`fixntk.solve`.
    """
    share = check_reg(reg, 1.0)
    with allow_float64():
        problem = gated_problem(training, gates, loss)
        program = problem.program.with_reg(share * problem.max_reg)
        if gates.name == DISCOVERED:
            solution, found = _discover_gates(program, problem.gates, gates.seed, tol=tol, progress=progress)
        elif gates.name == TRAINED:
            squared = problem if loss == "squared" else gated_problem(training, gates, "squared")
            found = _train_gates(training, squared, share, gates.seed)
            of_gates = with_masks(program, activation_masks(program.x, found))
            solution = solve(of_gates, tol=tol, max_iter=max_iter, progress=progress)
        else:
            solution, found = solve(program, tol=tol, max_iter=max_iter, progress=progress), problem.gates
    return as_gated_fit(solution, found, share * problem.max_reg)


def _discover_gates(
    program: ConvexProgram, gates: Float[Array, "P w"], seed: int, *, tol: float | None, progress: bool
) -> tuple[Solution, Float[Array, "Q w"]]:
    """The solution with gates that the targets ask for, found from random ones by column generation."""
    options: dict[str, Any] = {"tol": tol, "max_rounds": _MAX_ROUNDS, "progress": progress}
    found = discover_quietly(program, gates, key=jax.random.key(seed), **options)
    return found.solution, found.gates


def _train_gates(training: Training, squared: GatedProblem, share: float, seed: int) -> Float[Array, "P w"]:
    """The gates of a ReLU network that is trained with the squared loss, at this share of its λ_max."""
    rows = training.x, training.targets, training.weights
    (neurons,) = train_networks(*rows, np.array([share * squared.max_reg]), len(training.padded_x), seed)
    # None is in use where the targets are constant.
    used = neurons.used.gates
    return jnp.asarray(used) if len(used) else squared.gates
