"""The path of the iterative reweighting, from the NTK to the certified optimum."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

from experiments.shared import colours
from fixntk import ConvexProgram, Solution, solve
from fixntk.convex.program import BestScale
from fixntk.runner.report import new_figure

# Relative gap at which the reweighting stops.
_PATH_TOL = 1e-6
# Relative gap of the optimum.
_OPTIMUM_TOL = 1e-5
# Largest number of iterations of FISTA.
_MAX_ITER = 20_000


def reweighting_path(program: ConvexProgram, ntk: BestScale, num_steps: int) -> dict[str, Any]:
    """The objective at each reweighting step, for more steps than the accuracy needs, and the optimum by FISTA."""
    start = jnp.full(program.num_gates, ntk.scale / program.num_gates)

    @jax.jit
    def solve_twice(program: ConvexProgram, start: Array) -> tuple[Solution, Solution]:
        path = solve(program, method="irls", tol=_PATH_TOL, max_iter=num_steps, init=start)
        return path, solve(program, method="fista", tol=_OPTIMUM_TOL, max_iter=_MAX_ITER)

    path, optimum = solve_twice(program, start)
    done = int(path.iterations) + 1
    return {
        "objective": np.asarray(path.history.primal)[:done].tolist(),
        "ntk_objective": float(ntk.objective),
        "optimum": float(optimum.primal),
        "optimum_gap": float(optimum.relative_gap),
        "kernel_weights": np.sort(np.asarray(optimum.kernel_weights))[::-1].tolist(),
        "ntk_weight": float(start[0]),
    }


def path_figure(path: dict[str, Any]) -> Figure:
    """The objective at each step (left), and the kernel weights of the NTK and of the optimum (right)."""
    figure = new_figure(9.6, 3.6)
    objective, weights = figure.subplots(1, 2)
    objective.axhline(path["ntk_objective"], color=colours.NTK, linestyle="--", label="J(η) of the NTK")
    objective.plot(path["objective"], color=colours.FIXED, label="iterative reweighting")
    objective.plot(0, path["objective"][0], "o", color=colours.NTK, label="the NTK's solution")
    objective.axhline(
        path["optimum"], color=colours.OPTIMUM, linestyle=":", label=f"optimum (gap {path['optimum_gap']:.0e})"
    )
    objective.set(xlabel="reweighting step", ylabel="training objective")
    objective.legend()
    learnt = np.asarray(path["kernel_weights"])
    weights.plot(np.arange(1, learnt.size + 1), learnt, color=colours.OPTIMUM, label="optimum")
    weights.axhline(path["ntk_weight"], color=colours.NTK, linestyle="--", label="NTK")
    weights.set(xlabel="gate, by weight", ylabel="kernel weight η", ylim=(0, None))
    weights.legend()
    return figure
