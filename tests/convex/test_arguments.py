"""Options of a program that do not fit are named."""

import numpy as np
import pytest

import fixntk as fx

GOOD = {"x": np.ones((3, 2)), "y": np.array([0, 1, 2]), "masks": np.ones((3, 5), bool), "reg": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "logistic"}, "y must hold both labels -1 and 1, or 0 and 1, for this loss, got labels 0, 1, 2"),
        ({"loss": "squared_hinge", "y": np.array([3, 4, 4])}, "got labels 3, 4"),
        ({"loss": "softmax", "y": np.array([0, 2, 2])}, r"y must hold classes 0, 1, …, c − 1, .* got labels 0, 2"),
        ({"loss": "softmax", "y": np.full((3, 2), 0.5)}, "y must have a single 1 in each row"),
        ({"loss": "softmax", "y": np.ones((3, 1))}, "y must have a column for each of two classes"),
        (
            {"loss": "logistic", "y": np.array([1, 1, 1])},
            "y must hold both labels -1 and 1, or 0 and 1, .* got labels 1$",
        ),
        (
            {
                "loss": "logistic",
                "y": np.array([0, 1, 1]),
                "intercept": True,
                "sample_weight": np.array([0.0, 1.0, 1.0]),
            },
            "y must have rows of every class for an intercept",
        ),
        ({"sample_weight": np.array([1.0, -1.0, 1.0])}, "sample_weight must not be negative"),
        ({"sample_weight": np.zeros(3)}, "sample_weight must not be negative and not all zero"),
        ({"sample_weight": np.ones(4)}, "x and sample_weight must have the same number of rows"),
        ({"penalty_weights": np.zeros(5)}, "penalty_weights must be positive"),
        ({"penalty_weights": np.ones(4)}, r"penalty_weights must have shape \(5,\), got \(4,\)"),
        ({"ridge": -1.0}, "ridge must be a finite number that is not negative"),
        ({"ridge": np.array([1.0])}, "ridge must be a finite number that is not negative"),
        ({"ridge": 1.0, "norm": "nuclear"}, "ridge must be 0 with norm 'nuclear'"),
        ({"masks": np.ones((3, 1), np.uint8)}, "masks of dtype uint8 are taken as packed: pass num_gates="),
        ({"norm": "spectral"}, "norm must be one of frobenius, nuclear"),
    ],
)
def test_bad_options_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        fx.ConvexProgram(**{**GOOD, **change})
