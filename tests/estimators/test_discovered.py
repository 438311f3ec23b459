"""Discovered gates under cross-validation: ridges against normal equations, folds apart, and what is chosen."""

import numpy as np
import pytest
from padded_rows import pad_training
from sklearn.base import clone

from fixntk.estimators import GatedReLUClassifierCV, GatedReLURegressorCV, discovered
from fixntk.estimators.candidates import Judge, Trial
from fixntk.estimators.discovered import discovered_candidates
from fixntk.estimators.fitting import gated_problem
from fixntk.estimators.folds import shuffled_folds, squared_errors
from fixntk.estimators.gate_options import GateOptions
from fixntk.estimators.ridges import RIDGE_SHARES, UsedGates, fit_ridges

OPTIONS = {"regs": (0.1, 0.03), "num_folds": 2, "max_steps": 1, "random_state": 0}


@pytest.fixture
def quick(monkeypatch):
    """A search of two rounds among few candidates."""
    monkeypatch.setattr(discovered, "_SEARCH", {"max_rounds": 2, "num_candidates": 128, "per_round": 8, "tol": 1e-4})


def ridge(x, gates, kernel_weights, targets, weights, reg):
    """Weights and intercept from the normal equations of all features and a column of ones."""
    features = [np.sqrt(eta) * (x @ gate >= 0)[:, None] * x for eta, gate in zip(kernel_weights, gates, strict=True)]
    design = np.column_stack([*features, np.ones(len(x))])
    penalty = reg * np.diag([*[1.0] * (design.shape[1] - 1), 0.0])
    return design, np.linalg.solve(
        design.T @ (weights[:, None] * design) + penalty, design.T @ (weights[:, None] * targets)
    )


@pytest.mark.parametrize(("num_rows", "num_gates"), [(20, 9), (60, 4), (30, 0)])
def test_ridges_solve_their_normal_equations_in_both_shapes(rng, num_rows, num_gates):
    x, targets = rng.standard_normal((num_rows, 4)), rng.standard_normal((num_rows, 2))
    weights = rng.uniform(0.1, 2, num_rows)
    used = UsedGates(rng.standard_normal((num_gates, 4)), rng.uniform(0.1, 3, num_gates))
    regs = np.array([3.0, 0.1])
    found = fit_ridges(used, x, targets, weights, regs).predict(x)
    for outputs, reg in zip(found, regs, strict=True):
        design, coefficients = ridge(x, *used, targets, weights, reg)
        np.testing.assert_allclose(outputs, design @ coefficients, atol=1e-9)


@pytest.fixture
def planted(rng):
    """Rows whose targets are two ReLUs of two of their five columns."""
    x = rng.standard_normal((80, 5))
    return x, np.maximum(x[:, 0], 0) - np.abs(x[:, 1] - 0.5)


def candidates_of(x, y, regs=(0.2, 0.05), others=None, best=None):
    training = pad_training(x, y)
    gates = GateOptions("discovered", 64, x.shape[1], 0)
    problem = gated_problem(training, gates, "squared")
    folds = shuffled_folds(len(x), 2, seed=0)
    judge = Judge(lambda outputs: squared_errors(outputs, training.targets), training.weights)
    trial = Trial(training, folds, gates, problem, problem.max_reg * np.array(regs), judge)
    found = discovered_candidates(trial, others=others, best=best)
    return found, folds, problem


@pytest.mark.usefixtures("quick")
def test_held_out_targets_do_not_reach_their_own_outputs(planted, rng):
    x, y = (np.pad(planted[0], ((0, 0), (0, 3))), planted[1])
    first, folds, problem = candidates_of(x, y)
    held_out = folds[0][1]
    changed = y.copy()
    changed[held_out] = rng.permutation(y[held_out])
    # The same λ, although λ_max moves with the targets.
    _, _, other = candidates_of(x, changed, (0.2,))
    scale = problem.max_reg / other.max_reg
    second, _, _ = candidates_of(x, changed, (0.2 * scale, 0.05 * scale))
    np.testing.assert_allclose(second.outputs[0][:, held_out], first.outputs[0][:, held_out], atol=1e-8)
    assert not np.allclose(second.outputs[0][:, folds[1][1]], first.outputs[0][:, folds[1][1]], atol=1e-3)


@pytest.mark.usefixtures("quick")
def test_the_largest_ridge_is_the_group_lasso_and_the_fit_is_the_ridge(planted):
    x, y = (np.pad(planted[0], ((0, 0), (0, 3))), planted[1])
    found, _, problem = candidates_of(x, y)
    lasso, relaxed = found.fit(1, 0), found.fit(1, 2)
    assert float(lasso.solution.relative_gap) <= 1e-4
    used = UsedGates(lasso.gates, np.asarray(lasso.solution.kernel_weights))
    regs = 0.05 * problem.max_reg * np.array(RIDGE_SHARES)
    at_ridges = fit_ridges(used, x, y[:, None], np.ones(len(x)), regs).predict(x)
    of_lasso, of_relaxed = (np.asarray(fit.network(x)) for fit in (lasso, relaxed))
    # Up to the gap of the group lasso's solution.
    np.testing.assert_allclose(at_ridges[0][:, 0], of_lasso, atol=0.02)
    np.testing.assert_allclose(at_ridges[2][:, 0], of_relaxed, atol=1e-4)
    assert relaxed.reg == pytest.approx(0.1 * lasso.reg)
    assert np.mean((of_relaxed - y) ** 2) < np.mean((of_lasso - y) ** 2)


