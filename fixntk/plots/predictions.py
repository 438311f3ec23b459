"""Plots of what a fitted model predicts: the calibration of its probabilities, the importance of its features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from fixntk._checks import as_positive_int
from fixntk.plots._axes import (
    NEUTRAL_COLOUR,
    SOLUTION_COLOUR,
    add_legend,
    as_column,
    as_numbers,
    next_line_style,
    open_axes,
)

# Probability with which the interval of a bin covers the true share.
_COVERAGE = 0.95
# Rounding error of probabilities and of their sums that is accepted.
_ROUNDING = 1e-3


def reliability(
    y: ArrayLike,
    probabilities: ArrayLike,
    ax: Axes | None = None,
    *,
    classes: ArrayLike | None = None,
    num_bins: int = 10,
    **line: Any,
) -> Axes:
    """Draw how often a classifier is right against how probable it says that is.

    Rows are binned by predicted probability. For two classes: the share of the second class against its probability.
    For more: the share of right predictions against the probability of the predicted class. Bars are 95 % Wilson
    intervals. The legend has the expected calibration error, the mean distance from the diagonal over the rows.

    Parameters
    ----------
    y
        (n,) true classes.
    probabilities
        (n, c) probability of each class, as of ``predict_proba``; or (n,), that of the second of two classes.
    ax
        Axes to draw on; a new figure when None.
    classes
        (c,) the class of each column; the sorted classes of y when None.
    num_bins
        Number of bins of equal width between 0 and 1; those without rows are left out.
    **line
        For ``Axes.errorbar``, such as ``label``.

    Raises
    ------
    TypeError
        If probabilities are not numeric or ``num_bins`` is not an integer.
    ValueError
        If shapes do not fit, probabilities are not between 0 and 1 or do not sum to 1, y has other classes, or
        ``num_bins`` is below 1.
    """
    predicted = as_numbers("probabilities", probabilities, (1, 2))
    labels = as_column("y", y, predicted.shape[0])
    names = np.unique(labels) if classes is None else np.asarray(classes)
    num_bins = as_positive_int("num_bins", num_bins)
    confidence, is_right = _confidence(labels, predicted, names)
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    used = counts > 0
    mean_confidence = np.bincount(bins, confidence, num_bins)[used] / counts[used]
    hits = np.bincount(bins, is_right, num_bins)[used]
    shares = hits / counts[used]
    error = float(np.sum(counts[used] * np.abs(shares - mean_confidence)) / labels.size)
    intervals = [
        binomtest(int(k), int(n)).proportion_ci(_COVERAGE, method="wilson")
        for k, n in zip(hits, counts[used], strict=True)
    ]
    below = np.maximum(shares - [interval.low for interval in intervals], 0.0)
    above = np.maximum([interval.high for interval in intervals] - shares, 0.0)
    with open_axes(ax, 4.2, 4.0) as axes:
        style = {**next_line_style(axes), "marker": "o", "markersize": 5, "capsize": 2, **line}
        label = style.pop("label", "model")
        if "_diagonal" not in [known.get_label() for known in axes.lines]:
            axes.axline((0, 0), slope=1, color=NEUTRAL_COLOUR, linewidth=1, zorder=1, label="_diagonal")
        axes.errorbar(mean_confidence, shares, [below, above], label=f"{label} (ECE {error:.3f})", **style)
        event = "the predicted class" if names.size > 2 else f"class {names[1]}"
        axes.set(xlabel=f"predicted probability of {event}", ylabel=f"observed share of {event}", aspect="equal")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        add_legend(axes, loc="upper left")
    return axes


def _confidence(
    labels: np.ndarray, predicted: np.ndarray, classes: np.ndarray
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The probability of an event for each row, and 1 where it happened, else 0."""
    if predicted.min() < -_ROUNDING or predicted.max() > 1 + _ROUNDING:
        raise ValueError(f"probabilities must be in [0, 1], got {predicted.min():g} to {predicted.max():g}")
    predicted = np.clip(predicted, 0, 1)
    num_columns = 2 if predicted.ndim == 1 else predicted.shape[1]
    if classes.shape != (num_columns,) or num_columns < 2:
        raise ValueError(
            f"probabilities have {num_columns} classes, but there are {classes.tolist()}: "
            "pass the class of each column as classes"
        )
    unknown = set(labels.tolist()) - set(classes.tolist())
    if unknown:
        raise ValueError(f"y has classes that are not among classes: {sorted(unknown, key=str)}")
    if predicted.ndim == 1:
        return predicted, (labels == classes[1]).astype(float)
    sums = predicted.sum(axis=1)
    if np.abs(sums - 1).max() > _ROUNDING:
        raise ValueError(f"probabilities must sum to 1 in each row, got {sums.min():g} to {sums.max():g}")
    if num_columns == 2:
        return predicted[:, 1], (labels == classes[1]).astype(float)
    return predicted.max(axis=1), (labels == classes[predicted.argmax(axis=1)]).astype(float)


def importance(
    importances: ArrayLike,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
    *,
    num_shown: int = 20,
    **bars: Any,
) -> Axes:
    """Draw the importance of features as bars, the largest on top.

    Parameters
    ----------
    importances
        (d,) importances, or (d, r) with r repetitions, such as ``permutation_importance(…).importances`` of
        scikit-learn: bars are then means, with their standard deviations over the repetitions.
    names
        (d,) names of the features; their numbers from 0 when None.
    ax
        Axes to draw on; a new figure when None.
    num_shown
        Number of the features with the largest importances that are shown.
    **bars
        For ``Axes.barh``.

    Raises
    ------
    TypeError
        If importances are not numeric or ``num_shown`` is not an integer.
    ValueError
        If importances are not finite, the number of names is not that of the features, or ``num_shown`` is below 1.
    """
    values = as_numbers("importances", importances, (1, 2))
    means = values if values.ndim == 1 else values.mean(axis=1)
    texts = [f"feature {k}" for k in range(means.size)] if names is None else [str(name) for name in names]
    if len(texts) != means.size:
        raise ValueError(f"names must have {means.size} names, one a feature, got {len(texts)}")
    shown = np.argsort(-means, kind="stable")[: as_positive_int("num_shown", num_shown)]
    deviations = None if values.ndim == 1 else values.std(axis=1)[shown]
    with open_axes(ax, 5.2, 0.28 * shown.size + 1.0) as axes:
        style = {"color": SOLUTION_COLOUR, "height": 0.7, "ecolor": NEUTRAL_COLOUR, "capsize": 2, **bars}
        places = np.arange(shown.size)
        axes.barh(places, means[shown], xerr=deviations, **style)
        axes.set_yticks(places, [texts[k] for k in shown])
        axes.set_ylim(shown.size - 0.4, -0.6)
        axes.axvline(0, color=NEUTRAL_COLOUR, linewidth=0.8)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("importance" if deviations is None else "importance (mean and standard deviation)")
    return axes
