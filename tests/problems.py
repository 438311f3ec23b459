"""Random problems and an independent solver for the tests of the convex program."""

import cvxpy
import numpy as np

import fixntk as fx
from fixntk.convex.losses import huber
from fixntk.convex.program import group_shape_of, targets_of, thresholds_of

# What CVXPY is compared on: each loss, each option, and all options together.
PROGRAMS = {
    "squared": {},
    "logistic": {"loss": "logistic"},
    "softmax": {"loss": "softmax", "num_outputs": 3},
    "squared_hinge": {"loss": "squared_hinge"},
    "huber": {"loss": huber(0.4), "num_outputs": 2},
    "sample_weight": {"sample_weight": True},
    "intercept": {"intercept": True, "num_outputs": 2},
    "penalty_weights": {"penalty_weights": True},
    "ridge": {"ridge": 0.7},
    "nuclear": {"norm": "nuclear", "num_outputs": 3},
    "squared_all": {"sample_weight": True, "intercept": True, "penalty_weights": True, "ridge": 0.2, "num_outputs": 2},
    "logistic_all": {
        "loss": "logistic",
        "sample_weight": True,
        "intercept": True,
        "penalty_weights": True,
        "ridge": 0.2,
    },
    "softmax_all": {"loss": "softmax", "num_outputs": 3, "sample_weight": True, "intercept": True},
    "hinge_all": {"loss": "squared_hinge", "sample_weight": True, "intercept": True, "ridge": 0.1},
    "huber_all": {"loss": "huber", "sample_weight": True, "intercept": True, "penalty_weights": True},
}


def random_problem(
    seed, num_rows=30, num_features=4, num_gates=20, num_outputs=None, share=0.1, loss="squared", **options
):
    """A program at a share of λ_max, float64; targets (n,) when ``num_outputs`` is None."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, num_features))
    masks = x @ rng.standard_normal((num_features, num_gates)) >= 0
    y = rng.standard_normal((num_rows,) if num_outputs is None else (num_rows, num_outputs))
    if loss in ("logistic", "squared_hinge"):
        y = np.sign(y + x[:, 0])
    elif loss == "softmax":
        y = np.argmax(y + x[:, :1] * np.arange(num_outputs), axis=1)
    largest = fx.ConvexProgram(x, y, masks, 1.0, loss, **options).max_reg()
    return fx.ConvexProgram(x, y, masks, share * largest, loss, **options)


def program_of(options, share=0.1, seed=0):
    """A program of 30 rows with these options of :func:`random_problem`; ``True`` draws weights of rows or gates."""
    rng = np.random.default_rng(100 + seed)
    drawn = {
        "sample_weight": np.where(rng.random(30) < 0.2, 0.0, rng.random(30) + 0.5),
        "penalty_weights": rng.random(20) + 0.5,
    }
    options = {name: drawn.get(name, value) if value is True else value for name, value in options.items()}
    if options.get("intercept") is not None:
        options["intercept"] = True
    return random_problem(seed, share=share, **options)


def _row_losses(name, fitted, targets):
    if name == "squared":
        return 0.5 * cvxpy.sum(cvxpy.square(fitted - targets), axis=1)
    if name.startswith("huber"):
        return 0.5 * cvxpy.sum(cvxpy.huber(fitted - targets, float(name[6:-1])), axis=1)
    if name == "softmax":
        return cvxpy.log_sum_exp(fitted, axis=1) - cvxpy.sum(cvxpy.multiply(targets, fitted), axis=1)
    margins = cvxpy.multiply(targets, fitted)[:, 0]
    return cvxpy.logistic(-margins) if name == "logistic" else 0.5 * cvxpy.square(cvxpy.pos(1 - margins))


def cvxpy_optimum(program):
    """The program's optimum and group weights by CVXPY and Clarabel, from its definition."""
    variables = [cvxpy.Variable(group_shape_of(program)[1:]) for _ in range(program.num_gates)]
    masks, x = np.asarray(program.masks, float), np.asarray(program.x)
    num_rows = x.shape[0]
    fitted = sum((masks[:, [p]] * x) @ group for p, group in enumerate(variables))
    if program.column is not None:
        intercept = cvxpy.Variable((1, group_shape_of(program)[2]))
        fitted = fitted + np.ones((num_rows, 1)) @ intercept
    weights = np.ones(num_rows) if program.sample_weight is None else np.asarray(program.sample_weight)
    present = weights > 0
    losses = _row_losses(program.loss.name, fitted, np.asarray(targets_of(program)))
    norm = {"frobenius": lambda group: cvxpy.norm(group, "fro"), "nuclear": cvxpy.normNuc}[program.norm.name]
    thresholds = np.broadcast_to(np.asarray(thresholds_of(program)), len(variables))
    penalty = sum(threshold * norm(group) for threshold, group in zip(thresholds, variables, strict=True))
    if program.ridge is not None:
        penalty = penalty + 0.5 * float(program.ridge) * sum(cvxpy.sum_squares(group) for group in variables)
    objective = cvxpy.Minimize(weights[present] @ losses[present] + penalty)
    optimum = cvxpy.Problem(objective).solve(solver=cvxpy.CLARABEL)
    return float(optimum), np.stack([group.value.reshape(group_shape_of(program)[1:]) for group in variables])
