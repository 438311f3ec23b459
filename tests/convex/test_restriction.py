"""Paths on working sets: the solutions are those of all groups."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROGRAMS, program_of, random_problem

import fixntk as fx
from fixntk.convex import restriction


def test_a_working_set_that_is_too_small_grows(monkeypatch):
    monkeypatch.setattr("fixntk.convex.path._WORTH_SCREENING", 0)
    monkeypatch.setattr("fixntk.convex.restriction._ROOM", 1.0)
    monkeypatch.setattr("fixntk.convex.restriction._SMALLEST_SET", 4)
    sizes, restrict = [], restriction._restrict
    monkeypatch.setattr(restriction, "_restrict", lambda *a, size: sizes.append(size) or restrict(*a, size=size))
    program = random_problem(5, num_rows=60, num_gates=60)
    regs = float(program.max_reg()) * np.array([0.2, 0.1])
    solutions = fx.solve_path(program, regs, tol=1e-8)
    assert sizes[0] == 4
    assert len(set(sizes)) > 1
    for solution, reg in zip(solutions, regs, strict=True):
        assert bool(solution.converged)
        alone = fx.solve(program.with_reg(reg), method="fista", tol=1e-8)
        np.testing.assert_allclose(solution.primal, alone.primal, rtol=1e-7)


@pytest.mark.parametrize("case", ["squared_all", "logistic_all", "nuclear"])
def test_paths_with_screening_are_single_solutions(monkeypatch, case):
    monkeypatch.setattr("fixntk.convex.path._WORTH_SCREENING", 0)
    monkeypatch.setattr("fixntk.convex.restriction._SMALLEST_SET", 8)
    parts = []
    restrict = restriction._restrict
    monkeypatch.setattr(restriction, "_restrict", lambda *a, size: parts.append(size) or restrict(*a, size=size))
    program = program_of(PROGRAMS[case])
    regs = float(program.max_reg()) * np.array([0.9, 0.3, 0.05])
    path = fx.solve_path(program, regs, tol=1e-9)
    for reg, solution in zip(regs, path, strict=True):
        alone = fx.solve(program.with_reg(reg), tol=1e-9)
        np.testing.assert_allclose(solution.primal, alone.primal, rtol=1e-8)
        screened = fx.gap_safe(program.with_reg(reg), solution.weights)
        assert not np.any(np.asarray(screened) & np.asarray(jnp.linalg.norm(alone.weights, axis=(1, 2)) > 1e-4))
    assert min(parts) < program.num_gates
