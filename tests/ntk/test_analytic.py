import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import fixntk as fx
from fixntk.ntk import analytic
from fixntk.ntk.activations import ACTIVATIONS, leaky_relu
from fixntk.ntk.layers import Dense


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


def deep_relu(a, b, depth, w_std, b_std, slope=0):
    """NNGP and NTK by the recursion of M13 in fifty digits."""
    with mpmath.workdps(50):
        a, b = ([mpmath.mpf(float(value)) for value in row] for row in (a, b))
        w, bias, slope = mpmath.mpf(w_std) ** 2, mpmath.mpf(b_std) ** 2, mpmath.mpf(slope)
        even, odd = ((1 - slope) / 2) ** 2, ((1 + slope) / 2) ** 2
        q11, q22, q12 = (w * mpmath.fdot(u, v) / len(a) + bias for u, v in ((a, a), (b, b), (a, b)))
        ntk = q12
        for _ in range(depth):
            length = mpmath.sqrt(q11 * q22)
            angle = mpmath.acos(min(max(q12 / length, mpmath.mpf(-1)), mpmath.mpf(1)))
            absolute = 2 / mpmath.pi * (length * mpmath.sin(angle) + (mpmath.pi / 2 - angle) * q12)
            slopes = odd + even * (1 - 2 * angle / mpmath.pi)
            q11, q22 = (w * (odd + even) * q + bias for q in (q11, q22))
            q12 = w * (odd * q12 + even * absolute) + bias
            ntk = q12 + w * ntk * slopes
        return float(q12), float(ntk)


@pytest.mark.parametrize("slope", [0.0, -1.0, 0.3])
@pytest.mark.parametrize(("w_std", "b_std"), [(1.0, 0.0), (1.4, 0.3)])
def test_deep_kernel_keeps_its_digits_in_fifty(rng, dtype, w_std, b_std, slope):
    """Close, parallel and opposite inputs, in two columns and in more than are compared one by one."""
    for num_features in (2, 20):
        x = rng.standard_normal((3, num_features))
        close = x[0] + 1e-7 * rng.standard_normal((2, num_features))
        x = np.vstack([x, close, 3 * x[:1], -1.7 * x[:1], -close]).astype(dtype)
        kernel = fx.mlp_kernel(x, x.copy(), depth=3, activation=leaky_relu(slope), w_std=w_std, b_std=b_std)
        expected = np.array([[deep_relu(a, b, 3, w_std, b_std, slope) for b in x] for a in x])
        assert kernel.ntk.dtype == dtype
        for k, name in enumerate(("nngp", "ntk")):
            error = np.abs(getattr(kernel, name) - expected[..., k])
            scale = np.sqrt(np.outer(*[np.diag(expected[..., k])] * 2))
            assert np.max(error / scale) < {"float64": 2e-14, "float32": 4e-6}[str(dtype)]


def test_symmetric_kernel_is_the_one_between_two_copies(rng, dtype, tolerance):
    x = rng.standard_normal((70, 30)).astype(dtype)
    whole = fx.mlp_kernel(x, x.copy(), depth=2, b_std=0.1)
    for batch_size in (None, 16):
        for a, b in zip(fx.mlp_kernel(x, depth=2, b_std=0.1, batch_size=batch_size), whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance)
    rectangular = fx.mlp_kernel(x[:50], x, depth=2, b_std=0.1, batch_size=16)
    np.testing.assert_allclose(rectangular.ntk, whole.ntk[:50], rtol=tolerance)


def test_first_layers_share_is_the_gated_kernel(rng):
    x1, x2 = rng.standard_normal((6, 4)), rng.standard_normal((5, 4))
    kernel = fx.mlp_kernel(x1, x2, depth=1)
    np.testing.assert_allclose(kernel.ntk - kernel.nngp, fx.gated_relu_ntk(x1, x2) / 4, rtol=1e-12, atol=1e-15)


def test_input_scale_takes_the_place_of_one_over_the_features(rng):
    x = rng.standard_normal((6, 4))
    expected = fx.mlp_kernel(x * 2, depth=2, b_std=0.3)
    np.testing.assert_allclose(fx.mlp_kernel(x, depth=2, b_std=0.3, input_scale=1.0).ntk, expected.ntk, rtol=1e-13)


def test_dtype_is_that_of_the_inputs(rng):
    x = rng.standard_normal((6, 4)).astype(np.float32)
    for batch_size in (None, 2):
        options = {"w_std": np.sqrt(2), "b_std": jnp.float64(0.1), "batch_size": batch_size}
        assert {kernel.dtype for kernel in fx.mlp_kernel(x, depth=2, **options)} == {jnp.dtype("float32")}
        assert fx.mlp_kernel(x, x.astype(np.float64), depth=1, batch_size=batch_size).ntk.dtype == jnp.float64


