import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import cvxpy_optimum, random_problem
from scipy.optimize import minimize

import fixntk as fx
from fixntk.convex import restriction
from fixntk.convex.losses import LOSSES, huber

EARLY = pytest.mark.filterwarnings("ignore::fixntk.ConvergenceWarning")
NAMES = pytest.mark.parametrize("name", LOSSES)
# What CVXPY is compared on: each loss, each option, and all options together.
PROGRAMS = {
    "squared": {},
    "logistic": {"loss": "logistic"},
    "softmax": {"loss": "softmax", "num_outputs": 3},
    "squared_hinge": {"loss": "squared_hinge"},
    "huber": {"loss": huber(0.4), "num_outputs": 2},
    "sample_weight": {"sample_weight": True},
    "intercept": {"intercept": True, "num_outputs": 2},
    "penalty_weights": {"penalty_weights": True},
    "ridge": {"ridge": 0.7},
    "nuclear": {"norm": "nuclear", "num_outputs": 3},
    "squared_all": {"sample_weight": True, "intercept": True, "penalty_weights": True, "ridge": 0.2, "num_outputs": 2},
    "logistic_all": {
        "loss": "logistic",
        "sample_weight": True,
        "intercept": True,
        "penalty_weights": True,
        "ridge": 0.2,
    },
    "softmax_all": {"loss": "softmax", "num_outputs": 3, "sample_weight": True, "intercept": True},
    "hinge_all": {"loss": "squared_hinge", "sample_weight": True, "intercept": True, "ridge": 0.1},
    "huber_all": {"loss": "huber", "sample_weight": True, "intercept": True, "penalty_weights": True},
}


def program_of(options, share=0.1, seed=0):
    rng = np.random.default_rng(100 + seed)
    drawn = {
        "sample_weight": np.where(rng.random(30) < 0.2, 0.0, rng.random(30) + 0.5),
        "penalty_weights": rng.random(20) + 0.5,
    }
    options = {name: drawn.get(name, value) if value is True else value for name, value in options.items()}
    if options.get("intercept") is not None:
        options["intercept"] = True
    return random_problem(seed, share=share, **options)


def rows_of(name, rng, num_rows=40, dtype=jnp.float64):
    """Outputs of all sizes and targets that fit the loss."""
    outputs = rng.standard_normal((num_rows, 3 if name == "softmax" else 1)) * np.geomspace(1e-3, 30, num_rows)[:, None]
    if name == "softmax":
        targets = np.eye(3)[rng.integers(0, 3, num_rows)]
    elif name in ("logistic", "squared_hinge"):
        targets = rng.choice([-1.0, 1.0], (num_rows, 1))
    else:
        targets = rng.standard_normal((num_rows, 1))
    return jnp.asarray(outputs, dtype), jnp.asarray(targets, dtype)


@NAMES
def test_residuals_are_negative_gradients(rng, name):
    outputs, targets = rows_of(name, rng)
    slope = jax.grad(lambda outputs: jnp.sum(LOSSES[name].values(outputs, targets)))(outputs)
    np.testing.assert_allclose(LOSSES[name].residuals(outputs, targets), -slope, atol=1e-12)


@NAMES
def test_conjugates_are_suprema(rng, name):
    loss = LOSSES[name]
    outputs, targets = rows_of(name, rng, num_rows=6)
    theta = 0.6 * loss.residuals(outputs, targets)
    for i in range(6):

        def objective(row, i=i):
            return float(loss.values(jnp.asarray(row[None]), targets[i : i + 1])[0] + row @ theta[i])

        best = minimize(objective, np.zeros(outputs.shape[1]), method="Nelder-Mead", options={"fatol": 1e-12})
        np.testing.assert_allclose(loss.conjugates(theta, targets)[i], -best.fun, atol=1e-8)


@NAMES
def test_conjugates_are_infinite_outside_their_domain(rng, name):
    targets = rows_of(name, rng)[1]
    theta = -3.0 * targets if name != "huber" else 1.5 * jnp.sign(targets)
    values = np.asarray(LOSSES[name].conjugates(theta, targets))
    assert np.all(np.isinf(values)) == (name != "squared")


@NAMES
def test_divergences_are_the_inequality_of_fenchel_and_young(rng, name):
    loss = LOSSES[name]
    outputs, targets = rows_of(name, rng)
    residuals = loss.residuals(outputs, targets)
    for scale in (0.0, 0.5, 0.99, 1.0):
        expected = (
            loss.values(outputs, targets)
            + loss.conjugates(scale * residuals, targets)
            + scale * jnp.sum(residuals * outputs, axis=1)
        )
        divergences = loss.divergences(outputs, targets, scale)
        assert np.all(np.asarray(divergences) >= 0)
        np.testing.assert_allclose(divergences, expected, atol=1e-12 * float(jnp.max(jnp.abs(outputs)) + 1))
    # Where the sum has lost all digits: the divergence goes with (1 − s)², where the loss has a second derivative.
    near, nearer = (loss.divergences(outputs, targets, 1 - step) for step in (1e-6, 1e-7))
    inside = np.all(np.abs(outputs) < 5, axis=1) & (near > 0)
    if name == "huber":
        inside &= np.abs(targets - outputs)[:, 0] < 1
    np.testing.assert_allclose(near[inside], 100 * nearer[inside], rtol=1e-4)


