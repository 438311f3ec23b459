"""Paths of λ: the solutions are those of single solves, in the order that was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import random_problem

import fixntk as fx
from fixntk.convex import restriction


@pytest.mark.parametrize("method", ["fista", "newton"])
def test_a_path_is_single_solves_from_max_reg_down(monkeypatch, method):
    monkeypatch.setattr("fixntk.convex.path._WORTH_SCREENING", 0)
    parts = []
    restrict = restriction._restrict
    monkeypatch.setattr(restriction, "_restrict", lambda *a, size: parts.append(size) or restrict(*a, size=size))
    program = random_problem(0, num_rows=40, num_gates=40)
    solutions = fx.solve_path(program, num_regs=6, min_share=0.01, tol=1e-8, method=method)
    assert parts
    largest = float(program.max_reg())
    assert float(jnp.max(jnp.abs(solutions[0].weights))) <= 1e-6
    for solution, reg in zip(solutions, largest * np.logspace(0, -2, 6), strict=True):
        assert bool(solution.converged)
        whole = program.with_reg(reg)
        np.testing.assert_allclose(solution.gap, whole.gap(solution.weights), rtol=1e-6, atol=1e-14)
        alone = fx.solve(whole, method="fista", tol=1e-8)
        np.testing.assert_allclose(solution.primal, alone.primal, rtol=1e-7)


def test_a_path_of_targets_without_a_residual_is_refused():
    program = random_problem(1)
    for y, options in ((np.zeros(30), {}), (np.full(30, 0.1), {"intercept": True})):
        with pytest.raises(ValueError, match="W = 0 is the solution for every reg"):
            fx.solve_path(fx.ConvexProgram(program.x, y, program.masks, 1.0, **options))
    zero = fx.solve_path(fx.ConvexProgram(program.x, np.zeros(30), program.masks, 1.0), regs=[1.0])
    assert float(zero[0].gap) == 0


@pytest.mark.parametrize("screening", [0, np.inf])
def test_a_path_stops_after_max_iter(monkeypatch, screening):
    monkeypatch.setattr("fixntk.convex.path._WORTH_SCREENING", screening)
    program = random_problem(1, num_gates=40)
    with pytest.warns(fx.ConvergenceWarning, match="more iterations"):
        (solution,) = fx.solve_path(program, [0.01 * float(program.max_reg())], tol=1e-12, max_iter=1)
    assert int(solution.iterations) == 1


def test_regs_may_be_any_iterable():
    program = random_problem(5)
    regs = [2 * float(program.reg), float(program.reg)]
    given = fx.solve_path(program, iter(regs), method="fista")
    np.testing.assert_array_equal(given.regs, regs)


@pytest.mark.wrong_types
def test_regs_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match="regs must be a list of positive numbers"):
        fx.solve_path(random_problem(5), [object()])


def test_regs_are_answered_in_their_own_order():
    program = random_problem(1)
    regs = program.reg * np.array([1.0, 5.0, 0.5])
    solutions = fx.solve_path(program, regs, method="fista")
    assert [int(np.argsort([float(s.primal) for s in solutions])[k]) for k in range(3)] == [2, 0, 1]
    stopped = fx.solve_path(program, regs, method="fista", callback=lambda _: True)
    assert len(stopped) == 1
    np.testing.assert_allclose(stopped[0].primal, solutions[1].primal, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regs": []}, "regs must be a non-empty list"),
        ({"regs": [1.0, -1.0]}, "regs must be a non-empty list of positive"),
        ({"num_regs": 0}, "num_regs must be a positive integer"),
        ({"min_share": 2.0}, "min_share between 0 and 1"),
        ({"method": "irls"}, "method 'irls' starts at kernel weights"),
        ({"tol": np.inf}, "tol=inf is not finite"),
        ({"tol": 1e-20}, "tol=1e-20 is not finite or below what float64 can reach"),
    ],
)
def test_bad_paths_are_named(monkeypatch, options, message):
    monkeypatch.setattr("fixntk.convex.path._WORTH_SCREENING", 0)
    program = random_problem(4, num_gates=40)
    with pytest.raises(ValueError, match=message):
        fx.solve_path(program, **options)
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.jit(lambda y: fx.solve_path(fx.ConvexProgram(program.x, y, program.masks, 1.0))[0].primal)(program.y)


def test_a_path_is_a_sequence_with_its_regs_and_gaps():
    program = random_problem(1)
    regs = program.reg * np.array([1.0, 5.0, 0.5])
    path = fx.solve_path(program, regs, tol=1e-6)
    assert isinstance(path, fx.Path)
    np.testing.assert_allclose(path.regs, regs)
    np.testing.assert_allclose(path.gaps, [float(s.relative_gap) for s in path])
    assert path[1:].regs.tolist() == regs[1:].tolist()
    assert path[-1] is list(path)[-1]
    assert repr(path) == f"Path(3 solutions, λ {regs[1]:.3g} to {regs[2]:.3g}, 3 converged)"


def test_a_path_warns_once_for_all_its_values():
    program = random_problem(1, num_gates=40)
    regs = float(program.max_reg()) * np.array([0.1, 0.01])
    with pytest.warns(fx.ConvergenceWarning) as caught:
        fx.solve_path(program, regs, tol=1e-12, max_iter=1)
    assert len(caught) == 1
    assert "2 of 2 solutions of the path stopped above tol=1.0e-12" in str(caught[0].message)


def test_the_default_tolerance_is_what_the_dtype_can_certify():
    wide = random_problem(1)
    narrow = fx.ConvexProgram(wide.x.astype("float32"), wide.y.astype("float32"), wide.masks, wide.reg)
    assert fx.solve(wide).tol == fx.solve_path(wide, [wide.reg])[0].tol == 1e-6
    assert fx.solve(narrow).tol == fx.solve_path(narrow, [narrow.reg])[0].tol == 1e-4


@pytest.mark.parametrize("method", ["newton", "fista"])
def test_paths_of_single_precision_stay_in_it_where_double_is_on(method):
    wide = random_problem(1)
    narrow = fx.ConvexProgram(wide.x.astype("float32"), wide.y.astype("float32"), wide.masks, wide.reg)
    path = fx.solve_path(narrow, num_regs=4, min_share=0.1, method=method)
    assert {(solution.weights.dtype, bool(solution.converged)) for solution in path} == {(jnp.dtype("float32"), True)}
