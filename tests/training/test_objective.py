"""The objective of networks: definition by NumPy, random rows, stacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk.convex.losses import as_loss
from fixntk.networks.neurons import Parameters
from fixntk.training import objective as module


@pytest.fixture
def problem(rng):
    """A gated and a ReLU network of two outputs, and 12 rows."""
    hidden, output = rng.standard_normal((5, 4)), rng.standard_normal((5, 2))
    gates, intercept = rng.standard_normal((5, 4)), rng.standard_normal(2)
    gated = fx.GatedReLUNetwork(*map(jnp.asarray, (gates, hidden, output, intercept)))
    relu = fx.ReLUNetwork(*map(jnp.asarray, (hidden, output, intercept)))
    return gated, relu, rng.standard_normal((12, 4)), rng.standard_normal((12, 2)), rng.uniform(0.2, 2, 12)


def by_numpy(network, x, y, reg, weights):
    hidden, output = np.asarray(network.hidden), np.asarray(network.output)
    inner = x @ hidden.T
    is_on = x @ np.asarray(network.gates).T >= 0 if isinstance(network, fx.GatedReLUNetwork) else inner > 0
    errors = (is_on * inner) @ output + np.asarray(network.intercept) - y
    return 0.5 * weights @ np.sum(errors**2, axis=1) + 0.5 * reg * (np.sum(hidden**2) + np.sum(output**2))


def test_objective_is_its_definition(problem):
    *networks, x, y, weights = problem
    for network in networks:
        found = fx.network_objective(network, x, y, 0.3, sample_weight=weights)
        np.testing.assert_allclose(found, by_numpy(network, x, y, 0.3, weights), rtol=1e-12)
        found = fx.network_objective(network, x, y, 0.0)
        np.testing.assert_allclose(found, by_numpy(network, x, y, 0.0, np.ones(12)), rtol=1e-12)


def test_a_stack_has_an_objective_for_each_network_and_reg(problem):
    gated, _, x, y, weights = problem
    other = jax.tree.map(lambda leaf: 0.5 * leaf - 1, gated)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), gated, other)
    found = fx.network_objective(stack, x, y, jnp.array([0.3, 2.0]), sample_weight=weights)
    expected = [by_numpy(gated, x, y, 0.3, weights), by_numpy(other, x, y, 2.0, weights)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_expected_loss_of_drawn_rows_is_that_of_all(problem):
    gated, _, x, y, weights = problem
    loss = as_loss("squared")
    rows = module.as_rows(gated, x, y, loss, weights)
    whole = by_numpy(gated, x, y, 0.0, weights)
    trained = gated.parameters._asdict()
    batches = np.random.default_rng(1).permutation(12).reshape(4, 3)
    parts = [module.summed_loss(trained, {}, module.draw_rows(rows, jnp.asarray(batch)), loss) for batch in batches]
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-12)


def test_validation_losses_are_means_without_a_penalty(problem):
    gated, _, x, y, _ = problem
    loss = as_loss("squared")
    rows, held_out = module.as_rows(gated, x, y, loss), module.as_validation_rows(gated, (x[:5], y[:5]), loss)
    options = {"loss": loss}
    value, mean = module.measure(gated.parameters._asdict(), {}, rows, held_out, jnp.asarray(0.7), **options)
    np.testing.assert_allclose(value, by_numpy(gated, x, y, 0.7, np.ones(12)), rtol=1e-12)
    np.testing.assert_allclose(mean, by_numpy(gated, x[:5], y[:5], 0.0, np.full(5, 1 / 5)), rtol=1e-12)
    _, none = module.measure(gated.parameters._asdict(), {}, rows, None, jnp.asarray(0.7), **options)
    np.testing.assert_array_equal(none, value)


def test_without_a_penalty_weights_whose_squares_overflow_leave_the_objective_finite():
    parameters = Parameters(jnp.full((1, 1), 1e30, jnp.float32), jnp.zeros((1, 1), jnp.float32), None)
    rows = module.Rows(jnp.ones((1, 1), jnp.float32), jnp.ones((1, 1), jnp.float32), jnp.ones(1, jnp.float32), None)
    trained, loss = parameters._asdict(), as_loss("squared")
    assert float(module.objective(trained, {}, rows, jnp.float32(0), loss)) == 0.5
    assert float(module.objective(trained, {}, rows, jnp.float32(1), loss)) == np.inf


def test_data_that_do_not_fit_are_named(problem):
    gated, relu, x, y, weights = problem
    for change, message in (
        ({"x": x[:, :3]}, "x and hidden must have the same number of columns"),
        ({"y": y[:, :1]}, r"y has 1 output\(s\), the network 2"),
        ({"y": y[:5]}, "x and y must have the same number of rows"),
        ({"sample_weight": -weights}, "sample_weight must not be negative"),
        ({"sample_weight": weights[:3]}, "x and sample_weight must have the same number of rows"),
        ({"reg": -1.0}, "reg must be a finite number that is not negative"),
        ({"network": fx.GatedReLUNetwork(gated.gates[:2], *relu.parameters)}, "gates must have hidden's shape"),
    ):
        arguments = {"network": gated, "x": x, "y": y, "reg": 0.1, "sample_weight": weights, **change}
        with pytest.raises(ValueError, match=message):
            fx.network_objective(**arguments)
