import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import cvxpy_optimum, random_problem

import fixntk as fx
from fixntk.convex.program import group_shape_of, program_at_share, targets_of

OUTPUTS = pytest.mark.parametrize("num_outputs", [None, 1, 3])


def by_definition(program, weights):
    masks = np.asarray(program.masks, float)
    fitted = sum((masks[:, [p]] * np.asarray(program.x)) @ np.asarray(weights[p]) for p in range(program.num_gates))
    norms = [np.linalg.norm(group) for group in weights]
    return 0.5 * np.sum((fitted - np.asarray(targets_of(program))) ** 2) + float(program.reg) * sum(norms)


@OUTPUTS
def test_primal_is_its_definition(rng, num_outputs):
    program = random_problem(0, num_outputs=num_outputs)
    weights = rng.standard_normal(group_shape_of(program))
    np.testing.assert_allclose(program.primal(weights), by_definition(program, weights), rtol=1e-12)


def test_weights_of_one_output_may_be_a_matrix(rng):
    program = random_problem(0)
    weights = rng.standard_normal(group_shape_of(program))
    np.testing.assert_array_equal(program.primal(weights[:, :, 0]), program.primal(weights))


@OUTPUTS
def test_every_dual_value_is_below_every_primal_value(rng, num_outputs):
    program = random_problem(1, num_outputs=num_outputs)
    lowest = min(
        float(program.primal(s * rng.standard_normal(group_shape_of(program)))) for s in np.geomspace(1e-3, 1, 20)
    )
    for _ in range(20):
        theta = program.dual_point(0.1 * rng.standard_normal(group_shape_of(program)))
        assert -np.inf < float(program.dual(theta)) <= lowest


@OUTPUTS
def test_gap_is_primal_minus_dual_and_never_negative(rng, num_outputs):
    program = random_problem(2, num_outputs=num_outputs)
    for scale in np.geomspace(1e-6, 1, 10):
        weights = scale * rng.standard_normal(group_shape_of(program))
        gap = float(program.gap(weights))
        expected = program.primal(weights) - program.dual(program.dual_point(weights))
        np.testing.assert_allclose(gap, expected, rtol=1e-9)
        assert gap >= 0


@OUTPUTS
def test_gap_encloses_the_optimum_of_cvxpy(num_outputs):
    program = random_problem(3, num_outputs=num_outputs)
    optimum, weights = cvxpy_optimum(program)
    assert float(program.gap(weights)) < 1e-5 * optimum
    np.testing.assert_allclose(program.primal(weights), optimum, rtol=1e-7)


def test_infeasible_dual_points_have_value_minus_infinity():
    program = random_problem(4, share=0.5)
    assert float(program.dual(program.y)) == -np.inf


def test_dual_takes_the_shape_of_y():
    program = random_problem(4, num_outputs=2)
    with pytest.raises(ValueError, match=r"theta must have y's shape \(30, 2\), got \(30,\)"):
        program.dual(np.zeros(30))


@OUTPUTS
def test_zero_is_optimal_exactly_from_max_reg_on(num_outputs):
    program = random_problem(5, num_outputs=num_outputs, share=1 + 1e-9)
    zero = np.zeros(group_shape_of(program))
    assert float(program.gap(zero)) < 1e-12
    below = fx.ConvexProgram(program.x, program.y, program.masks, 0.99 * program.reg)
    assert float(below.gap(zero)) > 1e-5


def test_a_share_of_max_reg_is_a_share_of_the_largest_correlation():
    program = random_problem(6, num_outputs=2)
    x, y, masks = (np.asarray(array) for array in (program.x, program.y, program.masks))
    largest = max(np.linalg.norm((masks[:, [p]] * x).T @ y) for p in range(program.num_gates))
    np.testing.assert_allclose(program_at_share(x, y, masks, 0.3).reg, 0.3 * largest, rtol=1e-12)


