"""Folds, and the choice of λ and steps: each row is held out once, losses are those of a plain loop."""

from functools import partial

import numpy as np
import pytest
from padded_rows import pad_training

import fixntk as fx
from fixntk.convex import solve_quietly
from fixntk.estimators import GatedReLUClassifierCV, GatedReLURegressorCV, cross_validation, large
from fixntk.estimators.candidates import Judge, Trial
from fixntk.estimators.cross_validation import choose_gated
from fixntk.estimators.fitting import gated_problem
from fixntk.estimators.folds import shuffled_folds, squared_errors, stratified_folds
from fixntk.estimators.gate_options import GateOptions, draw_gates
from fixntk.estimators.reweighted import reweighted_candidates

OPTIONS = GateOptions("random", 16, 8, 0)


@pytest.fixture
def training(rng):
    """Rows of different weights, two targets, and columns that need no padding."""
    x, weights = rng.standard_normal((40, 8)), rng.uniform(0.2, 2, 40)
    y = np.column_stack([np.abs(x[:, 0]), x[:, 1] * (x[:, 2] > 0)]) + 0.1 * rng.standard_normal((40, 2))
    return pad_training(x, y, weights)


def test_each_row_is_held_out_once_and_rare_classes_in_some_folds_only():
    labels = np.array([0] * 10 + [1] * 9 + [2])
    for folds in (stratified_folds(labels, 4, seed=0), shuffled_folds(20, 4, seed=0)):
        assert len(folds) == 4
        np.testing.assert_array_equal(np.sort(np.concatenate([held_out for _, held_out in folds])), np.arange(20))
    assert len(stratified_folds(np.array([0, 0, 1]), 4, seed=0)) == 2


@pytest.mark.parametrize("num_folds", [2, 5])
def test_stratified_folds_hold_each_classs_share_of_rows_and_others_need_not(rng, num_folds):
    labels = np.sort(rng.choice(3, 57, p=[0.6, 0.3, 0.1]))
    counts = np.bincount(labels)
    folds = stratified_folds(labels, num_folds, seed=1)
    for train, held_out in folds:
        assert not set(train) & set(held_out)
        assert len(train) + len(held_out) == 57
        of_fold = np.bincount(labels[held_out], minlength=3)
        assert np.all(np.abs(of_fold - counts / num_folds) < 1)
    again, others = (stratified_folds(labels, num_folds, seed=seed) for seed in (1, 2))
    assert all(np.array_equal(one[1], two[1]) for one, two in zip(folds, again, strict=True))
    assert not all(np.array_equal(one[1], two[1]) for one, two in zip(folds, others, strict=True))


def test_fewer_rows_than_folds_are_named():
    with pytest.raises(ValueError, match="number of splits"):
        shuffled_folds(3, 4, seed=0)


def test_squared_errors_are_those_of_a_loop(rng):
    outputs, targets = rng.standard_normal((9, 2)), rng.standard_normal((9, 2))
    expected = [
        sum((f - y) ** 2 for f, y in zip(of_row, at_row, strict=True)) / 2
        for of_row, at_row in zip(outputs, targets, strict=True)
    ]
    np.testing.assert_allclose(squared_errors(outputs, targets), expected, rtol=1e-12)


def test_held_out_outputs_are_those_of_weighted_refits_without_the_fold(training):
    folds, regs, seen = shuffled_folds(40, 2, seed=0), (0.2, 0.02), []

    def losses(outputs):
        seen.append(outputs)
        return squared_errors(outputs, training.targets)

    choice = choose_gated(training, OPTIONS, folds, losses, regs=regs, max_steps=2)
    masks = np.asarray(fx.activation_masks(training.x, choice.fit.gates))
    # λ_max of all rows, without an intercept.
    correlations = [training.x.T @ ((mask * training.weights)[:, None] * training.targets) for mask in masks.T]
    largest = max(np.linalg.norm(one) for one in correlations)
    expected = np.zeros((2, 3, 40, 2))
    for train, held_out in folds:
        for k, share in enumerate(regs):
            program = fx.ConvexProgram(
                training.x[train],
                training.targets[train],
                masks[train],
                share * largest,
                sample_weight=training.weights[train],
                intercept=True,
            )
            for steps in range(3):
                found = solve_quietly(program, method="irls", max_iter=steps, tol=1e-6)
                expected[k, steps, held_out] = found.predict(training.x[held_out], choice.fit.gates)
    # The first outputs are those of the constant.
    np.testing.assert_allclose(np.reshape(seen[1:7], expected.shape), expected, atol=1e-7)
    means = np.average(np.mean((expected - training.targets) ** 2, axis=3), axis=2, weights=training.weights)
    np.testing.assert_allclose(choice.losses, means, rtol=1e-6)
    best = np.unravel_index(np.argmin(means), (2, 3))
    assert (choice.share, choice.num_steps) == (regs[best[0]], best[1])
    np.testing.assert_allclose(choice.held_out_outputs, expected[best], atol=1e-7)
    np.testing.assert_allclose(choice.fit.reg, choice.share * largest, rtol=1e-10)
    assert int(choice.fit.solution.iterations) == choice.num_steps


