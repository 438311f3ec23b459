"""Kernels of all pairs of rows, tile by tile, against loops over pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk.ntk.all_pairs import kernels_of_all_pairs


def two_kernels(scale, rows1, rows2):
    """scale · x·x' and whether two rows have the same number."""
    same = rows1.numbers[:, None] == rows2.numbers[None, :]
    return scale * rows1.x @ rows2.x.T, same.astype(rows1.x.dtype)


def lopsided(matrix, rows1, rows2):
    """x·M x', which is not symmetric, as rounding is not."""
    return (rows1.x @ matrix @ rows2.x.T,)


@pytest.mark.parametrize(("tile", "on_device"), [(1, True), (4, True), (4, False), (17, False), (17, True)])
def test_kernels_between_and_of_the_rows_themselves_are_loops_over_pairs(rng, tile, on_device):
    x1, x2 = (jnp.asarray(rng.standard_normal((n, 3))) for n in (17, 9))
    scale = jnp.asarray(1.7)
    for other in (x2, None):
        columns = x1 if other is None else other
        product, same = kernels_of_all_pairs(two_kernels, 2, scale, x1, other, tile, on_device)
        expected = [[1.7 * sum(float(a) * float(b) for a, b in zip(u, v, strict=True)) for v in columns] for u in x1]
        np.testing.assert_allclose(product, expected, atol=1e-13)
        # Rows of x2 are nobody's copies, whatever they hold.
        np.testing.assert_array_equal(same, np.eye(17) if other is None else np.zeros((17, 9)))
        assert isinstance(product, jax.Array if on_device else np.ndarray)


@pytest.mark.parametrize("tile", [3, 7])
def test_the_upper_half_counts_where_the_two_orders_differ(rng, tile):
    x, matrix = (jnp.asarray(rng.standard_normal(shape)) for shape in ((7, 2), (2, 2)))
    whole = np.asarray(x @ matrix @ x.T)
    expected = np.triu(whole) + np.triu(whole, 1).T
    for on_device in (True, False):
        (kernel,) = kernels_of_all_pairs(lopsided, 1, matrix, x, None, tile, on_device)
        np.testing.assert_array_equal(kernel, np.asarray(kernel).T)
        if tile == 7:
            np.testing.assert_allclose(kernel, expected, atol=1e-13)
        # Between two arrays nothing is symmetric.
        between = kernels_of_all_pairs(lopsided, 1, matrix, x, x + 0, tile, on_device)[0]
        np.testing.assert_allclose(between, whole, atol=1e-13)


@pytest.mark.parametrize("tile", [3, 100])
def test_derivatives_of_traced_tiles_are_those_of_the_product(rng, tile):
    x1, x2, direction = (jnp.asarray(rng.standard_normal((n, 3))) for n in (8, 5, 8))
    weights = jnp.asarray(rng.standard_normal((8, 5)))

    def total(x, scale):
        return jnp.sum(weights * kernels_of_all_pairs(two_kernels, 2, scale, x, x2, tile)[0])

    slope_x, slope_scale = jax.jit(jax.grad(total, (0, 1)))(x1, jnp.asarray(1.7))
    np.testing.assert_allclose(jnp.vdot(slope_x, direction), 1.7 * jnp.sum(weights * (direction @ x2.T)), rtol=1e-12)
    np.testing.assert_allclose(slope_scale, jnp.sum(weights * (x1 @ x2.T)), rtol=1e-12)


def test_rows_of_two_dtypes_meet_in_the_wider_one(rng):
    x1, x2 = jnp.asarray(rng.standard_normal((4, 3)), "float32"), jnp.asarray(rng.standard_normal((6, 3)))
    for tile in (2, 100):
        for kernel in kernels_of_all_pairs(two_kernels, 2, jnp.asarray(1.0, "float32"), x1, x2, tile):
            assert kernel.dtype == jnp.float64
            assert kernel.shape == (4, 6)


@pytest.mark.parametrize("kernel_dtype", [jnp.float32, jnp.bfloat16])
def test_kernels_are_symmetric_to_the_last_bit(rng, kernel_dtype):
    x = jnp.asarray(rng.standard_normal((40, 5)), kernel_dtype)
    for batch_size in (None, 16):
        for kernel in fx.mlp_kernel(x, depth=3, activation="gelu", b_std=0.1, batch_size=batch_size):
            assert kernel.dtype == kernel_dtype
            np.testing.assert_array_equal(kernel, kernel.T)


def test_kernels_over_memory_are_refused(monkeypatch):
    monkeypatch.setattr("fixntk._tiling._free_of_machine", lambda: 2**10)
    with pytest.raises(ValueError, match=r"the 2000×2000 pair of kernel matrices needs .* pass x1 in blocks of rows"):
        fx.mlp_kernel(np.ones((2000, 2)), depth=1)
