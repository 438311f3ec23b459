import itertools
import warnings

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog

import fixntk as fx


def brute_force(x):
    """All masks of open cells, by a linear program for each of the 2^n sign vectors."""
    x = x[np.any(x != 0, axis=1)]
    found = set()
    for signs in itertools.product([1.0, -1.0], repeat=x.shape[0]):
        # Is there a gate with margin 1 on the right side of every row?
        result = linprog(
            np.zeros(x.shape[1]), A_ub=-np.array(signs)[:, None] * x, b_ub=-np.ones(x.shape[0]), bounds=(None, None)
        )
        if result.status == 0:
            found.add(signs)
    return found


def as_signs(arrangements, x):
    columns = np.asarray(arrangements.masks)[np.any(x != 0, axis=1)]
    return [tuple(np.where(column, 1.0, -1.0)) for column in columns.T]


def grid(*sizes):
    return np.array(list(itertools.product(*map(range, sizes))), float)


DATA = {
    "general rank 2": np.random.default_rng(1).standard_normal((7, 2)),
    "general rank 3": np.random.default_rng(2).standard_normal((7, 3)),
    "general rank 4": np.random.default_rng(3).standard_normal((7, 4)),
    "general rank 5": np.random.default_rng(4).standard_normal((7, 5)),
    "rank 2 in five columns": np.random.default_rng(5).standard_normal((7, 2))
    @ np.random.default_rng(6).standard_normal((2, 5)),
    "one column": np.array([[1.0], [-2.0], [0.5]]),
    "a line with bias": np.column_stack([[-2.0, -1.0, 0.3, 0.3, 4.0], np.ones(5)]),
    "duplicate rows": np.repeat(np.random.default_rng(7).standard_normal((4, 3)), 2, axis=0),
    "parallel and opposite rows": np.random.default_rng(8).standard_normal((4, 3))[[0, 1, 2, 3, 0, 1, 2]]
    * np.array([1, 1, 1, 1, 3.3, -0.7, -1])[:, None],
    "zero rows": np.vstack([np.zeros((2, 3)), np.random.default_rng(9).standard_normal((5, 3))]),
    "many planes through a line": np.column_stack([grid(7)[:, 0] - 2, np.ones(7), np.zeros(7)]),
    "grid with bias": np.column_stack([grid(3, 3), np.ones(9)]),
    "cube with bias": np.column_stack([grid(2, 2, 2), np.ones(8)]),
    "standardised cube": np.column_stack(
        [(grid(2, 2, 2) * [0.3, 7, 1.1] - [0.15, 3.5, 0.55]) / [0.15, 3.5, 0.55], np.ones(8)]
    ),
    "orthogonal rows": np.eye(4),
}


@pytest.mark.parametrize("name", DATA)
def test_enumeration_finds_exactly_the_masks_that_linear_programs_find(name):
    x = DATA[name]
    found = as_signs(fx.enumerate_arrangements(x), x)
    assert len(found) == len(set(found))
    assert set(found) == brute_force(x)


@settings(max_examples=30)
@given(arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.integers(-2, 2)))
def test_enumeration_is_exact_on_small_integers(x):
    x = x.astype(float)
    arrangements = fx.enumerate_arrangements(x)
    found = as_signs(arrangements, x)
    assert len(found) == len(set(found))
    assert set(found) == brute_force(x)
    np.testing.assert_array_equal(fx.activation_masks(x, arrangements.gates), arrangements.masks)


@pytest.mark.parametrize("name", DATA)
def test_gates_have_their_masks_and_lie_inside_their_cells(name):
    x = DATA[name]
    arrangements = fx.enumerate_arrangements(x)
    np.testing.assert_array_equal(fx.activation_masks(x, arrangements.gates), arrangements.masks)
    nonzero = x[np.any(x != 0, axis=1)]
    cosines = np.abs(nonzero @ np.asarray(arrangements.gates).T) / np.linalg.norm(nonzero, axis=1)[:, None]
    assert cosines.min() > 1e-4
    np.testing.assert_allclose(np.linalg.norm(arrangements.gates, axis=1), 1, rtol=1e-12)


