"""What estimators share: errors, weights of rows and classes, labels, probabilities, tiles of rows."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.inspection import partial_dependence, permutation_importance

import fixntk.estimators
from fixntk.estimators import GatedReLURegressor, NTKClassifier, NTKRegressor, predictors

pytestmark = pytest.mark.core

METHODS = [
    (NTKRegressor(), "predict"),
    (GatedReLURegressor(8), "predict"),
    (NTKClassifier(), "predict"),
    (NTKClassifier(), "decision_function"),
    (NTKClassifier(), "predict_proba"),
]
EACH = pytest.mark.parametrize(("estimator", "method"), METHODS, ids=lambda value: str(value))


@pytest.fixture
def table(rng):
    """Rows (40, 3), and for each of two and three classes labels that depend on them."""
    x = rng.standard_normal((40, 3))
    return x, np.array(["no", "yes"])[(x[:, 0] > 0).astype(int)], np.digitize(x[:, 0], [-0.5, 0.5])


@EACH
def test_an_estimator_that_is_not_fitted_and_other_columns_are_named(table, estimator, method):
    x, labels, _ = table
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(clone(estimator), method)(x)
    fitted = clone(estimator).fit(x, x[:, 0] if "Regressor" in str(estimator) else labels)
    with pytest.raises(ValueError, match=r"X has 2 features, but .* is expecting 3 features"):
        getattr(fitted, method)(x[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        getattr(fitted, method)(np.full((1, 3), np.nan))


def test_negative_weights_and_targets_of_classes_that_are_no_classes_are_named(table):
    x, labels, _ = table
    for estimator, y in ((NTKRegressor(), x[:, 0]), (NTKClassifier(), labels)):
        with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
            estimator.fit(x, y, sample_weight=np.r_[-1.0, np.ones(39)])
    with pytest.raises(ValueError, match="Unknown label type"):
        NTKClassifier().fit(x, x[:, 0])
    with pytest.raises(ValueError, match=r"got 1 class: \['yes'\]"):
        NTKClassifier().fit(x, labels, sample_weight=(labels == "yes").astype(float))


@pytest.mark.parametrize("values", [[1.5, None], [True, None], ["a", pd.NA], [1, pd.NaT]], ids=str)
@pytest.mark.parametrize("estimator", [NTKRegressor(), GatedReLURegressor(8), NTKClassifier()], ids=str)
def test_missing_targets_are_counted(table, estimator, values):
    x, *_ = table
    for y in (values * 20, pd.Series(values * 20).convert_dtypes()):
        expected = r"^y has 20 missing value\(s\) in shape \(40,\)$"
        # From pandas 2.2 on its Float64 becomes an array of numbers with NaN, for which scikit-learn has a message.
        if isinstance(y, pd.Series) and y.dtype == "Float64":
            expected += "|y contains NaN"
        with pytest.raises(ValueError, match=expected):
            clone(estimator).fit(x, y)


@pytest.mark.parametrize("estimator", [NTKRegressor(), GatedReLURegressor(8), NTKClassifier()], ids=str)
def test_hidden_values_and_durations_are_refused(table, estimator):
    x, labels, _ = table
    y = labels if "Classifier" in str(estimator) else x[:, 0]
    hidden = np.ma.array(x, mask=x > 1)
    count = int((x > 1).sum())
    with pytest.raises(ValueError, match=rf"^X has {count} missing value\(s\) in shape \(40, 3\)$"):
        clone(estimator).fit(hidden, y)
    with pytest.raises(ValueError, match=r"^y has 1 missing value\(s\) in shape \(40,\)$"):
        clone(estimator).fit(x, np.ma.array(y, mask=np.arange(40) == 3))
    with pytest.raises(ValueError, match=rf"^X has {count} missing"):
        clone(estimator).fit(x, y).predict(hidden)
    durations = np.arange(40).astype("timedelta64[s]")[:, None]
    with pytest.raises(TypeError, match=r"^X must be numbers, got dtype timedelta64\[.*\]: divide by a unit of time$"):
        clone(estimator).fit(durations, y)
    with pytest.raises(TypeError, match=r"^X must be numbers, got dtype timedelta64"):
        clone(estimator).fit(x[:, :1], y).predict(durations)


def test_deviations_need_the_squared_loss(table):
    x, _, _ = table
    # The squared loss's fit serves as well, and is compiled already.
    model = GatedReLURegressor(8).fit(x, x[:, 0]).set_params(loss="huber")
    for call in (lambda: model.predict(x, return_std=True), model.log_marginal_likelihood):
        with pytest.raises(ValueError, match="need the squared loss, this is huber"):
            call()
    with pytest.raises(NotFittedError):
        NTKRegressor().log_marginal_likelihood()


def test_rows_of_weight_zero_and_classes_that_have_no_others_do_not_count(table):
    x, _, labels = table
    weights = np.where(labels == 1, 0.0, 1.0 + np.arange(40) % 3)
    weighted = NTKClassifier().fit(x, labels, sample_weight=weights)
    np.testing.assert_array_equal(weighted.classes_, [0, 2])
    counted = weights > 0
    alone = NTKClassifier().fit(x[counted], labels[counted], sample_weight=weights[counted])
    np.testing.assert_allclose(weighted.decision_function(x), alone.decision_function(x), rtol=1e-9)
    regressed, without = (
        NTKRegressor().fit(x[rows], x[rows, 1], sample_weight=weights[rows]) for rows in (np.full(40, True), counted)
    )
    np.testing.assert_allclose(regressed.predict(x), without.predict(x), rtol=1e-9)


def test_balanced_classes_are_those_whose_weights_have_equal_sums(table):
    x, labels, _ = table
    labels = np.where(x[:, 1] > 0.8, labels, "no")
    by_name = NTKClassifier(class_weight="balanced").fit(x, labels)
    counts = {name: np.sum(labels == name) for name in ("no", "yes")}
    weights = np.array([40 / (2 * counts[name]) for name in labels])
    by_rows = NTKClassifier().fit(x, labels, sample_weight=weights)
    np.testing.assert_allclose(by_name.decision_function(x), by_rows.decision_function(x), rtol=1e-9)
    assert np.max(np.abs(by_name.decision_function(x) - NTKClassifier().fit(x, labels).decision_function(x))) > 1e-2


def test_labels_and_probabilities_are_those_of_the_scores(table):
    x, two, three = table
    model = NTKClassifier().fit(x, two)
    scores = model.decision_function(x)
    assert scores.shape == (40,)
    np.testing.assert_array_equal(model.predict(x), np.where(scores > 0, "yes", "no"))
    np.testing.assert_allclose(model.predict_proba(x)[:, 1], expit(model.temperature_ * scores), rtol=1e-12)
    model = NTKClassifier().fit(x, three)
    scores = model.decision_function(x)
    assert scores.shape == (40, 3)
    np.testing.assert_array_equal(model.predict(x), np.argmax(scores, axis=1))
    np.testing.assert_allclose(model.predict_proba(x), softmax(model.temperature_ * scores, axis=1), rtol=1e-12)


@EACH
def test_outputs_do_not_depend_on_the_tiles_in_which_they_are_computed(monkeypatch, table, estimator, method):
    x, labels, _ = table
    fitted = clone(estimator).fit(x, x[:, 0] if "Regressor" in str(estimator) else labels)
    whole = getattr(fitted, method)(x)
    monkeypatch.setattr(predictors, "_TILE_ROWS", 7)
    in_tiles = getattr(fitted, method)(x)
    if whole.dtype.kind == "f":
        np.testing.assert_allclose(in_tiles, whole, atol=1e-10)
    else:
        np.testing.assert_array_equal(in_tiles, whole)


def test_targets_may_be_a_column_or_several_and_predictions_have_their_shape_and_unit(table):
    x, _, _ = table
    both = np.column_stack([x[:, 0], 1000 + 50 * x[:, 1]])
    model = NTKRegressor().fit(x, both)
    for k in range(2):
        alone = NTKRegressor().fit(x, both[:, k])
        assert alone.predict(x).shape == (40,)
        np.testing.assert_allclose(model.predict(x)[:, k], alone.predict(x), rtol=1e-8)
    assert np.abs(model.predict(x)[:, 1] - 1000).max() < 200


def test_without_scikit_learn_the_error_names_the_extra():
    command = "import sys; sys.modules['sklearn'] = None; import fixntk.estimators"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    expected = "ModuleNotFoundError: fixntk.estimators needs scikit-learn: pip install 'fixntk[estimators]'"
    assert done.stderr.strip().splitlines()[-1] == expected


@pytest.mark.parametrize("name", fixntk.estimators.__all__)
def test_importances_and_the_tools_of_scikit_learn_find_the_one_feature_that_counts(name):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3)) * [1.0, 20.0, 0.1]
    y = np.abs(x[:, 1])
    is_classifier = "Classifier" in name
    options = {} if "NTK" in name else {"num_gates": 64, "random_state": 0}
    if name.startswith("GatedReLU") and name.endswith("CV"):
        options |= {"gates": "random", "regs": (0.1, 0.03), "num_folds": 2, "max_steps": 1}
    model = getattr(fixntk.estimators, name)(**options).fit(x, y > np.median(y) if is_classifier else y)
    np.testing.assert_allclose(model.feature_importances_.sum(), 1.0, rtol=1e-12)
    assert model.feature_importances_[1] > 0.6
    shuffled = permutation_importance(model, x, model.predict(x), n_repeats=2, random_state=0)
    assert np.argmax(shuffled.importances_mean) == 1
    curve = partial_dependence(model, x, [1], grid_resolution=9)["average"][0]
    assert curve[0] > curve[4] < curve[-1]


@pytest.mark.parametrize("estimator", [NTKRegressor(), GatedReLURegressor(8)], ids=str)
def test_nan_in_an_array_is_found_and_frames_are_named(table, estimator):
    x, *_ = table
    model, broken = clone(estimator).fit(x, x[:, 0]), x.copy()
    broken[[7, 9], 1] = np.nan
    for call in (lambda: clone(estimator).fit(broken, x[:, 0]), lambda: model.predict(broken)):
        with pytest.raises(ValueError, match=r"^X has 2 NaN, the first in row 7, column 1: .*data frames"):
            call()
    frame = pd.DataFrame(broken, columns=list("abc"))
    assert np.all(np.isfinite(clone(estimator).fit(frame, x[:, 0]).predict(frame)))
