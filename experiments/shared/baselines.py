"""The methods of the comparison on tables: scikit-learn estimators that tune themselves on their training rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from fixntk.estimators import GatedReLUClassifierCV, GatedReLURegressorCV, NTKClassifierCV, NTKRegressorCV
from fixntk.runner.config import ConfigError

# Number of folds of each grid search.
NUM_FOLDS = 4
# Grid of the RBF kernel's γ, for standardised columns.
_GAMMAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
# Grid of support vector regression, for standardised columns and targets.
_SVR = {"C": (0.1, 1, 10, 100), "gamma": _GAMMAS, "epsilon": (0.01, 0.1)}
# Grids of gradient boosting, of the random forest and of the multilayer perceptron.
_BOOSTING = {"learning_rate": (0.03, 0.1), "max_leaf_nodes": (4, 16)}
_FOREST = {"max_features": ("sqrt", 0.33, 1.0)}
_MLP = {"alpha": (1e-4, 1e-2, 1.0)}
# Rows on which the grid of support vector regression is searched: the time of its fits grows faster than their square.
_MAX_SEARCHED_ROWS = 2000

Factory = Callable[[int], Any]


def _grid_search(estimator: BaseEstimator, grid: Mapping[str, Any], scoring: str) -> Any:
    kind = StratifiedKFold if scoring == "accuracy" else KFold
    return GridSearchCV(estimator, dict(grid), cv=kind(NUM_FOLDS, shuffle=True, random_state=0), scoring=scoring)


def _classifier(estimator: BaseEstimator, grid: Mapping[str, Any]) -> Any:
    return _grid_search(estimator, grid, "accuracy")


def _regressor(estimator: BaseEstimator, grid: Mapping[str, Any]) -> Any:
    return _grid_search(_StandardisedTarget(estimator), {f"regressor__{key}": grid[key] for key in grid}, "r2")


class _StandardisedTarget(RegressorMixin, BaseEstimator):
    """A regressor of targets of mean 0 and deviation 1, so that one grid serves all tables."""

    def __init__(self, regressor: BaseEstimator) -> None:
        self.regressor = regressor

    def fit(self, X: np.ndarray, y: np.ndarray) -> _StandardisedTarget:
        """Fit."""
        self.scaler_ = StandardScaler().fit(y[:, None])
        self.regressor.fit(X, self.scaler_.transform(y[:, None])[:, 0])
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict."""
        return self.scaler_.inverse_transform(self.regressor.predict(X)[:, None])[:, 0]


class SearchedOnSample(RegressorMixin, BaseEstimator):
    """The best setting of a grid search on a random sample of at most ``max_rows`` rows, fitted to all rows."""

    def __init__(self, search: GridSearchCV, max_rows: int, seed: int) -> None:
        self.search = search
        self.max_rows = max_rows
        self.seed = seed

    def fit(self, X: np.ndarray, y: np.ndarray) -> SearchedOnSample:
        """Fit."""
        sample = np.random.default_rng(self.seed).permutation(len(X))[: self.max_rows]
        is_whole = len(sample) == len(X)
        # Without a sample the rows keep their order, and the search fits its best setting by itself.
        rows = slice(None) if is_whole else sample
        search = clone(self.search).set_params(refit=is_whole).fit(X[rows], y[rows])
        self.best_params_ = search.best_params_
        best = search.best_estimator_ if is_whole else clone(search.estimator).set_params(**search.best_params_)
        self.model_ = best if is_whole else best.fit(X, y)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict."""
        return self.model_.predict(X)


class _XRFM(BaseEstimator):
    """xRFM (recursive feature machines); a held-out fifth of the rows chooses bandwidth and ridge, as advised."""

    def __init__(self, metric: str, seed: int) -> None:
        self.metric = metric
        self.seed = seed

    def fit(self, X: np.ndarray, y: np.ndarray) -> _XRFM:
        """Fit all of the grid and keep the best."""
        try:
            from xrfm import xRFM
        except ModuleNotFoundError as error:
            raise ConfigError("methods: xRFM is a package of its own: pip install xrfm") from error

        stratify = y if self.metric == "accuracy" and np.bincount(y).min() > 1 else None
        split = train_test_split(X, y, test_size=0.2, random_state=self.seed, stratify=stratify)
        x, x_held, y, y_held = (part.astype(np.float32 if part.ndim == 2 else part.dtype) for part in split)
        best = -np.inf
        for bandwidth in (2.0, 5.0, 10.0, 20.0):
            for reg in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
                options = {
                    "model": {"kernel": "l2", "bandwidth": bandwidth, "exponent": 1.0, "diag": False},
                    "fit": {"reg": reg, "iters": 5, "verbose": False, "early_stop_rfm": True},
                }
                model = xRFM(rfm_params=options, device="cpu", tuning_metric=self.metric, verbose=False)
                model.fit(x, y, x_held, y_held)
                predicted = np.asarray(model.predict(x_held)).reshape(-1)
                score = (
                    np.mean(predicted == y_held) if self.metric == "accuracy" else -np.mean((predicted - y_held) ** 2)
                )
                if score > best:
                    best, self.model_ = score, model
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict."""
        return np.asarray(self.model_.predict(X.astype(np.float32))).reshape(-1)


