r"""Estimators with scikit-learn's habits: the gated-ReLU network's convex program, and ridge regression with the NTK.

Rows are standardised and get a bias column; both are options. Everything is computed in float64. Regularisation has no
unit: for the gated ReLU it is λ/λ_max (M7), λ_max that of the program without its intercept; for the NTK the ridge in
units of the kernel's mean diagonal.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fixntk._numerics import float64_allowed, with_dtype
from fixntk.convex import ConvexProgram, Solution, solve
from fixntk.gates import activation_masks, sample_gates
from fixntk.gram import masked_gram
from fixntk.ntk import gated_relu_ntk

# Rows and columns are padded with zeros to few sizes, so that tables of similar sizes share one compilation.
_SMALLEST_ROWS, _COLUMNS = 32, 8
_PREDICT_ROWS = 4096

# Ridges to choose from, in units of the kernel's mean diagonal.
DEFAULT_REGS = tuple(10.0**k for k in range(-6, 3))


class _Scaling(NamedTuple):
    """What brings inputs to mean 0 and deviation 1, with a bias column or not, and zero columns up to a size."""

    mean: np.ndarray
    scale: np.ndarray
    bias: bool

    def __call__(self, x: np.ndarray) -> np.ndarray:
        scaled = (x - self.mean) / self.scale
        columns = [scaled, np.ones((len(x), 1))] if self.bias else [scaled]
        width = scaled.shape[1] + self.bias
        return np.column_stack([*columns, np.zeros((len(x), -width % _COLUMNS))])


class _Targets(NamedTuple):
    """Numbers to fit, (n, c), and what their outputs mean."""

    values: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


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
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if self.loss not in ("squared", "huber"):
            raise ValueError(f"loss must be squared or huber, got {self.loss!r}")
        self._targets = _standardised_targets(y, weights)
        self._squeeze = y.ndim == 1
        _fit_gated(self, X, self._targets.values, weights, self.loss)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Targets (n,) or (n, c) of new inputs."""
        outputs = _gated_outputs(self, X) * self._targets.scale + self._targets.mean
        return outputs[:, 0] if self._squeeze else outputs


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
        Probabilities with the squared loss are the softmax of temperature_ · outputs, the sigmoid for two classes; it
        minimises the log-loss of leave-one-out outputs, which are closed forms where the learnt kernel is held fixed.
        1 with the log-loss, whose outputs are logits already.
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
        X, codes, weights = _classified(self, X, y, sample_weight)
        if self.loss not in ("squared", "logistic"):
            raise ValueError(f"loss must be squared or logistic, got {self.loss!r}")
        signs = _signs(codes, len(self.classes_))
        self.temperature_ = 1.0
        if self.loss == "squared":
            x = _fit_gated(self, X, signs, weights, "squared")
            with float64_allowed():
                masks = activation_masks(x, self.gates_)
                kernel = np.asarray(masked_gram(self.solution_.kernel_weights, masks, x))
            reg = float(self.reg_)
            self.temperature_ = _temperature(kernel, reg, signs, weights, codes, centre=True)
        elif len(self.classes_) == 2:
            _fit_gated(self, X, signs[:, 0], weights, "logistic")
        else:
            _fit_gated(self, X, (signs + 1) / 2, weights, "softmax")
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Outputs of new inputs: (n,) for two classes, positive for the second, otherwise (n, classes)."""
        outputs = _gated_outputs(self, X)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def predict(self, X: Any) -> np.ndarray:
        """Labels of new inputs."""
        codes = _codes(self.decision_function(X))
        return self.classes_[codes]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, classes) of new inputs; see ``temperature_`` for how they are calibrated."""
        scores = self.decision_function(X)
        return _probabilities(self.temperature_ * scores)


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
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self._targets = _standardised_targets(y, weights)
        self._squeeze = y.ndim == 1
        _fit_ntk(self, X, self._targets.values, weights, (self.reg,))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Targets (n,) or (n, c) of new inputs."""
        outputs = _ntk_outputs(self, X) * self._targets.scale + self._targets.mean
        return outputs[:, 0] if self._squeeze else outputs


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
        X, codes, weights = _classified(self, X, y, sample_weight)
        signs = _signs(codes, len(self.classes_))
        kernel, reg = _fit_ntk(self, X, signs, weights, (self.reg,))
        self.temperature_ = _temperature(kernel, reg, signs, weights, codes, centre=False)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Outputs of new inputs: (n,) for two classes, positive for the second, otherwise (n, classes)."""
        outputs = _ntk_outputs(self, X)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def predict(self, X: Any) -> np.ndarray:
        """Labels of new inputs."""
        codes = _codes(self.decision_function(X))
        return self.classes_[codes]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, classes) of new inputs; see ``temperature_`` for how they are calibrated."""
        scores = self.decision_function(X)
        return _probabilities(self.temperature_ * scores)


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
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self._squeeze = y.ndim == 1
        X, y, weights = _distinct(X, y, weights)
        self._targets = _standardised_targets(y, weights)
        _fit_ntk(self, X, self._targets.values, weights, self.regs)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Targets (n,) or (n, c) of new inputs."""
        outputs = _ntk_outputs(self, X) * self._targets.scale + self._targets.mean
        return outputs[:, 0] if self._squeeze else outputs


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
        X, codes, weights = _classified(self, X, y, sample_weight)
        signs = _signs(codes, len(self.classes_))
        kernel, reg = _fit_ntk(self, X, signs, weights, self.regs)
        self.temperature_ = _temperature(kernel, reg, signs, weights, codes, centre=False)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Outputs of new inputs: (n,) for two classes, positive for the second, otherwise (n, classes)."""
        outputs = _ntk_outputs(self, X)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def predict(self, X: Any) -> np.ndarray:
        """Labels of new inputs."""
        codes = _codes(self.decision_function(X))
        return self.classes_[codes]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, classes) of new inputs; see ``temperature_`` for how they are calibrated."""
        scores = self.decision_function(X)
        return _probabilities(self.temperature_ * scores)


