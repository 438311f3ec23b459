"""Kernel ridge regressions with the NTK: scikit-learn's checks, its kernel ridge regression, refits without a row."""

import re

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_iris
from sklearn.kernel_ridge import KernelRidge
from sklearn.utils.estimator_checks import parametrize_with_checks

import fixntk as fx
from fixntk.estimators import NTKClassifier, NTKClassifierCV, NTKRegressor, NTKRegressorCV, ntk_fits


# These set parameters of wrong types on purpose.
@pytest.mark.wrong_types
@parametrize_with_checks([NTKRegressor(), NTKClassifier(), NTKRegressorCV(), NTKClassifierCV()])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_the_ntk_regressor_is_kernel_ridge_regression():
    x, y = load_diabetes(return_X_y=True)
    both = np.column_stack([y, y**2])
    model = NTKRegressor(reg=0.3).fit(x[:200], both[:200])
    mean, scale = x[:200].mean(0), x[:200].std(0)
    train, test = (np.column_stack([(part - mean) / scale, np.ones(len(part))]) for part in (x[:200], x[200:]))
    kernel = np.asarray(fx.gated_relu_ntk(train))
    ridge = KernelRidge(alpha=0.3 * np.mean(np.diag(kernel)), kernel="precomputed")
    ridge.fit(kernel, both[:200] - both[:200].mean(0))
    expected = ridge.predict(np.asarray(fx.gated_relu_ntk(test, train))) + both[:200].mean(0)
    np.testing.assert_allclose(model.predict(x[200:]), expected, rtol=1e-8)


def test_the_ridge_chosen_is_that_of_leave_one_out_refits():
    x, y = (part[:60] for part in load_diabetes(return_X_y=True))
    weights = np.random.default_rng(0).uniform(0.5, 2, 60)
    model = NTKRegressorCV((0.01, 0.1, 1.0, 10.0), standardize=False).fit(x, y, weights)
    mean = np.average(y, weights=weights)
    scale = np.sqrt(np.average((y - mean) ** 2, weights=weights))
    order = np.unique(np.column_stack([x, y]), axis=0, return_index=True)[1]
    for reg, error in zip(model.regs, model.loo_errors_, strict=True):
        found = []
        kernel = np.asarray(fx.gated_relu_ntk(np.column_stack([x, np.ones(60)])))
        ridge = reg * np.average(np.diag(kernel), weights=weights)
        for i in order:
            rest = np.delete(np.arange(60), i)
            matrix = kernel[np.ix_(rest, rest)] + ridge * np.diag(1 / weights[rest])
            found.append(weights[i] * (kernel[i, rest] @ np.linalg.solve(matrix, y[rest] - mean) - y[i] + mean) ** 2)
        np.testing.assert_allclose(error, np.sum(found) / weights.sum() / scale**2, rtol=1e-7)
    assert model.reg_ == model.regs[int(np.argmin(model.loo_errors_))] not in (0.01, 10.0)
    # R² is one less the share of the variance that is left, which is one.
    np.testing.assert_allclose(model.loo_score_, 1 - model.loo_errors_.min(), rtol=1e-12)


def scaled_kernel(x):
    """Of standardised rows with a bias column, and its mean diagonal."""
    rows = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(len(x))])
    kernel = np.asarray(fx.gated_relu_ntk(rows))
    return kernel, np.mean(np.diag(kernel))


def test_a_classifier_is_the_ridge_regression_on_signs_of_each_class():
    x, y = load_iris(return_X_y=True)
    x = x + np.linspace(0, 1e-3, len(x))[:, None]
    kernel, mean = scaled_kernel(x)
    for labels, classes in ((y, 3), ((y > 0).astype(int), 2)):
        signs = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
        expected = kernel @ np.linalg.solve(kernel + 0.2 * mean * np.eye(len(x)), signs)
        scores = NTKClassifier(reg=0.2).fit(x, labels).decision_function(x)
        np.testing.assert_allclose(scores, expected if classes == 3 else expected[:, 1], atol=1e-8)


def test_the_ridge_of_a_classifier_is_that_of_the_least_squared_error_left_out():
    x, y = (part[:100] for part in load_iris(return_X_y=True))
    rng = np.random.default_rng(0)
    x = x + rng.standard_normal(x.shape)
    regs = (1e-3, 0.1, 10.0)
    model = NTKClassifierCV(regs).fit(x, y)
    kernel, mean = scaled_kernel(x)
    for reg, error in zip(regs, model.loo_errors_, strict=True):
        inverse = np.linalg.inv(kernel + reg * mean * np.eye(100))
        # The closed form of left-out errors, (C⁻¹y)_i / (C⁻¹)_ii.
        left_out = (inverse @ (2.0 * y - 1)) / np.diag(inverse)
        np.testing.assert_allclose(error, np.mean(left_out**2), rtol=1e-8)
        if reg == model.reg_:
            is_right = (left_out < 1) == (y == 1)
            is_right[y == 0] = left_out[y == 0] > -1
            np.testing.assert_allclose(model.loo_score_, np.mean(is_right), rtol=1e-12)
    assert model.reg_ == regs[int(np.argmin(model.loo_errors_))]
    np.testing.assert_allclose(
        model.decision_function(x), NTKClassifier(reg=model.reg_).fit(x, y).decision_function(x), atol=1e-8
    )


