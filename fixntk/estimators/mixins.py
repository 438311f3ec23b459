"""Code that the estimators share: reading rows, and methods of regressors, classifiers, gated and NTK estimators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fixntk.convex import Solution
from fixntk.estimators.cross_validation import GatedChoice, Losses, choose_gated
from fixntk.estimators.fitting import (
    NUM_FACTOR_MATRICES,
    GatedFit,
    LearntKernel,
    kernel_matrix,
    memory_for_kernels,
)
from fixntk.estimators.folds import Folds
from fixntk.estimators.frames import FrameEncoder, check_numbers, encode_frame, is_frame
from fixntk.estimators.gate_options import AUTO, STARTING_AT_RANDOM, GateOptions, check_source
from fixntk.estimators.gaussian_process import Kernel, Process, condition
from fixntk.estimators.kernels import check_bias_scales, check_depths, ntk_of_depth
from fixntk.estimators.ntk_fits import DEFAULT_REGS, NTKChoice, NTKFit, choose_ntk
from fixntk.estimators.predictors import (
    ClassificationPredictor,
    GatedOutputs,
    NTKOutputs,
    RegressionPredictor,
    feature_importances,
)
from fixntk.estimators.preprocessing import (
    Chosen,
    Scaling,
    TargetScaling,
    Training,
    all_rows,
    as_checked,
    as_signs,
    compute_in_tiles,
    distinct_rows,
    pad_rows,
    scale_inputs,
    scale_targets,
)
from fixntk.networks.models import GatedReLUNetwork

# Number of rows for which standard deviations are computed at a time. It is smaller than for outputs because they need
# the kernel matrix of these rows with themselves and with the training rows.
_DEVIATION_ROWS = 512


class InputMixin:
    """Inputs, optionally standardised and with a bias column."""

    standardize: bool
    bias: bool
    bias_scale: Any
    verbose: int
    n_features_in_: int
    feature_importances_: np.ndarray
    bias_scale_: float
    _encoder: FrameEncoder | None
    _scaling: Scaling

    def _read_rows(self, X: Any, y: Any, sample_weight: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """Check inputs and targets; inputs as numbers (n, e), of which a data frame's column can make several."""
        encoded = encode_frame(X, sample_weight)
        encoder, rows = (None, as_checked("X", X)) if encoded is None else encoded
        rows, y = validate_data(self, rows, as_checked("y", y), dtype=np.float64, **options)
        if encoder is not None:
            # Names and number of the columns are the frame's.
            validate_data(self, X, skip_check_array=True)
        self._encoder = encoder
        return rows, y

    def _read_new(self, X: Any) -> Float[np.ndarray, "n e"]:
        """Check new inputs; they are scaled later, a tile at a time."""
        check_is_fitted(self)
        if self._encoder is None:
            if is_frame(X):
                check_numbers(X)
            return validate_data(self, as_checked("X", X), reset=False, dtype=np.float64)
        if is_frame(X):
            validate_data(self, X, reset=False, skip_check_array=True)
        return check_array(self._encoder(X), dtype=np.float64, input_name="X")

    def _set_importances(self, outputs: GatedOutputs | NTKOutputs, training: Training) -> None:
        """The importance of a data frame's column is the sum of those of its encoded columns."""
        found = feature_importances(outputs, training, len(self._scaling.mean))
        owners = np.arange(self.n_features_in_) if self._encoder is None else self._encoder.owners
        self.feature_importances_ = np.bincount(owners, found, self.n_features_in_)

    def _scale_inputs(self, X: Float[np.ndarray, "n d"], chosen: Chosen) -> Float[np.ndarray, "m w"]:
        self._scaling, padded = scale_inputs(X, chosen, standardize=self.standardize, bias=self.bias)
        return padded

    def _choose_ntk(self, training: Training, regs: Any, depths: tuple[int, ...]) -> NTKChoice:
        """The NTK of the least leave-one-out error; its value of the bias column becomes that of new rows."""
        choice = choose_ntk(
            training,
            regs,
            depths=depths,
            bias_scales=check_bias_scales(self.bias_scale),
            bias_column=len(self._scaling.mean) if self.bias else None,
            progress=self.verbose > 0,
        )
        self._set_bias_scale(choice.bias_scale)
        return choice

    def _set_bias_scale(self, bias_scale: float) -> None:
        self._scaling, self.bias_scale_ = self._scaling._replace(bias=bias_scale), bias_scale


