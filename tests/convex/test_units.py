"""Units of a program: powers of two, in which the same problem has numbers of size one."""

import numpy as np
import pytest
from problems import program_of, random_problem

import fixntk as fx
from fixntk.convex.program import group_shape_of, targets_of
from fixntk.convex.units import in_units, units_of

OPTIONS = {"ridge": 0.7, "penalty_weights": True, "sample_weight": True, "intercept": True}


def in_scales(scale_x, scale_y, options):
    program = program_of(options)
    kept = {name: getattr(program, name) for name in ("sample_weight", "penalty_weights")}
    return fx.ConvexProgram(
        scale_x * program.x,
        scale_y * program.y,
        program.masks,
        scale_x * scale_y * program.reg,
        intercept=program.column is not None,
        ridge=0.0 if program.ridge is None else scale_x**2 * program.ridge,
        **kept,
    )


@pytest.mark.parametrize("scales", [(1.0, 1.0), (3e-20, 7e15), (5e60, 2e-40)])
def test_numbers_are_of_size_one_in_units_that_are_powers_of_two(scales):
    program = in_scales(*scales, {})
    units = units_of(program)
    for unit, array in ((units.x, program.x), (units.y, targets_of(program))):
        mantissa, _ = np.frexp(float(unit))
        assert mantissa == 0.5
        assert 0.7 < np.sqrt(np.mean((np.asarray(array) / float(unit)) ** 2)) < 1.42


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "all options"])
def test_objectives_and_gaps_are_the_same_in_units(rng, options):
    program = in_scales(3e-6, 7e8, options)
    units = units_of(program)
    weights = rng.standard_normal(group_shape_of(program))
    found = in_units(program, units).evaluate(weights)
    expected = program.evaluate(weights * units.weights)
    for name in ("primal", "gap"):
        np.testing.assert_allclose(getattr(found, name) * units.objective, getattr(expected, name), rtol=1e-13)


def test_data_of_zeros_have_the_unit_one():
    program = random_problem(0)
    zeros = fx.ConvexProgram(0 * program.x, 0 * program.y, program.masks, 1.0)
    assert [float(unit) for unit in units_of(zeros)] == [1.0, 1.0]
