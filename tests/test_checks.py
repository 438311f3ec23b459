"""Checks of arguments: what passes is unchanged, and errors name the argument, the value and what is expected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixntk import _checks as checks


@pytest.mark.parametrize(
    "given", [[[1, 2], [3, 4]], np.array([[True, False]]), np.ones((2, 1), np.float16), jnp.eye(2)]
)
def test_numbers_become_floating_point_arrays_of_the_same_values(given):
    found = checks.as_matrix("x", given)
    assert jnp.issubdtype(found.dtype, jnp.floating)
    np.testing.assert_array_equal(found, np.asarray(given, float))
    if np.asarray(given).dtype.kind == "f":
        assert found.dtype == np.asarray(given).dtype


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.ones(3), ValueError, r"x must have 2 dimensions, got shape \(3,\)"),
        (np.ones((0, 3)), ValueError, r"x is empty: shape \(0, 3\)"),
        (
            np.array([[1.0, np.nan], [np.inf, 2.0]]),
            ValueError,
            r"x holds 2 NaN or infinite value\(s\) in shape \(2, 2\)",
        ),
        (np.array([["a"]]), TypeError, "x must be a real numeric array, got dtype <U1"),
        (np.array([[1j]]), TypeError, "x must be a real numeric array, got dtype complex128"),
        ([[1], [2, 3]], TypeError, "x must be a numeric array, got list"),
    ],
)
def test_what_is_no_matrix_of_numbers_is_named(value, error, message):
    with pytest.raises(error, match=message):
        checks.as_matrix("x", value)


def test_values_are_not_looked_at_under_a_transformation():
    assert checks.is_traced(1.0) is False
    seen = []

    @jax.jit
    def traced(x):
        seen.append(checks.is_traced({"a": 1.0, "b": x}))
        return checks.as_matrix("x", x)

    assert np.isnan(np.asarray(traced(jnp.full((1, 1), jnp.nan)))).all()
    assert seen == [True]
    with pytest.raises(ValueError, match="x must have 2 dimensions"):
        traced(jnp.ones(3))


@pytest.mark.parametrize("value", [0, 1.5, np.float32(2), jnp.asarray(0.1), np.array(-1) + 1])
def test_numbers_that_are_not_negative_pass(value):
    checks.check_scalar("reg", value)


@pytest.mark.parametrize(
    ("value", "error"),
    [(-1e-9, ValueError), (np.inf, ValueError), (jnp.asarray(jnp.nan), ValueError), ("1", TypeError), (1j, TypeError)],
)
def test_other_scalars_are_named(value, error):
    with pytest.raises(error, match=r"reg must be a (finite|real) number"):
        checks.check_scalar("reg", value)


@pytest.mark.parametrize("value", [1, np.int32(7), jnp.asarray(3)])
def test_counts_are_plain_integers(value):
    found = checks.as_positive_int("num", value)
    assert type(found) is int
    assert found == int(value)


def test_other_counts_are_named():
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        checks.as_positive_int("num", 0)
    with pytest.raises(TypeError, match=r"num must be an integer, got 2\.0"):
        checks.as_positive_int("num", 2.0)


def test_rows_and_columns_that_differ_are_named():
    x, y = jnp.ones((3, 2)), jnp.ones((4, 2))
    checks.check_same_columns("x", x, "y", y)
    with pytest.raises(
        ValueError, match=r"x and y must have the same number of rows, got shapes \(3, 2\) and \(4, 2\)"
    ):
        checks.check_same_rows("x", x, "y", y)
    checks.check_same_rows("x", x.T, "y", x.T)
    with pytest.raises(ValueError, match=r"a and b must have the same number of columns"):
        checks.check_same_columns("a", x, "b", y.T)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_squares_that_overflow_are_named(kind):
    limit = np.sqrt(float(np.finfo(kind).max) / 4)
    checks.check_squares("x", jnp.full((1, 4), 0.99 * limit, kind))
    with pytest.raises(ValueError, match=r"x holds entries up to .* squared lengths overflow"):
        checks.check_squares("x", jnp.full((1, 4), -1.01 * limit, kind))


def test_what_does_not_fit_into_memory_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr(checks, "_device_memory", lambda: 2**30)
    x = jnp.ones((2**14, 1), jnp.float32)
    checks.check_kernel_fits(x, x, "use tiles")
    message = r"the 16384×16384 2 kernel matrices need 2\.0 GiB, the device has 1\.0 GiB: use tiles"
    with pytest.raises(ValueError, match=message):
        checks.check_kernel_fits(x, x, "use tiles", num_kernels=2)
    monkeypatch.setattr(checks, "_device_memory", lambda: None)
    checks.check_kernel_fits(x, x, "use tiles", num_kernels=2)