def test_of_equal_losses_the_smallest_model_the_largest_reg_and_the_fewest_steps_are_chosen(training):
    folds = shuffled_folds(40, 2, seed=0)

    def choose(losses):
        return choose_gated(training, OPTIONS, folds, losses, regs=(0.02, 0.2), max_steps=2)

    choice = choose(lambda outputs: np.ones(len(outputs)))
    assert choice.kind == "constant"
    np.testing.assert_array_equal(choice.losses, np.ones((2, 3)))
    choice = choose(lambda outputs: np.full(len(outputs), 1.0 + (len(np.unique(outputs)) < 10)))
    assert (choice.kind, choice.share, choice.num_steps) == ("ntk", 0.2, 0)


def test_the_constant_is_the_weighted_mean_of_each_folds_training_rows(training):
    folds, seen = shuffled_folds(40, 2, seed=0), []

    def losses(outputs):
        seen.append(outputs)
        return np.ones(len(outputs))

    choice = choose_gated(training, OPTIONS, folds, losses, regs=(0.1,), max_steps=1)
    for kept, held_out in folds:
        mean = training.weights[kept] @ training.targets[kept] / training.weights[kept].sum()
        np.testing.assert_allclose(seen[0][held_out], np.tile(mean, (len(held_out), 1)), rtol=1e-12)
    solution = choice.fit.solution
    assert not np.any(solution.weights)
    mean = training.weights @ training.targets / training.weights.sum()
    np.testing.assert_allclose(solution.intercept, mean, rtol=1e-10)
    assert bool(solution.converged)
    assert choice.share > 1


def test_one_standard_error_takes_the_smallest_model_that_is_not_clearly_worse(training):
    """Losses of rows for each kind are set by hand: the NTK's are ``excess`` above those of reweighting."""
    folds = shuffled_folds(40, 2, seed=0)
    noise = np.random.default_rng(5).standard_normal(40)
    shares = training.weights / training.weights.sum()
    noise -= shares @ noise
    error = np.sqrt(np.sum((shares * noise) ** 2))

    def choose(excess):
        kinds = {}

        def losses(outputs):
            # They are seen first in the order of the constant, the NTK and one step.
            kind = kinds.setdefault(outputs.tobytes(), len(kinds))
            return [np.full(40, 9.0), 1 + noise + excess * error, np.ones(40)][kind]

        options = {"regs": (0.1,), "max_steps": 1, "one_standard_error": True}
        return choose_gated(training, OPTIONS, folds, losses, **options).kind

    assert choose(0.9) == "ntk"
    assert choose(1.1) == "reweighted"


def follow_optimum(training, regs, folds):
    """Held-out outputs of solutions with all digits, and their mean losses."""
    (kept, held_out), gates = folds[0], np.asarray(draw_gates(OPTIONS, training.x, training.targets))
    outputs, losses = [], []
    for reg in regs:
        program = fx.ConvexProgram(
            training.x[kept],
            training.targets[kept],
            fx.activation_masks(training.x[kept], gates),
            reg,
            sample_weight=training.weights[kept],
            intercept=True,
        )
        outputs.append(np.asarray(solve_quietly(program, tol=1e-10).predict(training.x[held_out], gates)))
        errors = np.mean((outputs[-1] - training.targets[held_out]) ** 2, axis=1)
        losses.append(np.average(errors, weights=training.weights[held_out]))
    return outputs, losses


