r"""Estimators with scikit-learn's habits: the gated-ReLU network's convex program, and ridge regression with the NTK.

Rows are standardised and get a bias column; both are options. Everything is computed in float64. Regularisation has no
unit: for the gated ReLU it is λ/λ_max (M7), λ_max that of the program without its intercept; for the NTK the ridge in
units of the kernel's mean diagonal.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.model_selection import KFold, StratifiedKFold

from fixntk.estimators.fitting import (
    DEFAULT_REG_SHARES,
    DEFAULT_REGRESSION_SHARES,
    DEFAULT_REGS,
    as_codes,
    as_probabilities,
    as_scores,
    as_signs,
    calibrated,
    classified,
    distinct,
    fit_gated,
    fit_gated_cv,
    fit_ntk,
    fit_temperature,
    gated_outputs,
    gated_process,
    gated_temperature,
    log_likelihood,
    note_training,
    ntk_outputs,
    ntk_process,
    predicted,
    regressed,
    squared_loss,
    standardised_targets,
)


class GatedReLURegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Regression with a gated-ReLU network, trained to its certified optimum (M5, M10).

    Parameters
    ----------
    num_gates : int
        P, random hyperplanes N(0, I) in the standardised inputs.
    reg : float
        λ/λ_max, between 0 and 1.
    loss : str
        "squared" or "huber" (with its bend at one standard deviation of y).
    standardize, bias : bool
        Whether to bring columns to mean 0 and deviation 1, and to add a column of ones for the gates.
    tol : float
        Relative duality gap to reach.
    max_iter : int or None
        Largest number of solver steps.
    random_state : int, RandomState or None
        For the gates.

    Attributes
    ----------
    kernel_weights_ : ndarray (P,)
        η of the fixed kernel.
    gap_ : float
        Relative duality gap reached: the objective is at most so far from the optimum, as a share of that of zero.
    n_active_gates_ : int
        Gates in use.
    network_ : GatedReLUNetwork
        The network on standardised inputs with a bias column and zero padding, for standardised targets; outputs (n,)
        where there is one.
    solution_ : Solution
        Of the convex program.
    gates_ : ndarray (P, d')
        Gates on these inputs.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.
    """

    def __init__(
        self,
        num_gates: int = 512,
        *,
        reg: float = 0.01,
        loss: str = "squared",
        standardize: bool = True,
        bias: bool = True,
        tol: float = 1e-5,
        max_iter: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.num_gates = num_gates
        self.reg = reg
        self.loss = loss
        self.standardize = standardize
        self.bias = bias
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> GatedReLURegressor:
        """Fit to (n, d) inputs and (n,) or (n, c) targets.

        Raises
        ------
        ValueError
            If inputs are not numbers, or an option is out of its range.

        Warns
        -----
        ConvergenceWarning
            If the gap is above ``tol`` at the end.
        """
        X, y, weights = regressed(self, X, y, sample_weight)
        if self.loss not in ("squared", "huber"):
            raise ValueError(f"loss must be squared or huber, got {self.loss!r}")
        targets = standardised_targets(self, y, weights)
        note_training(self, fit_gated(self, X, targets, weights, self.loss), targets, weights)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Targets (n,) or (n, c) of new inputs, and with ``return_std`` the standard deviations of new observations.

        The deviations, noise included, are those of the Gaussian process with the learnt kernel, held fixed, and of
        most likely scale and noise for ``reg_`` (M5); they say too little of the kernel's having been learnt.
        """
        return predicted(self, X, gated_outputs, gated_process, return_std)

    def log_marginal_likelihood(self) -> float:
        """Log p(y) of the training targets under the Gaussian process of :meth:`predict`, summed over targets."""
        return log_likelihood(self, gated_process(self))


class GatedReLUClassifier(ClassifierMixin, BaseEstimator):
    """Classification with a gated-ReLU network, trained to its certified optimum (M5, M10).

    Parameters
    ----------
    num_gates, reg, standardize, bias, tol, max_iter, random_state
        As for :class:`GatedReLURegressor`.
    loss : str
        "squared", on ±1 for two classes and for each of several against the rest, with one kernel for all; or
        "logistic", the log-loss, of the softmax for several.
    class_weight : dict, "balanced" or None
        Weights of the classes, which multiply those of the rows.

    Attributes
    ----------
    classes_ : ndarray
        Labels in order.
    temperature_ : float
        Probabilities with the squared loss are the softmax of ``temperature_`` · outputs, for two classes the sigmoid;
        it minimises the log-loss of leave-one-out outputs, which have closed forms with the learnt kernel held fixed. 1
        with the log-loss, whose outputs are logits already.
    kernel_weights_, gap_, n_active_gates_, network_, solution_, gates_, n_features_in_, feature_names_in_
        As for :class:`GatedReLURegressor`.
    """

    def __init__(
        self,
        num_gates: int = 512,
        *,
        reg: float = 0.01,
        loss: str = "squared",
        class_weight: Any = None,
        standardize: bool = True,
        bias: bool = True,
        tol: float = 1e-5,
        max_iter: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.num_gates = num_gates
        self.reg = reg
        self.loss = loss
        self.class_weight = class_weight
        self.standardize = standardize
        self.bias = bias
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> GatedReLUClassifier:
        """Fit to (n, d) inputs and (n,) labels.

        Raises
        ------
        ValueError
            If inputs are not numbers, there is one class only, or an option is out of its range.

        Warns
        -----
        ConvergenceWarning
            If the gap is above ``tol`` at the end.
        """
        X, codes, weights = classified(self, X, y, sample_weight)
        if self.loss not in ("squared", "logistic"):
            raise ValueError(f"loss must be squared or logistic, got {self.loss!r}")
        signs = as_signs(codes, len(self.classes_))
        self.temperature_ = 1.0
        if self.loss == "squared":
            x = fit_gated(self, X, signs, weights, "squared")
            self.temperature_ = gated_temperature(self, x, signs, weights, codes)
        elif len(self.classes_) == 2:
            fit_gated(self, X, signs[:, 0], weights, "logistic")
        else:
            fit_gated(self, X, (signs + 1) / 2, weights, "softmax")
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Outputs of new inputs: (n,) for two classes, positive for the second, otherwise (n, classes)."""
        return as_scores(gated_outputs(self, X))

    def predict(self, X: Any) -> np.ndarray:
        """Labels of new inputs."""
        codes = as_codes(self.decision_function(X))
        return self.classes_[codes]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, classes) of new inputs; see ``temperature_`` for how they are calibrated."""
        scores = self.decision_function(X)
        return as_probabilities(self.temperature_ * scores)


class GatedReLURegressorCV(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Regression with a fixed kernel: λ and the number of reweighting steps from the NTK by cross-validation (M6).

    After no step the kernel is the NTK of the sampled gates, so that what is chosen is never worse on held-out rows.

    Parameters
    ----------
    num_gates : int
        P; many, as few of them cost accuracy (docs/comparison.md).
    standardize, bias, random_state
        As for :class:`GatedReLURegressor`.
    regs : sequence of float
        λ/λ_max to choose from.
    num_folds : int
        Folds of the cross-validation, in random order.
    max_steps : int
        Most reweighting steps.

    Attributes
    ----------
    reg_share_, n_steps_ : float, int
        What was chosen.
    path_ : ndarray (regs, max_steps + 1)
        Mean squared error on held-out rows, of standardised targets.
    kernel_weights_, gap_, n_active_gates_, network_, solution_, gates_, n_features_in_, feature_names_in_
        As for :class:`GatedReLURegressor`; the gap is that of where the steps end.
    """

    def __init__(
        self,
        num_gates: int = 2048,
        *,
        regs: Any = DEFAULT_REGRESSION_SHARES,
        num_folds: int = 4,
        max_steps: int = 6,
        standardize: bool = True,
        bias: bool = True,
        random_state: Any = None,
    ) -> None:
        self.num_gates = num_gates
        self.regs = regs
        self.num_folds = num_folds
        self.max_steps = max_steps
        self.standardize = standardize
        self.bias = bias
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> GatedReLURegressorCV:
        """Fit to (n, d) inputs and (n,) or (n, c) targets.

        Raises
        ------
        ValueError
            If inputs are not numbers, there are fewer rows than folds, or an option is out of its range.
        """
        X, y, weights = regressed(self, X, y, sample_weight)
        X, y, weights = distinct(X, y, weights)
        targets = standardised_targets(self, y, weights)
        folds = KFold(self.num_folds, shuffle=True, random_state=0).split(X)
        loss = partial(squared_loss, targets=targets, weights=weights)
        x, _ = fit_gated_cv(self, X, targets, weights, list(folds), loss)
        note_training(self, x, targets, weights)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Targets of new inputs, and with ``return_std`` deviations: see :meth:`GatedReLURegressor.predict`."""
        return predicted(self, X, gated_outputs, gated_process, return_std)

    def log_marginal_likelihood(self) -> float:
        """Log p(y) of the training targets under the Gaussian process of :meth:`predict`, summed over targets."""
        return log_likelihood(self, gated_process(self))


class GatedReLUClassifierCV(ClassifierMixin, BaseEstimator):
    """Classification with a fixed kernel: λ and the number of reweighting steps by cross-validation (M6).

    The squared loss on ±1, the log-loss to choose; after no step the kernel is the NTK of the sampled gates.

    Parameters
    ----------
    standardize, bias, random_state, class_weight
        As for :class:`GatedReLUClassifier`.
    num_gates, regs, num_folds, max_steps
        As for :class:`GatedReLURegressorCV`; folds are stratified.

    Attributes
    ----------
    classes_
        As for :class:`GatedReLUClassifier`.
    temperature_ : float
        Probabilities are the softmax of ``temperature_`` · outputs, for two classes the sigmoid; it minimises the
        log-loss of held-out outputs.
    reg_share_, n_steps_
        As for :class:`GatedReLURegressorCV`.
    path_ : ndarray (regs, max_steps + 1)
        Log-loss of held-out outputs, each at its best temperature.
    kernel_weights_, gap_, n_active_gates_, network_, solution_, gates_, n_features_in_, feature_names_in_
        As for :class:`GatedReLUClassifier`.
    """

    def __init__(
        self,
        num_gates: int = 2048,
        *,
        class_weight: Any = None,
        regs: Any = DEFAULT_REG_SHARES,
        num_folds: int = 4,
        max_steps: int = 6,
        standardize: bool = True,
        bias: bool = True,
        random_state: Any = None,
    ) -> None:
        self.num_gates = num_gates
        self.class_weight = class_weight
        self.regs = regs
        self.num_folds = num_folds
        self.max_steps = max_steps
        self.standardize = standardize
        self.bias = bias
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> GatedReLUClassifierCV:
        """Fit to (n, d) inputs and (n,) labels.

        Raises
        ------
        ValueError
            If inputs are not numbers, there is one class only, or an option is out of its range.
        """
        X, codes, weights = classified(self, X, y, sample_weight)
        signs = as_signs(codes, len(self.classes_))
        splitter = StratifiedKFold(min(self.num_folds, int(np.bincount(codes).max())), shuffle=True, random_state=0)
        with warnings.catch_warnings():
            # A class of fewer rows than folds is absent from some held-out parts.
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            folds = list(splitter.split(X, codes))
        _, outputs = fit_gated_cv(self, X, signs, weights, folds, lambda found: calibrated(found, weights, codes)[1])
        self.temperature_, _ = calibrated(outputs, weights, codes)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Outputs of new inputs: (n,) for two classes, positive for the second, otherwise (n, classes)."""
        return as_scores(gated_outputs(self, X))

    def predict(self, X: Any) -> np.ndarray:
        """Labels of new inputs."""
        codes = as_codes(self.decision_function(X))
        return self.classes_[codes]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, classes) of new inputs; see ``temperature_`` for how they are calibrated."""
        scores = self.decision_function(X)
        return as_probabilities(self.temperature_ * scores)


class NTKRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Kernel ridge regression with the NTK of a wide gated-ReLU network (M3, M15).

    Parameters
    ----------
    reg : float
        Ridge in units of the kernel's mean diagonal, positive.
    standardize, bias : bool
        As for :class:`GatedReLURegressor`.

    Attributes
    ----------
    dual_coef_ : ndarray (n, c)
        Coefficients of the training rows.
    loo_errors_ : ndarray (1,)
        Mean squared error of leave-one-out outputs, of standardised targets.
    X_fit_ : ndarray (n, d')
        Training rows, standardised, with a bias column and zero padding.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.
    """

    def __init__(self, *, reg: float = 0.01, standardize: bool = True, bias: bool = True) -> None:
        self.reg = reg
        self.standardize = standardize
        self.bias = bias

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NTKRegressor:
        """Fit to (n, d) inputs and (n,) or (n, c) targets.

        Raises
        ------
        ValueError
            If inputs are not numbers, or an option is out of its range.
        """
        X, y, weights = regressed(self, X, y, sample_weight)
        targets = standardised_targets(self, y, weights)
        fit_ntk(self, X, targets, weights, (self.reg,))
        note_training(self, self.X_fit_, targets, weights)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Targets (n,) or (n, c) of new inputs, and with ``return_std`` the standard deviations of new observations.

        The deviations, noise included, are those of the Gaussian process with the NTK as its covariance, whose mean
        this is, and of most likely scale and noise for ``reg_`` (M15).
        """
        return predicted(self, X, ntk_outputs, ntk_process, return_std)

    def log_marginal_likelihood(self) -> float:
        """Log p(y) of the training targets under the Gaussian process of :meth:`predict`, summed over targets."""
        return log_likelihood(self, ntk_process(self))


class NTKClassifier(ClassifierMixin, BaseEstimator):
    """Classification by kernel ridge regression on ±1 with the NTK of a wide gated-ReLU network (M3, M15).

    Parameters
    ----------
    reg, standardize, bias
        As for :class:`NTKRegressor`.
    class_weight : dict, "balanced" or None
        Weights of the classes, which multiply those of the rows.

    Attributes
    ----------
    classes_ : ndarray
        Labels in order.
    temperature_ : float
        As for :class:`GatedReLUClassifier`, exact here: the kernel does not depend on the targets.
    dual_coef_, X_fit_, n_features_in_, feature_names_in_
        As for :class:`NTKRegressor`.
    """

    def __init__(
        self, *, reg: float = 0.01, class_weight: Any = None, standardize: bool = True, bias: bool = True
    ) -> None:
        self.reg = reg
        self.class_weight = class_weight
        self.standardize = standardize
        self.bias = bias

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NTKClassifier:
        """Fit to (n, d) inputs and (n,) labels.

        Raises
        ------
        ValueError
            If inputs are not numbers, there is one class only, or an option is out of its range.
        """
        X, codes, weights = classified(self, X, y, sample_weight)
        signs = as_signs(codes, len(self.classes_))
        kernel, reg = fit_ntk(self, X, signs, weights, (self.reg,))
        self.temperature_ = fit_temperature(kernel, reg, signs, weights, codes, centre=False)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Outputs of new inputs: (n,) for two classes, positive for the second, otherwise (n, classes)."""
        return as_scores(ntk_outputs(self, X))

    def predict(self, X: Any) -> np.ndarray:
        """Labels of new inputs."""
        codes = as_codes(self.decision_function(X))
        return self.classes_[codes]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, classes) of new inputs; see ``temperature_`` for how they are calibrated."""
        scores = self.decision_function(X)
        return as_probabilities(self.temperature_ * scores)


class NTKRegressorCV(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """:class:`NTKRegressor` with the ridge that has the least squared error of leave-one-out outputs, in closed form.

    Parameters
    ----------
    regs : sequence of float
        To choose from.
    standardize, bias : bool
        As for :class:`NTKRegressor`.

    Attributes
    ----------
    reg_ : float
        The one chosen.
    loo_errors_ : ndarray
        Mean squared leave-one-out error for each of ``regs``, of standardised targets.
    dual_coef_, X_fit_, n_features_in_, feature_names_in_
        As for :class:`NTKRegressor`.
    """

    def __init__(self, regs: Any = DEFAULT_REGS, *, standardize: bool = True, bias: bool = True) -> None:
        self.regs = regs
        self.standardize = standardize
        self.bias = bias

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NTKRegressorCV:
        """Fit to (n, d) inputs and (n,) or (n, c) targets; one eigendecomposition for all ridges.

        Raises
        ------
        ValueError
            If inputs are not numbers, or an option is out of its range.
        """
        X, y, weights = regressed(self, X, y, sample_weight)
        X, y, weights = distinct(X, y, weights)
        targets = standardised_targets(self, y, weights)
        fit_ntk(self, X, targets, weights, self.regs)
        note_training(self, self.X_fit_, targets, weights)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Targets of new inputs, and with ``return_std`` deviations: see :meth:`NTKRegressor.predict`."""
        return predicted(self, X, ntk_outputs, ntk_process, return_std)

    def log_marginal_likelihood(self) -> float:
        """Log p(y) of the training targets under the Gaussian process of :meth:`predict`, summed over targets."""
        return log_likelihood(self, ntk_process(self))


