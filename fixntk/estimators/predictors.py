"""The functions that fitted estimators are: plain arrays, without options, training state or scikit-learn."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from fixntk.estimators.preprocessing import (
    Scaling,
    TargetScaling,
    as_codes,
    as_probabilities,
    as_scores,
    compute_in_tiles,
    pad_rows,
)
from fixntk.gates.masks import activation_masks
from fixntk.gram import masked_apply
from fixntk.ntk import gated_relu_ntk

# Number of rows for which outputs are computed at a time.
_TILE_ROWS = 4096


class GatedOutputs(NamedTuple):
    """Outputs of a gated network on scaled rows.

    Attributes
    ----------
    weights, gates, intercept
        (P, w, c), (P, w) and (c,).
    """

    weights: Float[np.ndarray, "P w c"]
    gates: Float[np.ndarray, "P w"]
    intercept: Float[np.ndarray, " c"]

    def __call__(self, rows: Float[Array, "n w"]) -> Float[np.ndarray, "n c"]:
        """Outputs of rows."""
        return np.asarray(masked_apply(activation_masks(rows, self.gates), rows, self.weights) + self.intercept[None])


class NTKOutputs(NamedTuple):
    """Outputs of a kernel regression with the NTK on scaled rows.

    Attributes
    ----------
    rows, dual_coef
        Training rows (k, w) and their coefficients (k, c).
    """

    rows: Float[np.ndarray, "k w"]
    dual_coef: Float[np.ndarray, "k c"]

    def __call__(self, rows: Float[Array, "n w"]) -> Float[np.ndarray, "n c"]:
        """Outputs of rows."""
        kernel = gated_relu_ntk(rows, jnp.asarray(pad_rows(self.rows)))
        return np.asarray(kernel) @ pad_rows(self.dual_coef)


class RegressionPredictor(NamedTuple):
    """A fitted regression.

    Attributes
    ----------
    scaling
        Of the inputs.
    outputs
        Function of scaled rows.
    target_scaling
        From outputs to targets.
    """

    scaling: Scaling
    outputs: GatedOutputs | NTKOutputs
    target_scaling: TargetScaling

    def predict(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n ..."]:
        """Targets of rows."""
        return self.target_scaling.restore(compute_in_tiles(self.outputs.__call__, x, self.scaling, _TILE_ROWS))


class ClassificationPredictor(NamedTuple):
    """A fitted classification.

    Attributes
    ----------
    scaling
        Of the inputs.
    outputs
        Function of scaled rows.
    classes
        Labels in order.
    temperature
        Factor from outputs to logits.
    """

    scaling: Scaling
    outputs: GatedOutputs | NTKOutputs
    classes: Shaped[np.ndarray, " k"]
    temperature: float

    def decision_function(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n ..."]:
        """Scores of rows: (n,) for two classes, positive for the second, otherwise (n, classes)."""
        return as_scores(compute_in_tiles(self.outputs.__call__, x, self.scaling, _TILE_ROWS))

    def predict(self, x: Float[np.ndarray, "n d"]) -> Shaped[np.ndarray, " n"]:
        """Labels of rows."""
        return self.classes[as_codes(self.decision_function(x))]

    def predict_proba(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Probabilities of rows, a column for each class."""
        return as_probabilities(self.temperature * self.decision_function(x))