def test_many_rows_are_judged_on_one_fold_along_the_optimum_until_the_loss_rises(training, monkeypatch):
    monkeypatch.setattr(cross_validation, "MAX_KERNEL_ROWS", 39)
    monkeypatch.setattr(large, "_TOL_OF_CANDIDATES", 1e-6)
    monkeypatch.setattr(large, "_TOL_OF_CHOICE", 1e-6)
    folds, shares = shuffled_folds(40, 4, seed=0), (0.001, 0.3, 0.03, 0.1, 0.01, 0.0001)
    losses = partial(squared_errors, targets=training.targets)
    choice = choose_gated(training, OPTIONS, folds, losses, regs=shares, max_steps=2)
    assert (choice.kind, list(choice.losses_of_kinds)) == ("optimum", ["constant", "optimum"])
    assert (choice.num_steps, choice.ridge_share) == (0, 1.0)
    max_reg = choice.fit.reg / choice.share
    order = np.argsort(shares)[::-1]
    outputs, expected = follow_optimum(training, np.array(shares)[order] * max_reg, folds)
    num_tried = int(np.sum(np.isfinite(choice.losses)))
    # The last one tried is the first whose loss is not the least so far.
    assert num_tried == next(k for k in range(1, 6) if expected[k] >= min(expected[:k])) + 1 < len(shares)
    np.testing.assert_allclose(choice.losses[order[:num_tried], 0], expected[:num_tried], rtol=1e-3)
    best = int(np.argmin(expected[:num_tried]))
    assert choice.share == shares[order[best]]
    held_out = folds[0][1]
    np.testing.assert_allclose(choice.held_out_outputs[held_out], outputs[best], atol=2e-3)
    expected_weights = np.where(np.isin(np.arange(40), held_out), training.weights, 0.0)
    np.testing.assert_array_equal(choice.held_out_weights, expected_weights)
    program = fx.ConvexProgram(
        training.x,
        training.targets,
        fx.activation_masks(training.x, choice.fit.gates),
        choice.fit.reg,
        sample_weight=training.weights,
        intercept=True,
    )
    exact = solve_quietly(program, tol=1e-10)
    np.testing.assert_allclose(
        choice.fit.solution.weights, exact.weights, atol=2e-2 * float(np.abs(exact.weights).max())
    )
    np.testing.assert_allclose(choice.fit.solution.primal, exact.primal, rtol=1e-4)


def test_gates_from_the_data_are_drawn_anew_for_all_of_many_rows(training, monkeypatch):
    monkeypatch.setattr(cross_validation, "MAX_KERNEL_ROWS", 39)
    options = OPTIONS._replace(source="through_points")
    losses = partial(squared_errors, targets=training.targets)
    choice = choose_gated(training, options, shuffled_folds(40, 4, seed=0), losses, regs=(0.1, 0.01), max_steps=1)
    np.testing.assert_array_equal(choice.fit.gates, np.asarray(draw_gates(options, training.x, training.targets)))
    assert choice.kind == "optimum"
    assert bool(choice.fit.solution.converged)


def test_bad_candidates_are_named(training):
    folds = shuffled_folds(40, 2, seed=0)
    with pytest.raises(ValueError, match=r"reg must be a number between 0 and 1, got 1\.0"):
        choose_gated(training, OPTIONS, folds, np.ravel, regs=(0.1, 1.0), max_steps=2)
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        choose_gated(training, OPTIONS, folds, np.ravel, regs=(0.1,), max_steps=0)