def test_a_grid_of_standard_deviations_is_one_vmap(rng):
    x, stds = rng.standard_normal((6, 4)), jnp.array([0.5, 1.0, 1.5])
    ntks = jax.vmap(lambda std: fx.mlp_kernel(x, depth=2, w_std=std, b_std=std).ntk)(stds)
    np.testing.assert_allclose(ntks[2], fx.mlp_kernel(x, depth=2, w_std=1.5, b_std=1.5).ntk, rtol=1e-12)


SCALARS = {"w_std": 1.3, "b_std": 0.4, "input_scale": 0.2}


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "tanh"])
def test_derivatives_are_finite_differences(rng, activation):
    activation = jnp.tanh if activation == "tanh" else activation
    x1, x2, direction = rng.standard_normal((3, 4)), rng.standard_normal((2, 4)), rng.standard_normal((3, 4))

    def kernels(step, x2=x2):
        moved = {name: value * (1 + step) for name, value in SCALARS.items()}
        return fx.mlp_kernel(x1 + step * direction, x2, depth=2, activation=activation, **moved)

    for other in (x2, None) if activation in ("relu", "gelu") else (x2,):
        _, derivative = jax.jvp(lambda step: kernels(step, other), (0.0,), (1.0,))  # noqa: B023
        high, low = kernels(1e-6, other), kernels(-1e-6, other)
        for name in ("nngp", "ntk"):
            expected = (getattr(high, name) - getattr(low, name)) / 2e-6
            np.testing.assert_allclose(getattr(derivative, name), expected, atol=2e-8)


@pytest.mark.parametrize("num_columns", [4, 40])
def test_float32_derivatives_of_nearly_parallel_inputs(rng, num_columns):
    """Against float64: a formula that cancels would be off by its rounding over the distance, or its square."""
    x = rng.standard_normal((6, num_columns)).astype(np.float32)

    @jax.jit
    @jax.grad
    def slope(x1, x2):
        return jnp.sum(fx.mlp_kernel(x1, x2, depth=3).ntk) + jnp.sum(fx.gated_relu_ntk(x1, x2))

    for distance in (1e-2, 1e-5, 1e-7):
        near = 2 * x * (1 + distance * rng.standard_normal(x.shape)) * np.array([1, -1, 1, -1, 1, 1])[:, None]
        near[4:] = rng.standard_normal((2, num_columns))
        near = near.astype(np.float32)
        single, double = (slope(jnp.asarray(x, dtype), jnp.asarray(near, dtype)) for dtype in ("f4", "f8"))
        np.testing.assert_allclose(single, double, atol=2e-6 * float(jnp.max(jnp.abs(double))))


def test_angles_at_the_ends_of_float32():
    x = np.array([[3e18, 1e18], [1e-37, 2e-37], [3e18, 1.1e18], [-3e18, -1e18], [-2, -4]], np.float32)
    scale = np.outer(*[np.linalg.norm(x.astype(np.float64), axis=1)] * 2)
    expected = np.array([[closed_form(a, b) for b in x] for a in x])
    np.testing.assert_array_less(np.abs(fx.gated_relu_ntk(x) - expected), 3e-7 * scale + 1e-38)


@pytest.mark.parametrize(("activation", "b_std"), [*((name, 0.0) for name in ACTIVATIONS), ("relu", 0.3), ("abs", 0.3)])
def test_deep_derivatives_are_finite_at_the_kinks(rng, activation, b_std):
    x = jnp.asarray(rng.standard_normal((1, 3)))
    special = jnp.concatenate([x, x, 2 * x, -x, 0 * x, 0 * x])

    def total(x1, x2):
        kernels = fx.mlp_kernel(x1, x2, depth=2, activation=activation, b_std=b_std)
        return jnp.sum(kernels.nngp) + jnp.sum(kernels.ntk)

    assert np.all(np.isfinite(jax.grad(total, (0, 1))(special, special.copy())))
    if activation == "relu":
        assert np.all(np.isfinite(jax.grad(lambda x: total(x, None))(special)))
        assert np.isfinite(jax.jvp(lambda x: total(x, None), (special,), (jnp.ones_like(special),))[1])


