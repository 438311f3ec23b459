"""Programs whose rows are on disk: sums over tiles by brute force, the largest λ, precision, and each refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk.convex.streamed.program import sum_over_rows


def problem(rng, num_rows=53, num_outputs=2):
    x, gates = rng.standard_normal((num_rows, 3)), rng.standard_normal((12, 3))
    return x, rng.standard_normal((num_rows, num_outputs)), gates


def sums_by_loop(x, y, gates, weights):
    """Xᵀ D_p R of each gate, ½‖R‖² and ½‖Y‖²."""
    masks = (x @ gates.T >= 0).astype(float)
    residual = y - sum((mask[:, None] * x) @ group for mask, group in zip(masks.T, weights, strict=True))
    correlations = np.stack([x.T @ (mask[:, None] * residual) for mask in masks.T])
    return correlations, 0.5 * np.sum(residual**2), 0.5 * np.sum(y**2)


@pytest.mark.parametrize("tile_rows", [None, 1, 8, 53, 100])
@pytest.mark.parametrize("num_active", [0, 1, 12])
def test_sums_over_tiles_are_those_of_all_rows(rng, tile_rows, num_active):
    x, y, gates = problem(rng)
    weights = rng.standard_normal((12, 3, 2))
    weights[rng.permutation(12)[num_active:]] = 0
    program = fx.StreamedProgram(np.split(x, [7, 30]), np.split(y, [7, 30]), gates, 1.0, tile_rows=tile_rows)
    *found, intercept, columns = sum_over_rows(program, weights)
    for each, expected in zip(found, sums_by_loop(x, y, gates, weights), strict=True):
        np.testing.assert_allclose(each, expected, rtol=1e-12, atol=1e-12)
    assert (intercept, columns) == (None, None)


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("tile_rows", [None, 1, 8])
def test_sums_with_an_intercept_are_those_at_the_best_one(rng, tile_rows, is_weighted):
    x, y, gates = problem(rng)
    y = y + np.array([50.0, -3.0])
    given = rng.random(53) * (np.arange(53) % 3) if is_weighted else None
    omega = np.ones(53) if given is None else given
    weights = rng.standard_normal((12, 3, 2))
    program = fx.StreamedProgram(x, y, gates, 1.0, sample_weight=given, intercept=True, tile_rows=tile_rows)
    masks = x @ gates.T >= 0
    residual = y - np.einsum("np,nd,pdc->nc", masks, x, weights)
    best = np.average(residual, axis=0, weights=omega)
    weighted = omega[:, None] * (residual - best)
    first = sum_over_rows(program, weights)
    # The second pass is told what the first one has summed.
    for found in (first, sum_over_rows(program, weights, columns=first.columns)):
        np.testing.assert_allclose(found.intercept, best, rtol=1e-11)
        np.testing.assert_allclose(found.loss, 0.5 * np.sum(weighted * (residual - best)), rtol=1e-10)
        variances = omega[:, None] * (y - np.average(y, axis=0, weights=omega)) ** 2
        np.testing.assert_allclose(found.loss_at_zero, 0.5 * np.sum(variances), rtol=1e-10)
        expected = np.einsum("np,nd,nc->pdc", masks, x, weighted)
        np.testing.assert_allclose(found.correlations, expected, rtol=1e-9, atol=1e-9)


def test_the_largest_reg_is_that_of_the_program_in_memory(rng, tmp_path):
    x, y, gates = problem(rng, num_outputs=1)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y[:, 0])
    program = fx.StreamedProgram(tmp_path / "x.npy", tmp_path / "y.npy", gates, 1.0, tile_rows=10)
    expected = fx.ConvexProgram(x, y[:, 0], fx.activation_masks(x, gates), 1.0).max_reg()
    np.testing.assert_allclose(program.max_reg(), expected, rtol=1e-12)


def test_sums_of_single_precision_are_in_double_precision():
    # In single precision a running sum of these squares stops growing at 2^24 or so.
    count, value = 20_000, np.float32(1000.1)
    x, y = np.ones((count, 1), np.float32), np.full(count, value)
    program = fx.StreamedProgram(x, y, np.ones((1, 1), np.float32), 1.0, tile_rows=7)
    found = sum_over_rows(program, np.zeros((1, 1, 1), np.float32))
    assert program.dtype == np.float32
    assert found.correlations.dtype == np.float64
    np.testing.assert_allclose(found.loss, 0.5 * count * float(value) ** 2, rtol=2e-7)
    np.testing.assert_allclose(found.correlations, count * float(value), rtol=2e-7)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("f4", "f4"), "f4"),
        (("f4", "f8"), "f8"),
        (("f4", "i8"), "f4"),
        (("i4", "f4"), "f8"),
        (("f2", "f2"), "f4"),
        (("i2", "?"), "f8"),
    ],
)
def test_floating_point_inputs_and_targets_decide_the_precision(dtypes, expected):
    x, y = np.ones((4, 2), dtypes[0]), np.ones(4, dtypes[1])
    assert fx.StreamedProgram(x, y, np.ones((3, 2)), 1.0).dtype == np.dtype(expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gates": np.ones((12, 4))}, ValueError, r"gates must have 3 columns, as x has, got shape \(12, 4\)"),
        ({"gates": np.ones((0, 3))}, ValueError, "gates is empty"),
        ({"x": np.ones((0, 3)), "y": np.ones((0, 2))}, ValueError, "x is empty"),
        ({"y": np.ones((52, 2))}, ValueError, "x and y must have the same number of rows over all shards, got 53"),
        ({"reg": 0.0}, ValueError, "reg must be positive"),
        (
            {"loss": "logistic"},
            ValueError,
            r"loss must be 'squared' .*, got 'logistic': use ConvexProgram",
        ),
        ({"loss": "square"}, ValueError, "loss must be one of squared"),
        ({"sample_weight": np.ones(52)}, ValueError, "x and sample_weight must have the same number of rows"),
        ({"sample_weight": np.ones((53, 1))}, ValueError, "sample_weight must have 1 dimensions"),
        ({"tile_rows": 0}, ValueError, "tile_rows must be at least 1"),
        pytest.param({"tile_rows": 2.5}, TypeError, "tile_rows must be an integer", marks=pytest.mark.wrong_types),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(rng, change, error, message):
    x, y, gates = problem(rng)
    with pytest.raises(error, match=message):
        fx.StreamedProgram(**({"x": x, "y": y, "gates": gates, "reg": 1.0} | change))


def test_a_bad_row_is_named_when_it_is_read(rng):
    x, y, gates = problem(rng)
    y[40, 1] = np.nan
    program = fx.StreamedProgram(x, np.split(y, [20]), gates, 1.0, tile_rows=16)
    for read in (program.max_reg, lambda: fx.solve(program)):
        with pytest.raises(ValueError, match=r"y holds NaN, .* in row 40, row 20 of shard 1"):
            read()


def test_a_negative_weight_is_named_when_it_is_read(rng):
    x, y, gates = problem(rng)
    weights = np.ones(53)
    weights[37] = -0.5
    with pytest.raises(ValueError, match=r"sample_weight must not be negative, got -0\.5 in row 37"):
        fx.StreamedProgram(x, y, gates, 1.0, sample_weight=weights, tile_rows=10).max_reg()


def test_products_out_of_range_are_an_error_that_says_so():
    x, y = np.full((4, 2), 1e30, np.float32), np.full(4, 1e30, np.float32)
    program = fx.StreamedProgram(x, y, np.ones((3, 2), np.float32), 1.0)
    with pytest.raises(ValueError, match="products out of the range of float32: divide each by its largest entry"):
        program.max_reg()


def test_it_is_not_made_or_solved_under_jit(rng):
    x, y, gates = problem(rng)
    program = fx.StreamedProgram(x, y, gates, 1.0)
    with pytest.raises(ValueError, match="not under jit or vmap"):
        jax.jit(lambda reg: fx.StreamedProgram(x, y, gates, reg).reg)(1.0)
    with pytest.raises(ValueError, match="not under jit or vmap"):
        jax.jit(lambda init: fx.solve(program, init=init).weights)(jnp.zeros((12, 3, 2)))


def test_it_says_what_it_is(rng):
    x, y, gates = problem(rng)
    program = fx.StreamedProgram(x, y, gates, 0.25, tile_rows=20)
    shown = "StreamedProgram(53 rows, 3 features, 12 gates, float64, 3 tiles of 20 rows, λ 0.25, loss squared)"
    assert repr(program) == shown
    assert repr(program.with_reg(0.5)) == shown.replace("0.25", "0.5")
    assert repr(program.x) == "Rows(x: float64[53, 3] in 1 shards)"
