"""Gaussian processes against scikit-learn's, wide priors, and coverage on data drawn from one. float64."""

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_diabetes
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from fixntk import gated_relu_ntk
from fixntk.estimators import GatedReLURegressor, GatedReLURegressorCV, NTKRegressor, NTKRegressorCV
from fixntk.estimators.gaussian_process import condition


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    x, new = rng.standard_normal((30, 2)), rng.standard_normal((7, 2))
    return x, new, rng.standard_normal((30, 2)), rng.uniform(0.5, 2, 30)


def test_without_a_constant_it_is_scikit_learns_process(problem):
    x, new, targets, _ = problem
    kernel = RBF(1.5)
    posterior = condition(kernel(x), targets[:, :1], 0.3, np.ones(30), centre=False)
    (scale,) = posterior.scale
    peer = GaussianProcessRegressor(scale * kernel, alpha=scale * 0.3, optimizer=None).fit(x, targets[:, 0])
    mean, deviation = posterior.predict(kernel(new, x), np.ones(7))
    peers_mean, peers_deviation = peer.predict(new, return_std=True)
    np.testing.assert_allclose(mean[:, 0], peers_mean, rtol=1e-10)
    np.testing.assert_allclose(deviation[:, 0] ** 2, peers_deviation**2 + scale * 0.3, rtol=1e-10)
    likelihood = posterior.log_marginal_likelihood(np.ones(1))
    np.testing.assert_allclose(likelihood, peer.log_marginal_likelihood_value_, rtol=1e-12)
    # The scale is where that is largest.
    for other in (0.9, 1.1):
        covariance = other * scale * (kernel(x) + 0.3 * np.eye(30))
        assert stats.multivariate_normal(np.zeros(30), covariance).logpdf(targets[:, 0]) < likelihood[0]


def test_a_constant_is_the_limit_of_one_with_a_wide_prior(problem):
    x, new, targets, weights = problem
    kernel, unit = RBF(1.5), np.array([3.0, 0.2])
    posterior = condition(kernel(x), targets, 0.3, weights, centre=True)
    mean, deviation = posterior.predict(kernel(new, x), np.ones(7))
    for k in range(2):
        scale, wide = posterior.scale[k], 1e7
        covariance = scale * (kernel(x) + 0.3 * np.diag(1 / weights)) + wide
        cross = scale * kernel(new, x) + wide
        np.testing.assert_allclose(mean[:, k], cross @ np.linalg.solve(covariance, targets[:, k]), rtol=1e-4)
        variance = scale * 1.3 + wide - np.sum(cross * np.linalg.solve(covariance, cross.T).T, axis=1)
        np.testing.assert_allclose(deviation[:, k] ** 2, variance, rtol=1e-4)
        # A flat prior is √(2π · wide) times one of variance `wide`.
        fit = targets[:, k] @ np.linalg.solve(covariance, targets[:, k])
        narrow = -0.5 * (fit + np.linalg.slogdet(2 * np.pi * covariance)[1])
        expected = narrow + 0.5 * np.log(2 * np.pi * wide) - 29 * np.log(unit[k])
        np.testing.assert_allclose(posterior.log_marginal_likelihood(unit)[k], expected, rtol=1e-5)


def test_what_has_no_process_is_named(problem):
    x, _, targets, weights = problem
    with pytest.raises(ValueError, match="larger reg"):
        condition(-RBF(1.5)(x), targets, 1e-3, weights, centre=True)
    with pytest.raises(ValueError, match="targets that vary"):
        condition(RBF(1.5)(x), np.zeros((30, 1)), 0.3, weights, centre=True).log_marginal_likelihood(np.ones(1))
    x, y = load_diabetes(return_X_y=True)
    huber = GatedReLURegressor(16, loss="huber", random_state=0).fit(x[:50], y[:50])
    with pytest.raises(ValueError, match="squared loss"):
        huber.predict(x, return_std=True)


@pytest.mark.parametrize(
    "estimator",
    [
        NTKRegressor(reg=0.1),
        NTKRegressorCV((0.1,), bias=False),
        GatedReLURegressor(32, reg=0.1, tol=1e-10, random_state=0),
        pytest.param(GatedReLURegressorCV(32, gates="random", regs=(0.3,), random_state=0), marks=pytest.mark.long),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_the_mean_is_what_the_estimators_predict_in_any_unit(estimator):
    x, y = load_diabetes(return_X_y=True)
    y = np.column_stack([y, 100 * y + x[:, 0]])
    weights = np.random.default_rng(0).integers(0, 3, 60).astype(float)
    estimator.fit(x[:60], y[:60], weights)
    mean, deviation = estimator.predict(x[50:90], return_std=True)
    np.testing.assert_array_equal(mean, estimator.predict(x[50:90]))
    assert deviation.shape == mean.shape
    np.testing.assert_allclose(deviation[:, 1] / deviation[:, 0], 100, rtol=1e-2)

    process = estimator._process()
    rows, fitted = estimator._scaling(x[50:90]), estimator._training.x
    cross, own = process.kernel(rows, fitted), np.diag(process.kernel(rows, rows))
    posterior_mean, _ = process.posterior.predict(np.asarray(cross), own)
    tol = 0.02 if isinstance(estimator, GatedReLURegressorCV) else 1e-6
    np.testing.assert_allclose(estimator._target_scaling.restore(posterior_mean), mean, rtol=tol)
    single = estimator.fit(x[:60], y[:60, 0], weights)
    assert single.predict(x[50:90], return_std=True)[1].shape == (40,)
    low = single.log_marginal_likelihood()
    assert estimator.fit(x[:60], 10 * y[:60, 0], weights).log_marginal_likelihood() < low


def test_intervals_cover_what_they_say_where_the_ntk_is_true():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 3))
    rows = np.column_stack([x, np.ones(400)])
    root = np.linalg.cholesky(np.asarray(gated_relu_ntk(rows)) + 1e-4 * np.eye(400))
    covered = []
    for _ in range(20):
        y = root @ rng.standard_normal(400) + 0.5 * rng.standard_normal(400)
        model = NTKRegressorCV((0.01, 0.03, 0.1, 0.3, 1.0)).fit(x[:200], y[:200])
        mean, deviation = model.predict(x[200:], return_std=True)
        covered.append(np.abs(y[200:] - mean) < stats.norm.ppf(0.95) * deviation)
    # 4,000 new observations; the standard error of the mean over 20 draws is about 0.01.
    assert abs(np.mean(covered) - 0.9) < 0.03
