"""Estimators: scikit-learn's own checks, and what they compute against the library's parts."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from mapie.classification import SplitConformalClassifier
from mapie.regression import SplitConformalRegressor
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes, load_iris, make_moons
from sklearn.linear_model import LinearRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fixntk as fx
from fixntk.convex import solve_quietly
from fixntk.estimators import (
    GatedReLUClassifier,
    GatedReLUClassifierCV,
    GatedReLURegressor,
    GatedReLURegressorCV,
    NTKClassifier,
    NTKClassifierCV,
    NTKRegressor,
    NTKRegressorCV,
)
from fixntk.estimators.gaussian_process import condition

REGRESSORS = [GatedReLURegressor(64, random_state=0), NTKRegressor()]
LOGISTIC = GatedReLUClassifier(64, loss="logistic", random_state=0)
CLASSIFIERS = [GatedReLUClassifier(64, random_state=0), LOGISTIC, NTKClassifier()]
IRIS = load_iris(return_X_y=True)


# Each check fits tables of other shapes, which compile: the quick ones always, all of them among the long tests.
@pytest.mark.long
@parametrize_with_checks(
    [
        GatedReLURegressor(num_gates=32),
        GatedReLUClassifier(num_gates=32),
        GatedReLUClassifier(32, loss="logistic"),
        GatedReLURegressorCV(32, gates="random", regs=(0.1, 0.01), num_folds=2, max_steps=3),
        GatedReLUClassifierCV(32, gates="random", regs=(0.1, 0.01), num_folds=2, max_steps=3),
    ]
)
def test_all_of_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "estimator",
    [
        NTKRegressor(),
        NTKClassifier(),
        *(pytest.param(e, marks=pytest.mark.long) for e in (REGRESSORS[0], *CLASSIFIERS[:2])),
    ],
    ids=str,
)
def test_clone_pickle_and_repeated_fits_give_the_same(estimator):
    x, y = IRIS
    fitted = clone(estimator).fit(x, y)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(x), fitted.predict(x))
    np.testing.assert_array_equal(clone(estimator).fit(x, y).predict(x), fitted.predict(x))
    assert fitted.score(x, y) > 0.9


@pytest.mark.parametrize("estimator", [pytest.param(REGRESSORS[0], marks=pytest.mark.long), NTKClassifier()], ids=str)
def test_frames_with_categories_go_through_pipelines_and_searches(estimator):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.standard_normal(60), "colour": rng.choice(["red", "blue"], 60)})
    y = (frame["size"] * np.where(frame["colour"] == "red", 1, -1) > 0).astype(float)
    encoder = make_column_transformer((OneHotEncoder(), ["colour"]), remainder="passthrough")
    search = GridSearchCV(make_pipeline(encoder, estimator), {f"{type(estimator).__name__.lower()}__reg": [0.1, 0.01]})
    assert search.fit(frame, y).score(frame, y) > 0.5
    plain = clone(estimator).fit(frame[["size"]], y)
    assert list(plain.feature_names_in_) == ["size"]
    with pytest.raises(ValueError, match="feature names"):
        plain.predict(frame[["size"]].rename(columns={"size": "weight"}))


def test_the_gated_regressor_is_the_convex_program():
    x, y = (part[:96] for part in load_diabetes(return_X_y=True))
    model = GatedReLURegressor(128, reg=0.05, tol=1e-8, random_state=3).fit(x, y)
    assert model.gap_ <= 1e-8
    assert model.n_active_gates_ == np.sum(model.kernel_weights_ > 0) > 1
    scaled = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(len(x)), np.zeros((len(x), 5))])
    targets = (y - y.mean()) / y.std()
    program = fx.ConvexProgram(scaled, targets, fx.activation_masks(scaled, model.gates_), model.reg_, intercept=True)
    optimum = fx.solve(program, tol=1e-9)
    np.testing.assert_allclose(model.reg_ / program.max_reg(), 0.05, rtol=1e-10)
    expected = np.asarray(optimum.predict(scaled, model.gates_)) * y.std() + y.mean()
    np.testing.assert_allclose(model.predict(x), expected, atol=1e-2 * y.std())
    np.testing.assert_allclose(model.network_(scaled) * y.std() + y.mean(), model.predict(x), rtol=1e-8)
    assert model.score(x, y) > LinearRegression().fit(x, y).score(x, y)


@pytest.mark.parametrize("centre", [False, True])
def test_left_out_outputs_are_those_of_regressions_without_the_row(centre):
    rng = np.random.default_rng(0)
    half, targets, weights = rng.standard_normal((12, 5)), rng.standard_normal((12, 2)), rng.uniform(0.5, 2, 12)
    weights[3] = 0
    kernel = half @ half.T
    counted = weights > 0
    posterior = condition(kernel[np.ix_(counted, counted)], targets[counted], 0.7, weights[counted], centre=centre)
    scores = posterior.leave_one_out(targets[counted])
    for position, i in enumerate(np.flatnonzero(counted)):
        rest = np.flatnonzero(counted & (np.arange(12) != i))
        # (K + λ W⁻¹) a + 1 b = y with 1ᵀa = 0 where there is an intercept.
        matrix = np.zeros((len(rest) + 1, len(rest) + 1))
        matrix[:-1, :-1] = kernel[np.ix_(rest, rest)] + 0.7 * np.diag(1 / weights[rest])
        if centre:
            matrix[-1, :-1] = matrix[:-1, -1] = 1
        else:
            matrix[-1, -1] = 1
        solved = np.linalg.solve(matrix, np.vstack([targets[rest], np.zeros((1, 2))]))
        np.testing.assert_allclose(scores[position], kernel[i, rest] @ solved[:-1] + solved[-1], atol=1e-10)


def test_steps_and_reg_are_chosen_by_held_out_errors_of_refits():
    x, y = (part[:96] for part in load_diabetes(return_X_y=True))
    model = GatedReLURegressorCV(64, gates="random", regs=(0.3, 0.03), num_folds=3, max_steps=4, random_state=0).fit(
        x, y
    )
    assert model.path_.shape == (2, 5)
    best = np.unravel_index(np.argmin(model.path_), model.path_.shape)
    assert (model.reg_share_, model.n_steps_) == ((0.3, 0.03)[best[0]], best[1])
    order = np.unique(np.column_stack([x, y]), axis=0, return_index=True)[1]
    x, y = x[order], y[order]
    scaled = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(96), np.zeros((96, 5))])
    targets = (y - y.mean()) / y.std()
    masks = fx.activation_masks(scaled, model.gates_)
    largest = fx.ConvexProgram(scaled, targets, masks, 1.0).max_reg()
    expected = np.zeros((2, 5))
    for train, held in KFold(3, shuffle=True, random_state=0).split(x):
        for k, share in enumerate((0.3, 0.03)):
            program = fx.ConvexProgram(scaled[train], targets[train], masks[train], share * largest, intercept=True)
            for steps in range(5):
                found = solve_quietly(program, method="irls", max_iter=steps, tol=1e-6)
                expected[k, steps] += np.sum((found.predict(scaled[held], model.gates_) - targets[held]) ** 2) / 96
    np.testing.assert_allclose(model.path_, expected, rtol=1e-6)


def test_steps_of_the_classifier_are_chosen_by_the_log_loss_of_refits():
    x, y = make_moons(90, noise=0.3, random_state=0)
    model = GatedReLUClassifierCV(64, gates="random", regs=(0.1, 0.01), num_folds=3, max_steps=2, random_state=0).fit(
        x, y
    )
    order = np.unique(np.column_stack([x, y]), axis=0, return_index=True)[1]
    x, y = x[order], y[order]
    rows = model._scaling(x)
    masks = fx.activation_masks(rows, model.gates_)
    signs = 2.0 * y - 1
    largest = fx.ConvexProgram(rows, signs, masks, 1.0).max_reg()
    factors = np.geomspace(0.1, 30, 2001)
    for k, share in enumerate((0.1, 0.01)):
        for steps in range(3):
            outputs = np.zeros(90)
            for train, held in StratifiedKFold(3, shuffle=True, random_state=0).split(x, y):
                program = fx.ConvexProgram(rows[train], signs[train], masks[train], share * largest, intercept=True)
                found = solve_quietly(program, method="irls", max_iter=steps, tol=1e-6)
                outputs[held] = found.predict(rows[held], model.gates_)
            losses = np.mean(np.logaddexp(0, -factors[:, None] * signs * outputs), axis=1)
            np.testing.assert_allclose(model.path_[k, steps], losses.min(), rtol=1e-5)
            if (share, steps) == (model.reg_share_, model.n_steps_):
                # Labels smoothed by one row in all, half a row for each class of 45.
                wrong = np.mean(np.logaddexp(0, factors[:, None] * signs * outputs), axis=1)
                smoothed = (45.5 * losses + 0.5 * wrong) / 46
                np.testing.assert_allclose(model.temperature_, factors[smoothed.argmin()], rtol=5e-3)
    assert model.path_.min() == model.path_[(0.1, 0.01).index(model.reg_share_), model.n_steps_]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "estimator",
    [
        NTKClassifier(),
        *(
            pytest.param(c, marks=pytest.mark.long)
            for c in (CLASSIFIERS[0], GatedReLUClassifier(64, reg=0.05, loss="logistic"))
        ),
    ],
    ids=str,
)
def test_probabilities_are_calibrated(estimator, classes):
    if classes == 2:
        x, y = make_moons(300, noise=0.35, random_state=0)
    else:
        rng = np.random.default_rng(0)
        y = rng.integers(0, 3, 300)
        x = rng.standard_normal((300, 2)) + 2 * np.eye(3)[y][:, :2]
    model = clone(estimator)
    names = np.array(["a", "b", "c"])[y]
    probabilities = cross_val_predict(model, x, names, method="predict_proba", cv=4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-10)
    base_rate = log_loss(names, np.tile(np.bincount(y) / len(y), (len(y), 1)))
    assert log_loss(names, probabilities) < 0.85 * base_rate
    confidence = probabilities.max(axis=1)
    right = np.unique(names)[probabilities.argmax(axis=1)] == names
    assert abs(confidence.mean() - right.mean()) < 0.08


def test_weights_of_rows_and_classes_count():
    x, y = make_moons(120, noise=0.3, random_state=1)
    model = GatedReLUClassifier(64, random_state=0)
    heavy = clone(model).set_params(class_weight={0: 20.0, 1: 1.0}).fit(x, y)
    assert np.mean(heavy.predict(x) == 0) > np.mean(clone(model).fit(x, y).predict(x) == 0)
    by_rows = clone(model).fit(x, y, sample_weight=np.where(y == 0, 20.0, 1.0))
    np.testing.assert_allclose(by_rows.decision_function(x), heavy.decision_function(x), atol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (GatedReLURegressor(reg=0.0), "reg must be a number between 0 and 1"),
        (GatedReLURegressor(reg=2.0), "reg must be a number between 0 and 1"),
        (GatedReLURegressor(loss="logistic"), "loss must be squared or huber"),
        (GatedReLURegressor(num_gates=0), "num_gates must be at least 1"),
        (NTKRegressorCV(regs=()), "regs must hold at least one number"),
        (NTKRegressor(reg=-1.0), "reg must be a number between 0 and inf"),
        (GatedReLUClassifier(loss="hinge"), "loss must be squared or logistic"),
    ],
    ids=str,
)
def test_bad_options_are_named(estimator, message):
    x, y = make_moons(30, random_state=0)
    with pytest.raises(ValueError, match=message):
        estimator.fit(x, y)


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=str)
def test_one_class_is_named(estimator):
    x, y = make_moons(30, random_state=0)
    with pytest.raises(ValueError, match="got 1 class"):
        clone(estimator).fit(x, np.zeros(30))
    with pytest.raises(ValueError, match="got 1 class"):
        clone(estimator).fit(x, y, sample_weight=(y == 1).astype(float))


@pytest.mark.parametrize("estimator", [NTKRegressor(), NTKClassifier()], ids=str)
def test_polars_frames_keep_their_names_through_pipelines(estimator):
    x, y = IRIS
    names = ["a", "b", "c", "d"]
    model = make_pipeline(StandardScaler(), clone(estimator)).set_output(transform="polars")
    predicted = model.fit(pl.DataFrame(x, schema=names), y).predict(pl.DataFrame(x, schema=names))
    np.testing.assert_array_equal(model[-1].feature_names_in_, names)
    expected = make_pipeline(StandardScaler(), clone(estimator)).fit(x, y).predict(x)
    np.testing.assert_allclose(predicted, expected, atol=1e-10)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(pl.DataFrame(x, schema=["b", "a", "c", "d"]))


@pytest.mark.parametrize("estimator", [NTKRegressor(), NTKClassifier()], ids=str)
def test_weights_are_routed_through_searches(estimator):
    x, y = IRIS
    weights = np.random.default_rng(0).integers(0, 4, len(x)).astype(float)
    with config_context(enable_metadata_routing=True):
        asking = clone(estimator).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(asking, {"reg": [1e-3, 1.0]}, cv=KFold(3, shuffle=True, random_state=0))
        search.fit(x, y, sample_weight=weights)
    for reg, score in zip((1e-3, 1.0), search.cv_results_["mean_test_score"], strict=True):
        scores = []
        for train, test in KFold(3, shuffle=True, random_state=0).split(x):
            model = clone(estimator).set_params(reg=reg).fit(x[train], y[train], weights[train])
            scores.append(model.score(x[test], y[test], weights[test]))
        np.testing.assert_allclose(score, np.mean(scores), rtol=1e-10)
    assert search.best_estimator_.reg == search.best_params_["reg"]


def test_conformal_intervals_and_sets_cover_what_they_say():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2300, 2))
    y = np.abs(x[:, 0]) + (0.2 + 0.5 * (x[:, 1] > 0)) * rng.standard_t(3, len(x))
    fit, calibrate, test = slice(0, 150), slice(150, 1300), slice(1300, None)
    regression = SplitConformalRegressor(NTKRegressorCV(), confidence_level=0.8, prefit=False)
    regression.fit(x[fit], y[fit]).conformalize(x[calibrate], y[calibrate])
    intervals = regression.predict_interval(x[test])[1][:, :, 0]
    # 1,000 new rows after 1,150 for the calibration: a standard error of 0.017.
    assert abs(np.mean((intervals[:, 0] <= y[test]) & (y[test] <= intervals[:, 1])) - 0.8) < 0.05

    labels = np.array(["a", "b", "c"])[np.digitize(y, [0.5, 1.5])]
    classes = SplitConformalClassifier(NTKClassifierCV(), confidence_level=0.8, prefit=False, conformity_score="lac")
    classes.fit(x[fit], labels[fit]).conformalize(x[calibrate], labels[calibrate])
    sets = classes.predict_set(x[test])[1][:, :, 0]
    codes = np.searchsorted(["a", "b", "c"], labels[test])
    assert abs(np.mean(sets[np.arange(1000), codes]) - 0.8) < 0.05
    assert np.mean(np.sum(sets, axis=1)) < 2.5


@pytest.mark.parametrize(
    "estimator", [GatedReLURegressor(64, random_state=0), GatedReLURegressorCV(64, gates="random", random_state=0)]
)
@pytest.mark.parametrize("x", [np.repeat([0.0, 1.0], 10)[:, None], np.full((20, 1), 3.0)], ids=["groups", "constant"])
def test_inputs_that_say_nothing_about_the_targets_predict_their_mean(rng, estimator, x):
    # The same ten targets at both values of x.
    y = np.tile(rng.standard_normal(10), 2)
    fitted = clone(estimator).fit(x, y)
    np.testing.assert_allclose(fitted.predict(x), y.mean(), atol=1e-10)
    assert fitted.gap_ < 1e-6


@pytest.mark.parametrize(
    ("estimator", "factor"),
    [
        (GatedReLUClassifierCV(64, gates="random", random_state=0), 1),
        (GatedReLURegressorCV(64, gates="random", random_state=0), 3),
    ],
)
def test_two_distinct_rows_with_many_copies_are_fitted(rng, estimator, factor):
    x = rng.integers(0, 2, (200, 1)).astype(float)
    assert clone(estimator).fit(x, factor * x[:, 0]).score(x, factor * x[:, 0]) > 0.999
