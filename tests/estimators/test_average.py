"""Averages of fits of several kinds: their shares, their network, and when they are chosen."""

import cvxpy
import jax.numpy as jnp
import numpy as np
import pytest
from padded_rows import pad_training, with_bias_and_padding

from fixntk.estimators import GatedReLUClassifierCV, GatedReLURegressorCV
from fixntk.estimators import average as average_module
from fixntk.estimators.average import average_fits, average_kinds, choose_shares
from fixntk.estimators.fitting import LearntKernel, gated_problem
from fixntk.estimators.folds import shuffled_folds
from fixntk.estimators.gate_options import GateOptions
from fixntk.estimators.one_reg import fit_gated

OPTIONS = {"regs": (0.1, 0.01), "max_steps": 2, "random_state": 0, "num_folds": 3}


@pytest.fixture
def bent(rng):
    """Targets that several kinds learn about as well: few rows, much noise."""
    x = rng.standard_normal((90, 3))
    return x, np.abs(x[:, 0]) + x[:, 1] + np.sin(2 * x[:, 2]) + 0.5 * rng.standard_normal(90)


def _training(x, y):
    return pad_training(with_bias_and_padding(x), y)


def _fit(training, num_gates, seed, reg):
    options = {"reg": reg, "loss": "squared", "tol": None, "max_iter": None}
    return fit_gated(training, GateOptions("random", num_gates, 4, seed), **options)


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_shares_are_those_of_the_quadratic_program(rng, monkeypatch, num_outputs):
    monkeypatch.setattr(average_module, "_LEAST_SHARE", 0.0)
    for _ in range(5):
        common = rng.standard_normal((40, num_outputs))
        errors = common + rng.exponential(size=(5, 1, 1)) * rng.standard_normal((5, 40, num_outputs))
        weights = rng.exponential(size=40) * (rng.random(40) < 0.8)
        squares = np.average(np.sum(errors**2, axis=2), axis=1, weights=weights)
        shares = cvxpy.Variable(5, nonneg=True)
        mean = sum(
            weight * cvxpy.sum_squares(errors[:, row].T @ shares) for row, weight in enumerate(weights / weights.sum())
        )
        objective = mean + 0.02 * 5 * squares.min() * cvxpy.sum_squares(shares)
        cvxpy.Problem(cvxpy.Minimize(objective), [cvxpy.sum(shares) == 1]).solve(
            solver=cvxpy.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12
        )
        np.testing.assert_allclose(choose_shares(errors, weights), shares.value, atol=1e-6)


