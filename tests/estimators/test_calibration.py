"""The temperature minimises the log-loss: SciPy, finite differences, and data whose temperature is known."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, softmax

from fixntk.estimators.calibration import fit_temperature


def log_loss(factor, scores, weights, codes):
    """The definition, with probabilities."""
    if scores.shape[1] == 1:
        second = expit(factor * scores[:, 0])
        probabilities = np.column_stack([1 - second, second])
    else:
        probabilities = softmax(factor * scores, axis=1)
    return -np.average(np.log(probabilities[np.arange(len(codes)), codes]), weights=weights)


def drawn(rng, num_classes, factor=1.0, num_rows=60):
    """Scores, row weights, and classes drawn with the probabilities of the scores times the factor."""
    scores = rng.standard_normal((num_rows, 1 if num_classes == 2 else num_classes))
    logits = factor * (np.column_stack([np.zeros(num_rows), scores]) if num_classes == 2 else scores)
    codes = np.array([rng.choice(num_classes, p=row) for row in softmax(logits, axis=1)])
    return scores, rng.uniform(0.2, 3, num_rows), codes


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_temperature_minimises_the_weighted_log_loss(rng, num_classes, factor):
    scores, weights, codes = drawn(rng, num_classes, factor)
    found = fit_temperature(scores, weights, codes)
    best = minimize(lambda log: log_loss(np.exp(log[0]), scores, weights, codes), [0.0], method="BFGS", tol=1e-9)
    np.testing.assert_allclose(found.log_loss, best.fun, rtol=1e-9)
    np.testing.assert_allclose(np.log(found.factor), best.x[0], atol=1e-3)
    np.testing.assert_allclose(found.log_loss, log_loss(found.factor, scores, weights, codes), rtol=1e-12)
    unweighted = fit_temperature(scores, np.ones(60), codes)
    assert abs(np.log(unweighted.factor / found.factor)) > 3e-3


@pytest.mark.parametrize("num_classes", [2, 4])
def test_scores_of_another_unit_have_another_factor_and_the_same_loss(rng, num_classes):
    scores, weights, codes = drawn(rng, num_classes)
    one, other = (fit_temperature(unit * scores, weights, codes) for unit in (1.0, 50.0))
    np.testing.assert_allclose(other.factor, one.factor / 50, rtol=1e-3)
    np.testing.assert_allclose(other.log_loss, one.log_loss, rtol=1e-6)


def test_labels_drawn_with_a_temperature_have_it(rng):
    scores, weights, codes = drawn(rng, 3, factor=2.5, num_rows=20_000)
    assert abs(fit_temperature(scores, np.ones_like(weights), codes).factor - 2.5) < 0.1


def test_scores_that_say_nothing_have_the_loss_of_equal_probabilities_and_a_small_factor(rng):
    scores, codes = rng.standard_normal((60, 1)), np.arange(60) % 2
    # Each score occurs with both labels.
    scores = np.repeat(scores[:30], 2, axis=0)
    found = fit_temperature(scores, np.ones(60), codes)
    np.testing.assert_allclose(found.log_loss, np.log(2), rtol=1e-5)
    assert found.factor < 1e-2


def test_scores_that_are_always_right_have_no_loss():
    codes = np.arange(30) % 3
    found = fit_temperature(np.eye(3)[codes], np.ones(30), codes)
    assert found.log_loss < 1e-12
    assert found.factor > 30