@pytest.mark.parametrize("bias", [True, False])
def test_without_standardisation_rows_enter_as_they_are(rng, bias):
    x, y = 3 * rng.standard_normal((30, 2)) + 1, rng.standard_normal(30)
    model = NTKRegressor(reg=0.5, standardize=False, bias=bias).fit(x, y)
    kernel = np.asarray(fx.gated_relu_ntk(np.column_stack([x, np.ones(30)]) if bias else x))
    dual = np.linalg.solve(kernel + 0.5 * np.mean(np.diag(kernel)) * np.eye(30), y - y.mean())
    np.testing.assert_allclose(model.predict(x), kernel @ dual + y.mean(), atol=1e-9)


@pytest.fixture
def approximated(monkeypatch):
    """Estimators approximate the kernel from 50 rows on, to rounding."""
    monkeypatch.setattr(ntk_fits, "MAX_EXACT_ROWS", 50)
    monkeypatch.setattr(ntk_fits, "_TRACE_LEFT", 1e-13)
    return monkeypatch


def noisy_table(count=200, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 3))
    weights = rng.uniform(0, 2, count)
    weights[:4] = 0
    return x, np.tanh(2 * x[:, 0]) + 0.1 * rng.standard_normal(count), weights


@pytest.mark.parametrize("make", [NTKRegressor, NTKRegressorCV])
@pytest.mark.parametrize("outputs", [1, 2])
def test_all_rows_as_landmarks_give_the_exact_fit(make, outputs, approximated):
    x, y, weights = noisy_table()
    y = y if outputs == 1 else np.column_stack([y, y**2])
    with_landmarks = make().fit(x, y, weights)
    approximated.undo()
    exact = make().fit(x, y, weights)
    assert (exact.is_exact_, with_landmarks.is_exact_) == (True, False)
    assert exact.trace_left_ == 0
    assert with_landmarks.trace_left_ < 1e-12
    assert with_landmarks.reg_ == exact.reg_
    new = np.random.default_rng(1).standard_normal((30, 3))
    np.testing.assert_allclose(with_landmarks.predict(new), exact.predict(new), atol=1e-8)
    np.testing.assert_allclose(with_landmarks.loo_errors_, exact.loo_errors_, rtol=1e-5)


@pytest.mark.parametrize("make", [NTKClassifier, NTKClassifierCV])
def test_classifiers_with_all_rows_as_landmarks_are_exact_too(make, approximated):
    x, y, weights = noisy_table()
    labels = np.where(y > 0.5, "high", np.where(y > 0, "middle", "low"))
    with_landmarks = make().fit(x, labels, weights)
    approximated.undo()
    exact = make().fit(x, labels, weights)
    np.testing.assert_allclose(with_landmarks.temperature_, exact.temperature_, rtol=1e-5)
    np.testing.assert_allclose(with_landmarks.predict_proba(x), exact.predict_proba(x), atol=1e-6)


def test_fewer_landmarks_are_told_and_leave_out_errors_are_those_of_the_approximation(approximated, capsys):
    x, y, _ = noisy_table(150)
    approximated.setattr(ntk_fits, "_MAX_LANDMARKS", 40)
    model = NTKRegressor(reg=0.1, standardize=False, verbose=1).fit(x, y)
    line = capsys.readouterr().out
    assert re.fullmatch(r"NTKRegressor: 40 landmarks of 150 rows, 0\.\d+ of the kernel's trace is left out\n", line)
    assert model.X_fit_.shape[0] == model.dual_coef_.shape[0] == 40
    # Refits without a row, with features of the same landmarks.
    kernel = np.asarray(fx.gated_relu_ntk(np.column_stack([x, np.ones(150)])))
    rows = np.column_stack([x, np.ones(150)])
    places = [int(np.argmin(np.sum((rows - row[:4]) ** 2, axis=1))) for row in model.X_fit_]
    features = np.linalg.solve(np.linalg.cholesky(kernel[np.ix_(places, places)]), kernel[places]).T
    ridge, targets = 0.1 * np.mean(np.diag(kernel)), (y - y.mean()) / y.std()
    np.testing.assert_allclose(model.trace_left_, 1 - np.sum(features**2) / np.trace(kernel), rtol=1e-6)
    errors = []
    for i in range(150):
        rest = np.delete(np.arange(150), i)
        part = features[rest]
        coefficients = np.linalg.solve(part.T @ part + ridge * np.eye(40), part.T @ targets[rest])
        errors.append((features[i] @ coefficients - targets[i]) ** 2)
    np.testing.assert_allclose(model.loo_errors_, [np.mean(errors)], rtol=1e-6)
    NTKRegressor(verbose=1, depth=(1, 2)).fit(x[:40], y[:40])
    told = capsys.readouterr()
    assert told.out == ""
    assert "NTK: 100%" in told.err
    assert "depth 2, bias_scale 1: error " in told.err
    NTKRegressor().fit(x[:40], y[:40])
    assert capsys.readouterr().err == ""
