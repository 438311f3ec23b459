"""Multiple kernel learning over given kernels: against the convex program, CVXPY, and its own certificate."""

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import Lasso

import fixntk as fx
from fixntk.convex.program import masked_outputs


@pytest.fixture
def problem(rng):
    x, y = rng.standard_normal((30, 4)), rng.standard_normal((30, 2))
    masks = fx.activation_masks(x, rng.standard_normal((8, 4)))
    kernels = jnp.einsum("np,nm,mp->pnm", 1.0 * masks, x @ x.T, 1.0 * masks)
    return x, y, masks, kernels


# The smaller λ, the larger the condition of the kernel matrix, and with it rounding in the certificate, which differs
# between processors.
@pytest.mark.parametrize(("share", "tol"), [(0.9, 1e-10), (0.1, 1e-10), (0.001, 1e-9)])
@pytest.mark.parametrize("weighted", [False, True])
def test_masked_grams_give_the_convex_program(problem, share, tol, weighted):
    x, y, masks, kernels = problem
    weights = np.linspace(0.5, 2, 8) if weighted else None
    program = fx.ConvexProgram(x, y, masks, 1.0, penalty_weights=weights)
    program = program.with_reg(share * program.max_reg())
    expected = fx.solve(program, tol=1e-11)
    solution = fx.solve_kernels(kernels, y, program.reg, penalty_weights=weights, tol=tol)
    # Both gaps are shares of the objective at zero, which is larger.
    assert_allclose(solution.primal, expected.primal, rtol=tol, atol=tol * float(program.primal_at_zero()))
    assert solution.dual <= expected.primal
    assert solution.relative_gap < tol
    assert_allclose(solution.kernel_weights, expected.kernel_weights, atol=1e-4 * expected.kernel_weights.max())
    assert_allclose(solution.predict(kernels), masked_outputs(program, expected.weights), atol=1e-5)


def test_the_optimum_is_that_of_cvxpy(rng):
    n = 15
    factors = [rng.standard_normal((n, rank)) for rank in (2, 5, n)]
    y, reg = rng.standard_normal(n), 1.5
    parts = [cvxpy.Variable(factor.shape[1]) for factor in factors]
    fit = sum(factor @ part for factor, part in zip(factors, parts, strict=True)) - y
    objective = 0.5 * cvxpy.sum_squares(fit) + reg * sum(cvxpy.norm(part) for part in parts)
    expected = cvxpy.Problem(cvxpy.Minimize(objective)).solve(cvxpy.CLARABEL)
    solution = fx.solve_kernels(np.stack([factor @ factor.T for factor in factors]), y, reg, tol=1e-10)
    assert_allclose(solution.primal, expected, rtol=1e-7)
    assert solution.predict(np.zeros((3, 7, n))).shape == (7,)


def test_one_kernel_at_its_best_scale_is_the_scale_of_the_program(problem):
    """The NTK of the masks: the sum of their kernels, dear by the sum of its weights."""
    x, y, masks, kernels = problem
    program = fx.ConvexProgram(x, y, masks, 2.0)
    shares = np.random.default_rng(1).dirichlet(np.ones(8))
    best = program.best_scale(shares)
    alone = fx.solve_kernels(jnp.tensordot(shares, kernels, 1)[None], y, 2.0, tol=1e-12)
    assert_allclose(alone.kernel_weights[0], best.scale, rtol=1e-5)
    assert_allclose(alone.primal, best.objective, rtol=1e-10)
    assert fx.solve_kernels(kernels, y, 2.0).primal < best.objective


def test_penalties_from_traces_make_scales_irrelevant(problem):
    _, y, _, kernels = problem
    scales = jnp.geomspace(1e-4, 1e4, 8)
    one, other = (
        fx.solve_kernels(every, y, 3.0, penalty_weights=jnp.sqrt(jnp.trace(every, axis1=1, axis2=2)), tol=1e-10)
        for every in (kernels / 50, scales[:, None, None] * kernels / 50)
    )
    assert other.converged
    assert_allclose(other.primal, one.primal, rtol=1e-9)
    assert_allclose(scales * other.kernel_weights, one.kernel_weights, atol=1e-4 * one.kernel_weights.max())


def certified_gap(kernels, y, reg, penalty_weights, kernel_weights):
    """Relative gap of kernel weights by NumPy, from the definitions of J and of the dual objective."""
    targets = np.asarray(y).reshape(len(y), -1)
    whole = np.tensordot(kernel_weights, kernels, 1) + reg * np.eye(len(y))
    dual_weights = np.linalg.solve(whole, targets)
    primal = 0.5 * reg * (np.sum(targets * dual_weights) + np.sum(penalty_weights**2 * kernel_weights))
    lengths = np.sqrt(np.maximum(np.einsum("ic,kij,jc->k", dual_weights, kernels, dual_weights, optimize=True), 0))
    theta = reg * dual_weights / max(1.0, np.max(lengths / penalty_weights))
    return (primal - np.sum(targets * theta) + 0.5 * np.sum(theta**2)) / (0.5 * np.sum(targets**2))


