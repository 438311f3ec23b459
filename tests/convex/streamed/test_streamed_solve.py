"""Programs on disk: solutions against the in-memory program's, certificates, interruption, checkpoints, peak memory."""

from pathlib import Path

import numpy as np
import pytest

import fixntk as fx

ROOT = Path(__file__).parents[3]


def problem(num_outputs=None, num_rows=403, num_gates=30, num_features=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, num_features))
    y = np.maximum(x @ rng.standard_normal((num_features, num_outputs or 1)), 0) + 0.1 * rng.standard_normal((1, 1))
    gates = rng.standard_normal((num_gates, num_features))
    return x, y[:, 0] if num_outputs is None else y, gates


def cut(array, *ends):
    return np.split(array, ends)


def both(num_outputs=None, share=0.1, **options):
    """A streamed program of three unequal shards, and the same in memory."""
    x, y, gates = problem(num_outputs)
    program = fx.ConvexProgram(x, y, fx.activation_masks(x, gates), 1.0)
    program = program.with_reg(share * program.max_reg())
    streamed = fx.StreamedProgram(cut(x, 90, 333), cut(y, 90, 333), gates, float(program.reg), **options)
    return streamed, program


@pytest.mark.parametrize("num_outputs", [None, 1, 3])
@pytest.mark.parametrize("tile_rows", [None, 64, 37, 1])
def test_the_solution_is_that_of_the_program_in_memory(num_outputs, tile_rows):
    if tile_rows == 1 and num_outputs != 3:
        pytest.skip("one case of tiles of one row")
    streamed, program = both(num_outputs, tile_rows=tile_rows)
    found, expected = fx.solve(streamed, tol=1e-12), fx.solve(program, tol=1e-12)
    assert bool(found.converged)
    np.testing.assert_allclose(found.primal, expected.primal, rtol=1e-9)
    x, _, gates = problem(num_outputs)
    outputs = found.predict(x, gates)
    assert outputs.shape == program.y.shape
    np.testing.assert_allclose(outputs, expected.predict(x, gates), atol=1e-5)
    np.testing.assert_allclose(program.gap(found.weights), found.gap, rtol=1e-6, atol=1e-12)
