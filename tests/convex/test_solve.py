import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import random_problem

import fixntk as fx
from fixntk.convex.kernel_form import weights_of_norms
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import masked_outputs

EARLY = pytest.mark.filterwarnings("ignore::fixntk.ConvergenceWarning")
ALL = ["irls", "anderson", "fista", "newton"]
METHODS = pytest.mark.parametrize("method", ALL)


@pytest.mark.parametrize("method", ALL)
def test_above_max_reg_the_solution_is_zero_and_says_so(method):
    program = random_problem(2, share=1.1)
    seen = []
    solution = fx.solve(program, method=method, callback=seen.append)
    assert solution.message == f"{method}: reg is at or above max_reg, so W = 0 is the solution"
    assert float(solution.gap) == 0
    assert not np.any(solution.weights)
    assert not np.any(solution.kernel_weights)
    assert [progress.gap for progress in seen] == [0.0]
    assert "max_reg" not in fx.solve(program.with_reg(0.5 * program.reg), method=method, tol=1e-2).message


@EARLY
@METHODS
def test_the_certificate_is_that_of_the_weights_whatever_the_solver(method):
    program = random_problem(3, num_outputs=2)
    solution = fx.solve(program, method=method, max_iter=30)
    np.testing.assert_allclose(solution.primal, program.primal(solution.weights), rtol=1e-12)
    np.testing.assert_allclose(solution.gap, program.gap(solution.weights), rtol=1e-9)
    np.testing.assert_allclose(solution.dual, solution.primal - solution.gap, rtol=1e-12)
    np.testing.assert_allclose(solution.relative_gap, solution.gap / program.primal_at_zero(), rtol=1e-12)
    assert bool(solution.converged) == (float(solution.relative_gap) <= 1e-6)


@EARLY
@METHODS
def test_history_has_an_entry_for_the_start_and_each_iteration(method):
    solution = fx.solve(random_problem(4), method=method, max_iter=10, tol=1e-12)
    assert int(solution.iterations) == 10
    for values in solution.history:
        assert values.shape == (11,)
        assert np.all(np.isfinite(values))
    assert float(solution.history.seconds[0]) == 0
    assert np.all(np.diff(solution.history.seconds) >= 0)
    np.testing.assert_allclose(solution.history.primal[-1], solution.primal, rtol=1e-10)
    rounding = 1e-14 * float(solution.primal)
    np.testing.assert_allclose(solution.history.gap[-1], solution.gap, rtol=1e-6, atol=rounding)
    assert int(solution.history.num_active[-1]) == int(solution.active.sum())


@METHODS
def test_stopping_early_warns_and_says_so(method):
    with pytest.warns(fx.ConvergenceWarning, match=r"stopped early: relative gap .* after 2 iterations, above tol"):
        solution = fx.solve(random_problem(5), method=method, max_iter=2)
    assert not bool(solution.converged)
    assert "more iterations" in solution.message


def test_auto_converges_without_a_warning():
    solution = fx.solve(random_problem(6))
    assert "converged: relative gap" in solution.message


@EARLY
@METHODS
def test_callback_sees_every_iteration_and_can_stop(method):
    seen = []

    def callback(progress):
        seen.append(progress)
        return progress.iteration == 5

    solution = fx.solve(random_problem(7), method=method, callback=callback)
    assert [progress.iteration for progress in seen] == list(range(6))
    assert int(solution.iterations) == 5
    np.testing.assert_allclose([progress.primal for progress in seen], solution.history.primal)
    assert np.all(np.diff([progress.seconds for progress in seen]) >= 0)


@METHODS
def test_a_solution_is_a_start_from_which_little_remains(method):
    program = random_problem(8)
    optimal = fx.solve(program, method="fista", tol=1e-10)
    again = fx.solve(program, method=method, init=optimal, tol=1e-6)
    assert int(again.iterations) <= 3


@EARLY
@METHODS
def test_solving_under_jit_is_solving(method):
    program = random_problem(9)
    solution = fx.solve(program, method=method, max_iter=40)
    traced = jax.jit(lambda p: fx.solve(p, method=method, max_iter=40))(program)
    np.testing.assert_allclose(traced.weights, solution.weights, atol=1e-9)
    assert int(traced.iterations) == int(solution.iterations)
    assert traced.history.primal.shape == (41,)


@pytest.mark.parametrize("method", ["fista", "irls"])
def test_the_derivative_of_the_optimum_is_that_of_the_envelope(method):
    program = random_problem(9)

    def optimum(reg):
        return fx.solve(program.with_reg(reg), method=method, tol=1e-8, max_iter=2000).primal

    value, slope = jax.jvp(optimum, (program.reg,), (jnp.ones(()),))
    assert float(value) > 0
    np.testing.assert_allclose(slope, jnp.sum(fx.solve(program, tol=1e-10).kernel_weights), rtol=1e-3)