class RegressionMixin(InputMixin, MultiOutputMixin, RegressorMixin):
    """One or several targets, standardised; the estimator's kernel is the covariance of a Gaussian process."""

    _target_scaling: TargetScaling
    _training: Training
    _outputs: Callable[[], GatedOutputs | NTKOutputs]
    _process: Callable[[], Process]

    def _read(
        self, X: Any, y: Any, sample_weight: Any, choose: Callable[[Any, Any, Any], Chosen] = all_rows
    ) -> Training:
        """Check inputs and targets, and scale the chosen rows."""
        X, y = self._read_rows(X, y, sample_weight, multi_output=True, y_numeric=True)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        chosen = choose(X, y, weights)
        self._target_scaling, targets = scale_targets(y, chosen)
        return Training(self._scale_inputs(X, chosen), targets, pad_rows(chosen[1]), len(chosen[0]))

    def _store(self, training: Training) -> None:
        """Keep the rows of positive weight, as they were fitted, for the Gaussian process."""
        self._training = training.select_weighted()

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Targets (n,) or (n, c) of new inputs, and with ``return_std`` the standard deviations of new observations.

        The deviations include the noise. They belong to the Gaussian process whose mean is the prediction and whose
        covariance is the estimator's kernel, with the most likely scale and noise for ``reg_``. The kernel of gated
        estimators was learnt from the same targets and is held fixed here, so that their deviations are somewhat small.

        See docs/mathematics.md, M5 and M15.
        """
        X = self._read_new(X)
        targets = self.predictor().predict(X)
        return (targets, self._deviations(X)) if return_std else targets

    def predictor(self) -> RegressionPredictor:
        """The fitted function alone, as plain arrays."""
        check_is_fitted(self)
        return RegressionPredictor(self._scaling, self._outputs(), self._target_scaling)

    def log_marginal_likelihood(self) -> float:
        """Log p(y) of the training targets under the Gaussian process of :meth:`predict`, summed over targets."""
        check_is_fitted(self)
        posterior = self._process().posterior
        return float(np.sum(posterior.log_marginal_likelihood(self._target_scaling.scale)))

    def _deviations(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n ..."]:
        process = self._process()

        def of_rows(rows: Array) -> np.ndarray:
            return process.deviations(rows, jnp.asarray(self._training.padded_x))

        deviations = compute_in_tiles(of_rows, X, self._scaling, _DEVIATION_ROWS)
        return self._target_scaling.restore_deviations(deviations)

    def _condition(self, kernel: Kernel, reg: float, *, centre: bool) -> Process:
        training = self._training
        with memory_for_kernels(training.num_rows, NUM_FACTOR_MATRICES):
            matrix = kernel_matrix(kernel, training)
            return Process(condition(matrix, training.targets, reg, training.weights, centre=centre), kernel)


class ClassificationMixin(InputMixin, ClassifierMixin):
    """Two or more classes, as outputs of ±1."""

    class_weight: Any
    classes_: np.ndarray
    temperature_: float
    _outputs: Callable[[], GatedOutputs | NTKOutputs]

    def _read(self, X: Any, y: Any, sample_weight: Any) -> tuple[Training, Int[np.ndarray, " n"]]:
        """Check inputs and labels; distinct rows with targets of ±1, and their classes as numbers."""
        X, y = self._read_rows(X, y, sample_weight)
        check_classification_targets(y)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        # Rows of weight zero are ignored, and so are classes that have no other rows.
        has_weight = weights > 0
        self.classes_ = np.unique(y[has_weight])
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least two classes, got 1 class: {self.classes_.tolist()}")
        if self.class_weight is not None:
            of_class = np.zeros(len(weights))
            of_class[has_weight] = compute_sample_weight(self.class_weight, y[has_weight])
            weights = weights * of_class
        codes = np.searchsorted(self.classes_, y)
        chosen = distinct_rows(X, codes, weights)
        codes = codes[chosen[0]]
        targets = pad_rows(as_signs(codes, len(self.classes_)))
        return Training(self._scale_inputs(X, chosen), targets, pad_rows(chosen[1]), len(codes)), codes

    def predictor(self) -> ClassificationPredictor:
        """The fitted function alone, as plain arrays."""
        check_is_fitted(self)
        return ClassificationPredictor(self._scaling, self._outputs(), self.classes_, self.temperature_)

    def decision_function(self, X: Any) -> np.ndarray:
        """Outputs of new inputs: (n,) for two classes, positive for the second, otherwise (n, classes)."""
        X = self._read_new(X)
        return self.predictor().decision_function(X)

    def predict(self, X: Any) -> np.ndarray:
        """Labels of new inputs."""
        X = self._read_new(X)
        return self.predictor().predict(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, classes) of new inputs; see ``temperature_`` for how they are calibrated."""
        X = self._read_new(X)
        return self.predictor().predict_proba(X)


