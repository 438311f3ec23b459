"""Probabilities from scores: the temperature with the smallest log-loss of held-out scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

# Bounds of the search for the natural logarithm of the temperature (no unit).
_LOG_BOUNDS = (-9, 9)


class Temperature(NamedTuple):
    """Factor that turns scores into logits, and their mean log-loss.

    Attributes
    ----------
    factor
        Positive factor, no unit.
    log_loss
        Mean log-loss in nats.
    """

    factor: float
    log_loss: float


def fit_temperature(
    scores: Float[np.ndarray, "n c"], weights: Float[np.ndarray, " n"], codes: Int[np.ndarray, " n"]
) -> Temperature:
    """Find the factor of scores that minimises their weighted log-loss.

    Parameters
    ----------
    scores
        Scores of held-out rows, (n, 1) for two classes, otherwise (n, classes).
    weights
        (n,) weights of the rows.
    codes
        (n,) classes as numbers.
    """
    # A single score is the logit of the second class against a logit of zero for the first.
    logits = np.column_stack([np.zeros_like(scores), scores]) if scores.shape[1] == 1 else scores

    def log_loss(log_factor: float) -> float:
        chosen = log_softmax(np.exp(log_factor) * logits, axis=1)[np.arange(len(logits)), codes]
        return float(-np.average(chosen, weights=weights))

    # The search over the logarithm keeps the factor positive and treats small and large factors alike.
    found = minimize_scalar(log_loss, bounds=_LOG_BOUNDS, method="bounded")
    return Temperature(float(np.exp(found.x)), float(found.fun))
