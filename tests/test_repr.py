"""Every record of arrays shows itself in a line, without its numbers."""

import jax
import numpy as np
import optax
import pytest
from problems import random_problem

import fixntk as fx
from fixntk.convex.losses import huber

NETWORK = fx.ReLUNetwork.sample(jax.random.key(0), 4, 3, intercept=True)
X = np.random.default_rng(0).standard_normal((30, 3))
GATES = np.random.default_rng(1).standard_normal((5, 3))
SHOWN = {
    "ReLUNetwork(hidden float64[4, 3], output float64[4, 1], intercept float64[1])": lambda: NETWORK,
    "GatedReLUNetwork(gates float64[4, 3], hidden float64[4, 3], output float64[4, 1])": lambda: (
        fx.GatedReLUNetwork.sample(jax.random.key(0), 4, 3)
    ),
    "Training(ReLUNetwork(hidden float64[4, 3], output float64[4, 1], intercept float64[1]), 2 records)": lambda: (
        fx.train(NETWORK, X, X[:, 0], optax.sgd(1e-3), num_steps=2)
    ),
    "MaskedGram(weights float64[5], masks bool[30, 5], x float64[30, 3])": lambda: fx.MaskedGram(
        np.ones(5), X @ GATES.T >= 0, X
    ),
    "Kernel(nngp float64[30, 30], ntk float64[30, 30])": lambda: fx.mlp_kernel(X, depth=1),
    "GradientFlow(y float64[30], kernel float64[30, 30])": lambda: fx.gradient_flow(
        fx.gated_relu_ntk(X), X[:, 0], learning_rate=0.1
    ),
    "Evaluation(weights float64[20, 4, 1], outputs float64[30, 1], intercept float64[1], residual float64[30, 1], "
    "correlations float64[20, 4, 1], primal float64[], gap float64[], dual_scale float64[])": lambda: random_problem(
        0
    ).evaluate(np.zeros((20, 4))),
    "Loss(huber(0.5))": lambda: huber(0.5),
    "Loss(logistic)": lambda: fx.ConvexProgram(X, X[:, 0] > 0, X @ GATES.T >= 0, 1.0, "logistic").loss,
    "Solution(fista: weights float64[20, 4, 1], traced)": lambda: jax.eval_shape(fx.solve, random_problem(0)),
    "Arrangements(masks bool[2, 2], gates float64[2, 1])": lambda: fx.enumerate_arrangements(np.array([[1.0], [-2.0]])),
}


@pytest.mark.parametrize("shown", SHOWN)
def test_records_show_dtypes_and_shapes(shown):
    assert repr(SHOWN[shown]()) == shown


def test_solutions_show_why_they_ended():
    program = random_problem(0)
    solution = fx.solve(program)
    assert repr(solution).startswith("Solution(newton: converged, relative gap ")
    assert repr(solution.history).startswith("History(primal float64[")
    kernels = fx.solve_kernels(np.stack([np.eye(30), np.ones((30, 30))]), program.y, 0.1)
    assert repr(kernels).startswith("KernelSolution(solve_kernels converged: relative gap ")
    assert repr(kernels).endswith("of 2 kernels in use)")
    gated = fx.ConvexProgram(X, X[:, 0], X @ GATES.T >= 0, 0.5)
    assert repr(fx.solve_relu(gated, GATES, tol=1e-3)).endswith("of 5 gates active)")
    found = fx.discover(gated, GATES, key=jax.random.key(0), max_rounds=1, callback=lambda _: True)
    assert repr(found).startswith("Discovery(")
    for shown in (solution, kernels, found, jax.vmap(lambda reg: fx.solve(program.with_reg(reg)))(np.ones(2))):
        assert "\n" not in repr(shown)
        assert len(repr(shown)) < 200
