"""Checks of arguments: what passes is unchanged, and errors name the argument, the value and what is expected."""

import decimal
import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import fixntk as fx
from fixntk import OutOfMemoryError
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


NUMBERS = [[1, 2], [3, 4], [0, 1]]
# The same numbers in every type that arrays come in.
ARRAYS = {
    **{str(np.dtype(kind)): np.array(NUMBERS, kind) for kind in ("i1", "u1", "i2", "u4", "i8", "u8", "f2", "f4", "f8")},
    **{f"big-endian {kind}": np.array(NUMBERS, f">{kind}") for kind in ("i2", "i8", "f2", "f4", "f8", "g")},
    "long double": np.array(NUMBERS, np.longdouble),
    "transposed": np.array(NUMBERS, order="F"),
    "strided": np.repeat(np.array(NUMBERS, ">f4"), 2, axis=0)[::2],
    "reversed": np.array(NUMBERS[::-1], float)[::-1],
    "objects": np.array(NUMBERS, object),
    "decimals": np.array([[decimal.Decimal(k) for k in row] for row in NUMBERS]),
    "fractions": [[fractions.Fraction(k) for k in row] for row in NUMBERS],
    "unmasked": np.ma.masked_array(NUMBERS),
    "frame": pd.DataFrame(NUMBERS),
    "nullable frame": pd.DataFrame(NUMBERS, dtype="Int64"),
    "nullable floats": pd.DataFrame(NUMBERS, dtype="Float32"),
    "frame of types": pd.DataFrame(NUMBERS).astype({0: "Int8", 1: "Float64"}),
    "frame of pyarrow": pd.DataFrame(NUMBERS).astype("int8[pyarrow]"),
    "pyarrow": pa.table({"a": [1, 3, 0], "b": [2, 4, 1]}),
    "polars": pl.DataFrame(NUMBERS, orient="row"),
}


# Objects in which not every number is an integer's.
FLOATING_OBJECTS = ("decimals", "fractions", "nullable floats", "frame of types")


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.wrong_types
def test_arrays_of_every_type_are_taken_as_the_numbers_that_they_are(name, tmp_path):
    given = ARRAYS[name]
    if isinstance(given, np.ndarray) and given.dtype != object:
        np.save(tmp_path / "array.npy", np.asarray(given))
        given = np.load(tmp_path / "array.npy", mmap_mode="r")
        assert not given.flags.writeable
    for found in (checks.as_matrix("x", given), checks.as_real_array("x", given), checks.as_array("x", given)):
        np.testing.assert_array_equal(found, NUMBERS)
    dtype = np.asarray(given).dtype
    if dtype.kind == "f":
        assert checks.as_matrix("x", given).dtype == (np.float64 if dtype.itemsize > 8 else dtype.newbyteorder("="))
    assert checks.is_floating("x", given) == (dtype.kind == "f" or name in FLOATING_OBJECTS)


@pytest.mark.parametrize(
    "column",
    [
        pd.array([True, False, True], "boolean"),
        pd.Series([1, 0, 1], dtype="bool[pyarrow]"),
        pa.array([True, False, True]),
        pl.Series([True, False, True]),
        np.array([True, False, True], object),
    ],
    ids=lambda column: type(column).__module__,
)
def test_booleans_stay_booleans(column):
    found = checks.as_real_array("y", column)
    assert found.dtype == bool
    assert found.tolist() == [True, False, True]


@pytest.mark.parametrize(
    "column",
    [
        *(pd.array([1, None, 0], kind) for kind in ("Int64", "Float32", "boolean", "int8[pyarrow]", "double[pyarrow]")),
        pd.Series([1, None, 2], dtype="UInt8"),
        pa.array([1, None, 2]),
        pa.chunked_array([[1.5, None, 2]]),
        pl.Series([1, None, 2]),
        np.array([1, None, 2], object),
        np.array([1, pd.NaT, 2], object),
        np.ma.masked_array([1, 2, 3], [False, True, False]),
        [np.ma.masked, 2, 3],
    ],
    ids=str,
)
@pytest.mark.wrong_types
def test_missing_values_are_refused_by_name(column):
    message = r"^y (has 1 missing value\(s\)|holds 1 NaN or infinite value\(s\)) in shape \(3,\)"
    with pytest.raises(ValueError, match=message):
        checks.as_float_array("y", column, (1,))
    with pytest.raises(ValueError, match=message):
        fx.ConvexProgram(np.ones((3, 2)), column, np.ones((3, 1), bool), 0.1)


