"""Gates of trained networks under cross-validation: networks and ridges by hand, folds apart, and what is chosen."""

import re

import numpy as np
import pytest
from padded_rows import pad_training, with_bias_and_padding

from fixntk.estimators import (
    GatedReLUClassifier,
    GatedReLUClassifierCV,
    GatedReLURegressor,
    GatedReLURegressorCV,
    cross_validation,
    neurons,
)
from fixntk.estimators.candidates import Candidates, Judge, Trial
from fixntk.estimators.fitting import gated_problem
from fixntk.estimators.folds import shuffled_folds, squared_errors
from fixntk.estimators.gate_options import GateOptions
from fixntk.estimators.neurons import train_networks
from fixntk.estimators.ridges import RIDGE_SHARES
from fixntk.estimators.trained import trained_candidates

OPTIONS = {"regs": (0.1, 0.01), "num_folds": 2, "max_steps": 1, "random_state": 0}


@pytest.fixture
def quick(monkeypatch):
    """Fewer neurons and steps."""
    monkeypatch.setattr(neurons, "_WIDTH", 24)
    monkeypatch.setattr(neurons, "_NUM_STEPS", 200)


@pytest.fixture
def planted(rng):
    """Rows whose targets are two ReLUs of two of their five columns."""
    x = rng.standard_normal((120, 5))
    return x, np.maximum(x[:, 0], 0) - np.abs(x[:, 1] - 0.5)


def training_of(x, y):
    return pad_training(with_bias_and_padding(x), y)


def candidates_of(training, regs):
    folds = shuffled_folds(training.num_rows, 2, seed=0)
    judge = Judge(lambda outputs: squared_errors(outputs, training.targets), training.weights)
    gates = GateOptions("trained", 8, training.x.shape[1], 0)
    trial = Trial(training, folds, gates, gated_problem(training, gates, "squared"), np.array(regs), judge)
    return trained_candidates(trial), folds


@pytest.mark.usefixtures("quick")
def test_neurons_are_a_gated_network_with_the_outputs_of_the_relu_network(planted, rng):
    training = training_of(planted[0], np.column_stack([planted[1], planted[0][:, 2]]))
    found = train_networks(training.x, training.targets, training.weights, np.array([5.0, 1.0]), 128, 0)
    assert len(found) == 2
    fresh = rng.standard_normal((30, 8))
    for each in found:
        assert each.gates.shape == (24, 8)
        masks = fresh @ each.gates.T >= 0
        by_groups = sum(masks[:, [p]] * (fresh @ each.weights[p]) for p in range(24)) + each.intercept
        np.testing.assert_allclose(each.predict(fresh), by_groups, atol=1e-12)
        np.testing.assert_allclose(each.kernel_weights, np.linalg.norm(each.weights, axis=(1, 2)), rtol=1e-12)
        assert len(each.used.gates) == np.sum(each.kernel_weights > 0)
        # Columns of padding stay without weight.
        assert not each.gates[:, 6:].any()
    # More penalty leaves less weight.
    assert found[0].kernel_weights.sum() < found[1].kernel_weights.sum()


@pytest.mark.usefixtures("quick")
def test_held_out_targets_do_not_reach_their_own_outputs(planted, rng):
    x, y = planted
    first, folds = candidates_of(training_of(x, y), [5.0, 1.0])
    held_out = folds[0][1]
    changed = y.copy()
    changed[held_out] = rng.permutation(y[held_out])
    second, _ = candidates_of(training_of(x, changed), [5.0, 1.0])
    np.testing.assert_array_equal(second.outputs[:, :, held_out], first.outputs[:, :, held_out])
    assert not np.allclose(second.outputs[:, :, folds[1][1]], first.outputs[:, :, folds[1][1]], atol=1e-2)


