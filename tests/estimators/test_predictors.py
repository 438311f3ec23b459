"""The functions of fitted estimators against loops in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from fixntk.estimators import predictors
from fixntk.estimators.predictors import (
    ClassificationPredictor,
    GatedOutputs,
    NTKOutputs,
    RegressionPredictor,
    feature_importances,
)
from fixntk.estimators.preprocessing import Scaling, TargetScaling, Training


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(predictors, "_TILE_ROWS", 5)


@pytest.fixture
def scaling(rng):
    """Of three columns, to eight with the bias and the padding."""
    return Scaling(rng.standard_normal(3), rng.uniform(0.5, 2, 3), bias=1.0)


def scaled(scaling, x):
    return np.column_stack([(x - scaling.mean) / scaling.scale, np.ones(len(x)), np.zeros((len(x), 4))])


def gated(rng, num_outputs):
    return GatedOutputs(
        rng.standard_normal((6, 8, num_outputs)), rng.standard_normal((6, 8)), rng.standard_normal(num_outputs)
    )


def gated_outputs(outputs, rows):
    """Σ_p 1{row · g_p ≥ 0} row W_p + b."""
    found = np.tile(outputs.intercept, (len(rows), 1))
    for i, row in enumerate(rows):
        for gate, weights in zip(outputs.gates, outputs.weights, strict=True):
            if row @ gate >= 0:
                found[i] += row @ weights
    return found


def ntk_outputs(outputs, rows):
    """Σ_j k(row, x_j) a_j with the closed form k = x·x' (π − θ) / (2π)."""
    found = np.zeros((len(rows), outputs.dual_coef.shape[1]))
    for i, row in enumerate(rows):
        for other, coefficients in zip(outputs.rows, outputs.dual_coef, strict=True):
            product = row @ other
            angle = np.arccos(product / (np.linalg.norm(row) * np.linalg.norm(other)))
            found[i] += product * (np.pi - angle) / (2 * np.pi) * coefficients
    return found


@pytest.mark.parametrize("squeeze", [True, False])
def test_a_gated_regression_is_its_sum_over_gates_in_the_unit_of_the_targets(rng, scaling, squeeze):
    num_outputs = 1 if squeeze else 2
    outputs = gated(rng, num_outputs)
    targets = TargetScaling(10 * rng.standard_normal(num_outputs), rng.uniform(2, 3, num_outputs), squeeze)
    x = rng.standard_normal((12, 3))
    expected = gated_outputs(outputs, scaled(scaling, x)) * targets.scale + targets.mean
    found = RegressionPredictor(scaling, outputs, targets).predict(x)
    assert found.shape == ((12,) if squeeze else (12, 2))
    np.testing.assert_allclose(found, expected[:, 0] if squeeze else expected, rtol=1e-10)


def test_an_ntk_regression_is_its_sum_over_training_rows_whatever_their_number(rng, scaling):
    x = rng.standard_normal((7, 3))
    for num_rows in (1, 32, 40):
        rows = scaled(scaling, rng.standard_normal((num_rows, 3)))
        outputs = NTKOutputs(rows, rng.standard_normal((num_rows, 2)))
        predictor = RegressionPredictor(scaling, outputs, TargetScaling(np.zeros(2), np.ones(2), squeeze=False))
        np.testing.assert_allclose(predictor.predict(x), ntk_outputs(outputs, scaled(scaling, x)), rtol=1e-10)


