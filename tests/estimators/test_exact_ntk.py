"""The NTK of infinitely many gates as a candidate: refits by hand, and what the estimator is where it is chosen."""

import jax.numpy as jnp
import numpy as np
import pytest
from padded_rows import pad_training

import fixntk as fx
from fixntk.estimators import GatedReLUClassifierCV, GatedReLURegressorCV, NTKRegressorCV, cross_validation
from fixntk.estimators.candidates import Candidates
from fixntk.estimators.exact_ntk import exact_ntk_candidates, held_out_ntk_candidates
from fixntk.estimators.fitting import gated_problem
from fixntk.estimators.folds import shuffled_folds
from fixntk.estimators.gate_options import GateOptions
from fixntk.estimators.ntk_fits import DEFAULT_REGS

# Few gates, of which random ones approach the NTK badly.
OPTIONS = {"regs": (0.1, 0.01), "num_folds": 2, "max_steps": 1, "random_state": 0}


@pytest.fixture
def smooth(rng):
    """Rows with a smooth function of two columns."""
    x = rng.standard_normal((150, 2))
    return x, np.sin(x[:, 0]) * np.cos(x[:, 1])


def test_outputs_are_ridge_regressions_without_the_fold_at_the_best_ridge_of_leaving_rows_out(rng):
    x = np.pad(rng.standard_normal((40, 5)), ((0, 0), (0, 3)))
    weights, y = rng.uniform(0.5, 2, 40), np.column_stack([np.abs(x[:, 0]), x[:, 1]])
    training = pad_training(x, y, weights)
    folds = shuffled_folds(40, 2, seed=0)
    problem = gated_problem(training, GateOptions("random", 16, 8, 0), "squared")
    found = exact_ntk_candidates(training, problem, folds)
    assert found.outputs.shape == (1, 1, 40, 2)
    kernel = np.asarray(fx.gated_relu_ntk(x))
    for kept, held_out in folds:
        inside, w = kernel[np.ix_(kept, kept)], weights[kept]
        unit = w @ np.diag(inside) / w.sum()

        def refit(rows, reg, inside=inside, w=w, kept=kept):
            return np.linalg.solve(inside[np.ix_(rows, rows)] + reg * np.diag(1 / w[rows]), y[kept][rows])

        errors = []
        for share in DEFAULT_REGS:
            rows = [np.delete(np.arange(len(kept)), i) for i in range(len(kept))]
            left_out = [inside[i, rest] @ refit(rest, share * unit) for i, rest in enumerate(rows)]
            errors.append(w @ np.sum((np.array(left_out) - y[kept]) ** 2, axis=1))
        reg = DEFAULT_REGS[int(np.argmin(errors))] * unit
        expected = kernel[np.ix_(held_out, kept)] @ refit(np.arange(len(kept)), reg)
        np.testing.assert_allclose(found.outputs[0, 0, held_out], expected, atol=1e-7)


def test_of_many_rows_each_ridge_is_tried_on_the_held_out_rows_of_one_fold(rng):
    x = np.pad(rng.standard_normal((40, 5)), ((0, 0), (0, 3)))
    weights, y = rng.uniform(0.5, 2, 40), np.column_stack([np.abs(x[:, 0]), x[:, 1]])
    training = pad_training(x, y, weights)
    kept, held_out = shuffled_folds(40, 4, seed=0)[0]
    problem = gated_problem(training, GateOptions("random", 16, 8, 0), "squared")
    found = held_out_ntk_candidates(training, problem, [(kept, held_out)])
    assert found.outputs.shape == (len(DEFAULT_REGS), 1, 40, 2)
    kernel = np.asarray(fx.gated_relu_ntk(x))
    unit = weights[kept] @ np.diag(kernel)[kept] / weights[kept].sum()
    for share, outputs in zip(DEFAULT_REGS, found.outputs[:, 0], strict=True):
        matrix = kernel[np.ix_(kept, kept)] + share * unit * np.diag(1 / weights[kept])
        expected = kernel[np.ix_(held_out, kept)] @ np.linalg.solve(matrix, y[kept])
        np.testing.assert_allclose(outputs[held_out], expected, atol=1e-7)
        np.testing.assert_array_equal(outputs[kept], 0)
    fit = found.fit(4, 0)
    unit = weights @ np.diag(kernel) / weights.sum()
    assert fit.reg == pytest.approx(DEFAULT_REGS[4] * unit)
    expected = kernel @ np.linalg.solve(kernel + fit.reg * np.diag(1 / weights), y)
    np.testing.assert_allclose(fit.exact_ntk(jnp.asarray(x)), expected, atol=1e-8)


def test_many_rows_have_it_among_their_candidates(smooth, monkeypatch):
    monkeypatch.setattr(cross_validation, "MAX_KERNEL_ROWS", 100)
    x, y = smooth

    def diverge(trial):
        return Candidates(np.full((2, 5, *trial.training.targets.shape), np.nan), None)

    monkeypatch.setattr(cross_validation, "trained_candidates", diverge)
    model = GatedReLURegressorCV(16, **OPTIONS).fit(x, y)
    assert list(model.choice_losses_) == ["constant", "linear", "exact_ntk", "optimum"]
    assert model.choice_ == "exact_ntk"
    assert model.score(x, y) > 0.9


def test_it_is_chosen_for_a_smooth_function_and_predicts_as_the_ntks_estimator(smooth, rng):
    x, y = smooth
    model = GatedReLURegressorCV(16, **OPTIONS).fit(x, y)
    assert model.choice_ == "exact_ntk"
    assert "exact_ntk, infinitely many gates" in repr(model)
    ntk = NTKRegressorCV().fit(x, y)
    fresh = rng.standard_normal((50, 2))
    for found, expected in zip(model.predict(fresh, return_std=True), ntk.predict(fresh, return_std=True), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model.feature_importances_, ntk.feature_importances_, rtol=1e-9)
    assert model.log_marginal_likelihood() == pytest.approx(ntk.log_marginal_likelihood())
    # The network is that of the random gates, at the same ridge.
    np.testing.assert_allclose(model.kernel_weights_, 1 / 16)
    assert model.network_(np.pad(np.column_stack([fresh, np.ones(50)]), ((0, 0), (0, 5)))).shape == (50,)


def test_the_network_of_more_random_gates_approaches_it(rng):
    x = np.pad(rng.standard_normal((60, 3)), ((0, 0), (0, 5)))
    training = pad_training(x, np.abs(x[:, :1]))
    deviations = []
    for num_gates in (16, 4096):
        problem = gated_problem(training, GateOptions("random", num_gates, 8, 0), "squared")
        fit = exact_ntk_candidates(training, problem, shuffled_folds(60, 2, seed=0)).fit(0, 0)
        deviations.append(np.std(np.asarray(fit.network(x)) - fit.exact_ntk(jnp.asarray(x))[:, 0]))
    assert deviations[1] < 0.3 * deviations[0]


def test_classes_and_their_probabilities(smooth):
    x, y = smooth
    model = GatedReLUClassifierCV(16, **OPTIONS).fit(x, y > 0)
    assert "exact_ntk" in model.choice_losses_
    assert model.score(x, y > 0) > 0.9