def test_gates_are_nearly_as_far_inside_as_can_be(rng):
    x = rng.standard_normal((12, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    arrangements = fx.enumerate_arrangements(x)
    for mask, gate in list(zip(np.asarray(arrangements.masks).T, np.asarray(arrangements.gates), strict=True))[::10]:
        rows = np.where(mask, 1.0, -1.0)[:, None] * x
        direction = cvxpy.Variable(3)
        farthest = cvxpy.Problem(cvxpy.Maximize(cvxpy.min(rows @ direction)), [cvxpy.norm(direction) <= 1]).solve()
        assert np.min(rows @ gate) > 0.5 * farthest


@pytest.mark.parametrize(("num_rows", "rank"), [(1, 1), (30, 2), (200, 3), (25, 4), (14, 6)])
def test_general_position_has_as_many_cells_as_cover_counts(rng, num_rows, rank):
    arrangements = fx.enumerate_arrangements(rng.standard_normal((num_rows, rank)))
    assert arrangements.masks.shape == (num_rows, fx.cover_count(num_rows, rank))


@pytest.mark.filterwarnings("ignore:.* cells are narrower than float32")
def test_float32_rows_in_general_position_are_all_told_apart(rng):
    arrangements = fx.enumerate_arrangements(rng.standard_normal((100, 3)).astype(np.float32))
    assert arrangements.masks.shape[1] == fx.cover_count(100, 3)
    assert arrangements.gates.dtype == np.float32


def integers_with_bias(offset):
    return np.column_stack([np.random.default_rng(0).integers(0, 12, (25, 2)) + offset, np.ones(25)])


LOW_PRECISION = {
    "years": (np.column_stack([np.arange(1990, 2013), np.ones(23)]), jnp.float32, 0),
    "integers": (integers_with_bias(0), jnp.float32, 0),
    "integers from a thousand": (integers_with_bias(1000), jnp.float32, 0),
    "integers from a hundred thousand": (integers_with_bias(100_000), jnp.float32, 1),
    "300 rows of rank 2": (np.random.default_rng(1).standard_normal((300, 2)), jnp.float32, 0),
    "2000 rows of rank 2": (np.random.default_rng(2).standard_normal((2000, 2)), jnp.float32, 0),
    "bfloat16": (np.random.default_rng(3).standard_normal((5, 2)), jnp.bfloat16, 0),
    "bfloat16 of rank 3": (np.random.default_rng(0).standard_normal((9, 3)), jnp.bfloat16, 1),
    "float16": (np.random.default_rng(3).standard_normal((5, 2)), jnp.float16, 0),
    "rows parallel but for rounding": (DATA["parallel and opposite rows"], jnp.float32, 1),
    "rank 2 but for rounding": (DATA["rank 2 in five columns"], jnp.float32, 1),
}


@pytest.mark.parametrize("name", LOW_PRECISION)
def test_low_precision_finds_the_cells_that_its_numbers_have_in_float64(name):
    x, dtype, _ = LOW_PRECISION[name]
    x = jnp.asarray(x, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, expected = fx.enumerate_arrangements(x), fx.enumerate_arrangements(x.astype(jnp.float64))
    assert found.gates.dtype == dtype
    np.testing.assert_array_equal(found.masks, expected.masks)


@pytest.mark.parametrize("name", LOW_PRECISION)
def test_gates_have_their_masks_in_low_precision_or_a_warning_counts_those_that_may_not(name):
    x, dtype, narrow = LOW_PRECISION[name]
    x = jnp.asarray(x, dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fx.enumerate_arrangements(x)
    wrong = np.any(np.asarray(fx.activation_masks(x, found.gates) != found.masks), axis=0).sum()
    assert len(caught) == narrow
    announced = int(str(caught[0].message).split()[0]) if caught else 0
    assert wrong <= announced <= found.masks.shape[1]
    if caught:
        assert f"cells are narrower than {jnp.dtype(dtype)} resolves" in str(caught[0].message)
        assert "float64" in str(caught[0].message)


def test_years_have_two_cells_each():
    x = LOW_PRECISION["years"][0].astype(np.float32)
    assert fx.enumerate_arrangements(x).masks.shape == (23, 46)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, int])
@pytest.mark.parametrize(("offset", "step"), [(10_000_000, 1), (2**30, 128)])
def test_rows_that_float64_cannot_tell_apart_are_refused(offset, step, dtype):
    x = np.column_stack([offset + step * np.arange(5), np.ones(5)]).astype(dtype)
    with pytest.raises(ValueError, match="centre and scale the columns of x"):
        fx.enumerate_arrangements(x)
    assert fx.enumerate_arrangements(x - x[2] * [1, 0]).masks.shape == (5, 10)


def test_float64_data_without_float64_in_jax_has_the_same_masks():
    x = integers_with_bias(100_000)
    expected = fx.enumerate_arrangements(x).masks
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(False), pytest.warns(UserWarning, match="narrower than float32"):
        found = fx.enumerate_arrangements(x)
    assert found.gates.dtype == np.float32
    np.testing.assert_array_equal(found.masks, expected)


@pytest.mark.parametrize("offset", [100.0, 1990.0])
def test_an_offset_beside_a_bias_column_changes_no_cell(rng, offset):
    x = np.column_stack([rng.integers(0, 12, (25, 2)), np.ones(25)])
    moved = x + np.array([offset, offset, 0])
    expected, found = (fx.enumerate_arrangements(rows) for rows in (x, moved))
    assert set(as_signs(found, moved)) == set(as_signs(expected, x))
    np.testing.assert_array_equal(fx.activation_masks(moved, found.gates), found.masks)


def test_no_nonzero_row_has_one_cell():
    arrangements = fx.enumerate_arrangements(np.zeros((3, 2)))
    np.testing.assert_array_equal(arrangements.masks, np.ones((3, 1), bool))


def test_too_many_cells_say_how_many(rng):
    x = rng.standard_normal((50, 5))
    with pytest.raises(ValueError, match=f"max_cells=1000 arrangements.* {fx.cover_count(50, 5)} cells"):
        fx.enumerate_arrangements(x, max_cells=1000)


def test_hopeless_rank_is_refused_without_trying(rng):
    with pytest.raises(ValueError, match="1000 distinct hyperplanes of rank 50"):
        fx.enumerate_arrangements(rng.standard_normal((1000, 50)))


def test_as_many_cells_as_allowed_are_enumerated(rng):
    x = rng.standard_normal((10, 3))
    count = fx.cover_count(10, 3)
    assert fx.enumerate_arrangements(x, max_cells=count).masks.shape[1] == count
    with pytest.raises(ValueError, match="max_cells"):
        fx.enumerate_arrangements(x, max_cells=count - 1)


def test_duplicates_do_not_count_against_the_limit(rng):
    x = np.repeat(rng.standard_normal((6, 3)), 50, axis=0)
    assert fx.enumerate_arrangements(x, max_cells=fx.cover_count(6, 3)).masks.shape == (300, fx.cover_count(6, 3))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="x holds 1 NaN"):
        fx.enumerate_arrangements(np.array([[1.0, np.nan]]))


@pytest.mark.wrong_types
@pytest.mark.parametrize("max_cells", ["a", 2.5, None])
def test_a_limit_that_is_no_integer_is_named(max_cells):
    with pytest.raises(TypeError, match="max_cells must be an integer, got"):
        fx.enumerate_arrangements(np.eye(2), max_cells=max_cells)
