"""Paths of programs on disk: their solutions are those in memory, in fewer passes than one by one."""

import jax
import numpy as np
import pytest
from streamed_problems import both, cut, limit_sample, problem

import fixntk as fx
from fixntk.convex.streamed import path as streamed_path
from fixntk.convex.streamed import solve as streamed_solve

SPACING = {"num_regs": 6, "min_share": 0.02}


@pytest.fixture
def passes(monkeypatch):
    """The λ of each pass over the rows."""
    seen = []
    sum_over_rows = streamed_solve.sum_over_rows

    def count(program, *args, **options):
        seen.append(program.reg)
        return sum_over_rows(program, *args, **options)

    monkeypatch.setattr(streamed_solve, "sum_over_rows", count)
    return seen


@pytest.mark.parametrize(("num_outputs", "options"), [(None, {}), (3, {}), (None, {"intercept": True})])
@pytest.mark.parametrize("num_rows", [403, 100])
def test_the_solutions_are_those_of_the_path_in_memory(monkeypatch, num_outputs, options, num_rows):
    limit_sample(monkeypatch, num_rows)
    x, y, gates = problem(num_outputs)
    streamed = fx.StreamedProgram(cut(x, 90, 333), cut(y, 90, 333), gates, 1.0, tile_rows=50, **options)
    program = fx.ConvexProgram(x, y, fx.activation_masks(x, gates), 1.0, **options)
    found, expected = (fx.solve_path(each, **SPACING, tol=1e-9) for each in (streamed, program))
    assert isinstance(found, fx.Path)
    np.testing.assert_allclose(found.regs, expected.regs, rtol=1e-12)
    for one, other, reg in zip(found, expected, found.regs, strict=True):
        assert bool(one.converged)
        np.testing.assert_allclose(one.primal, other.primal, rtol=1e-8)
        np.testing.assert_allclose(one.predict(x, gates), other.predict(x, gates), atol=1e-2)
        # The certificate is that of the weights at this λ.
        at_reg = program.with_reg(reg).evaluate(one.weights)
        np.testing.assert_allclose(one.primal, at_reg.primal, rtol=1e-12)
        np.testing.assert_allclose(one.gap, at_reg.gap, rtol=1e-6, atol=1e-10)
        if options:
            np.testing.assert_allclose(one.intercept, at_reg.intercept, rtol=1e-9)


def test_a_solution_that_ends_early_is_certified_and_so_is_the_one_that_starts_there(monkeypatch):
    limit_sample(monkeypatch, 5)
    streamed, program = both(tile_rows=50)
    with pytest.warns(fx.ConvergenceWarning):
        path = fx.solve_path(streamed, **SPACING, tol=1e-12, max_iter=3)
    # The weights of the last pass are not always the best.
    assert any(bool(np.diff(solution.history.gap)[-1] == 0) for solution in path[1:-1])
    for solution, reg in zip(path, path.regs, strict=True):
        at_reg = program.with_reg(reg).evaluate(solution.weights)
        np.testing.assert_allclose(solution.primal, at_reg.primal, rtol=1e-12)
        np.testing.assert_allclose(solution.gap, at_reg.gap, rtol=1e-6, atol=1e-10)


def test_a_path_takes_fewer_passes_than_its_solutions_one_by_one(monkeypatch, passes):
    limit_sample(monkeypatch, 40)
    streamed, _ = both(tile_rows=50)
    path = fx.solve_path(streamed, **SPACING, tol=1e-8)
    iterations = [int(solution.iterations) for solution in path]
    # One pass gives λ_max, the sample and the start; no λ but the first is started by a pass.
    assert len(passes) == 1 + sum(iterations)
    alone = [int(fx.solve(streamed.with_reg(reg), tol=1e-8).iterations) for reg in path.regs]
    assert sum(iterations) < 0.8 * sum(alone)


def test_regs_are_answered_in_their_own_order_from_the_largest_down(passes):
    streamed, _ = both()
    seen = []
    path = fx.solve_path(streamed, regs=iter([5.0, 50.0, 1.0]), callback=seen.append)
    np.testing.assert_array_equal(path.regs, [5.0, 50.0, 1.0])
    assert [solution is path[k] for solution, k in zip(seen, (1, 0, 2), strict=True)] == [True] * 3
    assert passes[1:] == sorted(passes[1:], reverse=True)
    stopped = fx.solve_path(streamed, regs=[5.0, 50.0, 1.0], callback=lambda _: True)
    np.testing.assert_array_equal(stopped.regs, [50.0])