@EARLY
@METHODS
@pytest.mark.parametrize("options", [{}, {"penalty_weights": np.linspace(0.5, 2, 20)}])
def test_kernel_weights_make_the_same_outputs_as_the_group_weights_at_the_optimum(method, options):
    program = random_problem(11, **options)
    solution = fx.solve(program, method=method, tol=1e-9, max_iter=20_000 if method == "fista" else 4000)
    kernel = np.asarray(fx.masked_gram(solution.kernel_weights, program.masks, program.x))
    outputs = kernel @ np.linalg.solve(kernel + float(program.reg) * np.eye(30), program.y)
    np.testing.assert_allclose(outputs, masked_outputs(program, solution.weights)[:, 0], atol=1e-3)
    expected = weights_of_norms(group_norms(solution.weights), program.penalty_weights)
    np.testing.assert_allclose(solution.kernel_weights, expected, atol=1e-4)
    np.testing.assert_allclose(program.kernel_objective(solution.kernel_weights), solution.primal, rtol=1e-3)


@pytest.mark.parametrize("num_outputs", [None, 2])
def test_predictions_are_those_of_the_gated_network(rng, num_outputs):
    x, gates = rng.standard_normal((30, 4)), rng.standard_normal((20, 4))
    y = rng.standard_normal((30,) if num_outputs is None else (30, num_outputs))
    program = fx.ConvexProgram(x, y, fx.activation_masks(x, gates), 1.0)
    solution = fx.solve(program)
    new = rng.standard_normal((7, 4))
    expected = sum((new @ gates[p] >= 0)[:, None] * (new @ np.asarray(solution.weights[p])) for p in range(20))
    predicted = solution.predict(new, gates)
    assert predicted.shape == ((7,) if num_outputs is None else (7, num_outputs))
    np.testing.assert_allclose(predicted.reshape(7, -1), expected, atol=1e-12)
    np.testing.assert_allclose(
        solution.predict(x, gates).reshape(30, -1), masked_outputs(program, solution.weights), atol=1e-12
    )


def test_predicting_with_other_gates_is_an_error():
    solution = fx.solve(random_problem(12))
    with pytest.raises(ValueError, match=r"gates must have shape \(20, 4\), got \(19, 4\)"):
        solution.predict(np.ones((3, 4)), np.ones((19, 4)))


def test_float32_reaches_what_it_promises():
    program = random_problem(13)
    narrow = fx.ConvexProgram(
        np.asarray(program.x, np.float32), np.asarray(program.y, np.float32), program.masks, program.reg
    )
    solution = fx.solve(narrow, method="fista", tol=2e-6)
    assert solution.weights.dtype == jnp.float32
    exact = fx.solve(program, method="fista", tol=1e-10)
    np.testing.assert_allclose(solution.primal, exact.primal, rtol=1e-5)