def _classified(estimator: Any, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct rows, their classes as numbers from 0, and weights of rows times those of classes."""
    X, y = validate_data(estimator, X, y, dtype=np.float64)
    check_classification_targets(y)
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    # Rows of weight zero do not count, nor do classes that have no others.
    X, y, weights = X[weights > 0], y[weights > 0], weights[weights > 0]
    estimator.classes_ = np.unique(y)
    if len(estimator.classes_) < 2:
        raise ValueError(f"y must hold at least two classes, got 1 class: {estimator.classes_.tolist()}")
    present = np.isin(y, estimator.classes_)
    X, y, weights = X[present], y[present], weights[present]
    if estimator.class_weight is not None:
        weights = weights * compute_sample_weight(estimator.class_weight, y)
    codes = np.searchsorted(estimator.classes_, y)
    return _distinct(X, codes, weights)


def _distinct(X: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Copies of a row as one of their weight, so that leaving one out means leaving all out."""
    _, first, group = np.unique(np.column_stack([X, y]), axis=0, return_index=True, return_inverse=True)
    return X[first], y[first], np.bincount(group.reshape(-1), weights)


def _signs(codes: np.ndarray, num_classes: int) -> np.ndarray:
    """(n, 1) of ±1 for two classes, (n, k) for more."""
    signs = np.where(codes[:, None] == np.arange(num_classes), 1.0, -1.0)
    return signs[:, 1:] if num_classes == 2 else signs


def _codes(scores: np.ndarray) -> np.ndarray:
    return (scores > 0).astype(int) if scores.ndim == 1 else np.argmax(scores, axis=1)


def _probabilities(logits: np.ndarray) -> np.ndarray:
    if logits.ndim == 1:
        return np.column_stack([expit(-logits), expit(logits)])
    return softmax(logits, axis=1)


def _weighted_moments(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each column, the deviation 1 where a column is constant."""
    total = weights.sum()
    if total == 0:
        raise ValueError("sample_weight must not be zero for all rows")
    largest = np.maximum(np.abs(values).max(axis=0), np.finfo(float).tiny)
    scaled = values / largest
    mean = weights @ scaled / total
    deviation = np.sqrt(weights @ (scaled - mean) ** 2 / total)
    constant = deviation <= 10 * np.finfo(float).eps * np.maximum(np.abs(mean), 1)
    return mean * largest, np.where(constant, 1.0, deviation * largest)


def _standardised_targets(y: np.ndarray, weights: np.ndarray) -> _Targets:
    values = y.reshape(len(y), -1).astype(np.float64)
    mean, scale = _weighted_moments(values, weights)
    return _Targets((values - mean) / scale, mean, scale)


def _scaled(estimator: Any, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fit the scaling and apply it."""
    mean, scale = _weighted_moments(x, weights)
    if not estimator.standardize:
        mean, scale = np.zeros_like(mean), np.ones_like(scale)
    estimator._scaling = _Scaling(mean, scale, bool(estimator.bias))
    return estimator._scaling(x)


def _new_inputs(estimator: Any, X: Any) -> np.ndarray:
    check_is_fitted(estimator)
    return estimator._scaling(validate_data(estimator, X, reset=False, dtype=np.float64))


def _check_reg(reg: Any, largest: float) -> float:
    if not isinstance(reg, int | float | np.number) or not 0 < float(reg) < largest:
        raise ValueError(f"reg must be a number between 0 and {largest:g}, got {reg!r}")
    return float(reg)


def _padded(array: np.ndarray) -> np.ndarray:
    """With rows of zeros, to a size of 2^k or 1.5 · 2^k."""
    size = _SMALLEST_ROWS
    while size < len(array):
        size = size * 3 // 2 if (size & (size - 1)) == 0 else size * 4 // 3
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))