@pytest.mark.usefixtures("quick")
def test_the_path_goes_from_the_largest_reg_until_the_loss_rises(rng):
    x = np.pad(rng.standard_normal((80, 5)), ((0, 0), (0, 3)))
    found, _, _ = candidates_of(x, x[:, 0] + 2 * rng.standard_normal(80), (0.01, 0.5, 0.001, 0.2))
    is_tried = np.isfinite(found.outputs).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(is_tried[[1, 3, 2]], [True, True, False])


@pytest.mark.usefixtures("quick")
def test_a_fine_grid_ends_no_sooner_than_a_coarse_one(planted):
    x, y = (np.pad(planted[0], ((0, 0), (0, 3))), planted[1])
    # Neighbours lower the loss by less than the share at which a path ends.
    found, _, _ = candidates_of(x, y, tuple(0.5 * 0.98 ** np.arange(34)))
    assert np.isfinite(found.outputs).all()


def test_discovered_gates_are_chosen_where_few_directions_matter_and_it_says_so(planted):
    x, y = planted
    model = GatedReLURegressorCV(64, gates="discovered", **OPTIONS).fit(x, y)
    assert set(model.choice_losses_) == {"constant", "discovered"}
    assert model.choice_ == "discovered"
    assert model.choice_losses_["discovered"] == pytest.approx(np.nanmin(model.discovered_path_))
    assert f"discovered, {model.n_active_gates_} of {len(model.gates_)} gates active; held-out" in repr(model)
    assert ":" not in repr(clone(model))
    fresh = np.random.default_rng(9).standard_normal((500, 5))
    truth = np.maximum(fresh[:, 0], 0) - np.abs(fresh[:, 1] - 0.5)
    random = GatedReLURegressorCV(64, gates="random", **OPTIONS).fit(x, y)
    assert random.choice_losses_["ntk"] == pytest.approx(random.path_[:, 0].min())
    assert random.choice_losses_["reweighted"] == pytest.approx(random.path_[:, 1:].min())
    assert random.discovered_path_.size == 0
    errors = [np.mean((each.predict(fresh) - truth) ** 2) for each in (model, random)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.usefixtures("quick")
def test_a_path_that_falls_behind_another_kind_is_given_up(planted):
    x, y = (np.pad(planted[0], ((0, 0), (0, 3))), planted[1])
    regs = (0.4, 0.3, 0.2)
    whole, folds, _ = candidates_of(x, y, regs)
    assert np.isfinite(whole.outputs).all()
    # Level at the first λ, unknown on the other fold, and far behind at the second.
    others = np.stack([whole.outputs[0][0], y[:, None], y[:, None]])
    others[1, folds[1][1]] = np.nan
    found, _, _ = candidates_of(x, y, regs, others)
    np.testing.assert_array_equal(np.isfinite(found.outputs[:, 0, folds[0][1], 0]).all(axis=1), [True, True, False])
    assert np.isnan(found.outputs[:, :, folds[1][1]]).all()
    # Behind the best so far.
    found, _, _ = candidates_of(x, y, regs, whole.outputs[:, 0], y[:, None])
    assert np.isnan(found.outputs[:, :, folds[1][1]]).all()
    # Level with the best.
    found, _, _ = candidates_of(x, y, regs, whole.outputs[:, 0], whole.outputs[1, 0])
    assert np.isfinite(found.outputs[:2]).all()
    # Never behind what diverged.
    found, _, _ = candidates_of(x, y, regs, np.full_like(others, np.nan))
    assert np.isfinite(found.outputs).all()


@pytest.mark.usefixtures("quick")
def test_auto_takes_the_constant_where_there_is_nothing_to_learn():
    # By chance some samples of noise look like a function.
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((60, 3)), rng.standard_normal(60)
    model = GatedReLURegressorCV(32, **OPTIONS).fit(x, y)
    assert model.choice_ == "constant"
    mean, deviation = model.predict(x[:5], return_std=True)
    np.testing.assert_allclose(mean, np.mean(y), rtol=1e-10)
    np.testing.assert_allclose(deviation, np.std(y), rtol=0.05)


@pytest.mark.usefixtures("quick")
def test_several_outputs_with_weights_of_rows(rng):
    x = rng.standard_normal((60, 3))
    y = np.column_stack([np.abs(x[:, 0]), np.maximum(x[:, 1], 0)])
    model = GatedReLURegressorCV(32, **OPTIONS).fit(x, y, rng.uniform(0.5, 2, 60))
    assert model.predict(x).shape == (60, 2)
    assert model.score(x, y) > 0.5


@pytest.mark.usefixtures("quick")
def test_classes_are_chosen_by_the_log_loss(rng):
    x = rng.standard_normal((60, 3))
    labels = np.array(["low", "middle", "high"])[np.digitize(np.abs(x[:, 0]), [0.4, 1])]
    model = GatedReLUClassifierCV(32, gates="discovered", **OPTIONS).fit(x, labels)
    assert model.score(x, labels) > 0.6
    assert set(model.choice_losses_) == {"constant", "discovered"}
    # The constant cannot tell the classes apart; its scores have the loss of equal probabilities or less.
    assert model.choice_losses_["discovered"] < model.choice_losses_["constant"] <= np.log(3) + 1e-6


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("value", [-1, 7])
def test_few_distinct_rows_and_tiny_tables_fit(value):
    x = np.array([[0.0], [1.0], [2.0]] * 5)
    model = GatedReLURegressorCV(8, **OPTIONS).fit(x, value * np.abs(x[:, 0] - 1))
    assert np.all(np.isfinite(model.predict(x)))
