"""The temperature minimises the log-loss on smoothed labels: SciPy, and data whose temperature is known."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, softmax

from fixntk.estimators.calibration import fit_temperature, log_losses


def log_loss(factor, scores, weights, codes, *, smooth):
    """The definition, with probabilities and a loop over rows."""
    if scores.shape[1] == 1:
        second = expit(factor * scores[:, 0])
        probabilities = np.column_stack([1 - second, second])
    else:
        probabilities = softmax(factor * scores, axis=1)
    num_classes, total = probabilities.shape[1], 0.0
    counts = [weights[codes == k].sum() * len(codes) / weights.sum() for k in range(num_classes)]
    for row, weight, code in zip(probabilities, weights, codes, strict=True):
        # One row in all, shared by the classes.
        others = 1 / num_classes / (counts[code] + 1) if smooth else 0.0
        targets = np.full(num_classes, others)
        targets[code] = 1 - (num_classes - 1) * others
        total -= weight * targets @ np.log(row)
    return total / weights.sum()


def drawn(rng, num_classes, factor=1.0, num_rows=60):
    """Scores, row weights, and classes drawn with the probabilities of the scores times the factor."""
    scores = rng.standard_normal((num_rows, 1 if num_classes == 2 else num_classes))
    logits = factor * (np.column_stack([np.zeros(num_rows), scores]) if num_classes == 2 else scores)
    codes = np.array([rng.choice(num_classes, p=row) for row in softmax(logits, axis=1)])
    return scores, rng.uniform(0.2, 3, num_rows), codes


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_temperature_and_loss_are_the_minimum_of_the_definition(rng, num_classes, factor):
    data = drawn(rng, num_classes, factor)
    found = fit_temperature(*data)
    best = minimize(lambda log: log_loss(np.exp(log[0]), *data, smooth=True), [0.0], method="BFGS", tol=1e-9)
    np.testing.assert_allclose(np.log(found), best.x[0], atol=5e-4)
    plain = minimize(lambda log: log_loss(np.exp(log[0]), *data, smooth=False), [0.0], method="BFGS", tol=1e-9)
    np.testing.assert_allclose(np.average(log_losses(*data), weights=data[1]), plain.fun, rtol=1e-9)
    unweighted = fit_temperature(data[0], np.ones(60), data[2])
    assert abs(np.log(unweighted / found)) > 1e-3


@pytest.mark.parametrize("num_classes", [2, 4])
def test_scores_and_weights_of_another_unit_change_nothing_but_the_factor(rng, num_classes):
    scores, weights, codes = drawn(rng, num_classes)
    np.testing.assert_allclose(
        fit_temperature(50 * scores, 7 * weights, codes), fit_temperature(scores, weights, codes) / 50, rtol=1e-3
    )
    of_rows = [log_losses(unit * scores, unit * weights, codes) for unit in (1.0, 50.0)]
    one, other = (np.average(losses, weights=weights) for losses in of_rows)
    np.testing.assert_allclose(other, one, rtol=1e-6)


def test_labels_drawn_with_a_temperature_have_it(rng):
    scores, weights, codes = drawn(rng, 3, factor=2.5, num_rows=20_000)
    assert abs(fit_temperature(scores, np.ones_like(weights), codes) - 2.5) < 0.1


def test_scores_that_say_nothing_have_the_loss_of_equal_probabilities_and_a_small_factor(rng):
    scores, codes = rng.standard_normal((60, 1)), np.arange(60) % 2
    # Each score occurs with both labels.
    data = np.repeat(scores[:30], 2, axis=0), np.ones(60), codes
    np.testing.assert_allclose(np.mean(log_losses(*data)), np.log(2), rtol=1e-5)
    assert fit_temperature(*data) < 1e-2


@pytest.mark.parametrize("num_rows", [30, 3000])
def test_scores_that_are_always_right_have_probabilities_below_one(num_rows):
    codes = np.arange(num_rows) % 3
    data = np.eye(3)[codes], np.ones(num_rows), codes
    assert np.max(log_losses(*data)) < 1e-12
    # All rows have the same scores, so that the best probability is the smoothed label itself.
    own = softmax(fit_temperature(*data) * np.array([1.0, 0, 0]))[0]
    assert own == pytest.approx((num_rows / 3 + 1 / 3) / (num_rows / 3 + 1), rel=1e-4)
