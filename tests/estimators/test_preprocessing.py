"""What happens to rows between the user and the fit: read, checked and copied once; the same rows count as before."""

import sys
import tracemalloc

import numpy as np
import pytest

from fixntk.estimators import GatedReLURegressor, NTKClassifierCV, NTKRegressor, NTKRegressorCV
from fixntk.estimators import gated as gated_module
from fixntk.estimators.preprocessing import Training, all_rows, distinct_rows, pad_rows, padded_size, scale_inputs


def test_distinct_rows_are_numpys(rng):
    x, y = rng.integers(0, 3, (80, 2)).astype(float), rng.integers(0, 2, (80, 2))
    weights = rng.integers(0, 3, 80).astype(float)
    rows, summed = distinct_rows(x, y, weights)
    counted = np.flatnonzero(weights)
    expected, first, group = np.unique(np.column_stack([x, y])[counted], axis=0, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(np.column_stack([x, y])[rows], expected)
    np.testing.assert_array_equal(rows, counted[first])
    np.testing.assert_array_equal(summed, np.bincount(group.reshape(-1), weights[counted]))


@pytest.mark.parametrize("size", [1, 32, 33, 48, 49, 64, 512, 513, 1000, 8193])
def test_padding_adds_rows_of_zeros_only(size):
    padded = pad_rows(np.ones((size, 2)))
    assert len(padded) == padded_size(size) < max(33, 1.5 * size)
    # Where a fit computes for longer than it compiles, few rows are added.
    assert size <= 512 or len(padded) <= 17 / 16 * size
    np.testing.assert_array_equal(padded.sum(axis=0), [size, size])


def test_scaled_rows_are_those_that_the_scaling_gives(rng):
    x, weights = rng.standard_normal((50, 3)) + 7, rng.uniform(0.5, 2, 50)
    rows = rng.permutation(50)[:40]
    scaling, padded = scale_inputs(x, (rows, weights[:40]), standardize=True, bias=True)
    np.testing.assert_array_equal(padded, scaling.scale_and_pad(x[rows]))
    mean = np.average(x[rows], axis=0, weights=weights[:40])
    np.testing.assert_allclose(scaling.mean, mean, rtol=1e-12)
    deviation = np.sqrt(np.average((x[rows] - mean) ** 2, axis=0, weights=weights[:40]))
    np.testing.assert_allclose(scaling.scale, deviation, rtol=1e-12)
    np.testing.assert_array_equal(padded[:40, 3:], np.tile([1.0, 0, 0, 0, 0], (40, 1)))


@pytest.mark.parametrize("estimator", [NTKRegressor(), NTKRegressorCV(), NTKClassifierCV()], ids=str)
def test_rows_are_copied_once_on_their_way_in(rng, estimator):
    x = rng.standard_normal((20_000, 47))
    y = (x[:, 0] > 0).astype(int) if isinstance(estimator, NTKClassifierCV) else x[:, 0]
    x.flags.writeable = False
    options = (distinct_rows,) if isinstance(estimator, NTKRegressorCV) else ()
    estimator._read(x[:50], y[:50], None, *options)
    tracemalloc.start()
    found = estimator._read(x, y, None, *options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    training = found if isinstance(found, Training) else found[0]
    # A second copy of the rows would take 7.5 MB more; vectors of one number a row are allowed.
    assert peak < training.padded_x.nbytes + 0.25 * x.nbytes


def test_what_a_fit_keeps_of_its_rows_is_one_array(rng):
    x = rng.standard_normal((40, 3))
    model = NTKRegressor().fit(x, x[:, 0])
    assert np.shares_memory(model.X_fit_, model._training.padded_x)
    np.testing.assert_array_equal(model.X_fit_, model._scaling(x))


def test_one_function_lies_between_fit_and_solve(monkeypatch, rng):
    names = []

    class Reached(Exception):
        pass

    def solve(*_, **__):
        frame = sys._getframe(1)
        while names[-1:] != ["fit"]:
            # Without those of jaxtyping, where shapes are checked.
            if not frame.f_code.co_name.startswith("wrapped_fn"):
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        raise Reached

    monkeypatch.setattr("fixntk.estimators.one_reg.solve", solve)
    with pytest.raises(Reached):
        gated_module.GatedReLURegressor(8).fit(rng.standard_normal((20, 2)), rng.standard_normal(20))
    assert len(names) <= 2, names


def test_rows_without_weight_are_named():
    for choose in (all_rows, distinct_rows):
        with pytest.raises(ValueError, match="must not be zero for all rows"):
            choose(np.ones((3, 2)), np.ones(3), np.zeros(3))
    with pytest.raises(ValueError, match="weight"):
        GatedReLURegressor(8).fit(np.ones((3, 2)), np.ones(3), sample_weight=np.zeros(3))