def factors_of(kind, rng):
    """Factors of kernels that are hard together; the shapes are few, so that little is compiled."""
    if kind == "copies and sums":
        one, two, three = rng.standard_normal((3, 12, 2))
        return [one, one, two, 1.0005 * two, three, np.hstack([one, three]), np.hstack([one, two, three]), 0 * one]
    if kind == "one row":
        return list(rng.standard_normal((8, 1, 1)))
    if kind == "more than rows":
        return list(rng.standard_normal((40, 12, 1)))
    # Nearly the same kernels of many widths, of which only a few have a resolvable difference.
    x = rng.standard_normal(12)
    return [
        np.linalg.cholesky(np.exp(-((x[:, None] - x) ** 2) / width) + 1e-9 * np.eye(12))
        for width in np.geomspace(0.1, 100, 40)
    ]


HARD = ("copies and sums", "one row", "more than rows", "widths")


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("scales", ["one scale", "scales from 1e-8 to 1e8", "the same with penalties by traces"])
def test_dependent_kernels_of_any_scale_are_solved(kind, scales):
    for seed, share in enumerate((0.7, 0.05, 1e-3)):
        rng = np.random.default_rng(100 * HARD.index(kind) + seed)
        kernels = np.stack([factor @ factor.T for factor in factors_of(kind, rng)])
        y = rng.standard_normal((kernels.shape[1], 2))
        penalty_weights = np.ones(len(kernels))
        if scales != "one scale":
            kernels = kernels * 10.0 ** rng.uniform(-8, 8, len(kernels))[:, None, None]
        if scales == "the same with penalties by traces":
            traces = np.trace(kernels, axis1=1, axis2=2)
            penalty_weights = np.sqrt(np.where(traces > 0, traces, 1.0))
        largest = np.max(np.sqrt(np.einsum("ic,kij,jc->k", y, kernels, y)) / penalty_weights)
        solution = fx.solve_kernels(kernels, y, share * largest, penalty_weights=penalty_weights)
        assert solution.converged, (seed, share, solution.message)
        assert solution.iterations <= 30
        assert jnp.all(solution.kernel_weights >= 0)
        gap = certified_gap(kernels, y, share * largest, penalty_weights, np.asarray(solution.kernel_weights))
        assert -1e-10 <= gap <= 1e-5, (seed, share)
        assert_allclose(solution.relative_gap, gap, atol=1e-9)


