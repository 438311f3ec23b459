"""scikit-learn estimators of gated-ReLU networks that choose gates, λ and reweighting steps by cross-validation.

Rows are scaled, and regularisation is given, as in :mod:`fixntk.estimators.gated`.

See docs/mathematics.md, M6 and M11.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from fixntk.estimators.calibration import fit_temperature, log_losses
from fixntk.estimators.fitting import DEFAULT_REG_SHARES, DEFAULT_REGRESSION_SHARES
from fixntk.estimators.folds import shuffled_folds, squared_errors, stratified_folds
from fixntk.estimators.mixins import ChoiceMixin, ClassificationMixin, RegressionMixin
from fixntk.estimators.preprocessing import distinct_rows


class GatedReLURegressorCV(ChoiceMixin, RegressionMixin, BaseEstimator):
    """Regression with a fixed kernel: gates, λ and the number of reweighting steps from the NTK by cross-validation.

    The mean of the targets and the NTK of random gates are among the candidates, so that a single choice is never worse
    than either on held-out rows. For more than 2,000 distinct rows kernel matrices for each fold, λ and step would take
    minutes: there the optimum of random gates is followed along λ, in single precision, until the loss of one held-out
    part rises, and compared with the candidates that need none.

    Parameters
    ----------
    num_gates : int
        P; the accuracy decreases with fewer gates (docs/comparison.md).
    gates : str, array (P, d') or callable
        "auto": cross-validation chooses between one gate that is active on every row, which is linear regression (only
        with ``bias``), the NTK of infinitely many gates, random gates, discovered ones, those of trained ReLU networks,
        and an average of these networks, which is one, in shares that held-out outputs choose (not for more than 2,000
        rows). "discovered": column generation along λ, from the largest on until the held-out loss rises, and ridge
        regressions with the kernel found, whose smaller ridges undo the shrinkage. "trained": ReLU networks trained by
        gradient descent at each λ, and such ridge regressions with the kernels of their gates. Otherwise as for
        :class:`GatedReLURegressor`. Each fold's gates come from its training rows.
    standardize, bias, bias_scale, random_state, verbose
        As for :class:`GatedReLURegressor`.
    regs : sequence of float
        Candidates for λ/λ_max.
    num_folds : int
        Folds of the cross-validation, in random order; for more than 2,000 rows one of them alone is held out. The
        first fold tries every setting; with "auto" what is clearly behind the best there is not tried on the
        others, and of the rest they try the three λ that were best.
    max_steps : int
        Largest number of reweighting steps.
    one_standard_error : bool
        Whether to choose the smallest model whose held-out loss is within one standard error of the least, in the order
        of ``choice_losses_``, instead of the one of the least loss.

    Attributes
    ----------
    choice_ : str
        What was chosen: "constant", the mean of the targets; "linear"; "exact_ntk", the NTK of infinitely many gates,
        fitted as :class:`NTKRegressor` with a ridge chosen by leaving rows out; "ntk", the kernel of random gates
        without a reweighting step; "reweighted", with some; "discovered"; "relu", a trained ReLU network; "trained", a
        ridge regression with the kernel of its gates; for more than 2,000 rows "optimum", that of random gates; or
        "average", several of these, unless a single one is better by more than two standard errors.
    choice_losses_ : dict
        The least held-out loss of each of these that was tried on all folds. That of the average is for shares that
        each fold's own rows have no part in.
    given_up_ : tuple of str
        Those that were clearly behind the others on the first fold, and so have no such loss.
    choice_shares_ : dict
        The share of each kind in the average; of a single choice, 1.
    reg_share_, n_steps_, ridge_share_ : float, int, float
        The λ/λ_max and the number of steps chosen; and the ridge as a share of λ, below 1 where the shrinkage of
        discovered or trained gates is undone.
    path_ : ndarray (regs, max_steps + 1)
        Mean squared error on held-out rows, of standardised targets, for given or random gates; (regs, 1) for more than
        2,000 rows. NaN where a λ was not tried on all folds.
    discovered_path_ : ndarray (regs, 4)
        The same for discovered gates and each ``ridge_share_``: 1, 0.3, 0.1 and 0.03.
    trained_path_ : ndarray (regs, 5)
        The same for trained networks, and for each ``ridge_share_`` with their gates.
    kernel_weights_, gap_, n_active_gates_, network_, solution_, gates_, feature_importances_
        As for :class:`GatedReLURegressor`; the gap is that after the last step. Where "exact_ntk" was chosen they are
        those of random gates with its ridge, which approach it as their number grows; with "average" those of the gates
        of all its parts at their mean λ, and the gap says how far the average is from the optimum there.

    See docs/mathematics.md, M6 and M11.
    """

    _average_slack = 2.0

    def __init__(
        self,
        num_gates: int = 2048,
        *,
        gates: Any = "auto",
        regs: Any = DEFAULT_REGRESSION_SHARES,
        num_folds: int = 4,
        max_steps: int = 6,
        one_standard_error: bool = False,
        standardize: bool = True,
        bias: bool = True,
        bias_scale: Any = 1.0,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.num_gates = num_gates
        self.gates = gates
        self.regs = regs
        self.num_folds = num_folds
        self.max_steps = max_steps
        self.one_standard_error = one_standard_error
        self.standardize = standardize
        self.bias = bias
        self.bias_scale = bias_scale
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> GatedReLURegressorCV:
        """Fit to (n, d) inputs and (n,) or (n, c) targets.

        Raises
        ------
        ValueError
            If inputs are not numbers, there are fewer rows than folds, or an option is out of its range.
        """
        training = self._choose_bias_scale(self._read(X, y, sample_weight, distinct_rows))
        folds = shuffled_folds(training.num_rows, self.num_folds, seed=0, num_copies=len(np.asarray(y)))
        losses = partial(squared_errors, targets=training.targets)
        self._choose(training, folds, losses)
        self._store(training)
        return self


class GatedReLUClassifierCV(ChoiceMixin, ClassificationMixin, BaseEstimator):
    """Classification with a fixed kernel: gates, λ and the number of reweighting steps by cross-validation.

    Fitted with the squared loss on ±1 and chosen by the log-loss.

    Parameters
    ----------
    standardize, bias, bias_scale, random_state, class_weight, verbose
        As for :class:`GatedReLUClassifier`.
    num_gates, gates, regs, num_folds, max_steps, one_standard_error
        As for :class:`GatedReLURegressorCV`; folds are stratified.

    Attributes
    ----------
    classes_
        As for :class:`GatedReLUClassifier`.
    temperature_ : float
        Probabilities are the softmax of ``temperature_`` · outputs, for two classes the sigmoid; it minimises the
        log-loss of held-out outputs.
    choice_, choice_losses_, given_up_, choice_shares_, reg_share_, n_steps_, ridge_share_
        As for :class:`GatedReLURegressorCV`, but that "average" is chosen where its held-out loss is the least.
    path_, discovered_path_, trained_path_ : ndarray (regs, max_steps + 1), (regs, 4), (regs, 5)
        As there, of the log-loss in nats, of held-out outputs at their best temperature.
    kernel_weights_, gap_, n_active_gates_, network_, solution_, gates_, feature_importances_
        As for :class:`GatedReLUClassifier`.

    See docs/mathematics.md, M6 and M11.
    """

    # The shares minimise squares, and the kinds are judged by the log-loss.
    _average_slack = 0.0

    def __init__(
        self,
        num_gates: int = 2048,
        *,
        gates: Any = "auto",
        class_weight: Any = None,
        regs: Any = DEFAULT_REG_SHARES,
        num_folds: int = 4,
        max_steps: int = 6,
        one_standard_error: bool = False,
        standardize: bool = True,
        bias: bool = True,
        bias_scale: Any = 1.0,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.num_gates = num_gates
        self.gates = gates
        self.class_weight = class_weight
        self.regs = regs
        self.num_folds = num_folds
        self.max_steps = max_steps
        self.one_standard_error = one_standard_error
        self.standardize = standardize
        self.bias = bias
        self.bias_scale = bias_scale
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> GatedReLUClassifierCV:
        """Fit to (n, d) inputs and (n,) labels.

        Raises
        ------
        ValueError
            If inputs are not numbers, there is one class only, or an option is out of its range.
        """
        training, codes = self._read(X, y, sample_weight)
        training = self._choose_bias_scale(training)
        folds = stratified_folds(codes, self.num_folds, seed=0, num_copies=len(np.asarray(y)))
        losses = partial(log_losses, weights=training.weights, codes=codes)
        choice = self._choose(training, folds, losses)
        self.temperature_ = fit_temperature(choice.held_out_outputs, choice.held_out_weights, codes)
        return self