class GatedMixin(InputMixin):
    """Estimators that solve the convex program of a gated-ReLU network."""

    num_gates: int
    gates: Any
    random_state: Any
    loss: str = "squared"
    # Values of ``gates`` besides those that every gated estimator takes.
    _other_sources: tuple[str, ...] = ()
    network_: GatedReLUNetwork
    solution_: Solution
    gates_: np.ndarray
    kernel_weights_: np.ndarray
    reg_: float
    bias_scale_errors_: dict[float, float]
    _exact_ntk: NTKOutputs | None
    _condition: Callable[..., Process]

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        text: str = super().__repr__(N_CHAR_MAX)  # type: ignore[call-arg]  # scikit-learn's.
        if not getattr(self, "bias_scale_errors_", {}):
            return text
        errors = ", ".join(f"{scale:g} {error:.3g}" for scale, error in self.bias_scale_errors_.items())
        return f"{text}: bias_scale {self.bias_scale_:g}; leave-one-out errors of the NTK: {errors}"

    def _choose_bias_scale(self, training: Training) -> Training:
        """The rows with the bias column whose NTK has the least leave-one-out error, if several are to be tried."""
        scales = check_bias_scales(self.bias_scale)
        self.bias_scale_errors_ = {}
        if self.bias and len(scales) > 1:
            choice = self._choose_ntk(training, DEFAULT_REGS, (1,))
            self.bias_scale_errors_ = {scale: error for (_, scale), error in choice.errors.items()}
            return choice.training
        self._set_bias_scale(scales[0] if self.bias else 0.0)
        return training.with_bias(len(self._scaling.mean), scales[0]) if self.bias else training

    def _gate_options(self) -> GateOptions:
        check_source(self.gates, *self._other_sources)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return GateOptions(self.gates, self.num_gates, len(self._scaling.mean) + bool(self.bias), seed)

    def _set_fit(self, fit: GatedFit, training: Training) -> None:
        self.network_, self.solution_, self.gates_, self.reg_ = fit.network, fit.solution, fit.gates, fit.reg
        self.kernel_weights_ = np.asarray(fit.solution.kernel_weights)
        self.gap_ = float(fit.solution.relative_gap)
        self.n_active_gates_ = int(np.sum(np.any(np.asarray(fit.solution.weights) != 0, axis=(1, 2))))
        self.n_iter_ = max(1, int(fit.solution.iterations))
        self._exact_ntk = fit.exact_ntk
        self._set_importances(self._outputs(), training)

    def _outputs(self) -> GatedOutputs | NTKOutputs:
        """Outputs of the gated network, or of the NTK that it approximates, in units of the targets fitted."""
        if self._exact_ntk is not None:
            return self._exact_ntk
        solution = self.solution_
        return GatedOutputs(np.asarray(solution.weights), self.gates_, np.asarray(solution.intercept))

    def _process(self) -> Process:
        """The Gaussian process with the learnt kernel, held fixed, and a constant for the intercept; or the NTK."""
        if self.loss != "squared":
            raise ValueError(f"standard deviations and likelihoods need the squared loss, this is {self.loss}")
        if self._exact_ntk is not None:
            return self._condition(ntk_of_depth(self._exact_ntk.depth), self.reg_, centre=False)
        return self._condition(LearntKernel(self.kernel_weights_, self.gates_), self.reg_, centre=True)


