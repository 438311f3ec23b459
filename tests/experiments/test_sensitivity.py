"""The study of Algorithm 1's settings: its path is that of the solver."""

import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from experiments import sensitivity
from fixntk.convex.solvers import irls


@pytest.mark.filterwarnings("ignore::fixntk.ConvergenceWarning")
def test_the_path_is_that_of_the_solver(key, rng):
    x, x_test, y = rng.standard_normal((30, 3)), rng.standard_normal((10, 3)), rng.standard_normal((30, 2))
    gates = fx.sample_gates(key, 20, 3)
    program = fx.ConvexProgram(x, y, fx.activation_masks(x, gates), 0.5)
    epsilon = irls.default_epsilon(program, 1e-2)
    masks = fx.activation_masks(x_test, gates)
    outputs, gaps = sensitivity._path(program, epsilon, masks, jnp.asarray(x_test), num_steps=4)
    for steps in (0, 1, 4):
        solution = fx.solve(program, method="irls", epsilon=float(epsilon), max_iter=steps, tol=1e-12)
        np.testing.assert_allclose(outputs[steps], solution.predict(x_test, gates), atol=1e-10)
        np.testing.assert_allclose(gaps[steps], solution.gap, rtol=1e-8)


def test_fewer_gates_are_the_first_of_the_same():
    config = sensitivity.Config(
        tables=("iris",), seeds=1, gates=(8, 16), num_gates=16, reg_shares=(0.01,), max_steps=2, epsilon_gaps=(1e-4,)
    )
    rows = sensitivity.run_task(config, sensitivity.tasks(config)[0])
    by_sweep = {sweep: [row for row in rows if row["sweep"] == sweep] for sweep in sensitivity.SWEEPS}
    assert [len(part) for part in by_sweep.values()] == [2, 1, 3, 1]
    # Where all settings are at their base the four sweeps are the same fit.
    base = by_sweep["gates"][1]
    for other in (by_sweep["reg"][0], by_sweep["epsilon"][0]):
        assert other["accuracy"] == base["accuracy"]
        np.testing.assert_allclose(other["relative_gap"], base["relative_gap"], rtol=1e-3)
    assert by_sweep["gates"][0]["relative_gap"] != base["relative_gap"]
    assert len(sensitivity.by_value([{"table": "iris", "seed": 0} | row for row in rows])) == 7