@pytest.mark.usefixtures("quick")
def test_the_fits_are_the_network_and_the_ridges_with_its_kernel(planted):
    x, y = planted
    training, regs = training_of(x, y), [5.0, 1.0]
    found, folds = candidates_of(training, regs)
    assert found.outputs.shape == (2, 1 + len(RIDGE_SHARES), 120, 1)
    rows = training.x, training.targets, training.weights
    network = train_networks(*rows, np.array(regs), len(training.padded_x), 0)[1]
    as_network, as_ridge = found.fit(1, 0), found.fit(1, 2)
    fresh = np.column_stack([np.random.default_rng(1).standard_normal((40, 5)), np.ones(40), np.zeros((40, 2))])
    # The intercept of the certified network is the best one; that of the training is near it.
    difference = np.asarray(as_network.network(fresh)) - network.predict(fresh)[:, 0]
    np.testing.assert_allclose(difference, difference[0], atol=1e-5)
    assert abs(difference[0]) < 0.02
    assert as_network.reg == 1.0
    assert 0 < as_network.solution.relative_gap < 0.2
    # Kernel ridge regression with an intercept, as a linear system.
    masks = 1.0 * (training.x @ network.gates.T >= 0)
    kernel = (masks * network.kernel_weights) @ masks.T * (training.x @ training.x.T)
    system = np.block([[kernel + 0.3 * np.eye(120), np.ones((120, 1))], [np.ones((1, 120)), np.zeros((1, 1))]])
    solved = np.linalg.solve(system, np.append(y, 0.0))
    np.testing.assert_allclose(as_ridge.network(training.x), kernel @ solved[:120] + solved[120], atol=1e-6)
    assert as_ridge.reg == pytest.approx(0.3)
    np.testing.assert_allclose(as_ridge.solution.kernel_weights, network.kernel_weights, rtol=1e-12)
    assert np.all(np.isfinite(found.outputs))
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(120))


@pytest.mark.usefixtures("quick")
def test_the_first_fold_says_which_regs_the_others_try(planted):
    training, regs = training_of(*planted), np.array([30.0, 10.0, 3.0, 1.0, 0.1])
    found, folds = candidates_of(training, regs)
    (_, first), (_, second) = folds
    errors = np.mean((found.outputs[:, :, first] - training.targets[first]) ** 2, axis=(2, 3)).min(axis=1)
    is_kept = np.isin(np.arange(5), np.argsort(errors)[:3])
    assert np.all(np.isfinite(found.outputs[:, :, first]))
    np.testing.assert_array_equal(np.all(np.isfinite(found.outputs[:, :, second]), axis=(1, 2, 3)), is_kept)
    np.testing.assert_array_equal(np.all(np.isnan(found.outputs[:, :, second]), axis=(1, 2, 3)), ~is_kept)
    # A network does not depend on how many are trained with it.
    alone, _ = candidates_of(training, regs[is_kept][:1])
    np.testing.assert_allclose(alone.outputs[0], found.outputs[is_kept][0], atol=1e-3)


def test_auto_takes_trained_gates_where_few_directions_matter(planted, rng, capsys):
    x, y = planted
    model = GatedReLURegressorCV(64, verbose=1, **OPTIONS).fit(x, y)
    # Every bar ends full, also where reweighted and discovered gates are not tried on all folds.
    last = {line.partition(":")[0]: line for line in re.split(r"[\r\n]", capsys.readouterr().err)}
    for title in ("cross-validation", "discovered gates", "trained networks"):
        assert f"{title}: 100%" in last[title]
    # Reweighted and discovered gates are clearly behind on the first fold, and not tried on the others.
    assert list(model.choice_losses_) == ["constant", "linear", "exact_ntk", "relu", "trained"]
    assert model.given_up_ == ("ntk", "reweighted", "discovered")
    assert repr(model).endswith("; given up early: ntk, reweighted, discovered")
    assert np.all(np.isnan(model.path_))
    assert np.all(np.isnan(model.discovered_path_))
    assert model.choice_ in ("relu", "trained")
    assert model.choice_losses_["relu"] == pytest.approx(model.trained_path_[:, 0].min())
    assert model.choice_losses_["trained"] == pytest.approx(model.trained_path_[:, 1:].min())
    assert model.trained_path_.shape == (2, 1 + len(RIDGE_SHARES))
    assert model.gates_.shape == (100, 8)
    fresh = rng.standard_normal((500, 5))
    truth = np.maximum(fresh[:, 0], 0) - np.abs(fresh[:, 1] - 0.5)
    random = GatedReLURegressorCV(64, gates="random", **OPTIONS).fit(x, y)
    assert random.trained_path_.size == 0
    errors = [np.mean((each.predict(fresh) - truth) ** 2) for each in (model, random)]
    assert errors[0] < 0.3 * errors[1]
    # The deviations are those of the kernel and the ridge chosen.
    assert np.all(model.predict(fresh, return_std=True)[1] > 0)