@pytest.mark.parametrize("share", [0.5, 0.01])
def test_a_lasso_is_the_problem_of_its_columns_kernels(share):
    """200 kernels of rank one on 100 rows: the weights are a Lasso's, up to their signs."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 200))
    y = x[:, :5] @ rng.standard_normal(5) + 0.1 * rng.standard_normal(100)
    reg = share * np.max(np.abs(x.T @ y))
    solution = fx.solve_kernels(np.einsum("ik,jk->kij", x, x), y, reg, tol=1e-8)
    assert solution.converged, solution.message
    assert certified_gap(np.einsum("ik,jk->kij", x, x), y, reg, np.ones(200), solution.kernel_weights) <= 1e-5
    lasso = Lasso(alpha=reg / 100, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x, y)
    objective = 0.5 * np.sum((y - x @ lasso.coef_) ** 2) + reg * np.sum(np.abs(lasso.coef_))
    assert_allclose(solution.primal, objective, rtol=1e-7)
    assert_allclose(solution.kernel_weights, np.abs(lasso.coef_), atol=1e-3 * np.max(np.abs(lasso.coef_)))
    assert int(jnp.sum(solution.kernel_weights > 0)) <= 100


def test_weights_that_are_zero_at_the_optimum_are_exactly_zero(problem):
    x, y, masks, kernels = problem
    program = fx.ConvexProgram(x, y, masks, 1.0)
    program = program.with_reg(0.5 * program.max_reg())
    solution = fx.solve_kernels(kernels, y, program.reg, tol=1e-8)
    expected = fx.solve(program, tol=1e-10).kernel_weights > 0
    np.testing.assert_array_equal(solution.kernel_weights > 0, expected)
    assert 0 < int(jnp.sum(expected)) < 8


def test_a_kernel_that_is_not_positive_semidefinite_is_named():
    good = np.eye(3)
    with pytest.raises(ValueError, match=r"kernels\[1\] must be positive semi-definite, its smallest eigenvalue is -1"):
        fx.solve_kernels(np.stack([good, np.diag([1.0, 1.0, -1.0])]), np.arange(3.0), 0.1)
    bad = jnp.asarray(-good[None])
    with pytest.raises(ValueError, match="positive semi-definite"):
        jax.jit(lambda reg: fx.solve_kernels(bad, np.arange(3.0), reg).primal)(0.1)
    with pytest.raises(ValueError, match="if it was computed in float32, as where"):
        fx.solve_kernels(np.diag([1.0, 1.0, -1e-6])[None], np.arange(3.0), 0.1)
    rounding = np.diag([1.0, 1.0, -1e-14])
    assert fx.solve_kernels(np.stack([good, rounding]), np.arange(3.0), 0.1).converged
    narrow = np.diag([1.0, 1.0, -1e-6]).astype("float32")
    assert fx.solve_kernels(narrow[None], np.arange(3, dtype="float32"), 0.1).converged


def test_an_early_stop_says_why(problem):
    _, y, _, kernels = problem
    with pytest.warns(fx.ConvergenceWarning, match="max_iter was reached; raise it or tol"):
        assert not fx.solve_kernels(kernels, y, 0.1, max_iter=1).failed
    with pytest.warns(fx.ConvergenceWarning, match="limited by rounding error at this reg; raise tol or reg"):
        assert fx.solve_kernels(kernels, y, 0.1, tol=1e-20).failed


def test_units_duplicates_and_nothing_to_learn(rng):
    factor, y = rng.standard_normal((10, 3)), rng.standard_normal(10)
    kernel = factor @ factor.T
    apart = fx.solve_kernels(np.stack([1e12 * kernel, 1e-12 * np.eye(10)]), y, 1e4, tol=1e-9)
    alone = fx.solve_kernels(1e12 * kernel[None], y, 1e4, tol=1e-9)
    assert_allclose(apart.primal, alone.primal, rtol=1e-8)
    single, several = (fx.solve_kernels(np.stack([kernel] * k), y, 0.1, tol=1e-9) for k in (1, 3))
    assert_allclose(several.primal, single.primal, rtol=1e-8)
    assert_allclose(several.kernel_weights.sum(), single.kernel_weights.sum(), rtol=1e-3)
    with_zero = fx.solve_kernels(np.stack([kernel, np.zeros((10, 10))]), y, 0.1, tol=1e-9)
    assert_allclose(with_zero.primal, single.primal, rtol=1e-8)
    assert with_zero.kernel_weights[1] == 0
    nothing = fx.solve_kernels(kernel[None], np.zeros(10), 0.1)
    assert nothing.primal == 0
    assert nothing.converged


def test_above_the_largest_reg_nothing_is_left(problem):
    _, y, _, kernels = problem
    largest = jnp.sqrt(jnp.max(jnp.einsum("ic,kij,jc->k", y, kernels, y)))
    assert jnp.all(fx.solve_kernels(kernels, y, 1.001 * largest).kernel_weights == 0)
    assert jnp.any(fx.solve_kernels(kernels, y, 0.99 * largest, tol=1e-12).kernel_weights > 0)


def test_it_runs_under_jit_and_vmap_and_in_float32(problem):
    _, y, _, kernels = problem
    regs = jnp.array([0.5, 5.0])
    both = jax.jit(jax.vmap(lambda reg: fx.solve_kernels(kernels, y, reg)))(regs)
    single = [fx.solve_kernels(kernels, y, reg) for reg in regs]
    assert_allclose(both.primal, [one.primal for one in single], rtol=1e-6)
    coarse = fx.solve_kernels(kernels.astype(jnp.float32), y.astype(np.float32), jnp.float32(0.5))
    assert coarse.primal.dtype == jnp.float32
    assert coarse.converged
    assert_allclose(coarse.primal, single[0].primal, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernels": np.ones((2, 3, 4))}, r"\(m, n, n\)"),
        ({"y": np.ones(4)}, r"\(m, n, n\)"),
        ({"reg": 0.0}, "reg must be positive"),
        ({"penalty_weights": np.ones(1)}, r"shape \(2,\)"),
        ({"penalty_weights": np.array([1.0, 0.0])}, "penalty_weights must be positive"),
        ({"tol": 0.0}, "tol must be positive"),
        ({"kernels": np.stack([np.eye(3), np.triu(np.ones((3, 3)))])}, r"kernels\[1\] must be symmetric"),
        ({"y": np.array([1.0, np.nan, 0.0])}, "NaN"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    good = {"kernels": np.stack([np.eye(3), np.ones((3, 3))]), "y": np.arange(3.0), "reg": 0.1}
    with pytest.raises(ValueError, match=message):
        fx.solve_kernels(**(good | change))


def test_an_early_stop_warns(problem):
    _, y, _, kernels = problem
    with pytest.warns(fx.ConvergenceWarning, match="relative gap"):
        assert not fx.solve_kernels(kernels, y, 0.1, max_iter=1, tol=1e-12).converged
    with pytest.raises(ValueError, match="kernels must have shape"):
        fx.solve_kernels(kernels, y, 1.0).predict(kernels[:2])
