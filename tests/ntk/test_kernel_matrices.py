"""Checks of kernels, times and numbers: the order of rows and outputs by loops, and what is refused."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk.ntk.kernel_matrices import (
    absolute_reg,
    as_initial_outputs,
    as_kernel_between,
    as_momentum,
    as_scalar,
    as_symmetric_kernel,
    as_times,
    as_training_kernel,
    check_positive_semidefinite,
    kernel_member,
)


def symmetric(rng, n, *outputs):
    """(n, n, c, c, …), symmetric under exchange of both examples and their outputs."""
    size = n * int(np.prod(outputs))
    matrix = rng.standard_normal((size, size))
    whole = (matrix @ matrix.T).reshape(n, *outputs, n, *outputs)
    order = [0, len(outputs) + 1]
    for k in range(len(outputs)):
        order += [1 + k, len(outputs) + 2 + k]
    return whole.transpose(order)


def test_a_kernel_with_output_axes_is_the_matrix_of_examples_then_outputs(rng):
    kernel, y = symmetric(rng, 3, 2, 4), jnp.zeros((3, 2, 4))
    for found in (as_symmetric_kernel("kernel", kernel, y), as_training_kernel(kernel, y)):
        assert (found.rows, found.full, found.shape) == (3, True, (3, 3, 2, 2, 4, 4))
        for i, j, a, b, c, d in np.ndindex(*kernel.shape):
            assert found.matrix[8 * i + 4 * a + c, 8 * j + 4 * b + d] == kernel[i, j, a, b, c, d]


def test_a_kernel_to_other_points_has_their_rows(rng):
    kernel, y = rng.standard_normal((5, 3, 2, 2)), jnp.zeros((3, 2))
    found = as_kernel_between("kernel_test", kernel, y, full=True)
    assert found.matrix.shape == (10, 6)
    for i, j, a, b in np.ndindex(*kernel.shape):
        assert found.matrix[2 * i + a, 2 * j + b] == kernel[i, j, a, b]
    plain = as_kernel_between("kernel_test", kernel[:, :, 0, 0], y, full=False)
    np.testing.assert_array_equal(plain.matrix, kernel[:, :, 0, 0])
    with pytest.raises(ValueError, match=r"kernel_test must have shape \(n_test, 3, 2, 2\), other points × training"):
        as_kernel_between("kernel_test", kernel.transpose(1, 0, 2, 3), y, full=True)


def test_kernels_that_fit_no_targets_or_are_not_symmetric_are_named(rng):
    kernel = symmetric(rng, 3, 2)
    for bad, message in (
        (kernel[:2], r"must have shape \(n, n\) or \(n, n, 2, 2\), got shape \(2, 3, 2, 2\)"),
        (symmetric(rng, 3, 4), r"must have shape \(n, n\) or \(n, n, 2, 2\), got shape \(3, 3, 4, 4\)"),
        (kernel + rng.standard_normal(kernel.shape), "must be symmetric, but it differs from its transpose by up to"),
        (kernel[::-1], "must be symmetric"),
    ):
        with pytest.raises(ValueError, match=message):
            as_symmetric_kernel("kernel", bad, jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="kernel_train and y must have the same number of rows"):
        as_training_kernel(kernel, jnp.zeros((4, 2)))
    # What rounding leaves is taken, also in float64 of a kernel that was computed in less.
    matrix = jnp.asarray(kernel[:, :, 0, 0])
    for error, dtype in ((1e-12, "float64"), (1e-6, "float64"), (1e-6, "float32"), (1e-2, "bfloat16")):
        rounded = (matrix * (1 + error * rng.standard_normal((3, 3)))).astype(dtype)
        assert as_symmetric_kernel("kernel", rounded, jnp.zeros(3)).rows == 3


def test_the_member_of_a_pair_of_kernels_or_the_array_itself_is_taken():
    pair, array = SimpleNamespace(nngp=1, ntk=2), jnp.ones((2, 2))
    assert [kernel_member("k", pair, member, "ntk") for member in ("nngp", "ntk")] == [1, 2]
    assert kernel_member("k", array, "nngp", "nngp") is array
    with pytest.raises(TypeError, match=r"k must have attributes nngp and ntk, both arrays; got .* without ntk"):
        kernel_member("k", array, "ntk", "ntk")


def test_a_relative_ridge_is_in_units_of_the_mean_diagonal(rng):
    matrix = jnp.asarray(rng.standard_normal((4, 4)))
    mean = np.mean(np.diag(np.asarray(matrix)))
    np.testing.assert_allclose(absolute_reg(matrix, 0.3, absolute=False), 0.3 * mean, rtol=1e-14)
    assert absolute_reg(matrix, 0.3, absolute=True) == 0.3


def test_times_and_numbers_are_arrays_of_the_kernels_dtype_or_named():
    assert as_times(None, jnp.dtype("float32")) == np.inf
    times = as_times(np.arange(3), jnp.dtype("float32"))
    assert (times.dtype, times.shape) == (jnp.float32, (3,))
    assert as_initial_outputs("f0", None, (3, 2), jnp.dtype("float32")) == 0
    assert as_initial_outputs("f0", np.ones((3, 2)), (3, 2), jnp.dtype("float32")).dtype == jnp.float32
    wide = jnp.dtype("float64")
    for call, message in (
        (lambda: as_times(np.array([1.0, -1.0, np.nan]), wide), "t must be at least 0, got 2 negative or NaN"),
        (lambda: as_scalar("reg", -1.0, wide), "reg must be at least 0, got -1.0"),
        (lambda: as_scalar("rate", 0.0, wide, positive=True), "rate must be positive, got 0.0"),
        (lambda: as_momentum(1.0, wide), "momentum must be below 1, got 1.0"),
        (
            lambda: as_initial_outputs("f0", np.ones((2, 3)), (3, 2), wide),
            r"f0 must be a scalar or have shape \(3, 2\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert as_scalar("reg", 0.0, wide) == 0
    assert as_momentum(0.999, wide) == 0.999


def test_the_ridge_that_a_message_suggests_is_enough(rng):
    factor = rng.standard_normal((6, 6))
    kernel = factor @ factor.T - 0.5 * np.eye(6)
    smallest = np.linalg.eigvalsh(kernel)[0]
    assert smallest < -0.1
    y = rng.standard_normal(6)
    with pytest.raises(ValueError, match=f"smallest eigenvalue is {smallest:.3g}, its largest") as error:
        check_positive_semidefinite("kernel", jnp.asarray(np.linalg.eigvalsh(kernel)), jnp.asarray(0.0))
    suggested = float(str(error.value).partition("diag_reg=")[2].split()[0])
    assert suggested > -smallest
    found = fx.gradient_flow(kernel, y, diag_reg=suggested, diag_reg_absolute_scale=True)
    assert np.all(np.isfinite(found.predict(1.0)))
    check_positive_semidefinite("kernel", jnp.array([-1e-15, 1.0]), jnp.asarray(0.0))