def test_zero_rows_and_columns_leave_objectives_and_gap_alone(rng):
    program = random_problem(10)
    padded = fx.ConvexProgram(
        np.pad(program.x, ((0, 3), (0, 2))),
        np.pad(program.y, (0, 3)),
        np.pad(program.masks, ((0, 3), (0, 0))),
        program.reg,
    )
    weights = rng.standard_normal(group_shape_of(program))
    wider = np.pad(weights, ((0, 0), (0, 2), (0, 0)))
    np.testing.assert_allclose(padded.primal(wider), program.primal(weights), rtol=1e-12)
    np.testing.assert_allclose(padded.gap(wider), program.gap(weights), rtol=1e-12)
    np.testing.assert_allclose(padded.max_reg(), program.max_reg(), rtol=1e-12)


def test_packed_masks_give_the_same_program(rng):
    program = random_problem(11)
    packed = fx.ConvexProgram(program.x, program.y, fx.pack_masks(program.masks), program.reg, num_gates=20)
    weights = rng.standard_normal(group_shape_of(program))
    np.testing.assert_allclose(packed.gap(weights), program.gap(weights), rtol=1e-12)


def test_program_is_a_pytree_that_vmaps_over_reg(rng):
    program = random_problem(12)
    weights = rng.standard_normal(group_shape_of(program))
    regs = jnp.asarray([0.1, 1.0, 10.0])
    gaps = jax.vmap(lambda reg: fx.ConvexProgram(program.x, program.y, program.masks, reg).gap(weights))(regs)
    single = fx.ConvexProgram(program.x, program.y, program.masks, 1.0)
    np.testing.assert_allclose(gaps[1], single.gap(weights), rtol=1e-12)
    np.testing.assert_allclose(jax.jit(lambda p: p.gap(weights))(single), single.gap(weights), rtol=1e-12)


def test_float32_stays_float32(rng):
    program = random_problem(13)
    narrow = fx.ConvexProgram(*(np.asarray(a, np.float32) for a in (program.x, program.y)), program.masks, 1.0)
    weights = rng.standard_normal(group_shape_of(program))
    assert narrow.primal(weights).dtype == narrow.gap(weights).dtype == narrow.max_reg().dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.full((3, 2), np.nan)}, "x holds 6 NaN or infinite"),
        ({"y": np.array([1, np.inf, 0])}, "y holds 1 NaN or infinite"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, "x is empty"),
        ({"x": np.zeros(3)}, "x must have 2 dimensions, got shape"),
        ({"y": np.zeros((3, 1, 1))}, "y must have 1 or 2 dimensions"),
        ({"y": np.zeros(4)}, r"x and y must have the same number of rows, got shapes \(3, 2\) and \(4,\)"),
        ({"masks": np.ones((4, 5), bool)}, "x and masks must have the same number of rows"),
        ({"masks": np.ones((3, 0), bool)}, "masks holds no masks"),
        ({"masks": np.full((3, 5), 0.5)}, "masks must be bool or 0/1"),
        ({"reg": -1.0}, r"reg must be positive and finite, got -1\.0"),
        ({"reg": 0.0}, "reg must be positive and finite"),
        ({"reg": np.nan}, "reg holds 1 NaN"),
        ({"reg": np.ones(2)}, r"reg must be a number \(vmap over several\), got shape \(2,\)"),
        ({"x": np.full((3, 2), 1e-90), "y": np.full(3, 1e-90)}, "products of x, with entries up to 1.0e-90, and y"),
        ({"x": np.full((3, 2), 1e90), "y": np.full(3, 1e90)}, "have squares out of float64's range: divide x by 1.0e"),
        ({"loss": "hinge"}, "loss must be one of squared, logistic, .*got 'hinge'"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {"x": np.ones((3, 2)), "y": np.zeros(3), "masks": np.ones((3, 5), bool), "reg": 1.0}
    with pytest.raises(ValueError, match=message):
        fx.ConvexProgram(**{**good, **change})


def test_bad_group_weights_are_named():
    with pytest.raises(ValueError, match=r"weights must have shape \(20, 4, 1\), got \(20, 5\)"):
        random_problem(14).primal(np.ones((20, 5)))


def test_a_program_that_is_made_under_jit_is_the_same():
    program = random_problem(15)

    @jax.jit
    def made(y):
        inner = fx.ConvexProgram(program.x, y, program.masks, program.reg)
        assert inner.ridge is None
        return inner.kernel_objective(jnp.ones(20))

    np.testing.assert_allclose(made(program.y), program.kernel_objective(np.ones(20)), rtol=1e-12)