def test_one_kind_without_an_error_is_taken_alone(rng):
    errors = rng.standard_normal((3, 20, 1)) * np.array([1.0, 0.0, 2.0])[:, None, None]
    np.testing.assert_allclose(choose_shares(errors, np.ones(20)), [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(choose_shares(0 * errors, np.ones(20)), 1 / 3)


def test_small_shares_are_left_out(rng):
    errors = np.concatenate([rng.standard_normal((3, 50, 1)), 30 * rng.standard_normal((1, 50, 1))])
    shares = choose_shares(errors, np.ones(50))
    assert shares[3] == 0
    assert np.all((shares == 0) | (shares >= 0.05))
    assert shares.sum() == pytest.approx(1)


def test_the_outputs_of_a_fold_are_averaged_without_its_rows(rng):
    targets = rng.standard_normal((30, 1))
    outputs = {kind: targets + rng.standard_normal((30, 1)) for kind in "abc"}
    folds = shuffled_folds(30, 3, seed=0)
    before = average_kinds(outputs, targets, np.ones(30), folds)
    _, held_out = folds[0]
    others = targets.copy()
    others[held_out] += 10
    after = average_kinds(outputs, others, np.ones(30), folds)
    np.testing.assert_array_equal(after.outputs[held_out], before.outputs[held_out])
    assert np.any(after.outputs != before.outputs)
    # The shares themselves see every row.
    stacked = np.stack([outputs[kind] for kind in before.shares])
    assert sum(before.shares.values()) == pytest.approx(1)
    assert np.all(np.abs(np.tensordot(list(before.shares.values()), stacked, axes=1) - before.outputs) < 1)


def test_the_average_of_networks_is_the_network_of_all_gates(bent):
    training = _training(*bent)
    fits = [
        (
            share,
            fit_gated(training, GateOptions("random", 20, 4, seed), reg=reg, loss="squared", tol=None, max_iter=None),
        )
        for share, seed, reg in ((0.5, 0, 0.1), (0.2, 1, 0.03), (0.3, 0, 0.01))
    ]
    found = average_fits(fits, training)
    # The first and the last have the same gates; copies bring their number to a size that recurs.
    assert len(found.gates) == 256
    np.testing.assert_array_equal(found.gates[:40], np.concatenate([fits[0][1].gates, fits[1][1].gates]))
    np.testing.assert_array_equal(found.solution.weights[40:], 0)
    outputs = sum(share * np.asarray(fit.network(training.x)) for share, fit in fits)
    np.testing.assert_allclose(found.network(training.x), outputs, atol=1e-5)
    assert found.reg == pytest.approx(sum(share * fit.reg for share, fit in fits))
    # Its gap is that of the weights in the program of all gates.
    problem = gated_problem(training, GateOptions(found.gates[:, :4], 256, 4, 0), "squared")
    program = problem.program.with_reg(found.reg)
    assert float(program.gap(found.solution.weights)) == pytest.approx(float(found.solution.gap), rel=1e-6)
    # The kernel is the average of the kernels, each divided by its λ.
    rows = jnp.asarray(training.x[:10])
    expected = sum(share / fit.reg * LearntKernel(fit.solution.kernel_weights, fit.gates)(rows) for share, fit in fits)
    kernel = LearntKernel(found.solution.kernel_weights, found.gates)(rows) / found.reg
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)


def test_an_average_is_chosen_where_no_kind_is_clearly_better(bent, rng):
    x, y = bent
    model = GatedReLURegressorCV(64, **OPTIONS).fit(x, y)
    assert model.choice_ == "average"
    assert list(model.choice_losses_)[-1] == "average"
    assert sum(model.choice_shares_.values()) == pytest.approx(1)
    assert len(model.choice_shares_) >= 2
    assert not {"constant", "exact_ntk", "average"} & set(model.choice_shares_)
    kind, share = next(iter(model.choice_shares_.items()))
    assert f": average ({share:.2f} {kind} + " in repr(model)
    fresh = rng.standard_normal((20, 3))
    mean, deviation = model.predict(fresh, return_std=True)
    np.testing.assert_allclose(mean, model.predict(fresh))
    assert np.all(deviation > 0)
    assert 0 < model.gap_ < 1


def test_a_kind_that_is_clearly_better_is_chosen_alone(rng):
    x = rng.standard_normal((80, 4))
    y = x @ rng.standard_normal(4) + 0.05 * rng.standard_normal(80)
    model = GatedReLURegressorCV(32, **OPTIONS).fit(x, y)
    assert model.choice_ == "linear"
    assert model.choice_shares_ == {"linear": 1.0}


def test_there_is_no_average_where_nothing_is_better_than_the_constant(rng):
    x, y = rng.standard_normal((40, 2)), rng.standard_normal(40)
    for inputs in (x, 0 * x):
        model = GatedReLURegressorCV(32, **OPTIONS).fit(inputs, y)
        assert "average" not in model.choice_losses_
        assert np.ptp(model.predict(x)) < 0.5 * np.ptp(y)


def test_it_is_the_largest_model_for_the_rule_of_one_standard_error(bent):
    model = GatedReLURegressorCV(64, one_standard_error=True, **OPTIONS).fit(*bent)
    assert "average" in model.choice_losses_
    assert model.choice_ != "average"


def test_classes_and_their_probabilities(bent, rng, monkeypatch):
    # With classes it would have to have the least loss.
    monkeypatch.setattr(GatedReLUClassifierCV, "_average_slack", 5.0)
    x, y = bent
    labels = np.digitize(y, np.quantile(y, [0.3, 0.7]))
    model = GatedReLUClassifierCV(64, **OPTIONS).fit(x, labels)
    assert model.choice_ == "average"
    probabilities = model.predict_proba(rng.standard_normal((20, 3)))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert model.score(x, labels) > 0.7


def test_given_and_other_gates_are_not_averaged(bent):
    for gates in ("random", "trained"):
        model = GatedReLURegressorCV(16, gates=gates, **OPTIONS).fit(*bent)
        assert "average" not in model.choice_losses_


def test_an_average_of_one_is_that_one(bent):
    training = _training(*bent)
    fit = _fit(training, 8, 0, 0.1)
    found = average_fits([(1.0, fit)], training)
    np.testing.assert_allclose(found.network(training.x), fit.network(training.x), atol=1e-5)
