"""Accuracy of a classifier's outputs."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike


def share_correct(outputs: ArrayLike, labels: np.ndarray) -> float:
    """Share of rows whose output has the sign of the label, or whose largest output belongs to the label.

    ``outputs`` is (n, 1) for two classes and (n, c) for c classes, ``labels`` (n,) from 0 to c - 1.
    """
    scores = np.asarray(outputs)
    predicted = (scores[:, 0] > 0).astype(int) if scores.shape[1] == 1 else np.argmax(scores, axis=1)
    return float(np.mean(predicted == labels))
