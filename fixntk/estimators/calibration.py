"""Probabilities from scores: the temperature with the smallest log-loss of held-out scores, on smoothed labels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

# Bounds of the search for the natural logarithm of the temperature (no unit).
_LOG_BOUNDS = (-9, 9)


def fit_temperature(
    scores: Float[np.ndarray, "n c"], weights: Float[np.ndarray, " n"], codes: Int[np.ndarray, " n"]
) -> float:
    """The factor of held-out scores with the smallest weighted log-loss, on labels smoothed by one row in all.

    A row of a class with N rows has the probability (N + 1/k)/(N + 1) of its own class and (1/k)/(N + 1) of each of the
    k − 1 others: the mean of the posterior under a prior that weighs one row, shared by the k classes. Without it, the
    best factor for scores that separate the classes is infinite, and the probabilities of new rows are 0 or 1, also
    where they are wrong. With one row for each class, as under a uniform prior, they are too cautious where a class has
    few rows.

    Parameters
    ----------
    scores
        Scores of held-out rows, (n, 1) for two classes, otherwise (n, classes).
    weights
        (n,) weights of the rows.
    codes
        (n,) classes as numbers.

    References
    ----------
    Platt, "Probabilistic outputs for support vector machines", 1999, for smoothed labels; Perks, "Some observations on
    inverse probability including a new indifference rule", 1947, for the prior.
    """
    logits = _as_logits(scores)
    return _minimise_log_loss(logits, weights, _smooth_labels(codes, weights, logits.shape[1]))


def log_losses(
    scores: Float[np.ndarray, "n c"], weights: Float[np.ndarray, " n"], codes: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Log-loss of each held-out row in nats, at the factor that is best for all of them.

    The arguments are those of :func:`fit_temperature`.
    """
    logits = _as_logits(scores)
    labels = (codes[:, None] == np.arange(logits.shape[1])).astype(float)
    return _log_losses(_minimise_log_loss(logits, weights, labels) * logits, labels)


def _as_logits(scores: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n k"]:
    """A single score is the logit of the second class against a logit of zero for the first."""
    return np.column_stack([np.zeros_like(scores), scores]) if scores.shape[1] == 1 else scores


def _minimise_log_loss(
    logits: Float[np.ndarray, "n k"], weights: Float[np.ndarray, " n"], probabilities: Float[np.ndarray, "n k"]
) -> float:
    """The factor of the logits with the smallest weighted log-loss."""

    def log_loss(log_factor: float) -> float:
        return float(np.average(_log_losses(np.exp(log_factor) * logits, probabilities), weights=weights))

    # The search over the logarithm keeps the factor positive and treats small and large factors alike.
    return float(np.exp(minimize_scalar(log_loss, bounds=_LOG_BOUNDS, method="bounded").x))


def _log_losses(logits: Float[np.ndarray, "n k"], probabilities: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    return -np.sum(probabilities * log_softmax(logits, axis=1), axis=1)


def _smooth_labels(
    codes: Int[np.ndarray, " n"], weights: Float[np.ndarray, " n"], num_classes: int
) -> Float[np.ndarray, "n k"]:
    """Probabilities of the classes for each row, by the rule of succession of Perks in its own class."""
    # Weights have no unit: they count as rows once their mean is one.
    counts = np.bincount(codes, weights, num_classes) * len(codes) / np.sum(weights)
    own = counts[codes, None]
    return (own * (codes[:, None] == np.arange(num_classes)) + 1 / num_classes) / (own + 1)