def test_an_interrupted_path_hands_out_what_it_reached(monkeypatch):
    streamed, _ = both()
    step = streamed_solve._step

    def interrupt(program, *args):
        if program.reg < 2:
            raise KeyboardInterrupt
        return step(program, *args)

    monkeypatch.setattr(streamed_solve, "_step", interrupt)
    with pytest.raises(fx.Interrupted) as caught:
        fx.solve_path(streamed, regs=[1.0, 5.0, 50.0], progress=True)
    reached = caught.value.result
    np.testing.assert_array_equal(reached.regs, [5.0, 50.0])
    assert all(bool(solution.converged) for solution in reached)


def test_a_path_goes_on_from_its_checkpoint_to_the_same_bits(monkeypatch, tmp_path, passes):
    limit_sample(monkeypatch, 100)
    streamed, _ = both(tile_rows=50)
    whole = fx.solve_path(streamed, **SPACING, tol=1e-8)
    stop = iter([False, False, True])
    fx.solve_path(streamed, **SPACING, tol=1e-8, checkpoint=tmp_path, callback=lambda _: next(stop))
    passes.clear()
    solved = []
    # The same rows in other shards.
    x, y, gates = problem()
    other = fx.StreamedProgram(x, cut(y, 200), gates, 7.0, tile_rows=50)
    found = fx.solve_path(other, **SPACING, tol=1e-8, checkpoint=tmp_path, callback=solved.append)
    assert len(solved) == 3
    assert len(passes) == 1 + sum(int(solution.iterations) for solution in solved)
    for one, expected in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one.weights, expected.weights)
        np.testing.assert_array_equal(one.history.gap, expected.history.gap)
        assert (one.method, one.tol, one.squeeze) == (expected.method, expected.tol, expected.squeeze)
    for options, changed in (({"tol": 1e-7}, "tol"), ({"min_share": 0.1}, "regs")):
        with pytest.raises(ValueError, match=f"with other {changed}: pass the same"):
            fx.solve_path(streamed, **(SPACING | {"tol": 1e-8} | options), checkpoint=tmp_path)


def test_single_precision_reaches_its_default_tolerance():
    x, y, gates = (array.astype(np.float32) for array in problem())
    path = fx.solve_path(fx.StreamedProgram(x, y, gates, 1.0, tile_rows=50), num_regs=4, min_share=0.1)
    assert {(str(each.weights.dtype), each.tol, bool(each.converged)) for each in path} == {("float32", 1e-4, True)}


def test_targets_without_a_residual_are_refused():
    x, _, gates = problem()
    constant = np.full(len(x), 20.1)
    # Constant up to rounding.
    constant[::2] = np.nextafter(constant[::2], 0)
    for y, options in ((np.zeros(len(x)), {}), (constant, {"intercept": True})):
        with pytest.raises(ValueError, match="W = 0 is the solution for every reg"):
            fx.solve_path(fx.StreamedProgram(x, y, gates, 1.0, tile_rows=50, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "newton"}, "method must be 'auto' for a StreamedProgram, .* got 'newton'"),
        ({"screen": False}, "screen=False belongs to a ConvexProgram"),
        ({"regs": [1.0, -1.0]}, "regs must be a non-empty list of positive"),
        ({"num_regs": 0}, "num_regs must be a positive integer"),
        ({"tol": 1e-20}, "below what float64 can reach"),
        ({"max_iter": -1}, "max_iter must not be negative"),
    ],
)
def test_bad_paths_are_named_before_rows_are_read(monkeypatch, options, message):
    streamed, _ = both()
    monkeypatch.setattr(streamed_path, "read_rows", None)
    with pytest.raises(ValueError, match=message):
        fx.solve_path(streamed, **options)
    with pytest.raises(ValueError, match="reads files on the host: not under jit or vmap"):
        jax.jit(lambda reg: fx.solve_path(streamed, [reg])[0].primal)(1.0)


def test_a_path_warns_once_for_all_its_values():
    streamed, _ = both(tile_rows=50)
    with pytest.warns(fx.ConvergenceWarning, match="2 of 2 solutions of the path stopped above") as caught:
        fx.solve_path(streamed, [5.0, 1.0], tol=1e-12, max_iter=0)
    assert len(caught) == 1