def test_tiles_under_jit_vmap_and_grad(rng):
    x1, x2 = rng.standard_normal((3, 9, 20)), rng.standard_normal((7, 20))

    def ntk(x1, x2):
        return fx.mlp_kernel(x1, x2, depth=2, b_std=0.1, batch_size=4).ntk

    np.testing.assert_allclose(jax.jit(jax.vmap(ntk, (0, None)))(x1, x2)[1], ntk(x1[1], x2), rtol=1e-12)
    np.testing.assert_allclose(jax.jit(lambda x: ntk(x, None))(x2), ntk(x2, None), rtol=1e-12)
    tiled, whole = (
        jax.grad(lambda x: jnp.sum(fx.mlp_kernel(x, depth=1, b_std=0.1, batch_size=tile).ntk ** 2))(x2)  # noqa: B023
        for tile in (4, None)
    )
    np.testing.assert_allclose(tiled, whole, rtol=1e-10)


def test_gated_kernel_in_tiles(rng, monkeypatch):
    x = rng.standard_normal((30, 40))
    x[7] = x[3] + 1e-7 * x[4]
    whole = fx.gated_relu_ntk(x)
    monkeypatch.setattr(analytic, "_TILE_SIZES", {"cpu": 64})
    np.testing.assert_allclose(fx.gated_relu_ntk(x), whole, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(fx.gated_relu_ntk(x[:11], x), whole[:11], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depth": 0}, ValueError, "depth must be at least 1"),
        pytest.param({"depth": 1.5}, TypeError, "depth must be an integer", marks=pytest.mark.wrong_types),
        ({"activation": "tan"}, ValueError, "activation must be one of"),
        ({"w_std": -1}, ValueError, "w_std must be"),
        ({"b_std": np.inf}, ValueError, "b_std must be"),
        ({"b_std": jnp.ones(3)}, ValueError, r"b_std must be a single number, got an array of shape \(3,\)"),
        ({"w_std": None}, TypeError, "w_std must be a number, got None"),
        ({"w_std": 1j}, TypeError, "w_std must be a real number"),
        ({"input_scale": -1.0}, ValueError, "input_scale must be"),
        ({"input_scale": np.ones(2)}, ValueError, "input_scale must be a single number"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"x1": np.ones((2, 2, 2))}, ValueError, "x1 must have 2 dimensions"),
        ({"x1": np.full((2, 2), np.nan)}, ValueError, "x1 holds 4 NaN"),
        ({"x1": np.full((2, 2), 1e20, np.float32)}, ValueError, "x1 holds entries up to 1.0e[+]20, squared lengths"),
        ({"x2": np.full((2, 2), 1e200)}, ValueError, "x2 holds entries up to 1.0e[+]200, squared lengths"),
        ({"x2": np.ones((2, 3))}, ValueError, r"x1 and x2 must have examples of the same shape, got shapes \(2, 2\)"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    arguments = {"x1": np.ones((2, 2)), "depth": 1} | arguments
    with pytest.raises(error, match=message):
        fx.mlp_kernel(**arguments)


@pytest.mark.wrong_types
def test_network_must_be_a_layer():
    with pytest.raises(TypeError, match="network must be a layer"):
        fx.network_kernel("relu", np.ones((2, 2)))
    with pytest.raises(TypeError, match="network must be a layer such as"):
        fx.network_kernel(Dense, np.ones((2, 2)))
    with pytest.raises(TypeError, match="network must be built of layers that are pytrees"):
        fx.network_kernel(lambda covariances: covariances, np.ones((2, 2)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_zero_rows_are_the_same_to_themselves_and_to_copies(rng, activation):
    x = jnp.concatenate([jnp.zeros((2, 3)), jnp.asarray(rng.standard_normal((2, 3)))])
    for depth, b_std in [(1, 0.0), (2, 0.0), (2, 0.3)]:
        alone = fx.mlp_kernel(x, depth=depth, activation=activation, b_std=b_std)
        crossed = fx.mlp_kernel(x, x.copy(), depth=depth, activation=activation, b_std=b_std)
        np.testing.assert_allclose(alone.nngp, crossed.nngp, atol=1e-7)
        np.testing.assert_allclose(alone.nngp[0, 0], alone.nngp[0, 1], atol=1e-15)


def test_kernels_on_the_host_are_those_on_the_device(rng):
    x = rng.standard_normal((11, 3))
    for x2 in (None, x[:7]):
        device, host = (
            fx.mlp_kernel(x, x2, depth=2, b_std=0.1, batch_size=4, store_on_device=on_device)
            for on_device in (True, False)
        )
        for one, other in zip(device, host, strict=True):
            assert isinstance(other, np.ndarray)
            np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="store_on_device=False cannot be used under a JAX transformation"):
        jax.jit(lambda x: fx.mlp_kernel(x, depth=1, store_on_device=False))(x)
