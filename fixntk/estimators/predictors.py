"""The functions that fitted estimators are: plain arrays, without options, training state or scikit-learn."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from fixntk._numerics import allow_float64
from fixntk.estimators.kernels import ntk_gradients, ntk_of_depth
from fixntk.estimators.preprocessing import (
    Scaling,
    TargetScaling,
    Training,
    as_codes,
    as_probabilities,
    as_scores,
    compute_in_tiles,
    pad_rows,
)
from fixntk.gates.masks import activation_masks
from fixntk.gram import masked_apply

# Number of rows for which outputs are computed at a time.
_TILE_ROWS = 4096
# Number of rows for which gradients are computed at a time. They need several matrices of these rows by all training
# rows.
_GRADIENT_TILE_ROWS = 512
# Rows at an angle whose sine is smaller count as parallel: that is the rounding error of √(1 − cos² θ).
_LEAST_SINE = 3e-8


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

    def gradients(self, rows: Float[np.ndarray, "n w"]) -> Float[np.ndarray, "n w c"]:
        """Derivatives of the outputs of rows by their entries: the sum of W_p over the gates that are open."""
        is_used = np.any(self.weights != 0, axis=(1, 2))
        masks = (rows @ self.gates[is_used].T >= 0).astype(float)
        _, width, num_outputs = self.weights.shape
        sums = masks @ self.weights[is_used].reshape(-1, width * num_outputs)
        return sums.reshape(len(rows), width, num_outputs)


class NTKOutputs(NamedTuple):
    """Outputs of a kernel regression with the NTK on scaled rows.

    Attributes
    ----------
    rows, dual_coef
        Training rows (k, w) and their coefficients (k, c).
    depth
        Number of hidden layers of the network.
    """

    rows: Float[np.ndarray, "k w"]
    dual_coef: Float[np.ndarray, "k c"]
    depth: int = 1

    def __call__(self, rows: Float[Array, "n w"]) -> Float[np.ndarray, "n c"]:
        """Outputs of rows."""
        kernel = ntk_of_depth(self.depth)(rows, jnp.asarray(pad_rows(self.rows)))
        return np.asarray(kernel) @ pad_rows(self.dual_coef)

    def gradients(self, rows: Float[np.ndarray, "n w"]) -> Float[np.ndarray, "n w c"]:
        """Derivatives of the outputs of rows by their entries, of deeper networks by automatic differentiation.

        With θ the angle between x and x', the kernel x·x' (π − θ) / 2π has the derivative
        ((π − θ) x' + cot θ (x' − cos θ ‖x'‖/‖x‖ x)) / 2π. Its last term has no limit where the rows are parallel, and
        counts as zero there.
        """
        if self.depth > 1:
            with allow_float64():
                return ntk_gradients(self.depth, rows, self.rows, self.dual_coef)
        lengths, other_lengths = np.linalg.norm(rows, axis=1), np.linalg.norm(self.rows, axis=1)
        products = lengths[:, None] * other_lengths
        cosines = np.divide(rows @ self.rows.T, products, out=np.zeros_like(products), where=products > 0)
        cosines = np.clip(cosines, -1, 1)
        sines = np.sqrt(1 - cosines**2)
        cotangents = np.divide(cosines, sines, out=np.zeros_like(sines), where=sines > _LEAST_SINE)
        towards = np.arccos(-cosines) + cotangents
        inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        back = (cotangents * cosines * other_lengths * inverse[:, None]) @ self.dual_coef
        found = [
            towards @ (self.rows * column[:, None]) - rows * shrunk[:, None]
            for column, shrunk in zip(self.dual_coef.T, back.T, strict=True)
        ]
        # A row of zeros has the output zero, and no direction.
        return np.stack(found, axis=2) * (lengths > 0)[:, None, None] / (2 * np.pi)


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


def feature_importances(
    outputs: GatedOutputs | NTKOutputs, training: Training, num_features: int
) -> Float[np.ndarray, " d"]:
    """Mean square of the outputs' derivative by each feature, over the rows and outputs, scaled to sum to 1.

    This is the diagonal of the average gradient outer product, for scaled features. Zeros where the outputs are
    constant.
    """
    total = np.zeros(num_features)
    for begin in range(0, training.num_rows, _GRADIENT_TILE_ROWS):
        tile = slice(begin, begin + _GRADIENT_TILE_ROWS)
        squares = np.sum(outputs.gradients(training.x[tile])[:, :num_features] ** 2, axis=2)
        total += training.weights[tile] @ squares
    # A sum of squares that is above zero may still be too small to divide by.
    return np.divide(total, total.sum(), out=np.zeros_like(total), where=total.sum() > np.finfo(float).tiny)