class ChoiceMixin(GatedMixin):
    """Gated estimators that choose gates, λ, steps and ridge by cross-validation."""

    _other_sources = (AUTO, *STARTING_AT_RANDOM)
    # By how many standard errors the average of several kinds may be behind the best one.
    _average_slack: float
    regs: Any
    max_steps: int
    one_standard_error: bool

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        text: str = super().__repr__(N_CHAR_MAX)
        if not hasattr(self, "choice_"):
            return text
        losses = ", ".join(f"{kind} {loss:.3g}" for kind, loss in self.choice_losses_.items())
        active = f"{self.n_active_gates_} of {len(self.gates_)} gates active"
        gates = active if self._exact_ntk is None else "infinitely many gates"
        shares = [f"{share:.2f} {kind}" for kind, share in self.choice_shares_.items()]
        choice = f"{self.choice_} ({' + '.join(shares)})" if len(shares) > 1 else self.choice_
        given_up = f"; given up early: {', '.join(self.given_up_)}" if self.given_up_ else ""
        return f"{text}: {choice}, {gates}; held-out losses: {losses}{given_up}"

    def _choose(self, training: Training, folds: Folds, losses: Losses) -> GatedChoice:
        choice = choose_gated(
            training,
            self._gate_options(),
            folds,
            losses,
            regs=self.regs,
            max_steps=self.max_steps,
            average_slack=self._average_slack,
            one_standard_error=self.one_standard_error,
            progress=self.verbose > 0,
        )
        self._set_fit(choice.fit, training)
        self.choice_, self.choice_losses_ = choice.kind, dict(choice.losses_of_kinds)
        self.given_up_ = choice.given_up
        self.choice_shares_ = dict(choice.shares)
        self.reg_share_, self.n_steps_, self.ridge_share_ = choice.share, choice.num_steps, choice.ridge_share
        self.path_, self.discovered_path_ = choice.losses, choice.discovered_losses
        self.trained_path_ = choice.trained_losses
        return choice


class NTKMixin(InputMixin):
    """Estimators that are kernel ridge regressions with the NTK."""

    depth: Any
    X_fit_: np.ndarray
    dual_coef_: np.ndarray
    depth_: int
    choice_errors_: dict[tuple[int, float], float]
    _ridge: float
    _condition: Callable[..., Process]

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        text: str = super().__repr__(N_CHAR_MAX)  # type: ignore[call-arg]  # scikit-learn's.
        if len(getattr(self, "choice_errors_", {})) < 2:
            return text
        errors = ", ".join(f"({depth}, {scale:g}) {error:.3g}" for (depth, scale), error in self.choice_errors_.items())
        chosen = f"depth {self.depth_}, bias_scale {self.bias_scale_:g}"
        return f"{text}: {chosen}; leave-one-out errors of (depth, bias_scale): {errors}"

    def _fit_ntk(self, training: Training, regs: Any) -> NTKChoice:
        """Fit the NTK of the least leave-one-out error."""
        choice = self._choose_ntk(training, regs, check_depths(self.depth))
        self._set_fit(choice.fit, choice.training)
        self.choice_errors_ = choice.errors
        return choice

    def _set_fit(self, fit: NTKFit, training: Training) -> None:
        is_exact = fit.landmarks is None
        self.depth_ = fit.depth
        self.X_fit_ = training.x if is_exact else training.x[fit.landmarks]
        self.dual_coef_, self.loo_errors_ = fit.dual_coef, fit.errors
        self.reg_, self._ridge = fit.share, fit.reg
        self._set_importances(self._outputs(), training)
        self.is_exact_, self.trace_left_ = is_exact, fit.trace_left
        if self.verbose > 0 and not is_exact:
            landmarks = f"{len(self.X_fit_)} landmarks of {training.num_rows} rows"
            print(f"{type(self).__name__}: {landmarks}, {fit.trace_left:.2g} of the kernel's trace is left out")

    def _outputs(self) -> NTKOutputs:
        """Outputs of the ridge regression, in units of the targets fitted."""
        return NTKOutputs(self.X_fit_, self.dual_coef_, self.depth_)

    def _process(self) -> Process:
        """The Gaussian process with the NTK, without a constant."""
        return self._condition(ntk_of_depth(self.depth_), self._ridge, centre=False)