class NTKClassifierCV(ClassifierMixin, BaseEstimator):
    """:class:`NTKClassifier` with the ridge that has the least squared error of leave-one-out outputs, in closed form.

    Parameters
    ----------
    regs : sequence of float
        To choose from.
    class_weight, standardize, bias
        As for :class:`NTKClassifier`.

    Attributes
    ----------
    reg_ : float
        The one chosen.
    loo_errors_ : ndarray
        Mean squared leave-one-out error on ±1 for each of ``regs``.
    classes_, temperature_, dual_coef_, X_fit_, n_features_in_, feature_names_in_
        As for :class:`NTKClassifier`.
    """

    def __init__(
        self, regs: Any = DEFAULT_REGS, *, class_weight: Any = None, standardize: bool = True, bias: bool = True
    ) -> None:
        self.regs = regs
        self.class_weight = class_weight
        self.standardize = standardize
        self.bias = bias

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NTKClassifierCV:
        """Fit to (n, d) inputs and (n,) labels; one eigendecomposition for all ridges.

        Raises
        ------
        ValueError
            If inputs are not numbers, there is one class only, or an option is out of its range.
        """
        X, codes, weights = classified(self, X, y, sample_weight)
        signs = as_signs(codes, len(self.classes_))
        kernel, reg = fit_ntk(self, X, signs, weights, self.regs)
        self.temperature_ = fit_temperature(kernel, reg, signs, weights, codes, centre=False)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Outputs of new inputs: (n,) for two classes, positive for the second, otherwise (n, classes)."""
        return as_scores(ntk_outputs(self, X))

    def predict(self, X: Any) -> np.ndarray:
        """Labels of new inputs."""
        codes = as_codes(self.decision_function(X))
        return self.classes_[codes]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, classes) of new inputs; see ``temperature_`` for how they are calibrated."""
        scores = self.decision_function(X)
        return as_probabilities(self.temperature_ * scores)
