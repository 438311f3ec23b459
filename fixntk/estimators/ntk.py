"""scikit-learn estimators that are kernel ridge regressions with the NTK of a wide gated-ReLU network, or a deeper one.

Rows are standardised and get a bias column; both are options. Everything is computed in float64. The ridge is given in
units of the kernel's mean diagonal.

See docs/mathematics.md, M3, M13 and M15.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from fixntk.estimators.calibration import fit_temperature
from fixntk.estimators.mixins import ClassificationMixin, NTKMixin, RegressionMixin
from fixntk.estimators.ntk_fits import DEFAULT_REGS
from fixntk.estimators.preprocessing import as_codes, as_scores, distinct_rows


class NTKRegressor(NTKMixin, RegressionMixin, BaseEstimator):
    """Kernel ridge regression with the NTK of a wide gated-ReLU network.

    Parameters
    ----------
    reg : float
        Ridge in units of the kernel's mean diagonal, positive.
    depth : int, sequence of int or "auto"
        Number of hidden layers. 1: the NTK of the gated-ReLU network, whose hidden layer alone is trained; more: that
        of the fully connected ReLU network with all layers trained. Of a sequence, the one with the least squared
        error of leave-one-out outputs; "auto" for 1, 2, 3 and 5.
    standardize, bias : bool
        As for :class:`GatedReLURegressor`.
    bias_scale : float, sequence of float or "auto"
        Value of the bias column, in units of the other columns' standard deviation. With a larger one, more hyperplanes
        of the network's gates pass far from the centre of the rows. Of a sequence, the one with the least error,
        together with the depth; "auto" for 0.3, 1, 3 and 10.
    verbose : int
        Above 0, show a bar over the kernels that are tried, and print the number of landmarks of an approximation.

    Attributes
    ----------
    depth_, bias_scale_ : int, float
        What was chosen; a scale of 0 stands for no bias column.
    choice_errors_ : dict
        Mean squared leave-one-out error, of standardised targets, of each pair of a depth and a scale.
    is_exact_ : bool
        Whether the whole kernel was decomposed, as it is up to 10,000 rows. For more rows it is approximated from
        landmark rows (:func:`fixntk.nystrom`), at most 2048, which ``X_fit_`` and ``dual_coef_`` then belong to.
    trace_left_ : float
        Share of the kernel's trace that the approximation leaves out, 0 where the kernel is exact.
    dual_coef_ : ndarray (n, c)
        Coefficients of the training rows.
    loo_errors_ : ndarray (1,)
        Mean squared error of leave-one-out outputs, of standardised targets.
    X_fit_ : ndarray (n, d')
        Training rows, standardised, with a bias column and zero padding.
    feature_importances_ : ndarray (d,)
        As for :class:`GatedReLURegressor`.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    See docs/mathematics.md, M3 and M15.
    """

    def __init__(
        self,
        *,
        reg: float = 0.01,
        depth: Any = 1,
        standardize: bool = True,
        bias: bool = True,
        bias_scale: Any = 1.0,
        verbose: int = 0,
    ) -> None:
        self.reg = reg
        self.depth = depth
        self.standardize = standardize
        self.bias = bias
        self.bias_scale = bias_scale
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NTKRegressor:
        """Fit to (n, d) inputs and (n,) or (n, c) targets.

        Raises
        ------
        ValueError
            If inputs are not numbers, or an option is out of its range.
        """
        choice = self._fit_ntk(self._read(X, y, sample_weight), (self.reg,))
        self._store(choice.training)
        return self


class NTKClassifier(NTKMixin, ClassificationMixin, BaseEstimator):
    """Classification by kernel ridge regression on ±1 with the NTK of a wide gated-ReLU network.

    Parameters
    ----------
    reg, depth, standardize, bias, bias_scale, verbose
        As for :class:`NTKRegressor`.
    class_weight : dict, "balanced" or None
        Weights of the classes, which multiply the weights of the rows.

    Attributes
    ----------
    classes_ : ndarray
        Labels in order.
    temperature_ : float
        As for :class:`GatedReLUClassifier`, exact here: the kernel does not depend on the targets.
    depth_, bias_scale_, choice_errors_, dual_coef_, X_fit_, is_exact_, trace_left_
        As for :class:`NTKRegressor`.
    feature_importances_, n_features_in_, feature_names_in_
        As for :class:`NTKRegressor`.

    See docs/mathematics.md, M3 and M15.
    """

    def __init__(
        self,
        *,
        reg: float = 0.01,
        class_weight: Any = None,
        depth: Any = 1,
        standardize: bool = True,
        bias: bool = True,
        bias_scale: Any = 1.0,
        verbose: int = 0,
    ) -> None:
        self.reg = reg
        self.class_weight = class_weight
        self.depth = depth
        self.standardize = standardize
        self.bias = bias
        self.bias_scale = bias_scale
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NTKClassifier:
        """Fit to (n, d) inputs and (n,) labels.

        Raises
        ------
        ValueError
            If inputs are not numbers, there is one class only, or an option is out of its range.
        """
        training, codes = self._read(X, y, sample_weight)
        fit = self._fit_ntk(training, (self.reg,)).fit
        self.temperature_ = fit_temperature(fit.left_out_outputs, training.weights, codes)
        return self


class NTKRegressorCV(NTKMixin, RegressionMixin, BaseEstimator):
    """:class:`NTKRegressor` with the ridge that has the least squared error of leave-one-out outputs, in closed form.

    Parameters
    ----------
    regs : sequence of float
        Candidates for the ridge.
    depth, standardize, bias, bias_scale, verbose
        As for :class:`NTKRegressor`; each depth and scale at its own best ridge.

    Attributes
    ----------
    reg_ : float
        The ridge chosen.
    loo_errors_ : ndarray
        Mean squared leave-one-out error for each of ``regs``, of standardised targets.
    loo_score_ : float
        R² of leave-one-out predictions at the ridge chosen, the mean over targets.
    depth_, bias_scale_, choice_errors_, dual_coef_, X_fit_, is_exact_, trace_left_
        As for :class:`NTKRegressor`.
    feature_importances_, n_features_in_, feature_names_in_
        As for :class:`NTKRegressor`.

    See docs/mathematics.md, M3 and M15.
    """

    def __init__(
        self,
        regs: Any = DEFAULT_REGS,
        *,
        depth: Any = 1,
        standardize: bool = True,
        bias: bool = True,
        bias_scale: Any = 1.0,
        verbose: int = 0,
    ) -> None:
        self.regs = regs
        self.depth = depth
        self.standardize = standardize
        self.bias = bias
        self.bias_scale = bias_scale
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NTKRegressorCV:
        """Fit to (n, d) inputs and (n,) or (n, c) targets; one eigendecomposition for all ridges.

        Raises
        ------
        ValueError
            If inputs are not numbers, or an option is out of its range.
        """
        choice = self._fit_ntk(self._read(X, y, sample_weight, distinct_rows), self.regs)
        self._store(choice.training)
        self.loo_score_ = float(1 - self.loo_errors_.min())
        return self


class NTKClassifierCV(NTKMixin, ClassificationMixin, BaseEstimator):
    """:class:`NTKClassifier` with the ridge that has the least squared error of leave-one-out outputs, in closed form.

    Parameters
    ----------
    regs : sequence of float
        Candidates for the ridge.
    class_weight, depth, standardize, bias, bias_scale, verbose
        As for :class:`NTKClassifier`; each depth and scale at its own best ridge.

    Attributes
    ----------
    reg_ : float
        The ridge chosen.
    loo_errors_ : ndarray
        Mean squared leave-one-out error on ±1 for each of ``regs``.
    loo_score_ : float
        Accuracy of leave-one-out predictions at the ridge chosen.
    classes_, temperature_, depth_, bias_scale_, choice_errors_, dual_coef_, X_fit_, is_exact_, trace_left_
        As for :class:`NTKClassifier`.
    feature_importances_, n_features_in_, feature_names_in_
        As for :class:`NTKClassifier`.

    See docs/mathematics.md, M3 and M15.
    """

    def __init__(
        self,
        regs: Any = DEFAULT_REGS,
        *,
        class_weight: Any = None,
        depth: Any = 1,
        standardize: bool = True,
        bias: bool = True,
        bias_scale: Any = 1.0,
        verbose: int = 0,
    ) -> None:
        self.regs = regs
        self.class_weight = class_weight
        self.depth = depth
        self.standardize = standardize
        self.bias = bias
        self.bias_scale = bias_scale
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NTKClassifierCV:
        """Fit to (n, d) inputs and (n,) labels; one eigendecomposition for all ridges.

        Raises
        ------
        ValueError
            If inputs are not numbers, there is one class only, or an option is out of its range.
        """
        training, codes = self._read(X, y, sample_weight)
        fit = self._fit_ntk(training, self.regs).fit
        self.temperature_ = fit_temperature(fit.left_out_outputs, training.weights, codes)
        is_right = as_codes(as_scores(fit.left_out_outputs)) == codes
        self.loo_score_ = float(np.average(is_right, weights=training.weights))
        return self