def test_targets_of_zero_are_solved_at_once():
    program = random_problem(14)
    nothing = fx.ConvexProgram(program.x, 0 * program.y, program.masks, 1.0)
    solution = fx.solve(nothing, method="fista")
    assert float(solution.relative_gap) == 0
    assert int(solution.iterations) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sgd"}, "method must be one of auto, irls, anderson, fista, newton, got 'sgd'"),
        ({"tol": 1e-17}, r"tol=1e-17 is not finite or below what float64 can reach, 8\.9e-16"),
        ({"tol": np.nan}, "below what float64 can reach"),
        ({"tol": np.inf}, "tol=inf is not finite"),
        ({"max_iter": -1}, "max_iter must not be negative"),
        pytest.param({"method": ["irls"]}, "method must be one of", marks=pytest.mark.wrong_types),
        ({"method": "irls", "epsilon": np.inf}, "epsilon must be positive and finite"),
        ({"method": "fista", "epsilon": 1e-6}, "epsilon belongs to methods .irls. and .anderson., not to .fista."),
        ({"method": "irls", "epsilon": 0.0}, "epsilon must be positive"),
        ({"method": "irls", "init": np.ones(3)}, r"kernel_weights must have shape \(20,\)"),
        ({"method": "irls", "init": -np.ones(20)}, "kernel_weights must not be negative"),
        ({"method": "fista", "init": np.ones((2, 2))}, r"weights must have shape \(20, 4, 1\)"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fx.solve(random_problem(15), **options)


def test_float32_refuses_a_tolerance_that_only_float64_can_reach():
    program = random_problem(16)
    narrow = fx.ConvexProgram(np.asarray(program.x, np.float32), np.asarray(program.y, np.float32), program.masks, 1.0)
    with pytest.raises(ValueError, match="tol=1e-08 is not finite or below what float32 can reach"):
        fx.solve(narrow, tol=1e-8)


def test_kernels_over_memory_are_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr("fixntk._tiling._LEAST_BYTES_COMPARED", 0)
    monkeypatch.setattr("fixntk._tiling._free_of_machine", lambda: 20_000)
    with pytest.raises(ValueError, match=r"method 'irls' on 30 rows and .* gates needs .* use method='newton' or"):
        fx.solve(random_problem(7), method="irls")


@pytest.mark.wrong_types
def test_only_programs_are_solved():
    with pytest.raises(TypeError, match="program must be a ConvexProgram or a StreamedProgram, got str"):
        fx.solve("program")


@pytest.mark.wrong_types
def test_a_tolerance_that_is_no_number_is_a_type_error():
    with pytest.raises(TypeError, match="tol must be a number, got str"):
        fx.solve(random_problem(16), tol="small")
    for max_iter in (10.0, "10"):
        with pytest.raises(TypeError, match="max_iter must be an integer"):
            fx.solve(random_problem(16), max_iter=max_iter)
    assert bool(fx.solve(random_problem(16), tol=np.float32(1e-4)).converged)


def test_a_negative_reg_under_vmap_is_never_converged():
    program = random_problem(16)
    for method in ("fista", "irls"):
        solutions = jax.vmap(
            lambda reg, method=method: fx.solve(
                fx.ConvexProgram(program.x, program.y, program.masks, reg), method=method, max_iter=50
            )
        )(program.reg * jnp.asarray([10.0, -1.0]))
        assert list(np.asarray(solutions.failed)) == [False, True]
        assert not bool(solutions.converged[1])
        assert np.isnan(solutions.gap[1])


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_targets_whose_squares_are_out_of_range_are_refused(scale):
    program = random_problem(16)
    with pytest.raises(ValueError, match="out of float64's range: divide y by"):
        fx.ConvexProgram(program.x, program.y * scale, program.masks, 1.0)


def test_callbacks_are_refused_under_jit():
    program = random_problem(17)
    with pytest.raises(ValueError, match="callback, progress and checkpoint need the host: not under jit or vmap"):
        jax.jit(lambda p: fx.solve(p, callback=print))(program)


def test_programs_and_solutions_are_shown_in_a_line():
    program = random_problem(0)
    solution = fx.solve(program)
    shape = f"{program.x.shape[0]} rows, {program.x.shape[1]} features, 20 gates, float64"
    assert repr(program) == f"ConvexProgram({shape}, λ {float(program.reg):.3g}, loss squared)"
    active = f"{int(jnp.sum(solution.active))} of 20 gates active"
    gap = f"relative gap {float(solution.relative_gap):.1e} in {int(solution.iterations)} iterations"
    assert repr(solution) == f"Solution(newton: converged, {gap}, {active})"
    shown = []
    jax.jit(lambda p: shown.append(repr(fx.solve(p))) or fx.solve(p).primal)(program)
    assert shown == ["Solution(fista: weights float64[20, 4, 1], traced)"]
    many = jax.vmap(lambda reg: fx.solve(program.with_reg(reg)))(program.reg * jnp.array([1.0, 2.0]))
    assert repr(many) == "Solution(fista: 2 solutions, 2 converged)"


def test_few_calls_lead_from_solve_to_the_factorisation(monkeypatch):
    calls, cholesky = [], jnp.linalg.cholesky

    def recorded(*arguments, **options):
        root = str(Path(fx.__file__).parent)
        stack = [frame.name for frame in traceback.extract_stack() if frame.filename.startswith(root)]
        calls.append(stack[stack.index("solve") :])
        return cholesky(*arguments, **options)

    monkeypatch.setattr(jnp.linalg, "cholesky", recorded)
    # Sizes that no other test has compiled: steps that are compiled into one loop, and steps from the host.
    fx.solve(random_problem(0, 43, 4, 37, share=0.05), method="newton", tol=1e-9)
    num_short = len(calls)
    fx.solve(random_problem(0, 301, 10, 211, share=0.05), method="newton", tol=1e-9)
    assert 0 < num_short < len(calls)
    assert max(len(stack) for stack in calls) <= 9, max(calls, key=len)


@METHODS
def test_no_steps_under_jit_certify_the_start(method):
    program = random_problem(0)
    solution = jax.jit(lambda p: fx.solve(p, method=method, max_iter=0))(program)
    with pytest.warns(fx.ConvergenceWarning):
        alone = fx.solve(program, method=method, max_iter=0)
    assert solution.history.gap.shape == (1,)
    np.testing.assert_allclose(solution.gap, alone.gap, rtol=1e-9)


@pytest.mark.parametrize("options", [{}, {"loss": "logistic"}, {"sample_weight": np.linspace(0.5, 1.5, 30)}], ids=str)
@pytest.mark.parametrize("method", ["auto", "newton"])
def test_a_program_that_a_traced_function_closes_over_is_solved_in_it(options, method):
    program = random_problem(0, **options)
    solve = jax.jit(lambda scale: scale * fx.solve(program, method=method, tol=1e-8).primal)
    np.testing.assert_allclose(solve(2.0), 2 * fx.solve(program, tol=1e-8).primal, rtol=1e-7)
