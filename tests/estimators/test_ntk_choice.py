"""The choice of depth and bias by leave-one-out errors, against refits without a row and kernels by the recursion."""

import re

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_iris
from sklearn.utils.estimator_checks import parametrize_with_checks

from fixntk.estimators import (
    GatedReLUClassifier,
    GatedReLUClassifierCV,
    GatedReLURegressor,
    GatedReLURegressorCV,
    NTKClassifier,
    NTKClassifierCV,
    NTKRegressor,
    NTKRegressorCV,
    ntk_fits,
)
from fixntk.estimators.kernels import DEFAULT_BIAS_SCALES, DEFAULT_DEPTHS, check_bias_scales, check_depths
from fixntk.estimators.predictors import NTKOutputs

REGS = (0.003, 0.1, 3.0)


# These set parameters of wrong types on purpose.
@pytest.mark.wrong_types
@parametrize_with_checks([NTKRegressorCV(depth=(1, 2), bias_scale=(1.0, 3.0)), NTKClassifier(depth=3, bias_scale=2.0)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def kernel_by_recursion(rows, others, depth):
    """NTK of ReLU networks by the arc-cosine recursion, without the scale that each layer has.

    With one hidden layer its own weights alone are trained; with more, all weights.
    """
    lengths = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(others, axis=1)
    cosines = np.clip(rows @ others.T / lengths, -1, 1)
    ntk = cosines
    for _ in range(depth):
        angles = np.arccos(cosines)
        active = 1 - angles / np.pi
        cosines = np.clip((np.sqrt(1 - cosines**2) + (np.pi - angles) * cosines) / np.pi, -1, 1)
        ntk = ntk * active + (cosines if depth > 1 else 0)
    return lengths * ntk


def with_bias(x, x_train, bias_scale):
    return np.column_stack([(x - x_train.mean(0)) / x_train.std(0), np.full(len(x), bias_scale)])


def refit_errors(x, targets, depth, bias_scale):
    """Mean squared error for each of REGS of outputs for each row, of refits without that row."""
    rows = with_bias(x, x, bias_scale)
    kernel = kernel_by_recursion(rows, rows, depth)
    errors = []
    for reg in REGS:
        ridge, found = reg * np.mean(np.diag(kernel)), []
        for i in range(len(x)):
            rest = np.delete(np.arange(len(x)), i)
            system = kernel[np.ix_(rest, rest)] + ridge * np.eye(len(rest))
            found.append(kernel[i, rest] @ np.linalg.solve(system, targets[rest]) - targets[i])
        errors.append(np.mean(np.square(found)))
    return errors


def step_table(count=60):
    """A step far from the centre of many columns, which offsets near the centre find badly."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 6))
    return x, np.tanh(4 * (x[:, 0] - 1)) + 0.1 * rng.standard_normal(count)


@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_depth_and_bias_are_those_of_the_least_error_of_refits_without_a_row(kind):
    if kind == "regression":
        x, y = step_table()
        targets = ((y - y.mean()) / y.std())[:, None]
        model = NTKRegressorCV(REGS, depth=(1, 2, 4), bias_scale=(0.5, 3.0)).fit(x, y)
    else:
        x, y = (part[::2] for part in load_iris(return_X_y=True))
        x = x + np.random.default_rng(0).standard_normal(x.shape)
        targets = np.where(y[:, None] == np.arange(3), 1.0, -1.0)
        model = NTKClassifierCV(REGS, depth=(1, 2, 4), bias_scale=(0.5, 3.0)).fit(x, y)
    errors = {pair: refit_errors(x, targets, *pair) for pair in model.choice_errors_}
    assert list(errors) == [(1, 0.5), (2, 0.5), (4, 0.5), (1, 3.0), (2, 3.0), (4, 3.0)]
    for pair, found in model.choice_errors_.items():
        np.testing.assert_allclose(found, min(errors[pair]), rtol=1e-6)
    chosen = min(errors, key=lambda pair: min(errors[pair]))
    assert (model.depth_, model.bias_scale_) == chosen
    np.testing.assert_allclose(model.loo_errors_, errors[chosen], rtol=1e-6)
    assert model.reg_ == REGS[int(np.argmin(errors[chosen]))]


@pytest.mark.parametrize("depth", [1, 3])
def test_predictions_are_those_of_the_kernel_of_that_depth_and_bias(depth):
    x, y = load_diabetes(return_X_y=True)
    model = NTKRegressor(reg=0.3, depth=depth, bias_scale=2.5).fit(x[:80], y[:80])
    rows, new = (with_bias(part, x[:80], 2.5) for part in (x[:80], x[80:150]))
    kernel = kernel_by_recursion(rows, rows, depth)
    cross = kernel_by_recursion(new, rows, depth)
    ridge = 0.3 * np.mean(np.diag(kernel))
    system, targets = kernel + ridge * np.eye(80), (y[:80] - y[:80].mean()) / y[:80].std()
    dual = np.linalg.solve(system, targets)
    expected = cross @ dual * y[:80].std() + y[:80].mean()
    mean, deviation = model.predict(x[80:150], return_std=True)
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    np.testing.assert_allclose(model.predictor().predict(x[80:150]), expected, rtol=1e-6)
    # The posterior variance of a new observation, in units of the most likely scale of the process.
    scale = targets @ dual / 80
    diagonal = np.diag(kernel_by_recursion(new, new, depth))
    variance = diagonal + ridge - np.sum(cross * np.linalg.solve(system, cross.T).T, axis=1)
    np.testing.assert_allclose(deviation, np.sqrt(scale * variance) * y[:80].std(), rtol=1e-6)


@pytest.mark.parametrize("make", [NTKRegressor, NTKRegressorCV, NTKClassifier, NTKClassifierCV])
def test_auto_tries_the_default_candidates_and_the_choice_is_told(make):
    x, y = step_table()
    y = y if make in (NTKRegressor, NTKRegressorCV) else (y > 0).astype(int)
    model = make(depth="auto", bias_scale="auto").fit(x, y)
    assert set(model.choice_errors_) == {(depth, scale) for depth in DEFAULT_DEPTHS for scale in DEFAULT_BIAS_SCALES}
    chosen = min(model.choice_errors_, key=model.choice_errors_.get)
    assert (model.depth_, model.bias_scale_) == chosen
    assert model.choice_errors_[chosen] == model.loo_errors_.min()
    error = f"({model.depth_}, {model.bias_scale_:g}) {model.choice_errors_[chosen]:.3g}"
    assert f": depth {model.depth_}, bias_scale {model.bias_scale_:g}; leave-one-out errors of" in repr(model)
    assert error in repr(model)
    fixed = make(depth=model.depth_, bias_scale=model.bias_scale_).fit(x, y)
    np.testing.assert_array_equal(fixed.predict(x), model.predict(x))
    assert ": depth" not in repr(fixed)


def test_gates_with_larger_offsets_help_where_the_step_is_far_from_the_centre():
    x, y = step_table(400)
    model = NTKRegressorCV(bias_scale=(0.1, 5.0)).fit(x[:200], y[:200])
    assert model.bias_scale_ == 5.0
    assert model.score(x[200:], y[200:]) > NTKRegressorCV(bias_scale=0.1).fit(x[:200], y[:200]).score(x[200:], y[200:])


def test_without_a_bias_column_there_is_no_scale_to_choose():
    x, y = step_table()
    model = NTKRegressorCV(depth=(1, 2), bias=False, bias_scale="auto").fit(x, y)
    assert list(model.choice_errors_) == [(1, 0.0), (2, 0.0)]
    assert model.bias_scale_ == 0.0
    assert GatedReLURegressor(20, bias=False, bias_scale="auto", random_state=0).fit(x, y).bias_scale_ == 0.0


def test_gradients_of_deeper_networks_are_those_of_their_outputs(rng):
    training, rows = rng.standard_normal((5, 4)), rng.standard_normal((7, 4))
    outputs = NTKOutputs(training, rng.standard_normal((5, 2)), 3)
    step, found = 1e-6, outputs.gradients(rows)
    for column, shift in enumerate(step * np.eye(4)):
        # mlp_kernel has weights of variance 1/N, so that each layer divides the second moments by two.
        later, earlier = (kernel_by_recursion(rows + sign * shift, training, 3) / 2**3 for sign in (1, -1))
        expected = (later - earlier) @ outputs.dual_coef / (2 * step)
        np.testing.assert_allclose(found[:, column], expected, atol=1e-6)


def test_importances_of_deeper_networks_find_the_column_that_matters():
    x, y = step_table(200)
    model = NTKRegressorCV(depth=2, bias_scale=3.0).fit(x, y)
    assert np.argmax(model.feature_importances_) == 0
    assert model.feature_importances_[0] > 0.5
    np.testing.assert_allclose(model.feature_importances_.sum(), 1)


def test_all_rows_as_landmarks_give_the_exact_choice(monkeypatch):
    x, y = step_table(120)
    make = NTKRegressorCV(depth=(1, 2), bias_scale=(1.0, 4.0))
    exact = make.fit(x, y)
    predictions, errors, chosen = exact.predict(x), exact.choice_errors_, (exact.depth_, exact.bias_scale_)
    monkeypatch.setattr(ntk_fits, "MAX_EXACT_ROWS", 50)
    monkeypatch.setattr(ntk_fits, "_TRACE_LEFT", 1e-13)
    approximated = make.fit(x, y)
    assert not approximated.is_exact_
    assert (approximated.depth_, approximated.bias_scale_) == chosen
    np.testing.assert_allclose(list(approximated.choice_errors_.values()), list(errors.values()), rtol=1e-5)
    np.testing.assert_allclose(approximated.predict(x), predictions, atol=1e-7)


@pytest.mark.parametrize("bias_scale", [4.0, (0.3, 4.0)])
def test_gated_estimators_have_the_scale_in_their_bias_column(rng, bias_scale):
    x, y = step_table(100)
    gates = rng.standard_normal((30, 7))
    model = GatedReLURegressor(gates=gates, bias_scale=bias_scale).fit(x, y)
    rows = with_bias(x, x, 4.0)
    expected = GatedReLURegressor(gates=gates, standardize=False, bias=False).fit(rows, y)
    assert model.bias_scale_ == 4.0
    np.testing.assert_allclose(model.predict(x), expected.predict(rows), atol=1e-8)
    deviations = [made.predict(part, return_std=True)[1] for made, part in ((model, x), (expected, rows))]
    np.testing.assert_allclose(*deviations, rtol=1e-6)


@pytest.mark.parametrize("make", [GatedReLUClassifier, GatedReLUClassifierCV, GatedReLURegressor, GatedReLURegressorCV])
def test_gated_estimators_take_the_scale_of_the_ntk(make):
    x, y = step_table(100)
    is_class = make in (GatedReLUClassifier, GatedReLUClassifierCV)
    y = (y > 0).astype(int) if is_class else y
    options = {"gates": "random", "regs": (0.1,), "max_steps": 1} if make.__name__.endswith("CV") else {}
    model = make(32, bias_scale="auto", random_state=0, **options).fit(x, y)
    ntk = (NTKClassifierCV if is_class else NTKRegressorCV)(bias_scale="auto").fit(x, y)
    assert model.bias_scale_ == ntk.bias_scale_
    assert model.bias_scale_errors_ == pytest.approx({scale: error for (_, scale), error in ntk.choice_errors_.items()})
    assert f": bias_scale {model.bias_scale_:g}; leave-one-out errors of the NTK: 0.3 " in repr(model)
    fixed = make(32, bias_scale=model.bias_scale_, random_state=0, **options).fit(x, y)
    np.testing.assert_array_equal(fixed.predict(x), model.predict(x))
    assert fixed.bias_scale_errors_ == {}
    assert "errors of the NTK" not in repr(fixed)


def test_candidates_are_numbers_sequences_and_auto():
    assert check_depths("auto") == (1, 2, 3, 5)
    assert check_depths(np.int64(4)) == (4,)
    assert check_depths([2, 1, 2]) == (2, 1)
    assert check_bias_scales("auto") == (0.3, 1.0, 3.0, 10.0)
    assert check_bias_scales(np.array([2, 0.5])) == (2.0, 0.5)
    assert check_bias_scales(3) == (3.0,)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth must be"),
        ({"depth": 101}, "depth must be at most 100, got 101"),
        ({"depth": "deep"}, re.escape("depth must be a positive number, a sequence of them or 'auto', got 'deep'")),
        ({"depth": ()}, "depth must hold at least one number"),
        ({"bias_scale": 0.0}, re.escape("bias_scale must be a positive number, a sequence of them or 'auto', got 0.0")),
        ({"bias_scale": (1.0, np.inf)}, "bias_scale must be a positive number"),
        ({"bias_scale": None}, "bias_scale must be a positive number"),
    ],
)
def test_other_candidates_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NTKRegressorCV(**options).fit(*step_table(20))


def test_a_depth_that_is_no_integer_is_refused():
    with pytest.raises(TypeError, match="depth must be an integer"):
        NTKRegressorCV(depth=1.5).fit(*step_table(20))