def test_the_first_fold_says_which_regs_and_whether_any_the_others_try(training):
    folds, regs = shuffled_folds(40, 2, seed=0), np.array([0.05, 50.0, 5.0, 20.0, 0.5])
    first, second = (held_out for _, held_out in folds)
    judge = Judge(partial(squared_errors, targets=training.targets), training.weights)
    trial = Trial(training, folds, OPTIONS, gated_problem(training, OPTIONS, "squared"), regs, judge)
    found = reweighted_candidates(trial, 2, others=None).outputs
    assert np.all(np.isfinite(found[:, :, first]))
    weights = training.weights[first] / training.weights[first].sum()
    errors = np.mean((found[:, :, first] - training.targets[first]) ** 2, axis=3) @ weights
    is_kept = np.isin(np.arange(5), np.argsort(errors.min(axis=1))[:3])
    np.testing.assert_array_equal(np.all(np.isfinite(found[:, :, second]), axis=(1, 2, 3)), is_kept)
    np.testing.assert_array_equal(np.all(np.isnan(found[:, :, second]), axis=(1, 2, 3)), ~is_kept)
    # Others that are right on the first fold, and unknown on the second.
    others = np.where(np.isin(np.arange(40), first)[:, None], training.targets, np.nan)
    given_up = reweighted_candidates(trial, 2, others=others).outputs
    np.testing.assert_array_equal(given_up[:, :, first], found[:, :, first])
    assert np.all(np.isnan(given_up[:, :, second]))
    # As good as one of the steps.
    others = found[int(np.argmin(errors.min(axis=1))), 2]
    np.testing.assert_array_equal(reweighted_candidates(trial, 2, others=others).outputs, found)


def test_clearly_behind_is_a_paired_comparison_of_each(rng):
    targets, weights = rng.standard_normal((200, 1)), rng.uniform(0.5, 1, 200)
    judge = Judge(partial(squared_errors, targets=targets), weights)
    # What is hard for both: the difference is small beside the losses, but the same in each row.
    others = targets + 10
    worse, better, level = others + 0.01, others - 0.01, others + rng.permuted(np.repeat([-0.5, 0.5], 100))[:, None]
    assert judge.all_clearly_behind(worse, others)
    assert judge.all_clearly_behind(np.stack([worse, worse + 1]), others)
    assert not judge.all_clearly_behind(np.stack([worse, better]), others)
    assert not judge.all_clearly_behind(level, others)
    mean, error = judge.excess(level, others)
    differences = (squared_errors(level, targets) - squared_errors(others, targets)) * weights / weights.sum()
    assert mean == pytest.approx(differences.sum())
    assert error == pytest.approx(np.std(differences * 200) / np.sqrt(200), rel=0.1)


def test_few_distinct_rows_with_copies_enough_are_one_fold():
    for folds in (
        shuffled_folds(3, 4, seed=0, num_copies=40),
        stratified_folds(np.arange(3), 4, seed=0, num_copies=40),
    ):
        assert len(folds) == 1
        for rows in folds[0]:
            np.testing.assert_array_equal(rows, np.arange(3))
    with pytest.raises(ValueError, match="n_splits=4"):
        shuffled_folds(3, 4, seed=0, num_copies=3)


@pytest.mark.parametrize(
    ("gates", "limit"), [("random", 2000), ("random", 30), (np.eye(3, 9), 2000), ("discovered", 2000)]
)
def test_verbose_says_what_is_going_to_be_done(training, gates, limit, monkeypatch, capsys):
    monkeypatch.setattr(cross_validation, "MAX_KERNEL_ROWS", limit)
    options = {"gates": gates, "regs": (0.1,), "max_steps": 1, "num_folds": 4, "random_state": 0}
    GatedReLURegressorCV(8, **options).fit(training.x, training.targets[:, 0])
    assert capsys.readouterr().err == ""
    GatedReLURegressorCV(8, verbose=1, **options).fit(training.x, training.targets[:, 0])
    name = gates if isinstance(gates, str) else "given"
    how = {2000: "4 folds, with a kernel", 30: "10 rows are held out once"}[limit]
    how = "4 folds, each along λ" if name == "discovered" else how
    assert f"40 distinct rows, gates {name}: {how}" in capsys.readouterr().err


@pytest.mark.wrong_types
def test_a_number_of_folds_that_is_none_is_named(training):
    with pytest.raises(TypeError, match="num_folds must be an integer, got None"):
        GatedReLURegressorCV(16, num_folds=None).fit(training.x, training.targets[:, 0])
    with pytest.raises(TypeError, match=r"num_folds must be an integer, got 2\.5"):
        GatedReLUClassifierCV(16, num_folds=2.5).fit(training.x, training.targets[:, 0] > 0)