def _fit_gated(estimator: Any, X: np.ndarray, targets: np.ndarray, weights: np.ndarray, loss: str) -> np.ndarray:
    """Solve the convex program and set the attributes; the scaled inputs."""
    share = _check_reg(estimator.reg, 1.0)
    x = _scaled(estimator, X, weights)
    seed = int(check_random_state(estimator.random_state).randint(2**31 - 1))
    columns = X.shape[1] + bool(estimator.bias)
    # Labels of padded rows have to be labels; their weight is zero.
    fill = {"logistic": 1.0, "softmax": np.eye(targets.shape[-1])[0]}.get(loss, 0.0)
    padded = _padded(targets)
    padded[len(targets) :] = fill
    with float64_allowed():
        # The same gates whatever the padding.
        gates = jnp.pad(sample_gates(jax.random.key(seed), estimator.num_gates, columns), ((0, 0), (0, -columns % 8)))
        rows = jnp.asarray(_padded(x))
        problem = rows, jnp.asarray(padded), activation_masks(rows, gates), 1.0, loss
        # Without an intercept, so that a class of little weight does not set the scale.
        largest = float(ConvexProgram(*problem, sample_weight=_padded(weights)).max_reg())
        program = ConvexProgram(*problem, sample_weight=_padded(weights), intercept=True)
        reg = share * largest if largest > 0 else 1.0
        solution: Solution = solve(program.with_reg(reg), tol=estimator.tol, max_iter=estimator.max_iter)
        network = replace(solution.to_network(gates), squeeze=program.group_shape[2] == 1)
        estimator.solution_ = jax.tree.map(np.asarray, solution)
        estimator.gates_ = np.asarray(gates)
    estimator.reg_ = reg
    estimator.network_ = with_dtype(network, jnp.result_type(float))
    estimator.kernel_weights_ = np.asarray(solution.kernel_weights)
    estimator.gap_ = float(solution.relative_gap)
    estimator.n_active_gates_ = int(np.sum(np.any(np.asarray(solution.weights) != 0, axis=(1, 2))))
    estimator.n_iter_ = max(1, int(solution.iterations))
    return x


def _gated_outputs(estimator: Any, X: Any) -> np.ndarray:
    x = _new_inputs(estimator, X)
    with float64_allowed():
        tiles = [
            np.asarray(_linear_outputs(estimator.solution_, jnp.asarray(_padded(tile)), estimator.gates_))[: len(tile)]
            for tile in _tiles(x)
        ]
    return np.concatenate(tiles)


def _linear_outputs(solution: Solution, x: Array, gates: np.ndarray) -> Array:
    outputs = solution.predict(x, gates)
    return outputs[:, None] if outputs.ndim == 1 else outputs