@NAMES
def test_losses_in_float32_at_extreme_outputs(name):
    loss = LOSSES[name]
    outputs = jnp.asarray([[-300.0], [-20.0], [0.0], [20.0], [300.0]], jnp.float32)
    targets = jnp.ones_like(outputs)
    if name == "softmax":
        outputs, targets = jnp.concatenate([outputs, 0 * outputs], axis=1), jnp.asarray([[1.0, 0.0]] * 5, jnp.float32)
    for scale in (0.0, 0.9, 1.0):
        divergences = np.asarray(loss.divergences(outputs, targets, jnp.float32(scale)))
        double = loss.divergences(*(jnp.asarray(array, jnp.float64) for array in (outputs, targets)), scale)
        np.testing.assert_allclose(divergences, double, rtol=2e-5, atol=1e-6)
    assert np.all(np.isfinite(loss.residuals(outputs, targets)))
    assert np.all(np.isfinite(loss.curvatures(outputs, targets)))


@NAMES
def test_steepest_bounds_the_second_derivatives(rng, name):
    loss = LOSSES[name]
    outputs, targets = rows_of(name, rng)

    def residual(row, target):
        return loss.residuals(row[None], target[None])[0]

    hessians = -jax.vmap(jax.jacfwd(residual))(outputs, targets)
    largest = np.linalg.eigvalsh(hessians)[:, -1]
    assert np.all(largest <= loss.steepest * (1 + 1e-12))
    assert np.all(loss.curvatures(outputs, targets) <= loss.steepest * (1 + 1e-12))
    assert np.all(loss.curvatures(outputs, targets) >= largest - 1e-12)


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


@pytest.mark.parametrize("case", PROGRAMS)
def test_certificate_is_primal_minus_dual(rng, case):
    program = program_of(PROGRAMS[case])
    for scale in np.geomspace(1e-5, 1, 6):
        weights = scale * rng.standard_normal(program.group_shape)
        gap = float(program.gap(weights))
        dual = float(program.dual(program.dual_point(weights)))
        assert np.isfinite(dual)
        np.testing.assert_allclose(gap, float(program.primal(weights)) - dual, rtol=1e-7)


@pytest.mark.parametrize("case", PROGRAMS)
def test_zero_is_optimal_exactly_from_max_reg_on(case):
    zero = np.zeros(program_of(PROGRAMS[case]).group_shape)
    above, below = program_of(PROGRAMS[case], share=1 + 1e-9), program_of(PROGRAMS[case], share=0.99)
    assert float(above.gap(zero)) < 1e-10
    assert float(below.gap(zero)) > 1e-6


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
    values = np.random.default_rng(1).standard_normal(once.group_shape)
    np.testing.assert_allclose(weighted.primal(values), repeated.primal(values), rtol=1e-12)
    np.testing.assert_allclose(weighted.gap(values), repeated.gap(values), rtol=1e-10)
    np.testing.assert_allclose(weighted.max_reg(), repeated.max_reg(), rtol=1e-10)


@pytest.mark.parametrize("case", ["intercept", "logistic_all", "softmax_all", "hinge_all", "huber_all"])
def test_intercept_is_the_best(rng, case):
    program = program_of(PROGRAMS[case])
    fitted = 3 * jnp.asarray(rng.standard_normal(program.targets.shape))
    fit = program.datafit.fit(fitted)
    residual_sums = jnp.sum(fit.residual, axis=0)
    np.testing.assert_allclose(residual_sums, 0, atol=1e-13 * float(jnp.sum(jnp.abs(fit.residual))))
    weights = 1.0 if program.sample_weight is None else program.sample_weight
    for step in 1e-3 * rng.standard_normal((20, fit.intercept.size)):
        moved = program.loss.values(fitted + fit.intercept + step, program.targets)
        assert float(jnp.sum(weights * moved)) >= float(fit.loss) - 1e-12


@pytest.mark.parametrize("case", ["logistic", "softmax_all", "squared_all"])
def test_predictions_are_the_outputs_at_the_optimum(key, case):
    base = program_of(PROGRAMS[case])
    gates = fx.sample_gates(key, 20, 4, dtype=jnp.float64)
    masks = fx.activation_masks(base.x, gates)
    program = fx.ConvexProgram(base.x, base.y, masks, base.reg, base.loss, intercept=base.column is not None)
    solution = fx.solve(program, tol=1e-9)
    outputs = solution.predict(base.x, gates)
    expected = program.datafit.fit(program.fitted(solution.weights)).outputs
    np.testing.assert_allclose(outputs, expected.reshape(outputs.shape), atol=1e-12)
    assert outputs.shape == base.y.shape