@pytest.mark.parametrize("kind", ["gated", "ntk"])
def test_two_classes_have_one_score_whose_sign_is_the_label(rng, scaling, kind):
    x, temperature = rng.standard_normal((12, 3)), 1.7
    if kind == "gated":
        outputs = gated(rng, 1)
        scores = gated_outputs(outputs, scaled(scaling, x))[:, 0]
    else:
        outputs = NTKOutputs(scaled(scaling, rng.standard_normal((9, 3))), rng.standard_normal((9, 1)))
        scores = ntk_outputs(outputs, scaled(scaling, x))[:, 0]
    predictor = ClassificationPredictor(scaling, outputs, np.array(["no", "yes"]), temperature)
    np.testing.assert_allclose(predictor.decision_function(x), scores, atol=1e-10)
    np.testing.assert_array_equal(predictor.predict(x), np.where(scores > 0, "yes", "no"))
    assert len(set(predictor.predict(x))) == 2
    np.testing.assert_allclose(
        predictor.predict_proba(x), np.column_stack([expit(-temperature * scores), expit(temperature * scores)])
    )


def test_more_classes_have_a_score_each_and_the_label_of_the_largest(rng, scaling):
    outputs, x = gated(rng, 3), rng.standard_normal((12, 3))
    scores = gated_outputs(outputs, scaled(scaling, x))
    predictor = ClassificationPredictor(scaling, outputs, np.array([2, 5, 7]), 0.3)
    np.testing.assert_allclose(predictor.decision_function(x), scores, atol=1e-10)
    np.testing.assert_array_equal(predictor.predict(x), np.array([2, 5, 7])[np.argmax(scores, axis=1)])
    np.testing.assert_allclose(predictor.predict_proba(x), softmax(0.3 * scores, axis=1), rtol=1e-10)


def central_differences(function, rows, step=1e-6):
    """Derivatives (n, w, c) of a function of rows by their entries."""
    found = [
        (function(rows + step * shift) - function(rows - step * shift)) / (2 * step) for shift in np.eye(rows.shape[1])
    ]
    return np.stack(found, axis=1)


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_gradients_are_those_of_the_outputs(rng, num_outputs):
    rows, training = rng.standard_normal((7, 8)), rng.standard_normal((5, 8))
    network = gated(rng, num_outputs)
    # Gates without weight are left out.
    network.weights[2] = 0
    np.testing.assert_allclose(
        network.gradients(rows), central_differences(lambda x: gated_outputs(network, x), rows), rtol=1e-6, atol=1e-7
    )
    regression = NTKOutputs(training, rng.standard_normal((5, num_outputs)))
    np.testing.assert_allclose(
        regression.gradients(rows), central_differences(lambda x: ntk_outputs(regression, x), rows), atol=1e-7
    )


def test_gradients_at_training_rows_are_the_mean_of_those_around_them(rng):
    training = np.vstack([rng.standard_normal((4, 3)), np.zeros(3)])
    # A row at itself, at a multiple, at its opposite, and a row of zeros.
    rows = np.vstack([training[:4], 2 * training[:1], -training[:1], np.zeros(3)])
    regression = NTKOutputs(training, rng.standard_normal((5, 1)))
    found = regression.gradients(rows)
    direct = central_differences(lambda x: np.asarray(regression(jnp.asarray(x)))[: len(x)], rows[:-1])
    np.testing.assert_allclose(found[:-1], direct, atol=1e-6)
    np.testing.assert_array_equal(found[-1], 0.0)


@pytest.mark.parametrize("rows_at_a_time", [3, 512])
def test_importances_are_weighted_mean_squares_of_gradients_and_sum_to_one(rng, monkeypatch, rows_at_a_time):
    monkeypatch.setattr(predictors, "_GRADIENT_TILE_ROWS", rows_at_a_time)
    x, weights = rng.standard_normal((11, 8)), rng.random(11)
    network = gated(rng, 2)
    squares = np.mean(central_differences(lambda x: gated_outputs(network, x), x) ** 2, axis=2)
    expected = np.average(squares, axis=0, weights=weights)[:6]
    found = feature_importances(network, Training(x, np.zeros((11, 2)), weights, 11), 6)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-6)
    constant = GatedOutputs(np.zeros((6, 8, 1)), network.gates, np.ones(1))
    np.testing.assert_array_equal(feature_importances(constant, Training(x, x[:, :1], weights, 11), 6), np.zeros(6))
