"""What the estimators share: scaling, padding, the two fits, leave-one-out outputs, probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fixntk._checks import as_positive_int
from fixntk._numerics import float64_allowed, with_dtype
from fixntk._warnings import ConvergenceWarning
from fixntk.convex import ConvexProgram, Solution, solve
from fixntk.convex.program import canonical
from fixntk.convex.solvers import irls
from fixntk.estimators.gaussian_process import Posterior, condition
from fixntk.gates.masks import activation_masks, sample_gates
from fixntk.gram import masked_apply, masked_gram
from fixntk.ntk import gated_relu_ntk

# Rows and columns are padded with zeros to few sizes, so that tables of similar sizes share one compilation.
_SMALLEST_ROWS, _COLUMNS = 32, 8
_PREDICT_ROWS = 4096
# With deviations, which need kernels of all these rows with each other and with those fitted.
_DEVIATION_ROWS = 512

# Of rows with each other, or with others.
Kernel = Callable[..., Array]

# Ridges to choose from, in units of the kernel's mean diagonal.
DEFAULT_REGS = tuple(10.0**k for k in range(-6, 3))
# λ to choose from, in units of λ_max.
DEFAULT_REG_SHARES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
# Quantities can be almost without noise.
DEFAULT_REGRESSION_SHARES = (*DEFAULT_REG_SHARES, 0.0003, 0.0001, 0.00001)
# Sets the smoothing of the reweighting, which stops by the number of its steps.
_IRLS_TOL = 1e-6


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


def regressed(estimator: Any, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, targets (n,) or (n, c), whose shape is noted, and weights of rows."""
    X, y = validate_data(estimator, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
    estimator._squeeze = y.ndim == 1
    return X, y, _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)