@pytest.mark.usefixtures("quick")
def test_trained_alone_for_classes_several_outputs_and_weights(planted, rng):
    x, y = planted
    labels = np.array(["low", "middle", "high"])[np.digitize(y, [-1, 0])]
    classifier = GatedReLUClassifierCV(32, gates="trained", **OPTIONS).fit(x, labels)
    assert list(classifier.choice_losses_) == ["constant", "relu", "trained"]
    assert classifier.score(x, labels) > 0.8
    both = np.column_stack([y, np.abs(x[:, 2])])
    regressor = GatedReLURegressorCV(32, gates="trained", **OPTIONS).fit(x, both, rng.uniform(0.5, 2, 120))
    assert regressor.score(x, both) > 0.8
    # A row of weight zero is no row.
    weights = np.append(np.ones(120), 0.0)
    options = {"gates": "trained", **OPTIONS}
    with_it = GatedReLURegressorCV(32, **options).fit(np.vstack([x, x[:1]]), np.append(y, 99.0), weights)
    without = GatedReLURegressorCV(32, **options).fit(x, y)
    np.testing.assert_allclose(with_it.predict(x), without.predict(x), atol=1e-6)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_trained_gates_at_one_reg_are_solved_to_their_certificate(planted, loss):
    x, y = planted
    model = GatedReLURegressor(64, gates="trained", reg=0.01, loss=loss, tol=1e-5, random_state=0).fit(x, y)
    assert model.gap_ <= 1e-5
    assert len(model.gates_) <= 24
    random = GatedReLURegressor(24, gates="random", reg=0.01, loss=loss, tol=1e-5, random_state=0).fit(x, y)
    assert float(model.solution_.primal) < 0.8 * float(random.solution_.primal)


@pytest.mark.usefixtures("quick")
def test_trained_gates_for_the_log_loss_and_for_nothing_to_learn(planted):
    x, y = planted
    labels = y > np.median(y)
    model = GatedReLUClassifier(32, gates="trained", loss="logistic", reg=0.01, random_state=0).fit(x, labels)
    assert model.score(x, labels) > 0.9
    constant = GatedReLURegressor(32, gates="trained", random_state=0).fit(x, np.full(120, 3.0))
    np.testing.assert_allclose(constant.predict(x), 3.0, rtol=1e-12)
    assert constant.gap_ == 0


@pytest.mark.usefixtures("quick")
def test_more_rows_than_kernel_matrices_allow_hold_one_part_out(planted, monkeypatch):
    monkeypatch.setattr(cross_validation, "MAX_KERNEL_ROWS", 50)
    model = GatedReLURegressorCV(32, **OPTIONS).fit(*planted)
    assert list(model.choice_losses_) == ["constant", "linear", "exact_ntk", "optimum", "relu", "trained"]
    assert model.given_up_ == ()
    assert "given up" not in repr(model)
    assert model.choice_ in ("relu", "trained")
    assert model.score(*planted) > 0.9


def test_networks_that_diverge_are_not_chosen(planted, monkeypatch):
    def diverge(trial):
        return Candidates(np.full((2, 5, *trial.training.targets.shape), np.nan), None)

    monkeypatch.setattr(cross_validation, "trained_candidates", diverge)
    model = GatedReLURegressorCV(32, gates="trained", **OPTIONS).fit(*planted)
    assert list(model.choice_losses_) == ["constant"]
    assert model.given_up_ == ("relu", "trained")
