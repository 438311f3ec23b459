"""scikit-learn estimators of gated-ReLU networks, trained to the optimum of their convex program.

Rows are standardised and get a bias column; both are options. Everything is computed in float64. Regularisation is
given without a unit, as λ/λ_max, with λ_max of the program without its intercept.

See docs/mathematics.md, M5, M6, M7 and M10.
"""

from __future__ import annotations

from typing import Any

from sklearn.base import BaseEstimator

from fixntk.estimators.calibration import fit_temperature
from fixntk.estimators.fitting import (
    LearntKernel,
    leave_one_out,
)
from fixntk.estimators.gate_options import STARTING_AT_RANDOM
from fixntk.estimators.mixins import ClassificationMixin, GatedMixin, RegressionMixin
from fixntk.estimators.one_reg import fit_gated


class GatedReLURegressor(GatedMixin, RegressionMixin, BaseEstimator):
    """Regression with a gated-ReLU network, trained to its certified optimum.

    Parameters
    ----------
    num_gates : int
        P, the number of gates that are drawn.
    gates : str, array (P, d') or callable
        Where the gates come from. "random": hyperplanes N(0, I) in the scaled inputs. "discovered": from random ones
        on by column generation (:func:`fixntk.discover`), which takes longer and gains most where few directions
        matter. "trained": the neurons of a ReLU network that is trained by gradient descent, each of which is its own
        gate. A name of :data:`fixntk.gates.samplers.SAMPLERS`, such as "through_points" or "between_classes": drawn
        from the training rows. An array of gates on the scaled inputs, followed by the bias column where there is one.
        A function (key, num_gates, x, y) of these inputs and a scaled target.
    reg : float
        λ/λ_max, between 0 and 1.
    loss : str
        "squared" or "huber" (with its bend at one standard deviation of y).
    standardize, bias : bool
        Whether to bring columns to mean 0 and deviation 1, and to add a constant column for the gates.
    bias_scale : float, sequence of float or "auto"
        Value of that column, as for :class:`NTKRegressor`; chosen by the NTK's errors, once for all training rows.
    tol : float or None
        Relative duality gap to reach, below 1; None for 1e-6.
    max_iter : int or None
        Largest number of solver steps.
    random_state : int, RandomState or None
        For the gates.
    verbose : int
        Show a progress bar if positive.

    Attributes
    ----------
    kernel_weights_ : ndarray (P,)
        η of the fixed kernel.
    gap_ : float
        Relative duality gap reached: a bound on the objective's distance from the optimum, as a share of the objective
        of zero weights.
    n_active_gates_ : int
        Number of gates with a nonzero weight.
    network_ : GatedReLUNetwork
        The network, on standardised inputs with a bias column and zero padding, for standardised targets; outputs (n,)
        where there is one.
    solution_ : Solution
        Of the convex program.
    gates_ : ndarray (P, d')
        Gates on these inputs.
    bias_scale_, bias_scale_errors_ : float, dict
        The value of the bias column, 0 for none; and the NTK's error for each, empty where there was one only.
    feature_importances_ : ndarray (d,)
        Mean square of the prediction's derivative by each feature over the training rows, scaled to sum to 1: the
        diagonal of the average gradient outer product of the scaled features. Zeros for a constant prediction.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    See docs/mathematics.md, M5 and M10.
    """

    _other_sources = STARTING_AT_RANDOM

    def __init__(
        self,
        num_gates: int = 512,
        *,
        gates: Any = "random",
        reg: float = 0.01,
        loss: str = "squared",
        standardize: bool = True,
        bias: bool = True,
        bias_scale: Any = 1.0,
        tol: float | None = None,
        max_iter: int | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.num_gates = num_gates
        self.gates = gates
        self.reg = reg
        self.loss = loss
        self.standardize = standardize
        self.bias = bias
        self.bias_scale = bias_scale
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.verbose = verbose

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
        training = self._choose_bias_scale(self._read(X, y, sample_weight))
        if self.loss not in ("squared", "huber"):
            raise ValueError(f"loss must be squared or huber, got {self.loss!r}")
        gates = self._gate_options()
        options: dict[str, Any] = {"tol": self.tol, "max_iter": self.max_iter, "progress": self.verbose > 0}
        fit = fit_gated(training, gates, reg=self.reg, loss=self.loss, **options)
        self._set_fit(fit, training)
        self._store(training)
        return self


class GatedReLUClassifier(GatedMixin, ClassificationMixin, BaseEstimator):
    """Classification with a gated-ReLU network, trained to its certified optimum.

    Parameters
    ----------
    num_gates, gates, reg, standardize, bias, bias_scale, tol, max_iter, random_state, verbose
        As for :class:`GatedReLURegressor`.
    loss : str
        "squared", on ±1 for two classes and for each of several against the rest, with one kernel for all; or
        "logistic", the log-loss, of the softmax for several.
    class_weight : dict, "balanced" or None
        Weights of the classes, which multiply the weights of the rows.

    Attributes
    ----------
    classes_ : ndarray
        Labels in order.
    temperature_ : float
        Probabilities with the squared loss are the softmax of ``temperature_`` · outputs, for two classes the sigmoid;
        it minimises the log-loss of leave-one-out outputs, which have closed forms with the learnt kernel held fixed. 1
        with the log-loss, whose outputs are logits already.
    kernel_weights_, gap_, n_active_gates_, network_, solution_, gates_, feature_importances_
        As for :class:`GatedReLURegressor`.

    See docs/mathematics.md, M5 and M10.
    """

    _other_sources = STARTING_AT_RANDOM

    def __init__(
        self,
        num_gates: int = 512,
        *,
        gates: Any = "random",
        reg: float = 0.01,
        loss: str = "squared",
        class_weight: Any = None,
        standardize: bool = True,
        bias: bool = True,
        bias_scale: Any = 1.0,
        tol: float | None = None,
        max_iter: int | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.num_gates = num_gates
        self.gates = gates
        self.reg = reg
        self.loss = loss
        self.class_weight = class_weight
        self.standardize = standardize
        self.bias = bias
        self.bias_scale = bias_scale
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.verbose = verbose

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
        training, codes = self._read(X, y, sample_weight)
        training = self._choose_bias_scale(training)
        if self.loss not in ("squared", "logistic"):
            raise ValueError(f"loss must be squared or logistic, got {self.loss!r}")
        loss = "softmax" if self.loss == "logistic" and len(self.classes_) > 2 else self.loss
        gates = self._gate_options()
        options: dict[str, Any] = {"tol": self.tol, "max_iter": self.max_iter, "progress": self.verbose > 0}
        fit = fit_gated(training, gates, reg=self.reg, loss=loss, **options)
        self._set_fit(fit, training)
        self.temperature_ = 1.0
        if self.loss == "squared":
            outputs = leave_one_out(LearntKernel(self.kernel_weights_, self.gates_), training, self.reg_)
            self.temperature_ = fit_temperature(outputs, training.weights, codes)
        return self
