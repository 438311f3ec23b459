"""Kernels of networks of finite width: the NNGP of one, and means over random networks with their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk.ntk.layers import Activate, Dense, Serial
from fixntk.ntk.neural_tangents_compat import import_neural_tangents


def network(params, x):
    """Two output axes, (2, 3)."""
    return (jnp.tanh(x @ params["w"]) @ params["v"]).reshape(x.shape[0], 2, 3)


@pytest.fixture
def problem(rng):
    params = {"w": jnp.asarray(rng.standard_normal((4, 5))), "v": jnp.asarray(rng.standard_normal((5, 6)))}
    return params, *(jnp.asarray(rng.standard_normal((n, 4))) for n in (4, 3))


@pytest.mark.parametrize(
    ("traced", "diagonal"), [((), ()), ((1,), ()), ((-1,), (1,)), ((1, 2), ()), ((), (0,)), ((0, 2), (1,))]
)
def test_nngp_of_a_network_is_that_of_neural_tangents(problem, traced, diagonal):
    params, x1, x2 = problem
    x2 = x1[::-1] if 0 in (*traced, *diagonal) else x2
    expected = import_neural_tangents().empirical_nngp_fn(network, traced, diagonal)
    for other in (x2, None):
        kernel = fx.empirical_nngp(network, params, x1, other, trace_axes=traced, diagonal_axes=diagonal)
        np.testing.assert_allclose(kernel, expected(x1, other, params), rtol=1e-12, atol=1e-12)


def test_nngp_of_several_outputs_and_under_jit(problem):
    params, x1, x2 = problem

    def heads(params, x, *, factor=1.0):
        hidden = jnp.tanh(x @ params["w"])
        return {"hidden": hidden, "sum": factor * hidden.sum(axis=1)}

    kernels = jax.jit(lambda p: fx.empirical_nngp(heads, p, x1, x2, outputs="trace", kwargs={"factor": 2.0}))(params)
    one, two = np.tanh(x1 @ params["w"]), np.tanh(x2 @ params["w"])
    np.testing.assert_allclose(kernels["hidden"], one @ two.T / 5, rtol=1e-12)
    np.testing.assert_allclose(kernels["sum"], 4 * np.outer(one.sum(axis=1), two.sum(axis=1)), rtol=1e-12)


def test_means_and_errors_are_those_of_the_samples(problem):
    _, x1, x2 = problem

    def init(key):
        keys = jax.random.split(key)
        return {"w": jax.random.normal(keys[0], (4, 5)), "v": jax.random.normal(keys[1], (5, 6))}

    found = fx.monte_carlo_kernel(network, init, x1, x2, key=jax.random.key(3), num_samples=5, batch_size=2)
    samples = [init(key) for key in jax.random.split(jax.random.key(3), 5)]
    for name in ("nngp", "ntk"):
        kernel = fx.empirical_nngp if name == "nngp" else fx.empirical_ntk
        kernels = np.stack([kernel(network, params, x1, x2, outputs="trace") for params in samples])
        np.testing.assert_allclose(getattr(found.mean, name), kernels.mean(axis=0), rtol=1e-12)
        errors = kernels.std(axis=0, ddof=1) / np.sqrt(5)
        np.testing.assert_allclose(getattr(found.standard_error, name), errors, rtol=1e-10)


def test_wide_networks_have_the_analytic_kernels_within_errors():
    described = Serial(Dense(), Activate("erf"), Dense(width=4))
    x = jax.random.normal(jax.random.key(0), (4, 3))
    exact = fx.network_kernel(described, x)
    found = fx.monte_carlo_kernel(
        described.apply, lambda key: described.init(key, (3,), 256), x, key=jax.random.key(1), num_samples=60
    )
    for name in ("nngp", "ntk"):
        mean, error, infinite = (getattr(each, name) for each in (found.mean, found.standard_error, exact))
        assert np.all(np.abs(mean - infinite) < 4 * error)
        assert np.all(error < 0.2 * np.sqrt(np.outer(np.diag(infinite), np.diag(infinite))))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_samples": 1}, ValueError, "num_samples must be at least 2"),
        ({"x1": jnp.zeros((0, 4))}, ValueError, "x1"),
        ({"outputs": "mean"}, ValueError, "outputs must be"),
    ],
)
@pytest.mark.wrong_types
def test_bad_arguments_are_named(problem, change, error, message):
    params, x1, _ = problem
    arguments = {"x1": x1, "key": jax.random.key(0), "num_samples": 2, **change}
    with pytest.raises(error, match=message):
        fx.monte_carlo_kernel(network, lambda _: params, **arguments)