@pytest.mark.parametrize("case", ["squared_all", "logistic_all", "nuclear"])
def test_paths_with_screening_are_single_solutions(monkeypatch, case):
    monkeypatch.setattr("fixntk.convex.path._WORTH_SCREENING", 0)
    monkeypatch.setattr("fixntk.convex.restriction._SMALLEST_SET", 8)
    parts = []
    restrict = restriction._restrict
    monkeypatch.setattr(restriction, "_restrict", lambda *a: parts.append(a[-1]) or restrict(*a))
    program = program_of(PROGRAMS[case])
    regs = float(program.max_reg()) * np.array([0.9, 0.3, 0.05])
    path = fx.solve_path(program, regs, tol=1e-9)
    for reg, solution in zip(regs, path, strict=True):
        alone = fx.solve(program.with_reg(reg), tol=1e-9)
        np.testing.assert_allclose(solution.primal, alone.primal, rtol=1e-8)
        screened = fx.gap_safe(program.with_reg(reg), solution.weights)
        assert not np.any(np.asarray(screened) & np.asarray(jnp.linalg.norm(alone.weights, axis=(1, 2)) > 1e-4))
    assert min(parts) < program.num_gates


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


def test_labels_may_be_numbers_or_bools():
    program = random_problem(4, loss="logistic")
    for y in (np.asarray(program.y) > 0, (np.asarray(program.y) > 0).astype(int), np.asarray(program.y, np.float32)):
        other = fx.ConvexProgram(program.x, y, program.masks, program.reg, "logistic")
        np.testing.assert_array_equal(other.y, program.y)
        assert other.x.dtype == jnp.float64
    assert fx.ConvexProgram(
        np.ones((2, 1), np.float32), np.array([0, 1]), np.ones((2, 1), bool), 1.0, "logistic"
    ).y.dtype == (jnp.float32)


GOOD = {"x": np.ones((3, 2)), "y": np.array([0, 1, 2]), "masks": np.ones((3, 5), bool), "reg": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "logistic"}, "y must hold both labels -1 and 1, or 0 and 1, for this loss, got labels 0, 1, 2"),
        ({"loss": "squared_hinge", "y": np.array([3, 4, 4])}, "got labels 3, 4"),
        ({"loss": "softmax", "y": np.array([0, 2, 2])}, r"y must hold classes 0, 1, …, c − 1, .* got labels 0, 2"),
        ({"loss": "softmax", "y": np.full((3, 2), 0.5)}, "y must have a single 1 in each row"),
        ({"loss": "softmax", "y": np.ones((3, 1))}, "y must have a column for each of two classes"),
        (
            {"loss": "logistic", "y": np.array([1, 1, 1])},
            "y must hold both labels -1 and 1, or 0 and 1, .* got labels 1$",
        ),
        (
            {
                "loss": "logistic",
                "y": np.array([0, 1, 1]),
                "intercept": True,
                "sample_weight": np.array([0.0, 1.0, 1.0]),
            },
            "y must have rows of every class for an intercept",
        ),
        ({"sample_weight": np.array([1.0, -1.0, 1.0])}, "sample_weight must not be negative"),
        ({"sample_weight": np.zeros(3)}, "sample_weight must not be negative and not all zero"),
        ({"sample_weight": np.ones(4)}, "x and sample_weight must have the same number of rows"),
        ({"penalty_weights": np.zeros(5)}, "penalty_weights must be positive"),
        ({"penalty_weights": np.ones(4)}, r"penalty_weights must have shape \(5,\), got \(4,\)"),
        ({"ridge": -1.0}, "ridge must be a finite number that is not negative"),
        ({"ridge": np.array([1.0])}, "ridge must be a finite number that is not negative"),
        ({"ridge": 1.0, "norm": "nuclear"}, "ridge must be 0 with norm 'nuclear'"),
        ({"norm": "spectral"}, "norm must be one of frobenius, nuclear"),
    ],
)
def test_bad_options_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        fx.ConvexProgram(**{**GOOD, **change})


@pytest.mark.wrong_types
@pytest.mark.parametrize("loss", ["logistic", "softmax", "squared_hinge"])
def test_labels_that_are_text_are_named(loss):
    with pytest.raises(TypeError, match="y must hold numbers for this loss, got labels 'no', 'yes': encode"):
        fx.ConvexProgram(**{**GOOD, "y": ["yes", "no", "yes"], "loss": loss})


@pytest.mark.parametrize("loss", ["squared", "logistic", huber(0.4)])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda program: pickle.loads(pickle.dumps(program))])
def test_copies_are_the_same_program(loss, copied):
    program = random_problem(3, loss=loss)
    again = copied(program)
    assert again.loss == program.loss
    assert again.is_quadratic == program.is_quadratic
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
