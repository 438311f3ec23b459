"""Models from samples: which rows they have, and minima against the program of the model's own rows."""

import numpy as np
import pytest

import fixntk as fx
from fixntk.convex.streamed import model
from fixntk.convex.streamed.model import Point, SampleTaker, minimise_model
from fixntk.convex.streamed.program import sum_over_rows


def take(x, tile, num_rows, monkeypatch):
    """The sample of at most ``num_rows`` rows, its tiles looked at in order."""
    monkeypatch.setattr(model, "_MAX_SAMPLE_ROWS", num_rows)
    taker = SampleTaker(fx.StreamedProgram(x, np.ones(len(x)), np.ones((1, x.shape[1])), 1.0))
    for begin in range(0, len(x), tile):
        taker.look(begin, x[begin : begin + tile])
    return taker.sample()


def find_rows(sample, x):
    """The number of the row that each row of a sample is a multiple of, and the square of the factor."""
    rows = np.asarray(sample.x) * sample.unit
    unit = lambda array: array / np.linalg.norm(array, axis=1, keepdims=True)  # noqa: E731
    numbers = np.argmax(unit(rows) @ unit(x).T, axis=1)
    factors = np.linalg.norm(rows, axis=1) / np.linalg.norm(x[numbers], axis=1)
    np.testing.assert_allclose(rows, factors[:, None] * x[numbers], rtol=1e-12)
    return numbers, factors**2


@pytest.mark.parametrize("tile", [1125, 64, 7])
def test_a_sample_has_the_longest_rows_and_random_ones_that_stand_for_the_others(rng, monkeypatch, tile):
    x = rng.standard_normal((1125, 5))
    sample = take(x, tile, 100, monkeypatch)
    assert not sample.is_whole
    numbers, counts = find_rows(sample, x)
    assert len(set(numbers)) == len(numbers)
    longest = np.argsort(-np.linalg.norm(x, axis=1))[:25]
    np.testing.assert_array_equal(np.sort(numbers[np.isclose(counts, 1)]), np.sort(longest))
    np.testing.assert_allclose(counts.sum(), 1125)
    # One random row of each block, but for those that are among the longest.
    blocks = numbers[~np.isclose(counts, 1)] // 15
    assert len(set(blocks)) == len(blocks) > 60


def test_a_sample_of_all_rows_is_those_rows(rng, monkeypatch):
    x = rng.standard_normal((40, 3))
    sample = take(x, 7, 40, monkeypatch)
    assert sample.is_whole
    np.testing.assert_array_equal(np.asarray(sample.x) * sample.unit, x)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_the_minimum_of_an_exact_model_is_the_optimum_from_any_base(rng, monkeypatch, scale):
    x, gates = scale * rng.standard_normal((80, 4)), rng.standard_normal((150, 4))
    y = np.stack([np.maximum(x[:, 0], x[:, 1]) / scale, rng.standard_normal(80)], axis=1)
    program = fx.StreamedProgram(x, y, gates, 1.0)
    program = program.with_reg(0.05 * program.max_reg())
    base = rng.standard_normal((150, 4, 2)) * (np.arange(150) % 5 == 0)[:, None, None] / scale
    sums = sum_over_rows(program, base)
    point = Point(base, sums.correlations, np.asarray(sums.loss))
    found = minimise_model(program, take(x, 80, 80, monkeypatch), point, 0.0, 1e-9 * sums.loss_at_zero)
    exact = fx.ConvexProgram(x, y, fx.activation_masks(x, gates), program.reg)
    np.testing.assert_array_less(exact.gap(found), 2e-9 * sums.loss_at_zero)


def test_a_damped_model_stays_nearer_to_its_base(rng, monkeypatch):
    x, gates = rng.standard_normal((80, 4)), rng.standard_normal((20, 4))
    program = fx.StreamedProgram(x, np.abs(x[:, 0]), gates, 1.0)
    sums = sum_over_rows(program, np.zeros((20, 4, 1)))
    point = Point(np.zeros((20, 4, 1)), sums.correlations, np.asarray(sums.loss))
    sample = take(x, 80, 80, monkeypatch)
    lengths = [np.linalg.norm(minimise_model(program, sample, point, damping, 1e-6)) for damping in (0.0, 0.1, 10.0)]
    assert lengths[0] > lengths[1] > 2 * lengths[2] > 0