def classified(estimator: Any, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct rows, their classes as numbers from 0, and weights of rows times those of classes."""
    X, y = validate_data(estimator, X, y, dtype=np.float64)
    check_classification_targets(y)
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    # Rows of weight zero do not count, nor do classes that have no others.
    X, y, weights = X[weights > 0], y[weights > 0], weights[weights > 0]
    estimator.classes_ = np.unique(y)
    if len(estimator.classes_) < 2:
        raise ValueError(f"y must hold at least two classes, got 1 class: {estimator.classes_.tolist()}")
    if estimator.class_weight is not None:
        weights = weights * compute_sample_weight(estimator.class_weight, y)
    codes = np.searchsorted(estimator.classes_, y)
    return distinct(X, codes, weights)


def distinct(X: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Copies of a row as one of their weight, so that leaving one out means leaving all out; none of weight zero."""
    if not np.any(weights > 0):
        raise ValueError("sample_weight must not be zero for all rows")
    X, y, weights = X[weights > 0], y[weights > 0], weights[weights > 0]
    _, first, group = np.unique(np.column_stack([X, y]), axis=0, return_index=True, return_inverse=True)
    return X[first], y[first], np.bincount(group.reshape(-1), weights)


def as_signs(codes: np.ndarray, num_classes: int) -> np.ndarray:
    """(n, 1) of ±1 for two classes, (n, k) for more."""
    signs = np.where(codes[:, None] == np.arange(num_classes), 1.0, -1.0)
    return signs[:, 1:] if num_classes == 2 else signs


def as_codes(scores: np.ndarray) -> np.ndarray:
    """Classes as numbers from scores, (n,) or (n, classes)."""
    return (scores > 0).astype(int) if scores.ndim == 1 else np.argmax(scores, axis=1)


def as_probabilities(logits: np.ndarray) -> np.ndarray:
    """(n, classes) probabilities from logits, (n,) or (n, classes)."""
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


def standardised_targets(estimator: Any, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Targets as (n, c) of mean 0 and deviation 1, both noted."""
    values = y.reshape(len(y), -1).astype(np.float64)
    estimator._target_mean, estimator._target_scale = _weighted_moments(values, weights)
    return (values - estimator._target_mean) / estimator._target_scale


def as_targets(estimator: Any, outputs: np.ndarray) -> np.ndarray:
    """(n, c) outputs in the unit and the shape of the targets."""
    targets = outputs * estimator._target_scale + estimator._target_mean
    return targets[:, 0] if estimator._squeeze else targets


def as_scores(outputs: np.ndarray) -> np.ndarray:
    """(n, c) outputs of a classifier as scores: (n,) for two classes, otherwise (n, classes)."""
    return outputs[:, 0] if outputs.shape[1] == 1 else outputs


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


def _check_regs(regs: Any, largest: float) -> list[float]:
    shares = [_check_reg(reg, largest) for reg in regs]
    if not shares:
        raise ValueError("regs must hold at least one number")
    return shares


def _padded(array: np.ndarray) -> np.ndarray:
    """With rows of zeros, to a size of 2^k or 1.5 · 2^k."""
    size = _SMALLEST_ROWS
    while size < len(array):
        size = size * 3 // 2 if (size & (size - 1)) == 0 else size * 4 // 3
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))


def fit_gated(estimator: Any, X: np.ndarray, targets: np.ndarray, weights: np.ndarray, loss: str) -> np.ndarray:
    """Solve the convex program and set the attributes; the scaled inputs."""
    share = _check_reg(estimator.reg, 1.0)
    x = _scaled(estimator, X, weights)
    with float64_allowed():
        program, gates, largest = _gated_program(estimator, x, targets, weights, loss)
        solution = solve(program.with_reg(share * largest), tol=estimator.tol, max_iter=estimator.max_iter)
    _set_gated(estimator, solution, gates)
    estimator.reg_ = share * largest
    return x


def fit_gated_cv(
    estimator: Any,
    X: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    folds: Any,
    loss: Callable[[np.ndarray], float],
) -> tuple[np.ndarray, np.ndarray]:
    """Choose λ and the number of reweighting steps by held-out outputs, and reweight so.

    Parameters
    ----------
    folds
        Pairs of indices of training and held-out rows.
    loss
        Of outputs (n, c).

    Returns
    -------
    x, outputs
        The scaled inputs, and the held-out outputs (n, c) of what was chosen.
    """
    shares = _check_regs(estimator.regs, 1.0)
    max_steps = as_positive_int("max_steps", estimator.max_steps)
    x = _scaled(estimator, X, weights)
    rows = _padded(x)
    held_out = np.zeros((len(folds), len(rows)), bool)
    sizes = np.array([len(train) for train, _ in folds])
    train = np.zeros((len(folds), len(_padded(x[: sizes.max()]))), int)
    for k, (kept, others) in enumerate(folds):
        train[k, : len(kept)], held_out[k, others] = kept, True
    # Indices that only fill up count for nothing.
    counted = np.where(np.arange(train.shape[1]) < sizes[:, None], weights[train], 0)
    with float64_allowed():
        program, gates, largest = _gated_program(estimator, x, targets, weights, "squared")
        regs = largest * jnp.asarray(shares)
        splits = _Splits(jnp.asarray(train), jnp.asarray(counted), jnp.asarray(held_out))
        problem = jnp.asarray(rows), jnp.asarray(_padded(targets)), program.masks
        outputs = np.asarray(_held_out_outputs(*problem, splits, regs, max_steps))[:, :, : len(x)]
        losses = np.array([[loss(of_step) for of_step in of_reg] for of_reg in outputs])
        # The fewest steps, and the largest λ, where losses are equal.
        order = np.argsort(-np.array(shares), kind="stable")
        first, steps = divmod(int(np.argmin(losses[order])), losses.shape[1])
        best = int(order[first])
        solution = _reweighted(program.with_reg(regs[best]), steps)
    _set_gated(estimator, solution, gates)
    estimator.reg_ = largest * shares[best]
    estimator.reg_share_, estimator.n_steps_ = shares[best], steps
    estimator.path_ = losses
    return x, outputs[best, steps]


def _reweighted(program: ConvexProgram, steps: int) -> Solution:
    """So many steps of iterative reweighting, without a warning: stopping early is what was chosen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return solve(program, method="irls", tol=_IRLS_TOL, max_iter=steps)


class _Splits(NamedTuple):
    """Of each fold the indices of its training rows, their weights, and which of all rows it holds out."""

    train: Array
    weights: Array
    held_out: Array


@partial(jax.jit, static_argnames="max_steps")
def _held_out_outputs(x: Array, targets: Array, masks: Array, splits: _Splits, regs: Array, max_steps: int) -> Array:
    """(λ, steps, n, c) outputs of each row without its fold, after 0, 1, … steps."""
    start = jnp.full(masks.shape[1], 1 / masks.shape[1], x.dtype)

    def of_fold(fold: _Splits) -> Array:
        given = x[fold.train], targets[fold.train], masks[fold.train], 1.0
        program = canonical(ConvexProgram(*given, sample_weight=fold.weights, intercept=True))
        outputs = lax.map(lambda reg: at_reg(program.with_reg(reg)), regs)
        return jnp.where(fold.held_out[:, None], outputs, 0)

    def at_reg(program: ConvexProgram) -> Array:
        def outputs(state: irls.IRLSState) -> Array:
            intercept = program.datafit.fit(program.fitted(state.weights)).intercept
            return masked_apply(masks, x, state.weights) + intercept

        def step(state: irls.IRLSState, _: None) -> tuple[irls.IRLSState, Array]:
            state = irls.step(program, state)
            return state, outputs(state)

        first = irls.init(program, start, irls.default_epsilon(program, _IRLS_TOL))
        _, following = lax.scan(step, first, length=max_steps)
        return jnp.concatenate([outputs(first)[None], following])

    # Each row is held out once; folds one after another, for their memory.
    shape = len(regs), max_steps + 1, *targets.shape
    total, _ = lax.scan(lambda sofar, fold: (sofar + of_fold(fold), None), jnp.zeros(shape, x.dtype), splits)
    return total


def _gated_program(
    estimator: Any, x: np.ndarray, targets: np.ndarray, weights: np.ndarray, loss: str
) -> tuple[ConvexProgram, Array, float]:
    """The convex program on padded rows at λ = 1, its gates, and λ_max."""
    seed = int(check_random_state(estimator.random_state).randint(2**31 - 1))
    columns = estimator.n_features_in_ + bool(estimator.bias)
    # Labels of padded rows have to be labels; their weight is zero.
    fill = {"logistic": 1.0, "softmax": np.eye(targets.shape[-1])[0]}.get(loss, 0.0)
    padded = _padded(targets)
    padded[len(targets) :] = fill
    # The same gates whatever the padding.
    gates = sample_gates(jax.random.key(seed), estimator.num_gates, columns)
    gates = jnp.pad(gates, ((0, 0), (0, -columns % _COLUMNS)))
    rows = jnp.asarray(_padded(x))
    problem = rows, jnp.asarray(padded), activation_masks(rows, gates), 1.0, loss
    # Without an intercept, so that a class of little weight does not set the scale.
    largest = float(ConvexProgram(*problem, sample_weight=_padded(weights)).max_reg())
    program = ConvexProgram(*problem, sample_weight=_padded(weights), intercept=True)
    return canonical(program), gates, largest if largest > 0 else 1.0


def _set_gated(estimator: Any, solution: Solution, gates: Array) -> None:
    with float64_allowed():
        network = replace(solution.to_network(gates), squeeze=solution.weights.shape[2] == 1)
    estimator.network_ = with_dtype(network, jnp.result_type(float))
    estimator.solution_ = jax.tree.map(np.asarray, solution)
    estimator.gates_ = np.asarray(gates)
    estimator.kernel_weights_ = np.asarray(solution.kernel_weights)
    estimator.gap_ = float(solution.relative_gap)
    estimator.n_active_gates_ = int(np.sum(np.any(np.asarray(solution.weights) != 0, axis=(1, 2))))
    estimator.n_iter_ = max(1, int(solution.iterations))


def gated_outputs(estimator: Any, X: Any) -> np.ndarray:
    """(n, c) outputs of the gated network on new inputs, in units of the targets fitted."""

    def outputs(rows: Array) -> np.ndarray:
        return np.asarray(estimator.solution_.predict(rows, estimator.gates_)).reshape(len(rows), -1)

    return _in_tiles(outputs, _new_inputs(estimator, X), _PREDICT_ROWS)


def _in_tiles(outputs: Callable[[Array], np.ndarray], x: np.ndarray, size: int) -> np.ndarray:
    """Outputs of all rows, so many at a time, padded like those of a fit."""
    with float64_allowed():
        tiles = [x[begin : begin + size] for begin in range(0, len(x), size)]
        return np.concatenate([outputs(jnp.asarray(_padded(tile)))[: len(tile)] for tile in tiles])


def fit_ntk(
    estimator: Any, X: np.ndarray, targets: np.ndarray, weights: np.ndarray, regs: Any
) -> tuple[np.ndarray, float]:
    """Ridge regression with the NTK, at the ridge with the least error of leave-one-out outputs; kernel and ridge."""
    shares = _check_regs(regs, np.inf)
    x = _scaled(estimator, X, weights)
    with float64_allowed():
        kernel = _on(gated_relu_ntk, x)
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
    estimator.reg_, estimator._ridge = shares[best], reg
    estimator.loo_errors_ = np.array(errors) / targets.shape[1]
    return kernel, reg


def ntk_outputs(estimator: Any, X: Any) -> np.ndarray:
    """(n, c) outputs of the ridge regression on new inputs, in units of the targets fitted."""
    x = _new_inputs(estimator, X)
    fitted, coefficients = _padded(estimator.X_fit_), _padded(estimator.dual_coef_)

    def outputs(rows: Array) -> np.ndarray:
        return np.asarray(gated_relu_ntk(rows, jnp.asarray(fitted))) @ coefficients

    return _in_tiles(outputs, x, _PREDICT_ROWS)


class Process(NamedTuple):
    """The Gaussian process of which a fitted regression is the mean, for standardised targets."""

    posterior: Posterior
    kernel: Kernel


def note_training(estimator: Any, x: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
    """Keep the rows that count, scaled, for the Gaussian process."""
    counted = weights > 0
    estimator._training = x[counted], targets[counted], weights[counted]


def gated_process(estimator: Any) -> Process:
    """With the learnt kernel, held fixed, and a constant for the intercept."""
    check_is_fitted(estimator)
    if getattr(estimator, "loss", "squared") != "squared":
        raise ValueError(f"standard deviations and likelihoods need the squared loss, this is {estimator.loss}")

    return _process(estimator, _gated_kernel(estimator), estimator.reg_, centre=True)


def ntk_process(estimator: Any) -> Process:
    """With the NTK, and no constant."""
    check_is_fitted(estimator)
    return _process(estimator, gated_relu_ntk, estimator._ridge, centre=False)


def _process(estimator: Any, kernel: Kernel, ridge: float, *, centre: bool) -> Process:
    x, targets, weights = estimator._training
    with float64_allowed():
        matrix = _on(kernel, x)
    return Process(condition(matrix, targets, ridge, weights, centre=centre), kernel)


def _gated_kernel(estimator: Any) -> Kernel:
    """The learnt kernel."""

    def kernel(rows: Array, others: Array | None = None) -> Array:
        masks = activation_masks(rows, estimator.gates_)
        other_masks = None if others is None else activation_masks(others, estimator.gates_)
        return masked_gram(estimator.kernel_weights_, masks, rows, other_masks, others)

    return kernel


def _on(kernel: Kernel, x: np.ndarray) -> np.ndarray:
    """The kernel's matrix on padded rows, without the padding."""
    return np.asarray(kernel(jnp.asarray(_padded(x))))[: len(x), : len(x)]


def predicted(
    estimator: Any,
    X: Any,
    outputs: Callable[[Any, Any], np.ndarray],
    process: Callable[[Any], Process],
    return_std: bool,
) -> Any:
    """Targets of new inputs, and where asked for their standard deviations, in the targets' unit and shape."""
    targets = as_targets(estimator, outputs(estimator, X))
    return (targets, _deviations(estimator, X, process(estimator))) if return_std else targets


def _deviations(estimator: Any, X: Any, process: Process) -> np.ndarray:
    """Standard deviations of new observations, in the unit and the shape of the targets."""
    fitted = estimator._training[0]

    def of_rows(rows: Array) -> np.ndarray:
        diagonal = np.diag(process.kernel(rows))
        cross = np.asarray(process.kernel(rows, jnp.asarray(_padded(fitted))))[:, : len(fitted)]
        return process.posterior.predict(cross, diagonal)[1]

    found = _in_tiles(of_rows, _new_inputs(estimator, X), _DEVIATION_ROWS) * estimator._target_scale
    return found[:, 0] if estimator._squeeze else found


def log_likelihood(estimator: Any, process: Process) -> float:
    """Log p(y), in the unit of the targets, summed over them."""
    return float(np.sum(process.posterior.log_marginal_likelihood(estimator._target_scale)))


def gated_temperature(
    estimator: Any, x: np.ndarray, signs: np.ndarray, weights: np.ndarray, codes: np.ndarray
) -> float:
    """:func:`fit_temperature` for the learnt kernel, held fixed."""
    with float64_allowed():
        kernel = _on(_gated_kernel(estimator), x)
    return fit_temperature(kernel, estimator.reg_, signs, weights, codes, centre=True)


def left_out(
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


def fit_temperature(
    kernel: np.ndarray, reg: float, signs: np.ndarray, weights: np.ndarray, codes: np.ndarray, *, centre: bool
) -> float:
    """Factor of leave-one-out outputs that minimises their weighted log-loss."""
    scores, counted = left_out(kernel, reg, signs, weights, centre=centre)
    return calibrated(scores, weights[counted], codes[counted])[0]


def squared_loss(outputs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean of squared errors."""
    return float(np.average(np.mean((outputs - targets) ** 2, axis=1), weights=weights))


def calibrated(scores: np.ndarray, weights: np.ndarray, codes: np.ndarray) -> tuple[float, float]:
    """The factor of scores (n, c) that minimises their weighted log-loss, and this loss."""
    logits = np.column_stack([np.zeros_like(scores), scores]) if scores.shape[1] == 1 else scores

    def log_loss(log_factor: float) -> float:
        chosen = log_softmax(np.exp(log_factor) * logits, axis=1)[np.arange(len(logits)), codes]
        return float(-np.average(chosen, weights=weights))

    found = minimize_scalar(log_loss, bounds=(-9, 9), method="bounded")
    return float(np.exp(found.x)), float(found.fun)
