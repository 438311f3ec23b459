"""Programs of every loss and option: CVXPY, repeated rows, reweighting, extreme λ."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROGRAMS, cvxpy_optimum, program_of, random_problem

import fixntk as fx
from fixntk.convex.losses import huber
from fixntk.convex.program import datafit_of, group_shape_of, is_quadratic, masked_outputs

EARLY = pytest.mark.filterwarnings("ignore::fixntk.ConvergenceWarning")


# Options one by one take a minute more than all together.
SHORT = ("squared", "nuclear", "squared_all", "logistic_all", "softmax_all", "hinge_all", "huber_all")


@pytest.mark.parametrize(
    "case", [case if case in SHORT else pytest.param(case, marks=pytest.mark.long) for case in PROGRAMS]
)
def test_optimum_of_cvxpy(case):
    program = program_of(PROGRAMS[case], share=0.05)
    optimum, _ = cvxpy_optimum(program)
    only_fista = program.norm.name == "nuclear" or program.loss.name == "softmax"
    for method in ["fista"] if only_fista else ["fista", "newton"]:
        solution = fx.solve(program, method=method, tol=1e-9)
        assert bool(solution.converged), (method, solution.message)
        np.testing.assert_allclose(solution.primal, optimum, rtol=1e-7)
        assert float(solution.dual) <= optimum * (1 + 1e-7)


@EARLY
@pytest.mark.parametrize("case", ["sample_weight", "squared_all"])
def test_reweighting_reaches_the_same(case):
    program = program_of(PROGRAMS[case])
    reweighted = fx.solve(program, method="irls", tol=1e-9, max_iter=3000)
    assert np.all(np.diff(reweighted.history.objective) <= 1e-10 * float(reweighted.primal))
    exact = fx.solve(program, tol=1e-10)
    assert 0 <= float(reweighted.primal - exact.primal) < 1e-5 * float(exact.primal)


@pytest.mark.parametrize("case", ["sample_weight", "logistic_all", "softmax_all", "hinge_all", "huber_all"])
def test_weights_are_repetitions(case):
    """A row of weight 2 is the row twice, a row of weight 0 is none."""
    once = program_of({**PROGRAMS[case], "sample_weight": None})
    weights = np.resize([1.0, 2.0, 1.0], 30)
    weights[[3, 17]] = 0.0
    rows = np.repeat(np.arange(30), weights.astype(int))
    options = {
        "intercept": once.column is not None,
        "penalty_weights": once.penalty_weights,
        "ridge": 0.0 if once.ridge is None else once.ridge,
    }
    weighted = fx.ConvexProgram(once.x, once.y, once.masks, once.reg, once.loss, sample_weight=weights, **options)
    repeated = fx.ConvexProgram(once.x[rows], once.y[rows], once.masks[rows], once.reg, once.loss, **options)
    values = np.random.default_rng(1).standard_normal(group_shape_of(once))
    np.testing.assert_allclose(weighted.primal(values), repeated.primal(values), rtol=1e-12)
    np.testing.assert_allclose(weighted.gap(values), repeated.gap(values), rtol=1e-10)
    np.testing.assert_allclose(weighted.max_reg(), repeated.max_reg(), rtol=1e-10)


@pytest.mark.parametrize("case", ["logistic", "softmax_all", "squared_all"])
def test_predictions_are_the_outputs_at_the_optimum(key, case):
    base = program_of(PROGRAMS[case])
    gates = fx.sample_gates(key, 20, 4, dtype=jnp.float64)
    masks = fx.activation_masks(base.x, gates)
    program = fx.ConvexProgram(base.x, base.y, masks, base.reg, base.loss, intercept=base.column is not None)
    solution = fx.solve(program, tol=1e-9)
    outputs = solution.predict(base.x, gates)
    expected = datafit_of(program).fit(masked_outputs(program, solution.weights)).outputs
    np.testing.assert_allclose(outputs, expected.reshape(outputs.shape), atol=1e-12)
    assert outputs.shape == base.y.shape


# n < d, n ≫ P, one gate; columns that are copies or zero.
SHAPES = {"wide": (12, 30, 5), "tall": (150, 2, 3), "one gate": (30, 4, 1), "copies": (30, 4, 20)}


@EARLY
@pytest.mark.parametrize(
    ("name", "shape", "digits"),
    [
        ("squared", "copies", "float32"),
        ("squared", "wide", "float32"),
        ("logistic", "wide", "float32"),
        ("logistic", "copies", "float64"),
        ("squared_hinge", "tall", "float32"),
        ("squared_hinge", "wide", "float64"),
        ("huber", "one gate", "float32"),
        ("huber", "wide", "float64"),
        ("softmax", "copies", "float32"),
    ],
)
def test_from_above_max_reg_to_almost_nothing_it_converges_or_says_why(name, shape, digits):
    program = random_problem(7, *SHAPES[shape], num_outputs=3 if name == "softmax" else None, loss=name)
    x = program.x
    if shape == "copies":
        x = jnp.concatenate([x, x[:, :1], 0 * x[:, :1]], axis=1)
    y = program.y.astype(digits)
    program = fx.ConvexProgram(x.astype(digits), y, program.masks, 1.0, name)
    tol = 1e-4 if digits == "float32" else 1e-8
    for share in (1.1, 0.9, 1e-2, 1e-4, 1e-6):
        solution = fx.solve(program.with_reg(share * program.max_reg()), tol=tol)
        assert np.all(np.isfinite(solution.weights))
        assert 0 <= float(solution.gap) < np.inf
        assert bool(solution.converged) or "stopped early" in solution.message
        assert bool(solution.converged) or share <= 1e-4, solution.message
        assert share < 1 or not np.any(solution.weights)


def test_float32_converges_to_what_it_can():
    program = program_of(PROGRAMS["logistic"], share=0.05)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else leaf, program)
    for method in ("fista", "newton"):
        solution = fx.solve(narrow, method=method, tol=1e-5)
        assert solution.weights.dtype == jnp.float32
        assert bool(solution.converged)
        np.testing.assert_allclose(solution.primal, cvxpy_optimum(program)[0], rtol=2e-5)


def test_one_call_for_many_weights_of_rows():
    """Folds as weights, under vmap, with FISTA."""
    program = random_problem(3, loss="logistic")
    folds = jnp.asarray(1.0 - np.equal.outer(np.arange(3), np.arange(30) % 3))

    def solved(weights):
        fold = fx.ConvexProgram(program.x, program.y, program.masks, program.reg, "logistic", sample_weight=weights)
        return fx.solve(fold, tol=1e-8).primal

    together = jax.vmap(solved)(folds)
    for fold, primal in zip(folds, together, strict=True):
        np.testing.assert_allclose(primal, solved(fold), rtol=1e-7)


@pytest.mark.parametrize("loss", ["squared", "logistic", huber(0.4)])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda program: pickle.loads(pickle.dumps(program))])
def test_copies_are_the_same_program(loss, copied):
    program = random_problem(3, loss=loss)
    again = copied(program)
    assert again.loss == program.loss
    assert is_quadratic(again) == is_quadratic(program)
    np.testing.assert_array_equal(fx.solve(again, tol=1e-4).weights, fx.solve(program, tol=1e-4).weights)


def test_a_ridge_of_zero_under_vmap_is_none():
    program = random_problem(4)

    def solved(ridge):
        whole = fx.ConvexProgram(program.x, program.y, program.masks, program.reg, ridge=ridge)
        solution = fx.solve(whole, tol=1e-8)
        return solution.primal, solution.converged, whole.dual(whole.dual_point(solution.weights))

    primals, converged, duals = jax.vmap(solved)(jnp.array([0.0, 0.5]))
    alone = [fx.solve(random_problem(4, ridge=ridge), tol=1e-8) for ridge in (0.0, 0.5)]
    assert np.all(converged)
    np.testing.assert_allclose(primals, [solution.primal for solution in alone], rtol=1e-7)
    np.testing.assert_allclose(duals, primals, rtol=1e-7)


def test_newton_on_the_softmax_reaches_the_same():
    program = random_problem(5, loss="softmax", num_outputs=3)
    one, two = (fx.solve(program, method=method, tol=1e-7) for method in ("newton", "fista"))
    assert bool(one.converged)
    np.testing.assert_allclose(one.primal, two.primal, rtol=1e-6)


def test_methods_say_what_they_are_not_for():
    with pytest.raises(ValueError, match="method 'irls' is for the squared loss, not for logistic"):
        fx.solve(random_problem(5, loss="logistic"), method="irls")
    with pytest.raises(ValueError, match="method 'newton' is for norm 'frobenius', not for 'nuclear'"):
        fx.solve(random_problem(5, num_outputs=2, norm="nuclear"), method="newton")
    with pytest.raises(ValueError, match="only a program of squared loss"):
        random_problem(5, loss="logistic").kernel_objective(np.ones(20))
    with pytest.raises(ValueError, match="delta must be positive"):
        huber(0.0)
