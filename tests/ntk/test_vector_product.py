"""Products of the empirical NTK with vectors, against the kernel of plain Jacobians."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from test_empirical import PARAMS, X1, X2, full_kernel, network
from test_structure import normal

import fixntk as fx
from fixntk.ntk.vector_product import product, restrict


def test_product_with_a_vector_is_the_kernels():
    for x2 in (X2, None):
        other = X1 if x2 is None else x2
        vector = normal(6, *network(PARAMS, other).shape)
        expected = jnp.einsum("ijaobp,jop->iab", full_kernel(X1, other), vector)
        for batch_size in (None, 3):
            product = fx.ntk_vector_product(network, PARAMS, vector, X1, x2, batch_size=batch_size)
            assert jnp.allclose(product, expected, rtol=1e-12, atol=1e-12)
        jitted = jax.jit(partial(fx.ntk_vector_product, network, batch_size=3))(PARAMS, vector, X1, x2)
        assert jnp.allclose(jitted, expected, rtol=1e-12, atol=1e-12)


def test_products_the_two_ways_are_adjoint_and_squares_are_not_negative():
    left, right = normal(7, 7, 2, 3), normal(8, 5, 2, 3)
    forth = fx.ntk_vector_product(network, PARAMS, right, X1, X2, batch_size=2)
    back = fx.ntk_vector_product(network, PARAMS, left, X2, X1)
    np.testing.assert_allclose(jnp.vdot(left, forth), jnp.vdot(back, right), rtol=1e-12)
    assert jnp.vdot(left, fx.ntk_vector_product(network, PARAMS, left, X1)) > 0


def test_a_product_is_a_step_along_the_pulled_back_vector_by_finite_differences():
    vector = normal(8, 5, 2, 3)
    selected = (True, False, True)
    direction = jax.grad(lambda p: jnp.vdot(vector, network(p, X2)))(PARAMS)
    direction["v"] = jnp.zeros_like(direction["v"])

    def moved(step):
        return network(jax.tree.map(lambda p, d: p + step * d, PARAMS, direction), X1)

    expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
    for is_concrete in (True, False):
        found = product(network, selected, 3, is_concrete)(PARAMS, vector, X1, X2)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_a_restricted_network_is_the_network_of_its_selected_leaves():
    apply, chosen = restrict(network, (True, False, True), PARAMS)
    assert [leaf.shape for leaf in chosen] == [(6,), (4, 5)]
    np.testing.assert_array_equal(apply(chosen, X1), network(PARAMS, X1))
    doubled = network({**PARAMS, "b": 2 * PARAMS["b"], "w": 3 * PARAMS["w"]}, X1)
    np.testing.assert_array_equal(apply([2 * chosen[0], 3 * chosen[1]], X1), doubled)
