"""The way from the public calls to the Cholesky factorisation stays short, as docs/house.md says."""

import inspect
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from problems import random_problem

import fixntk as fx
from fixntk.estimators import GatedReLURegressor

LIBRARY = str(Path(fx.__file__).parent)


@pytest.fixture
def ways(monkeypatch):
    """The functions of the library on the way to each factorisation that is traced, the outermost first."""
    found, factorise = [], jnp.linalg.cholesky

    def record(*args, **options):
        frames = [frame.function for frame in inspect.stack(0) if frame.filename.startswith(LIBRARY)]
        found.append(frames[::-1])
        return factorise(*args, **options)

    monkeypatch.setattr(jnp.linalg, "cholesky", record)
    return found


# Shapes that no other test has, so that the calls are traced here: a loop, and steps of several functions.
@pytest.mark.parametrize(
    ("num_rows", "num_gates", "loss", "num_calls"),
    [(57, 12, "squared", 9), (58, 700, "squared", 9), (60, 12, "huber", 10)],
)
def test_nine_calls_from_solve_to_the_factorisation(ways, num_rows, num_gates, loss, num_calls):
    program = random_problem(0, num_rows, share=0.1, num_gates=num_gates)
    fx.solve(fx.ConvexProgram(program.x, program.y, program.masks, program.reg, loss), method="newton", tol=1e-4)
    assert ways
    for way in ways:
        assert way[0] == "solve"
        assert len(way) <= num_calls, " → ".join(way)


@pytest.mark.parametrize(("num_rows", "loss", "num_calls"), [(59, "squared", 11), (61, "huber", 12)])
def test_eleven_calls_from_fit_to_the_factorisation(ways, num_rows, loss, num_calls):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_rows, 7))
    GatedReLURegressor(45, loss=loss, random_state=0).fit(x, x[:, 0])
    assert ways
    for way in ways:
        assert way[0] == "fit"
        assert len(way) <= num_calls, " → ".join(way)
