"""Outputs without a derivative in the parameters are told from outputs that do not depend on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk.ntk.dependence import blocking_operation


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.standard_normal((4, 3)))


W = jnp.asarray(np.random.default_rng(1).standard_normal((3, 2)))

BLOCKED = {
    "argmax": lambda w, x: jnp.argmax(x @ w, axis=1).astype(float),
    "floor": lambda w, x: jnp.floor(x @ w),
    "round": lambda w, x: jnp.tanh(jnp.round(x @ w)),
    "sign": lambda w, x: jax.jit(jnp.sign)(x @ w) * jnp.sum(x, axis=1, keepdims=True),
    "convert_element_type": lambda w, x: (x @ w).astype(int).astype(float),
    "gt": lambda w, x: jnp.where(x @ w > 0, 1.0, -1.0),
}


def straight_through(w, x):
    z = x @ w
    return z + jax.lax.stop_gradient(jnp.round(z) - z)


@jax.custom_jvp
def sign_with_derivative(z):
    return jnp.sign(z)


sign_with_derivative.defjvps(lambda tangent, _, z: tangent * (jnp.abs(z) < 1))


def second_derivative_of_relu(w, x):
    return jax.vmap(jax.hessian(lambda row: jnp.sum(jax.nn.relu(row @ w))))(x)


@pytest.mark.parametrize("name", BLOCKED)
def test_the_operation_without_a_derivative_is_named(name, x):
    with pytest.raises(ValueError, match=f"depends on the parameters only through '{name}', which has no derivative"):
        fx.empirical_ntk(BLOCKED[name], W, x)


@pytest.mark.parametrize(
    "f",
    [
        straight_through,
        lambda w, x: sign_with_derivative(x @ w),
        lambda w, x: jnp.sign(x @ w) * w[0],
        lambda w, x: jax.lax.fori_loop(0, 2, lambda _, z: jnp.round(z), x @ w),
        lambda _, x: jnp.sign(x),
        lambda w, x: jax.lax.stop_gradient(x @ w),
        lambda w, x: 0 * (x @ w),
        second_derivative_of_relu,
    ],
)
def test_other_functions_are_taken(f, x):
    """With a derivative, or with one that is zero for another reason."""
    assert blocking_operation(f, W, x) is None
    jacobian = jax.jacobian(f)(W, x).reshape(4, -1, W.size)
    kernel = fx.empirical_ntk(f, W, x, outputs="trace")
    np.testing.assert_allclose(kernel, jnp.einsum("iop,jop->ij", jacobian, jacobian) / jacobian.shape[1], atol=1e-12)


def test_one_of_several_outputs_may_have_no_derivative(x):
    found = fx.empirical_ntk(lambda w, x: {"logits": x @ w, "class": BLOCKED["argmax"](w, x)}, W, x)
    np.testing.assert_array_equal(found["class"], np.zeros((4, 4)))
    np.testing.assert_allclose(found["logits"], jnp.einsum("ij,oq->ijoq", x @ x.T, jnp.eye(2)), rtol=1e-12)


def test_products_of_outputs_need_no_derivative(x):
    signs = jnp.sign(x @ W)
    np.testing.assert_allclose(fx.empirical_nngp(BLOCKED["gt"], W, x, outputs="trace"), signs @ signs.T / 2)