def _tiles(x: np.ndarray) -> list[np.ndarray]:
    return [x[begin : begin + _PREDICT_ROWS] for begin in range(0, len(x), _PREDICT_ROWS)]


def _fit_ntk(
    estimator: Any, X: np.ndarray, targets: np.ndarray, weights: np.ndarray, regs: Any
) -> tuple[np.ndarray, float]:
    """Ridge regression with the NTK, at the ridge with the least error of leave-one-out outputs; kernel and ridge."""
    shares = [_check_reg(reg, np.inf) for reg in regs]
    if not shares:
        raise ValueError("regs must hold at least one number")
    x = _scaled(estimator, X, weights)
    with float64_allowed():
        kernel = np.asarray(gated_relu_ntk(jnp.asarray(_padded(x))))[: len(x), : len(x)]
    unit = float(weights @ np.diag(kernel)) / weights.sum() or 1.0
    root = np.sqrt(weights)
    eigenvalues, vectors = np.linalg.eigh(root[:, None] * kernel * root)
    eigenvalues = np.maximum(eigenvalues, 0)
    rotated = vectors.T @ (root[:, None] * targets)
    errors = []
    for share in shares:
        left = share * unit / (eigenvalues + share * unit)
        residuals = vectors @ (left[:, None] * rotated)
        # 1 − h of each row, for rows of weight zero 1.
        errors.append(np.sum((residuals / np.maximum(vectors**2 @ left, 1e-12)[:, None]) ** 2) / weights.sum())
    best = int(np.argmin(errors))
    reg = shares[best] * unit
    estimator.dual_coef_ = root[:, None] * (vectors @ (rotated / (eigenvalues + reg)[:, None]))
    estimator.X_fit_ = x
    estimator.reg_ = shares[best]
    estimator.loo_errors_ = np.array(errors) / targets.shape[1]
    return kernel, reg


def _ntk_outputs(estimator: Any, X: Any) -> np.ndarray:
    x = _new_inputs(estimator, X)
    fitted = _padded(estimator.X_fit_)
    coefficients = _padded(estimator.dual_coef_)
    with float64_allowed():
        tiles = [
            np.asarray(gated_relu_ntk(jnp.asarray(_padded(tile)), jnp.asarray(fitted)))[: len(tile)] @ coefficients
            for tile in _tiles(x)
        ]
    return np.concatenate(tiles)


def _left_out(
    kernel: np.ndarray, reg: float, targets: np.ndarray, weights: np.ndarray, *, centre: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of kernel ridge regressions without the row itself, of the rows that count, and which these are.

    Leaving out row i changes its output to y_i − r_i / (1 − h_i), with residual r and leverage h of the whole.
    """
    counted = weights > 0
    root = np.sqrt(weights[counted])
    matrix = root[:, None] * kernel[np.ix_(counted, counted)] * root
    inverse = np.linalg.inv(matrix + reg * np.eye(len(root)))
    hat = np.eye(len(root)) - reg * inverse
    if centre:
        # An intercept takes what is along the roots of the weights.
        along = inverse @ root
        hat += reg * np.outer(along, along) / (root @ along)
    scaled = root[:, None] * targets[counted]
    residuals = (scaled - hat @ scaled) / np.maximum(1 - np.diag(hat), 1e-12)[:, None] / root[:, None]
    return targets[counted] - residuals, counted


def _temperature(
    kernel: np.ndarray, reg: float, signs: np.ndarray, weights: np.ndarray, codes: np.ndarray, *, centre: bool
) -> float:
    """Factor of leave-one-out outputs that minimises their weighted log-loss."""
    scores, counted = _left_out(kernel, reg, signs, weights, centre=centre)
    logits = np.column_stack([np.zeros_like(scores), scores]) if scores.shape[1] == 1 else scores

    def log_loss(log_factor: float) -> float:
        chosen = log_softmax(np.exp(log_factor) * logits, axis=1)[np.arange(len(logits)), codes[counted]]
        return float(-np.average(chosen, weights=weights[counted]))

    return float(np.exp(minimize_scalar(log_loss, bounds=(-9, 9), method="bounded").x))