def test_rows_with_masks_are_refused_and_eight_bits_are_numbers():
    rows = [np.ma.array([1.0, 2.0], mask=[True, False]), np.ma.array([1.0, 2.0])]
    with pytest.raises(ValueError, match=r"^x has 1 missing value\(s\) in shape \(2, 2\)$"):
        checks.as_matrix("x", rows)
    assert checks.as_matrix("x", rows[1:]).tolist() == [[1.0, 2.0]]
    narrow = jnp.asarray([[1.5, 2.0]], jnp.float8_e4m3fn)
    for given in (narrow, np.asarray(narrow)):
        found = checks.as_matrix("x", given)
        assert (found.dtype, found.tolist()) == (jnp.float32, [[1.5, 2.0]])


@pytest.mark.parametrize("dtype", ["m8[s]", "M8[s]", "S3", "U3"])
def test_durations_dates_and_texts_are_no_numbers(dtype):
    value = np.ones((3, 2), int).astype(dtype)
    for name, check in (("x", checks.as_matrix), ("params", checks.as_array)):
        with pytest.raises(TypeError, match=f"^{name} must be a real numeric array, got dtype "):
            check(name, value)


def test_arrays_larger_than_memory_are_named():
    endless = np.broadcast_to(np.ones(1), (2**22, 2**22))
    with pytest.raises(OutOfMemoryError, match=r"array of 4194304×4194304 numbers needs 128\.0 TiB"):
        checks.to_device(endless)


@pytest.mark.parametrize("labels", [np.array([1, "b"], object), pd.Series(["a", "b"]), np.array(["a", "b"], object)])
@pytest.mark.wrong_types
def test_text_is_refused_by_name(labels):
    with pytest.raises(TypeError, match="y must be a real numeric array, got dtype object with entries of type str"):
        checks.as_float_array("y", labels, (1,))
    for loss in ("logistic", "softmax"):
        with pytest.raises(TypeError, match=r"^y must hold numbers for this loss, got labels '.*'b'"):
            fx.ConvexProgram(np.ones((2, 2)), labels, np.ones((2, 1), bool), 0.1, loss)


def test_integers_are_never_cut_to_32_bits():
    with jax.enable_x64(False):
        np.testing.assert_array_equal(checks.as_real_array("y", np.array([-(2**31), 2**31 - 1])), [-(2**31), 2**31 - 1])
        assert checks.as_float_array("y", np.array([2**40]), (1,))[0] == 2.0**40
        for given in (np.array([0, 2**32 + 1]), np.array([2**63], np.uint64), np.array([-(2**31) - 1])):
            with pytest.raises(ValueError, match=r"^y holds integers from .* beyond u?int32: enable jax_enable_x64"):
                checks.as_real_array("y", given)


def test_what_overflows_float64_is_named():
    with pytest.raises(ValueError, match="x holds 1 NaN or infinite"):
        checks.as_matrix("x", np.array([[np.longdouble("1e400")]]))


def test_typed_keys_are_arrays_but_no_numbers(key):
    keys = jax.random.split(key, 3)
    assert checks.as_array("x", keys) is keys
    with pytest.raises(TypeError, match=r"^x must be a real numeric array, got dtype key<fry>"):
        checks.as_matrix("x", keys)


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


@pytest.mark.parametrize("transform", [jax.jit, jax.make_jaxpr], ids=lambda one: one.__name__)
def test_that_a_function_is_traced_is_seen_without_a_tracer_among_its_arguments(transform):
    # As in a process whose first call is traced.
    checks._zero.cache_clear()
    seen = []
    transform(lambda x: seen.append(checks.is_tracing(np.ones(2))) or x)(1.0)
    seen.append(checks.is_tracing(np.ones(2)))
    assert seen == [True, False]


def test_the_default_platform_is_that_of_the_default_device_under_jit_too():
    expected = jnp.zeros(()).devices().pop().platform
    seen = []
    jax.jit(lambda x: seen.append(checks.default_platform()) or x)(1.0)
    with jax.default_device(jax.devices("cpu")[0]):
        seen.append(checks.default_platform())
    assert checks.default_platform() == expected
    assert seen == [expected, "cpu"]
