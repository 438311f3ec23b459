"""Vectors as differences of two in a cone: CVXPY's least norms, and certificates of how near they are.

See docs/mathematics.md, M10.
"""

import cvxpy
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk.networks.decomposition import decompose


def _least_norms(x, gates, vectors):
    """‖a‖ + ‖b‖ by CVXPY, for each vector."""
    found = []
    for gate, vector in zip(gates, vectors, strict=True):
        signs = 2.0 * (x @ gate >= 0) - 1
        one, two = cvxpy.Variable(x.shape[1]), cvxpy.Variable(x.shape[1])
        inside = [cvxpy.multiply(signs, x @ part) >= 0 for part in (one, two)]
        sizes = cvxpy.norm(one) + cvxpy.norm(two)
        problem = cvxpy.Problem(cvxpy.Minimize(sizes), [one - two == vector, *inside])
        found.append(problem.solve(solver=cvxpy.CLARABEL))
    return np.array(found)


def test_cone_decomposition_has_the_least_norms_that_cvxpy_finds():
    rng = np.random.default_rng(0)
    x, gates, vectors = rng.standard_normal((20, 3)), rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
    x[3] = 0
    gates, vectors = jnp.asarray(gates), jnp.asarray(vectors)
    parts = decompose(jnp.asarray(x), gates, vectors, method="minimum_norm", tol=1e-7, max_iter=100)
    sizes = jnp.linalg.norm(parts.positive, axis=1) + jnp.linalg.norm(parts.negative, axis=1)
    np.testing.assert_allclose(sizes, _least_norms(x, gates, vectors), rtol=1e-6)
    network = fx.GatedReLUNetwork(gates, vectors, jnp.ones((5, 1)))
    np.testing.assert_allclose(network.to_relu(x)(x), network(x), atol=1e-11)


def test_a_vector_inside_of_its_cone_stays_alone():
    x = np.random.default_rng(0).standard_normal((20, 3))
    gates = jnp.asarray(np.random.default_rng(1).standard_normal((4, 3)))
    relu = fx.GatedReLUNetwork(gates, 2 * gates, jnp.ones((4, 1))).to_relu(x)
    assert relu.hidden.shape[0] == 4


@pytest.mark.parametrize("method", ["minimum_norm", "interior"])
def test_both_parts_are_in_the_cone_and_their_difference_is_the_vector(rng, method):
    x, gates, vectors = (jnp.asarray(rng.standard_normal(shape)) for shape in ((20, 3), (6, 3), (6, 3)))
    parts = decompose(x, gates, vectors, method=method, tol=1e-6, max_iter=100)
    np.testing.assert_allclose(parts.positive - parts.negative, vectors, atol=1e-10)
    signs = np.where(np.asarray(x @ gates.T) >= 0, 1.0, -1.0)
    for part in (parts.positive, parts.negative):
        inner = signs * np.asarray(x @ part.T)
        # Inside, up to rounding.
        assert np.all(inner >= -1e-10 * np.abs(np.asarray(part)).max())


@pytest.mark.filterwarnings("ignore::fixntk.ConvergenceWarning")
def test_the_gap_bounds_the_distance_from_the_least_norms_at_every_step(rng):
    x, gates, vectors = (jnp.asarray(rng.standard_normal(shape)) for shape in ((20, 3), (5, 3), (5, 3)))
    least = _least_norms(x, gates, vectors)
    before = np.full(5, np.inf)
    for max_iter in (3, 8, 100):
        parts = decompose(x, gates, vectors, method="minimum_norm", tol=1e-8, max_iter=max_iter)
        sizes = np.linalg.norm(parts.positive, axis=1) + np.linalg.norm(parts.negative, axis=1)
        distances = sizes - least
        assert np.all(distances >= -1e-6 * least)
        assert np.all(np.asarray(parts.gaps) >= distances - 1e-6 * least)
        assert np.all(sizes <= before * (1 + 1e-9))
        before = sizes
    assert np.all(np.asarray(parts.gaps) <= 1e-5 * least)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="method must be one of minimum_norm, interior, got 'best'"):
        decompose(jnp.ones((2, 2)), jnp.ones((1, 2)), jnp.ones((1, 2)), method="best", tol=1e-3, max_iter=1)
