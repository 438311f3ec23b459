"""Rows that change nothing: the padded program is the given one in all but its number of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROGRAMS, cvxpy_optimum, program_of, random_problem

import fixntk as fx
from fixntk.convex.padding import padded_count, with_padded_rows
from fixntk.convex.program import absorb_sample_weight, group_shape_of
from fixntk.gates.masks import pack_masks


def test_sizes_are_few_and_hold_little_more_than_the_rows():
    counts = np.arange(1, 10_000)
    sizes = np.array([padded_count(int(count)) for count in counts])
    assert np.all(sizes >= counts)
    assert np.all((sizes - counts <= 7) | (sizes <= counts * (1 + 1 / 16)))
    assert np.all(np.diff(sizes) >= 0)
    np.testing.assert_array_equal([padded_count(int(size)) for size in sizes], sizes)
    # Above the size at which compiling matters rows stay as they are.
    assert np.unique(sizes[counts <= 8192]).size < 150
    np.testing.assert_array_equal(sizes[counts > 8192], counts[counts > 8192])


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_padded_program_is_the_same_problem(name, rng):
    program = absorb_sample_weight(program_of(PROGRAMS[name]))
    padded = with_padded_rows(program)
    assert padded.x.shape[0] == 32
    weights = rng.standard_normal(group_shape_of(program))
    found, expected = padded.evaluate(weights), program.evaluate(weights)
    # Rows only, which the outputs and residuals have, differ in number.
    np.testing.assert_allclose(found.outputs[:30], expected.outputs, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.residual[:30], expected.residual, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(found.residual[30:], 0)
    for attribute in ("primal", "gap", "correlations", "intercept"):
        np.testing.assert_allclose(getattr(found, attribute), getattr(expected, attribute), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(padded.max_reg(), program.max_reg(), rtol=1e-14)
    np.testing.assert_allclose(padded.primal_at_zero(), program.primal_at_zero(), rtol=1e-14)


def test_packed_masks_are_padded(rng):
    program = random_problem(0)
    packed = fx.ConvexProgram(program.x, program.y, pack_masks(program.masks), program.reg, num_gates=20)
    weights = rng.standard_normal((20, 4, 1))
    np.testing.assert_allclose(with_padded_rows(packed).gap(weights), program.gap(weights), rtol=1e-12)


@pytest.mark.parametrize("loss", ["logistic", "huber"])
def test_programs_of_other_losses_are_of_one_kind_with_and_without_further_rows(loss):
    programs = [with_padded_rows(random_problem(0, num_rows, loss=loss)) for num_rows in (26, 32)]
    assert jax.tree.structure(programs[0]) == jax.tree.structure(programs[1])
    shapes = [[leaf.shape for leaf in jax.tree.leaves(program)] for program in programs]
    assert shapes[0] == shapes[1]
    np.testing.assert_array_equal(programs[0].sample_weight, np.arange(32) < 26)


def test_further_rows_have_a_target_that_occurs():
    # A loss need not have a value at zero.
    program = random_problem(0, loss="huber")
    np.testing.assert_array_equal(with_padded_rows(program).y[30:], np.repeat(np.asarray(program.y)[-1:], 2))


def test_rows_that_are_placed_on_a_device_stay_there():
    program = random_problem(0)
    placed = jax.device_put(program, jax.devices()[-1])
    for leaf in jax.tree.leaves(with_padded_rows(placed)):
        assert leaf.devices() == {jax.devices()[-1]}
    assert with_padded_rows(placed).x.committed
    assert not with_padded_rows(program).x.committed


def test_an_error_names_the_rows_that_were_given(monkeypatch):
    monkeypatch.setattr("fixntk._tiling._LEAST_BYTES_COMPARED", 0)
    monkeypatch.setattr("fixntk._tiling._free_of_machine", lambda: 20_000)
    with pytest.raises(fx.OutOfMemoryError, match="on 33 rows"):
        fx.solve(random_problem(0, 33), method="irls")


@pytest.mark.parametrize("num_rows", [1, 7, 9, 31, 129])
@pytest.mark.parametrize("method", ["newton", "fista", "irls"])
def test_solutions_are_those_of_the_given_rows(num_rows, method):
    program = random_problem(num_rows, num_rows, num_features=3, num_gates=6, share=0.3)
    optimum, _ = cvxpy_optimum(program)
    solution = fx.solve(program, method=method, tol=1e-8, max_iter=50_000)
    np.testing.assert_allclose(solution.primal, optimum, rtol=1e-7)
    np.testing.assert_allclose(program.primal(solution.weights), solution.primal, rtol=1e-12)
    np.testing.assert_allclose(program.gap(solution.weights), solution.gap, atol=1e-11 * optimum)


def test_a_path_is_that_of_the_given_rows():
    program = random_problem(3, 45)
    path = fx.solve_path(program, num_regs=5, tol=1e-8)
    assert float(path.regs[0]) == pytest.approx(float(program.max_reg()), rel=1e-12)
    for reg, solution in zip(path.regs, path, strict=True):
        assert float(program.with_reg(reg).gap(solution.weights)) <= 1e-8 * float(program.primal_at_zero()) + 1e-14
    assert jnp.isfinite(path[-1].primal)
