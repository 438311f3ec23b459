"""Planted data for the experiments: a toy on a line and teachers, gated or ReLU networks with noise."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fixntk import activation_masks, enumerate_arrangements, sample_gates


class Planted(NamedTuple):
    """Training and test data, and the gates of the program.

    Attributes
    ----------
    x, y
        (n, d) and (n,).
    x_test, y_test
        Fresh data without noise.
    gates, masks
        (P, d) and (n, P).
    """

    x: Array
    y: Array
    x_test: Array
    y_test: Array
    gates: Array
    masks: Array


# Numbers of rows n, features d and gates P of the teachers' problems.
SIZES = {"teacher": (200, 5, 200), "relu_teacher": (200, 5, 200)}
PROBLEMS = ("toy", *SIZES)
# Number of neurons of a teacher.
_NUM_NEURONS = 4
# Number of test rows of a teacher's problem.
_NUM_TEST = 1000
# Standard deviation of the noise, in units of the targets' own.
_NOISE = 0.1


def label(kind: str) -> str:
    """A problem, or the kind of a planted network, in words."""
    return kind.replace("_", " ").replace("relu", "ReLU")


def make(problem: str, seed: int) -> Planted:
    """Data of a seed, in JAX's default floating-point type.

    ``toy``: five points on a line with a bias column and all of their arrangements. ``teacher``: a gated network whose
    gates are not among the gates of the program. ``relu_teacher``: a ReLU network.
    """
    rng = np.random.default_rng(seed)
    if problem == "toy":
        x = np.column_stack([np.sort(rng.uniform(-1, 1, 5)), np.ones(5)])
        x_test = np.column_stack([np.linspace(-1, 1, 200), np.ones(200)])
        truth = lambda rows: np.sin(3 * rows[:, 0])  # noqa: E731
        arrangements = enumerate_arrangements(x)
        gates, masks = jnp.asarray(arrangements.gates, float), arrangements.masks
    else:
        num_rows, num_features, num_gates = SIZES[problem]
        x, x_test = (rng.standard_normal((rows, num_features)) for rows in (num_rows, _NUM_TEST))
        weights, outputs = rng.standard_normal((_NUM_NEURONS, num_features)), rng.standard_normal(_NUM_NEURONS)
        hidden_gates = weights if problem == "relu_teacher" else rng.standard_normal((_NUM_NEURONS, num_features))
        truth = lambda rows: ((rows @ hidden_gates.T >= 0) * (rows @ weights.T)) @ outputs  # noqa: E731
        gates = sample_gates(jax.random.key(seed), num_gates, num_features)
        masks = activation_masks(jnp.asarray(x, gates.dtype), gates)
    scale = truth(x_test).std()
    y = truth(x) / scale + _NOISE * rng.standard_normal(x.shape[0])
    arrays = [jnp.asarray(array, gates.dtype) for array in (x, y, x_test, truth(x_test) / scale)]
    return Planted(arrays[0], arrays[1], arrays[2], arrays[3], gates, masks)
