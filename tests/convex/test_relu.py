"""The ReLU network's convex program against CVXPY and its own claims (M10)."""

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk.convex.program import thresholds_of


def relu_problem(seed=0, num_rows=25, num_features=3, num_gates=15, share=0.05, **options):
    """A program of a planted ReLU network, and its gates."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, num_features))
    gates = rng.standard_normal((num_gates, num_features))
    y = np.maximum(x @ rng.standard_normal((num_features, 3)), 0) @ rng.standard_normal(3)
    y += 0.1 * rng.standard_normal(num_rows)
    program = fx.ConvexProgram(x, y, x @ gates.T >= 0, 1.0, **options)
    return program.with_reg(share * program.max_reg()), gates


def cvxpy_optimum(program, gates):
    x, masks = np.asarray(program.x), np.asarray(program.masks, float)
    pairs = [[cvxpy.Variable(x.shape[1]) for _ in range(2)] for _ in gates]
    intercept = cvxpy.Variable() if program.column is not None else 0.0
    fitted = intercept + sum(cvxpy.multiply(masks[:, p], x @ (one - two)) for p, (one, two) in enumerate(pairs))
    inside = [cvxpy.multiply(2 * masks[:, p] - 1, x @ part) >= 0 for p, pair in enumerate(pairs) for part in pair]
    weights = np.ones(x.shape[0]) if program.sample_weight is None else np.asarray(program.sample_weight)
    loss = 0.5 * cvxpy.sum(cvxpy.multiply(weights, cvxpy.square(fitted - np.asarray(program.y))))
    thresholds = np.broadcast_to(np.asarray(thresholds_of(program)), len(pairs))
    norms = sum(t * (cvxpy.norm(one) + cvxpy.norm(two)) for t, (one, two) in zip(thresholds, pairs, strict=True))
    return cvxpy.Problem(cvxpy.Minimize(loss + norms), inside).solve(solver=cvxpy.CLARABEL)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"intercept": True, "sample_weight": np.linspace(0.1, 1.5, 25), "penalty_weights": np.linspace(0.5, 2, 15)},
    ],
    ids=["plain", "everything"],
)
@pytest.mark.parametrize("share", [0.5, 0.01])
def test_the_optimum_is_cvxpys(options, share):
    program, gates = relu_problem(share=share, **options)
    solution = fx.solve_relu(program, gates, tol=1e-9)
    assert solution.converged, solution.message
    assert solution.iterations <= 80
    np.testing.assert_allclose(solution.primal, cvxpy_optimum(program, gates), rtol=1e-6)


def test_the_certificate_bounds_the_optimum_at_every_step():
    program, gates = relu_problem(1)
    seen = []
    solution = fx.solve_relu(program, gates, tol=1e-10, callback=seen.append)
    optimum = solution.primal
    assert [progress.iteration for progress in seen] == list(range(solution.iterations + 1))
    assert len(seen) > 10
    for progress in seen:
        assert progress.primal - progress.gap <= optimum * (1 + 1e-9) <= progress.primal * (1 + 2e-9)
    with pytest.warns(fx.ConvergenceWarning, match="stopped early"):
        stopped = fx.solve_relu(program, gates, callback=lambda p: p.relative_gap < 1e-2)
    assert 1e-5 < stopped.relative_gap < 1e-2


def test_vectors_are_in_their_cones_and_few():
    program, gates = relu_problem(2)
    solution = fx.solve_relu(program, gates, tol=1e-7)
    signs = 2.0 * np.asarray(program.masks) - 1
    for part in (solution.positive, solution.negative):
        assert float(jnp.min(signs * (program.x @ part.T))) >= -1e-12
    assert solution.to_network().hidden.shape[0] <= 12


def test_the_network_has_the_objective_and_lies_between_gated_and_decomposed():
    program, gates = relu_problem(3)

    def objective(network):
        return 0.5 * jnp.sum((network(program.x) - program.y) ** 2) + program.reg * network.weight_decay()

    solution = fx.solve_relu(program, gates, tol=1e-8)
    network = solution.to_network()
    np.testing.assert_allclose(objective(network), solution.primal, rtol=1e-9)
    gated = fx.solve(program, tol=1e-10)
    decomposed = gated.to_network(gates).to_relu(program.x)
    np.testing.assert_allclose(decomposed(program.x), gated.predict(program.x, gates), atol=1e-10)
    assert float(gated.primal) <= solution.primal <= float(objective(decomposed))
    assert float(gated.primal) < solution.dual
    interior = gated.to_network(gates).to_relu(program.x, method="interior")
    assert float(objective(decomposed)) <= float(objective(interior)) * (1 + 1e-3)


def test_float32_input_is_solved_in_float64():
    program, gates = relu_problem(4)
    x, y = program.x.astype("float32"), program.y.astype("float32")
    narrow = fx.ConvexProgram(x, y, program.masks, program.reg.astype("float32"))
    solution = fx.solve_relu(narrow, gates.astype("float32"), tol=1e-6)
    assert solution.converged
    assert solution.positive.dtype == jnp.float32
    np.testing.assert_allclose(solution.primal, fx.solve_relu(program, gates).primal, rtol=1e-4)


def test_large_reg_gives_zero():
    program, gates = relu_problem(5, share=1.1)
    solution = fx.solve_relu(program, gates)
    assert solution.converged
    np.testing.assert_allclose(solution.primal, program.primal_at_zero(), rtol=1e-4)
    assert not np.any(solution.positive)
    assert not np.any(solution.negative)


def test_bad_input_is_named():
    program, gates = relu_problem()
    with pytest.raises(ValueError, match="gates must give the program's masks on its x: 15 of 15"):
        fx.solve_relu(program, -gates)
    with pytest.raises(ValueError, match=r"gates must have shape \(15, 3\)"):
        fx.solve_relu(program, gates[:2])
    several = fx.ConvexProgram(program.x, np.ones((25, 2)), program.masks, 1.0)
    with pytest.raises(ValueError, match=r"program must have one output.*got 2 output\(s\)"):
        fx.solve_relu(several, gates)
    with pytest.raises(ValueError, match="loss 'huber"):
        fx.solve_relu(fx.ConvexProgram(program.x, program.y, program.masks, 1.0, "huber"), gates)
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.jit(lambda reg: fx.solve_relu(program.with_reg(reg), gates).positive)(1.0)
    with pytest.warns(fx.ConvergenceWarning, match="stopped early"):
        fx.solve_relu(program, gates, max_iter=3)


def test_a_gate_of_zeros_is_named():
    x = np.random.default_rng(0).standard_normal((10, 2))
    gates = np.array([[1.0, 0.0], [0.0, 0.0]])
    program = fx.ConvexProgram(x, x[:, 0], fx.activation_masks(x, gates), 0.1)
    with pytest.raises(ValueError, match="as gate 1 has"):
        fx.solve_relu(program, gates)