class _XRFMClassifier(ClassifierMixin, _XRFM):
    pass


CLASSIFIERS: Mapping[str, Factory] = MappingProxyType(
    {
        "fixed kernel": lambda seed: GatedReLUClassifierCV(gates="random", num_folds=NUM_FOLDS, random_state=seed),
        "auto gates": lambda seed: GatedReLUClassifierCV(num_folds=NUM_FOLDS, random_state=seed),
        "NTK": lambda _: NTKClassifierCV(),
        "RBF SVM": lambda _: _classifier(SVC(), {"C": (0.1, 1, 10, 100, 1000), "gamma": _GAMMAS}),
        "logistic": lambda _: _classifier(LogisticRegression(max_iter=2000), {"C": np.geomspace(1e-3, 1e3, 13)}),
        "random forest": lambda seed: _classifier(RandomForestClassifier(random_state=seed), _FOREST),
        "gradient boosting": lambda seed: _classifier(HistGradientBoostingClassifier(random_state=seed), _BOOSTING),
        "MLP": lambda seed: _classifier(MLPClassifier(max_iter=400, random_state=seed), _MLP),
        "xRFM": lambda seed: _XRFMClassifier("accuracy", seed),
    }
)
REGRESSORS: Mapping[str, Factory] = MappingProxyType(
    {
        "fixed kernel": lambda seed: GatedReLURegressorCV(gates="random", num_folds=NUM_FOLDS, random_state=seed),
        "auto gates": lambda seed: GatedReLURegressorCV(num_folds=NUM_FOLDS, random_state=seed),
        "NTK": lambda _: NTKRegressorCV(),
        "RBF SVM": lambda seed: SearchedOnSample(_regressor(SVR(), _SVR), _MAX_SEARCHED_ROWS, seed),
        "kernel ridge": lambda _: _regressor(
            KernelRidge(kernel="rbf"), {"alpha": (1e-4, 1e-3, 1e-2, 1e-1, 1), "gamma": _GAMMAS}
        ),
        "ridge": lambda _: _regressor(Ridge(), {"alpha": np.geomspace(1e-3, 1e3, 13)}),
        "random forest": lambda seed: _regressor(RandomForestRegressor(random_state=seed), _FOREST),
        "gradient boosting": lambda seed: _regressor(HistGradientBoostingRegressor(random_state=seed), _BOOSTING),
        "MLP": lambda seed: _regressor(MLPRegressor(max_iter=400, random_state=seed), _MLP),
        "xRFM": lambda seed: _StandardisedTarget(_XRFM("mse", seed)),
    }
)

# Methods that run only where a config names them: one that takes many times as long as the others, and packages that
# are in no extra.
ON_REQUEST = ("auto gates", "xRFM")
