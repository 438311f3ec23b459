"""Functions of many columns of which few or all matter: what a regression learns from noisy rows of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

# Standard deviation of the noise, in units of the targets' own.
NOISE = 0.1
# Number of test rows.
NUM_TEST = 2000
# Number of neurons of a planted network.
_NUM_NEURONS = 4

Truth = Callable[[np.ndarray], np.ndarray]


class Problem(NamedTuple):
    """A function that is drawn from a generator, and its inputs' number of columns and distribution.

    Attributes
    ----------
    num_columns
        d.
    draw_truth
        ``draw_truth(rng) -> f``, a function of (n, d) inputs.
    is_uniform
        Whether inputs are uniform on [0, 1] instead of N(0, 1).
    """

    num_columns: int
    draw_truth: Callable[[np.random.Generator], Truth]
    is_uniform: bool = False


class Sample(NamedTuple):
    """Training rows with noise, and test rows without; targets have a standard deviation of about 1."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def _linear(rng: np.random.Generator) -> Truth:
    slopes = rng.standard_normal(10)
    return lambda x: x @ slopes


def _three_of_thirty(_: np.random.Generator) -> Truth:
    return lambda x: np.maximum(x[:, 0], 0) * 2 + np.abs(x[:, 1] - 0.5) - np.maximum(x[:, 2] + x[:, 0], 0)


def _piecewise_linear(rng: np.random.Generator) -> Truth:
    directions = rng.standard_normal((3, 10))
    return lambda x: np.maximum(x @ directions[0], 0) - np.maximum(x @ directions[1], 0) + np.abs(x @ directions[2])


def _friedman(_: np.random.Generator) -> Truth:
    """Friedman's first function: five of ten columns, smooth."""
    return lambda x: 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]


def _smooth(rng: np.random.Generator) -> Truth:
    """A wave along one direction, and a product of two others."""
    directions = rng.standard_normal((3, 10)) / np.sqrt(10)
    return lambda x: np.sin(2 * (x @ directions[0])) + (x @ directions[1]) * (x @ directions[2])


def _relu_network(rng: np.random.Generator) -> Truth:
    weights, outputs = rng.standard_normal((_NUM_NEURONS, 10)), rng.standard_normal(_NUM_NEURONS)
    return lambda x: np.maximum(x @ weights.T, 0) @ outputs


def _gated_network(rng: np.random.Generator) -> Truth:
    gates, weights = rng.standard_normal((2, _NUM_NEURONS, 10))
    return lambda x: np.sum((x @ gates.T >= 0) * (x @ weights.T), axis=1)


PROBLEMS: Mapping[str, Problem] = MappingProxyType(
    {
        "linear": Problem(10, _linear),
        "three of 30 columns": Problem(30, _three_of_thirty),
        "piecewise linear": Problem(10, _piecewise_linear),
        "Friedman 1": Problem(10, _friedman, is_uniform=True),
        "smooth": Problem(10, _smooth),
        "ReLU network": Problem(10, _relu_network),
        "gated network": Problem(10, _gated_network),
    }
)


def make(problem: str, num_rows: int, seed: int) -> Sample:
    """Rows of a problem; the function differs from seed to seed where it has random directions."""
    rng = np.random.default_rng([seed, num_rows, list(PROBLEMS).index(problem)])
    return _draw(PROBLEMS[problem], num_rows, NOISE, rng)


def make_kinks(num_relevant: int, num_columns: int, num_rows: int, *, noise: float, seed: int) -> Sample:
    """Rows of the sum of |x_j − b_j| over the first ``num_relevant`` of the columns, with b from N(0, I)."""

    def draw_truth(rng: np.random.Generator) -> Truth:
        kinks = rng.standard_normal(num_relevant)
        return lambda x: np.abs(x[:, :num_relevant] - kinks).sum(axis=1)

    rng = np.random.default_rng([seed, num_rows, num_relevant, num_columns])
    return _draw(Problem(num_columns, draw_truth), num_rows, noise, rng)


def _draw(problem: Problem, num_rows: int, noise: float, rng: np.random.Generator) -> Sample:
    draw = rng.uniform if problem.is_uniform else rng.standard_normal
    truth = problem.draw_truth(rng)
    x, x_test = (draw(size=(rows, problem.num_columns)) for rows in (num_rows, NUM_TEST))
    exact, y_test = truth(x), truth(x_test)
    mean, scale = y_test.mean(), y_test.std()
    y = (exact - mean) / scale + noise * rng.standard_normal(num_rows)
    return Sample(x, y, x_test, (y_test - mean) / scale)
