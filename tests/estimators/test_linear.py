"""Linear regression among the candidates: ridge regression of scikit-learn, certified as the program of one gate."""

import numpy as np
import pytest
from padded_rows import pad_training, with_bias_and_padding
from sklearn.linear_model import Ridge

from fixntk.estimators import GatedReLUClassifierCV, GatedReLURegressorCV
from fixntk.estimators.fitting import gated_problem
from fixntk.estimators.folds import shuffled_folds
from fixntk.estimators.gate_options import GateOptions
from fixntk.estimators.linear import gate_of_every_row, linear_candidates

OPTIONS = {"regs": (0.1, 0.001), "num_folds": 3, "max_steps": 1, "random_state": 0}
SHARES = np.array([0.3, 1e-3])


@pytest.fixture
def training(rng):
    """Weighted rows of two targets, with a bias column before the padding."""
    x, weights = rng.standard_normal((40, 5)), rng.uniform(0.2, 2, 40)
    y = x @ rng.standard_normal((5, 2)) + 0.1 * rng.standard_normal((40, 2)) + 3
    return pad_training(with_bias_and_padding(x), y, weights)


def ridge_of(training, share, rows):
    """Scikit-learn's ridge regression of some rows, at a share of the mean eigenvalue over all rows."""
    x, weights = training.x[:, :5], training.weights
    centred = x - np.average(x, axis=0, weights=weights)
    unit = np.trace((centred * weights[:, None]).T @ centred) / 5
    return Ridge(alpha=share * unit).fit(x[rows], training.targets[rows], weights[rows])


def candidates_of(training, folds):
    options = GateOptions("auto", 8, 6, 0)
    gate = gate_of_every_row(training, options)
    np.testing.assert_array_equal(gate, np.eye(8)[5])
    return linear_candidates(training, gate, gated_problem(training, options, "squared"), folds, SHARES)


def test_held_out_outputs_are_those_of_scikit_learns_ridge(training):
    folds = shuffled_folds(40, 3, seed=0)
    outputs = candidates_of(training, folds).outputs
    assert outputs.shape == (2, 1, 40, 2)
    for place, share in enumerate(SHARES):
        for kept, held_out in folds:
            expected = ridge_of(training, share, kept).predict(training.x[held_out, :5])
            np.testing.assert_allclose(outputs[place, 0, held_out], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("place", [0, 1])
def test_the_fit_is_the_certified_solution_of_its_program(training, place):
    fit = candidates_of(training, shuffled_folds(40, 3, seed=0)).fit(place, 0)
    assert fit.solution.relative_gap < 1e-12
    expected = ridge_of(training, SHARES[place], np.arange(40))
    np.testing.assert_allclose(fit.solution.weights[0, :5], expected.coef_.T, rtol=1e-9, atol=1e-10)
    assert fit.reg == pytest.approx(float(np.linalg.norm(fit.solution.weights)) * expected.alpha, rel=1e-9)


def test_a_linear_function_is_learnt_as_one(rng):
    x, slopes = rng.standard_normal((60, 8)), rng.standard_normal(8)
    y = x @ slopes + 0.1 * rng.standard_normal(60)
    model = GatedReLURegressorCV(32, **OPTIONS).fit(x, y)
    assert (model.choice_, model.n_active_gates_, model.n_steps_, model.ridge_share_) == ("linear", 1, 0, 1.0)
    assert model.gap_ < 1e-12
    assert ": linear, 1 of 1 gates active" in repr(model)
    fresh = rng.standard_normal((200, 8))
    # Least squares have a variance of 0.1² · 8 / 60; the smallest ridge adds little bias.
    assert np.mean((model.predict(fresh) - fresh @ slopes) ** 2) < 5e-3
    labels = np.where(y > 0, "up", "down")
    classifier = GatedReLUClassifierCV(32, **OPTIONS).fit(x, labels)
    assert classifier.choice_ == min(classifier.choice_losses_, key=classifier.choice_losses_.get)
    assert list(classifier.choice_losses_) == [
        "constant",
        "linear",
        "exact_ntk",
        "ntk",
        "reweighted",
        "discovered",
        "relu",
        "trained",
        "average",
    ]


@pytest.mark.parametrize("options", [{"gates": "random"}, {"bias": False}])
def test_it_is_tried_by_auto_alone_and_with_a_bias(rng, options):
    x = rng.standard_normal((40, 3))
    model = GatedReLURegressorCV(16, **OPTIONS, **options).fit(x, x[:, 0])
    assert "linear" not in model.choice_losses_


def test_columns_that_are_all_constant_are_no_error():
    model = GatedReLURegressorCV(16, **OPTIONS).fit(np.full((12, 2), 3.0), np.arange(12.0))
    np.testing.assert_allclose(model.predict(np.full((2, 2), 3.0)), 5.5)
