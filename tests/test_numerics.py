"""Arithmetic that several parts share: linear systems by NumPy, dtypes and precision."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from fixntk._numerics import (
    allow_float64,
    blas_threads_for,
    default_tol,
    full_precision,
    safe_sqrt,
    solve_kernel_ridge,
    with_dtype,
)


def test_ridge_solution_survives_a_matrix_that_rounding_makes_indefinite(rng):
    factor = rng.standard_normal((40, 3)).astype(np.float32)
    kernel, reg = jnp.asarray(factor @ factor.T), jnp.float32(1e-9)
    assert np.isnan(np.asarray(jnp.linalg.cholesky(kernel - 1e-6 * jnp.eye(40, dtype=jnp.float32)))).any()
    solution = solve_kernel_ridge(kernel - 1e-6 * jnp.eye(40, dtype=jnp.float32), reg, kernel[:, :1])
    assert np.all(np.isfinite(solution))
    np.testing.assert_allclose(kernel @ solution, kernel[:, :1], atol=1e-2)


def test_ridge_solution_is_that_of_the_linear_system(rng, dtype, tolerance):
    factor, targets = rng.standard_normal((20, 20)), rng.standard_normal((20, 3))
    kernel = factor @ factor.T / 20
    found = solve_kernel_ridge(jnp.asarray(kernel, dtype), jnp.asarray(0.3, dtype), jnp.asarray(targets, dtype))
    assert found.dtype == dtype
    expected = np.linalg.solve(kernel + 0.3 * np.eye(20), targets)
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_a_matrix_that_no_jitter_makes_definite_has_no_solution():
    found = solve_kernel_ridge(-jnp.eye(3), jnp.asarray(0.1), jnp.ones((3, 1)))
    assert np.all(np.isnan(found))


def test_the_square_root_has_derivative_zero_at_zero():
    np.testing.assert_array_equal(safe_sqrt(jnp.array([0.0, 4.0, -1.0])), [0.0, 2.0, 0.0])
    slopes = jax.vmap(jax.grad(safe_sqrt))(jnp.array([0.0, 4.0, -1.0]))
    np.testing.assert_array_equal(slopes, [0.0, 0.25, 0.0])


def test_float64_is_allowed_inside_and_as_before_outside():
    with allow_float64():
        assert jnp.ones(1).dtype == jnp.float64
    jax.config.update("jax_enable_x64", False)
    try:
        with allow_float64():
            assert jnp.ones(1).dtype == jnp.float64
        assert jnp.ones(1).dtype == jnp.float32
    finally:
        jax.config.update("jax_enable_x64", True)


@pytest.mark.parametrize(("chosen", "expected"), [(None, "HIGHEST"), ("high", "HIGH")])
def test_products_inside_are_in_full_precision_unless_the_user_has_chosen_another(chosen, expected):
    def product(a):
        with full_precision():
            return a @ a

    with jax.default_matmul_precision(chosen):
        shown = str(jax.make_jaxpr(product)(jnp.ones((2, 2))))
    precision = shown.split("precision=")[1].split("preferred")[0]
    assert expected in precision.replace(",", " ").replace("(", " ").replace("Precision.", "").split()


def test_another_dtype_is_for_floating_point_arrays_only():
    tree = with_dtype({"a": jnp.ones(2), "b": jnp.arange(2), "c": jnp.ones(2, bool)}, jnp.float32)
    assert [tree[name].dtype for name in "abc"] == [jnp.float32, jnp.arange(2).dtype, jnp.bool_]


def test_default_tolerances_are_above_rounding_error():
    assert all(default_tol(kind) > 100 * np.finfo(kind).eps for kind in ("float32", "float64"))
    assert default_tol("float64") < default_tol("float32")


def blas_threads():
    # Some packages bring a library that has never more than one.
    return max((library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"), default=0)


@pytest.fixture
def two_blas_threads():
    with threadpool_limits(2, user_api="blas"):
        if blas_threads() != 2:
            pytest.skip("the number of threads of this machine's BLAS cannot be set")
        yield


@pytest.mark.usefixtures("two_blas_threads")
def test_small_factorisations_have_one_blas_thread_and_large_ones_all():
    with blas_threads_for(100):
        assert blas_threads() == 1
        with blas_threads_for(100):
            assert blas_threads() == 1
        assert blas_threads() == 1
    assert blas_threads() == 2
    with blas_threads_for(100_000):
        assert blas_threads() == 2
    with pytest.raises(ZeroDivisionError), blas_threads_for(100):
        _ = 1 / 0
    assert blas_threads() == 2


@pytest.mark.usefixtures("two_blas_threads")
def test_the_number_of_blas_threads_is_as_before_in_whichever_order_threads_leave():
    is_inside, may_leave = threading.Event(), threading.Event()

    def stay():
        with blas_threads_for(100):
            is_inside.set()
            may_leave.wait()

    other = threading.Thread(target=stay)
    with blas_threads_for(100):
        other.start()
        is_inside.wait()
        assert blas_threads() == 1
    assert blas_threads() == 2
    may_leave.set()
    other.join()
    assert blas_threads() == 2
