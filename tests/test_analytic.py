import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import fixntk as fx


def closed_form(a, b):
    """x·x' (π − θ) / (2π) in fifty digits."""
    with mpmath.workdps(50):
        a, b = ([mpmath.mpf(float(value)) for value in row] for row in (a, b))
        product = mpmath.fdot(a, b)
        lengths = mpmath.sqrt(mpmath.fdot(a, a) * mpmath.fdot(b, b))
        if lengths == 0:
            return 0.0
        cosine = min(max(product / lengths, mpmath.mpf(-1)), mpmath.mpf(1))
        return float(product * (mpmath.pi - mpmath.acos(cosine)) / (2 * mpmath.pi))


def test_kernel_is_the_closed_form_in_fifty_digits(rng, dtype):
    x = rng.standard_normal((6, 3))
    close = x[0] + 1e-6 * rng.standard_normal((2, 3))
    x = np.vstack([x, close, 3 * x[:1], -1.7 * x[:1], -close, np.zeros((1, 3)), 1e8 * x[1:2]]).astype(dtype)
    kernel = np.asarray(fx.gated_relu_ntk(x))
    assert kernel.dtype == dtype
    expected = np.array([[closed_form(a, b) for b in x] for a in x])
    scale = np.outer(*[np.linalg.norm(x.astype(np.float64), axis=1)] * 2)
    assert (
        np.max(np.abs(kernel - expected) / np.where(scale > 0, scale, 1))
        < {"float64": 1e-15, "float32": 3e-7}[str(dtype)]
    )


def test_special_points_are_exact(rng):
    x = rng.standard_normal((5, 4))
    np.testing.assert_allclose(jnp.diagonal(fx.gated_relu_ntk(x)), np.sum(x**2, axis=1) / 2, rtol=1e-15)
    np.testing.assert_allclose(jnp.diagonal(fx.gated_relu_ntk(x, 2 * x)), np.sum(x**2, axis=1), rtol=1e-15)
    np.testing.assert_allclose(jnp.diagonal(fx.gated_relu_ntk(x, -x)), 0, atol=1e-15)
    np.testing.assert_array_equal(fx.gated_relu_ntk(np.zeros((2, 4)), x), 0)


def test_kernel_is_symmetric_and_positive_semidefinite(rng):
    x = rng.standard_normal((40, 3))
    kernel = np.asarray(fx.gated_relu_ntk(np.vstack([x, x[:5], -x[:5]])))
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-15)
    assert np.linalg.eigvalsh(kernel).min() > -1e-12


def test_extreme_scales_do_not_overflow(dtype):
    largest = {"float64": 1e150, "float32": 1e18}[str(dtype)]
    x = np.array([[largest, largest], [1 / largest, 0]], dtype)
    kernel = np.asarray(fx.gated_relu_ntk(x))
    assert np.all(np.isfinite(kernel))
    np.testing.assert_allclose(kernel[0, 1], 0.375, rtol=1e-6)


def test_gradient_is_the_finite_difference(rng):
    x1, x2, direction = (rng.standard_normal((4, 3)) for _ in range(3))
    step = 1e-6
    expected = (fx.gated_relu_ntk(x1 + step * direction, x2) - fx.gated_relu_ntk(x1 - step * direction, x2)) / (
        2 * step
    )
    _, derivative = jax.jvp(lambda x: fx.gated_relu_ntk(x, x2), (x1,), (direction,))
    np.testing.assert_allclose(derivative, expected, atol=1e-8)


def test_gradient_on_the_diagonal_is_that_of_half_the_squared_norm(rng):
    x = jnp.asarray(rng.standard_normal((4, 3)))
    np.testing.assert_allclose(jax.grad(lambda x: jnp.trace(fx.gated_relu_ntk(x)))(x), x, rtol=1e-14)


@pytest.mark.parametrize("kind", ["identical", "parallel", "opposite", "zero", "both zero"])
def test_gradients_are_finite_at_the_kinks(rng, kind):
    x = jnp.asarray(rng.standard_normal((1, 3)))
    other = {"identical": x, "parallel": 2 * x, "opposite": -x, "zero": 0 * x, "both zero": 0 * x}[kind]
    first = 0 * x if kind == "both zero" else x
    for argument in (0, 1):
        for derivative in (jax.jacrev, jax.jacfwd):
            assert np.all(np.isfinite(derivative(lambda a, b: fx.gated_relu_ntk(a, b), argument)(first, other)))


def test_gradient_at_zero_is_the_mean_of_the_one_sided_ones(rng):
    x, direction, step = rng.standard_normal((4, 3)), rng.standard_normal((1, 3)), 1e-3
    expected = (fx.gated_relu_ntk(step * direction, x) - fx.gated_relu_ntk(-step * direction, x)) / (2 * step)
    _, derivative = jax.jvp(lambda z: fx.gated_relu_ntk(z, x), (jnp.zeros((1, 3)),), (direction,))
    np.testing.assert_allclose(derivative, expected, atol=1e-12)


def test_kernel_under_jit_and_vmap(rng):
    x1, x2 = rng.standard_normal((3, 5, 2)), rng.standard_normal((4, 2))
    stacked = jax.jit(jax.vmap(fx.gated_relu_ntk, in_axes=(0, None)))(x1, x2)
    np.testing.assert_allclose(stacked[1], fx.gated_relu_ntk(x1[1], x2), rtol=1e-12)


def test_sampled_gates_converge_to_the_kernel_at_the_square_root_rate(rng):
    x = rng.standard_normal((10, 4))
    ntk = fx.gated_relu_ntk(x)

    def error(num_gates):
        keys = jax.random.split(jax.random.key(num_gates), 20)
        kernels = [
            fx.masked_gram(
                np.full(num_gates, 1 / num_gates), fx.activation_masks(x, fx.sample_gates(k, num_gates, 4)), x
            )
            for k in keys
        ]
        return np.sqrt(np.mean([(kernel - ntk) ** 2 for kernel in kernels]))

    sizes = [32, 128, 512, 2048]
    slope = np.polyfit(np.log(sizes), np.log([error(size) for size in sizes]), 1)[0]
    assert abs(slope + 0.5) < 0.1


@pytest.mark.parametrize(
    ("x1", "x2", "message"),
    [
        (np.ones(3), None, "x1 must have 2 dimensions"),
        (np.full((2, 2), np.nan), None, "x1 holds 4 NaN"),
        (
            np.ones((2, 2)),
            np.ones((2, 3)),
            r"x1 and x2 must have the same number of columns, got shapes \(2, 2\) and \(2, 3\)",
        ),
    ],
)
def test_bad_input_is_named(x1, x2, message):
    with pytest.raises(ValueError, match=message):
        fx.gated_relu_ntk(x1, x2)
