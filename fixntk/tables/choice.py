"""Which estimator ``fixntk fit`` fits, how its regularisation is chosen, and what it says of the choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fixntk.estimators import (
    GatedReLUClassifier,
    GatedReLUClassifierCV,
    GatedReLURegressor,
    GatedReLURegressorCV,
    NTKClassifier,
    NTKClassifierCV,
    NTKRegressor,
    NTKRegressorCV,
)
from fixntk.estimators.kernels import AUTO
from fixntk.tables.names import TableError, count

METHODS = ("gated", "ntk")
# Largest number of folds of a cross-validation.
_MAX_FOLDS = 4
# Number of rows of a quantity from which reg is chosen: R² needs two in each of two folds.
_LEAST_ROWS = 4


def estimator_of(method: str, is_class: bool, *, reg: float, seed: int) -> Any:
    """The estimator of a method with a given regularisation."""
    if method == "gated":
        gated = GatedReLUClassifier if is_class else GatedReLURegressor
        return gated(reg=reg, random_state=seed)
    return NTKClassifier(reg=reg) if is_class else NTKRegressor(reg=reg)


def choosing_estimator(
    method: str, is_class: bool, y: np.ndarray, where: tuple[str, str], *, seed: int, progress: bool
) -> Any:
    """An estimator that chooses its regularisation and its gates itself.

    Parameters
    ----------
    method
        One of :data:`METHODS`.
    is_class, y
        Whether the target is a class, and its (n,) values.
    where
        The names of table and target, for errors.
    seed
        For the gates.
    progress
        Whether to show bars.

    Raises
    ------
    TableError
        If fewer than two classes have two rows, as each fold needs two classes to train on; or there are fewer than
        four rows of a quantity, as R² needs two rows in each fold.
    """
    num_folds = _num_folds(is_class, y, where)
    if method == "ntk":
        return (NTKClassifierCV if is_class else NTKRegressorCV)(bias_scale=AUTO)
    choosing = GatedReLUClassifierCV if is_class else GatedReLURegressorCV
    return choosing(num_folds=num_folds, random_state=seed, verbose=int(progress))


def _num_folds(is_class: bool, y: np.ndarray, where: tuple[str, str]) -> int:
    table, target = where
    if is_class:
        sizes = pd.Series(y).value_counts()
        if (sizes >= 2).sum() < 2:
            reason = f"fewer than two classes of column {target!r} have two rows"
            raise TableError(f"{table}: {reason}, too few to choose reg: give it")
        return min(_MAX_FOLDS, int(sizes.iloc[0]))
    if len(y) < _LEAST_ROWS:
        raise TableError(f"{table}: it has {count(len(y), 'row')}, {_LEAST_ROWS} are needed to choose reg: give it")
    return min(_MAX_FOLDS, len(y) // 2)


def describe_choice(fitted: Any, is_class: bool) -> str:
    """A line about what a fitted :func:`choosing_estimator` chose, and how good it was on rows that were left out."""
    if isinstance(fitted, NTKClassifierCV | NTKRegressorCV):
        score = "accuracy" if is_class else "R²"
        settings = f"reg {fitted.reg_:g} and a bias column of {fitted.bias_scale_:g}"
        return f"{settings} by leaving out one row after another: {score} {fitted.loo_score_:.4f}"
    shares = fitted.choice_shares_
    kinds = {
        "constant": "the constant, as no kernel predicts better",
        "linear": "linear regression, as no kernel with kinks predicts better",
        "exact_ntk": "the NTK",
        "ntk": "the NTK of random gates",
        "reweighted": f"random gates, reweighted {count(fitted.n_steps_, 'time')}",
        "optimum": "the optimal kernel of random gates",
        "discovered": f"gates discovered from the target, {fitted.n_active_gates_} of them",
        "relu": "a ReLU network, trained by gradient descent",
        "trained": f"the kernel of a trained ReLU network's gates, {fitted.n_active_gates_} of them",
        "average": f"an average of {', '.join(f'{share:.0%} {kind}' for kind, share in shares.items())}",
    }
    losses = fitted.choice_losses_
    if is_class:
        measure, values = "log-loss in nats", losses
    else:
        # Errors are those of a target of variance one.
        measure, values = "R²", {kind: 1 - loss for kind, loss in losses.items()}
    told = ", ".join(f"{kind} {value:.4f}" for kind, value in values.items())
    num_folds = fitted.num_folds
    how = f"one row in {num_folds} held out" if "optimum" in losses else f"{num_folds}-fold cross-validation"
    given_up = f"; given up early: {', '.join(fitted.given_up_)}" if fitted.given_up_ else ""
    return f"chose {kinds[fitted.choice_]}, λ/λ_max {fitted.reg_share_:g}, by {how} ({measure}: {told}{given_up})"
