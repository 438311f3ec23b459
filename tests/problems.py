"""Random problems and an independent solver for the tests of the convex program."""

import cvxpy
import numpy as np

import fixntk as fx


def random_problem(seed, num_rows=30, num_features=4, num_gates=20, num_outputs=None, share=0.1):
    """A program at a share of λ_max, float64; targets (n,) when ``num_outputs`` is None."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, num_features))
    masks = x @ rng.standard_normal((num_features, num_gates)) >= 0
    y = rng.standard_normal((num_rows,) if num_outputs is None else (num_rows, num_outputs))
    return fx.ConvexProgram(x, y, masks, share * fx.ConvexProgram(x, y, masks, 1.0).max_reg())


def cvxpy_optimum(program):
    """The program's optimum and group weights by CVXPY and Clarabel, from its definition."""
    variables = [cvxpy.Variable(program.group_shape[1:]) for _ in range(program.num_gates)]
    masks = np.asarray(program.masks, float)
    fitted = sum((masks[:, [p]] * np.asarray(program.x)) @ group for p, group in enumerate(variables))
    loss = 0.5 * cvxpy.sum_squares(fitted - np.asarray(program.targets))
    penalty = float(program.reg) * sum(cvxpy.norm(group, "fro") for group in variables)
    optimum = cvxpy.Problem(cvxpy.Minimize(loss + penalty)).solve(solver=cvxpy.CLARABEL)
    return float(optimum), np.stack([group.value for group in variables])
