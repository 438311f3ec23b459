"""Gradient descent under a kernel: the closed form of the squared loss, and steps of a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx


@pytest.fixture
def case(rng):
    features = rng.standard_normal((9, 6))
    kernel = features @ features.T
    f0 = rng.standard_normal((9, 2))
    return kernel[:6, :6], kernel[6:, :6], rng.standard_normal((6, 2)), f0[:6], f0[6:]


def test_the_squared_loss_has_the_closed_form(case):
    kernel, between, y, f0, f0_test = case
    t = np.array([[3.0, 0.0], [10.0, 1.5]])
    flow = fx.gradient_flow(kernel, y, learning_rate=0.05)
    descent = fx.gradient_descent(kernel, y, learning_rate=0.05, rtol=1e-10)
    np.testing.assert_allclose(descent.predict(t, f0=f0), flow.predict(t, f0=f0), atol=1e-8)
    elsewhere = descent.predict(t, between, f0=f0, f0_test=f0_test)
    np.testing.assert_allclose(elsewhere, flow.predict(t, between, f0=f0, f0_test=f0_test), atol=1e-8)


def test_kernels_with_output_axes_have_the_closed_form(rng):
    features = rng.standard_normal((4, 3, 30))
    kernel = np.einsum("iop,jqp->ijoq", features, features)
    y = rng.standard_normal((4, 3))
    expected = fx.gradient_flow(kernel, y, learning_rate=0.01).predict(5.0)
    np.testing.assert_allclose(fx.gradient_descent(kernel, y, learning_rate=0.01).predict(5.0), expected, atol=1e-6)


def loop(case, probabilities, rate, momentum, num_steps):
    """Heavy-ball steps on the cross-entropy, in NumPy."""
    kernel, between, _, f, f_test = case
    velocity, velocity_test = 0.0, 0.0
    for _ in range(num_steps):
        shares = np.exp(f) / np.exp(f).sum(axis=1, keepdims=True)
        pull = shares - probabilities
        velocity = momentum * velocity - rate * kernel @ pull
        velocity_test = momentum * velocity_test - rate * between @ pull
        f, f_test = f + velocity, f_test + velocity_test
    return f, f_test


@pytest.mark.parametrize(("momentum", "rates", "order"), [(None, (1e-3, 1e-4), 1.0), (True, (1e-4, 1e-6), 0.5)])
def test_steps_of_a_loop_converge_to_it_at_the_order_that_is_stated(case, momentum, rates, order):
    kernel, between, _, f0, f0_test = case
    probabilities = np.eye(2)[[0, 1, 1, 0, 1, 0]]
    errors = []
    for rate in rates:
        # The same time of the differential equation at each rate, with the same friction.
        beta = 1 - np.sqrt(rate) if momentum else 0.0
        num_steps = round(2 / (np.sqrt(rate) if momentum else rate))
        options = {"momentum": beta} if momentum else {}
        descent = fx.gradient_descent(kernel, probabilities, "cross_entropy", learning_rate=rate, **options)
        stepped = loop(case, probabilities, rate, beta, num_steps)
        train = descent.predict(float(num_steps), f0=f0)
        test = descent.predict(float(num_steps), between, f0=f0, f0_test=f0_test)
        errors.append(max(np.max(np.abs(train - stepped[0])), np.max(np.abs(test - stepped[1]))))
    assert errors[1] < 0.1
    assert np.log(errors[0] / errors[1]) / np.log(rates[0] / rates[1]) == pytest.approx(order, abs=0.1)


def test_a_loss_may_be_any_function(case):
    kernel, _, y, _, _ = case
    named = fx.gradient_descent(kernel, np.sign(y), "logistic", learning_rate=0.1)
    own = fx.gradient_descent(kernel, np.sign(y), lambda f, y: jnp.sum(jnp.log1p(jnp.exp(-f * y))), learning_rate=0.1)
    np.testing.assert_allclose(named.predict(2.0), own.predict(2.0), rtol=1e-6)
    jitted = jax.jit(lambda y: fx.gradient_descent(kernel, y, "logistic", learning_rate=0.1).predict(2.0))
    np.testing.assert_allclose(jitted(np.sign(y)), named.predict(2.0), rtol=1e-6)


def test_a_solver_that_does_not_get_there_says_so(case):
    kernel, _, y, _, _ = case
    descent = fx.gradient_descent(kernel, y, max_steps=3)
    with pytest.raises(RuntimeError, match="max_steps=3 steps before the last time"):
        descent.predict(1e4)
    assert np.all(np.isnan(jax.jit(descent.predict)(1e4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss must be one of 'squared', 'cross_entropy', 'logistic' or a function, got 'hinge'"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"momentum": 1.0}, "momentum must be below 1"),
        ({"momentum": -0.1}, "momentum must be at least 0"),
    ],
)
def test_wrong_options_are_named(case, options, message):
    with pytest.raises(ValueError, match=message):
        fx.gradient_descent(*case[::2][:1], case[2], **options)


def test_wrong_times_and_starts_are_named(case):
    kernel, between, y, f0, f0_test = case
    descent = fx.gradient_descent(kernel, y)
    with pytest.raises(ValueError, match="t must be finite"):
        descent.predict(np.inf)
    with pytest.raises(ValueError, match="t must be at least 0"):
        descent.predict(-1.0)
    with pytest.raises(ValueError, match="f0 and f0_test must be given together"):
        descent.predict(1.0, between, f0=f0)
    with pytest.raises(ValueError, match="f0_test is for other points"):
        descent.predict(1.0, f0=f0, f0_test=f0_test)
    with pytest.raises(ValueError, match="f0 must be a scalar or have shape"):
        descent.predict(1.0, f0=f0[:3])
