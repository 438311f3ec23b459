"""Functions of a symmetric matrix: fifty digits and more, finite differences."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from flow_problems import central_difference, problem

from fixntk.ntk import gradient_flow, matrix_functions


@pytest.mark.parametrize("kind", ["inverse", "progress", "decay"])
def test_functions_of_eigenvalues_and_their_divided_differences_keep_all_digits(kind):
    values = np.array([0.0, 1e-30, 1e-12, 1e-5, 0.3, 0.3 + 1e-15, 0.49, 0.51, 2.0, 2 + 1e-9, 40.0])
    for s in (1e-3, 7.0, 1e5):
        with mpmath.workdps(400):
            s_, exact = mpmath.mpf(s), {}

            def function(mu, s_=s_):
                left = mpmath.exp(-s_ * mu)
                return {"decay": left, "progress": 1 - left, "inverse": (1 - left) / mu if mu else s_}[kind]

            def slope(mu, s_=s_):
                left = mpmath.exp(-s_ * mu)
                if kind == "inverse":
                    small = -(s_**2) / 2 + s_**3 * mu / 3
                    return small if s_ * mu < mpmath.mpf(10) ** -20 else (s_ * left * mu - (1 - left)) / mu**2
                return s_ * left * (1 if kind == "progress" else -1)

            for a in map(mpmath.mpf, values):
                for b in map(mpmath.mpf, values):
                    exact[a, b] = (function(a) - function(b)) / (a - b) if a != b else slope(a)
            expected = np.array([float(exact[mpmath.mpf(a), mpmath.mpf(b)]) for a in values for b in values])
            expected_function = np.array([float(function(mpmath.mpf(a))) for a in values])
        cutoff, mu = jnp.asarray(0.0), jnp.asarray(values)
        differences = jax.jit(matrix_functions._divided_differences, static_argnums=0)
        np.testing.assert_allclose(
            matrix_functions._spectral_function(kind, mu, jnp.asarray(s), cutoff), expected_function, rtol=1e-14
        )
        found = differences(kind, mu, jnp.asarray(s), cutoff).ravel()
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-300)


KERNELS = {
    "distinct": problem(outputs=(), n=4).train,
    "repeated": jnp.eye(4) * 0.8,
    "singular": problem(outputs=(), n=4, rank=2).train,
    "singular, repeated": jnp.diag(jnp.array([0.0, 0.0, 1.0, 1.0])),
}


def outputs_by_scalars(kernel, step, rate, t, scale):
    """Outputs at t and ∞ with the kernel moved in a direction and the targets scaled."""
    p = problem(outputs=(), n=4)
    direction = 0.1 * problem(outputs=(), n=4, seed=1).train
    flow = gradient_flow(kernel + step * direction, scale * p.y, learning_rate=rate, diag_reg=0.1)
    t = jnp.stack([jnp.asarray(t), jnp.asarray(jnp.inf)])
    return jnp.concatenate([flow.predict(t, p.test_train), flow.predict(t)], axis=1)


COMPILED = {
    "value": jax.jit(outputs_by_scalars),
    "forward": jax.jit(jax.jacfwd(outputs_by_scalars, (1, 2, 3, 4))),
    "reverse": jax.jit(jax.jacrev(outputs_by_scalars, (1, 2, 3, 4))),
}


@pytest.mark.parametrize("name", KERNELS)
def test_derivatives_are_finite_differences_for_repeated_eigenvalues_too(name):
    point = (KERNELS[name], 0.0, 0.9, 0.7, 1.0)
    for number in (1, 2, 3, 4):
        expected = central_difference(COMPILED["value"], point, number)
        assert jnp.max(jnp.abs(expected)) > 1e-3
        for mode in ("forward", "reverse"):
            np.testing.assert_allclose(COMPILED[mode](*point)[number - 1], expected, rtol=1e-8, atol=1e-9)


def test_derivative_of_the_pseudo_inverse_limit_at_fixed_rank(rng):
    features, y = jnp.asarray(rng.standard_normal((5, 2))), jnp.asarray(rng.standard_normal(5))

    def through_kernel(features):
        return gradient_flow(features @ features.T, y).predict(None, jnp.ones((1, 2)) @ features.T)[0]

    def least_squares(features):
        return jnp.ones(2) @ jnp.linalg.solve(features.T @ features, features.T @ y)

    np.testing.assert_allclose(
        jax.jit(jax.grad(through_kernel))(features), jax.grad(least_squares)(features), atol=1e-10
    )


def test_second_and_mixed_derivatives_are_finite_differences_of_the_first():
    p, point = problem(outputs=(), n=4), (0.1, 1.0)
    direction = 0.1 * problem(outputs=(), n=4, seed=1).train

    def value(step, scale):
        return jnp.sum(jnp.sin(gradient_flow(p.train + step * direction, scale * p.y).coefficients(0.7)))

    # Reverse over reverse: a transpose must not forget what the outer derivative needs.
    found, gradient = jax.jit(jax.jacrev(jax.grad(value, (0, 1)), (0, 1)))(*point), jax.jit(jax.grad(value, (0, 1)))
    for column in (0, 1):
        expected = central_difference(gradient, point, column)
        np.testing.assert_allclose([row[column] for row in found], expected, rtol=1e-8, atol=1e-9)
