"""Counted work against XLA's own counts, and typical solves against solves that happen."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk import gram
from fixntk.convex import program as programs
from fixntk.convex import work
from fixntk.convex.program import group_shape_of, program_at_share
from fixntk.convex.solve import METHODS, choose_method
from fixntk.convex.solvers import newton, newton_system, prox_newton, working_sets
from fixntk.convex.work import Work, program_of_shapes, step_work, typical_work


def flops_by_xla(function, *shapes):
    """Operations that XLA counts in a function of shapes; of LAPACK's it counts none."""
    return jax.jit(function).lower(*shapes).compile().cost_analysis()["flops"]


def step_by_xla(program, method):
    num_gates, _, _ = shape = group_shape_of(program)
    start = jax.ShapeDtypeStruct((num_gates,) if method.reweights else shape, program.x.dtype)
    epsilon = jax.ShapeDtypeStruct((), program.x.dtype) if method.reweights else None
    state = jax.eval_shape(method.init, program, start, epsilon)
    (step,) = method.steps(program)
    return flops_by_xla(step, program, state)


@pytest.mark.parametrize("method", [*METHODS.values(), prox_newton.METHOD])
def test_a_typical_solve_by_every_method_has_its_work(method):
    program = program_of_shapes(500, 10, 100, 1, "squared", "float32")
    assert typical_work(program, method).flops > step_work(program, method).flops > 0


@pytest.mark.parametrize(
    ("name", "loss", "outputs"),
    [("fista", "squared", 1), ("fista", "squared", 3), ("fista", "logistic", 1), ("irls", "squared", 2)],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_operations_of_a_step_are_those_that_xla_counts(name, loss, outputs, dtype):
    program = program_of_shapes(1000, 15, 400, outputs, loss, dtype)
    method = choose_method(program, name)
    counted = step_work(program, method)
    # XLA also counts what is done entry by entry.
    assert counted.products + counted.squares == pytest.approx(step_by_xla(program, method), rel=0.08)
    assert (counted.factorisations > 0) == method.reweights


def test_a_step_of_anderson_is_two_of_reweighting():
    program = program_of_shapes(1000, 15, 400, 1, "squared", "float64")
    plain, doubled = (step_work(program, METHODS[name]) for name in ("irls", "anderson"))
    assert doubled == plain.times(2)
    assert doubled.products + doubled.squares == pytest.approx(step_by_xla(program, METHODS["anderson"]), rel=0.08)


def test_operations_of_a_factorisation_are_those_of_the_textbook():
    # Counted in a loop: entry (i, j) of the factor takes 2j + 1 operations.
    size = 60
    factor = sum(2 * j + 1 for i in range(size) for j in range(i + 1))
    # Each solve with a factor takes size² operations a triangle and column. There are two of two triangles each, and a
    # product with the matrix.
    columns = 3
    counted = work.kernel_work(program_of_shapes(size, 2, 5, columns, "squared", "float64"))
    assert counted.factorisations == pytest.approx(factor + 6 * size**2 * columns, rel=0.02)


def planted(num_rows, num_features, num_gates, dtype):
    """The problem of which iterations are typical: a network of five neurons with noise, at a tenth of λ_max."""
    rng = np.random.default_rng(0)
    x, gates = rng.standard_normal((num_rows, num_features)), rng.standard_normal((num_gates, num_features))
    neurons = rng.standard_normal((2, 5, num_features))
    y = np.sum((x @ neurons[0].T >= 0) * (x @ neurons[1].T), axis=1) + 0.1 * rng.standard_normal(num_rows)
    x, y = (jnp.asarray(a, dtype) for a in (x, (y - y.mean()) / y.std()))
    return program_at_share(x, y, x @ jnp.asarray(gates, dtype).T >= 0, 0.1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["fista", "newton"])
def test_a_typical_solve_is_like_one_that_happens(name, dtype):
    program = planted(1500, 20, 300, dtype)
    solution = fx.solve(program, method=name)
    expected = work.typical_iterations(program, choose_method(program, name))
    assert expected / 2 <= int(solution.iterations) <= 2 * expected
    num_active = int(jnp.sum(jnp.any(solution.weights != 0, axis=(1, 2))))
    assert 0.5 * num_active <= work.typical_active(program) <= 2 * num_active


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounds_of_a_typical_solve_are_like_those_that_happen(monkeypatch, dtype):
    program = planted(1500, 20, 300, dtype)
    run_round, happened = newton._run_round, []

    def run_and_count(part, *state, size):
        weights, cost = run_round(part, *state, size=size)
        # The cost is in Newton steps.
        steps = float(cost) * working_sets.newton_flops(part, size // 2) / newton_system.pass_flops(part, size)
        happened.append(4 * steps * size * part.x.size)
        return weights, cost

    monkeypatch.setattr(newton, "_run_round", run_and_count)
    fx.solve(program)
    assert len(happened) > 2
    assert work.typical_work(program, newton.METHOD).set_products == pytest.approx(sum(happened), rel=0.5)


def test_products_of_a_solve_by_fista_are_those_counted(monkeypatch):
    counts = {"forward": 0, "adjoint": 0}
    program = planted(200, 5, 40, "float64")

    def counting(function, kind):
        def call(*args, **options):
            result = function(*args, **options)
            jax.debug.callback(lambda: counts.__setitem__(kind, counts[kind] + 1))
            return result

        return call

    monkeypatch.setattr(programs, "masked_apply", counting(gram.masked_apply, "forward"))
    monkeypatch.setattr(programs, "masked_adjoint", counting(gram.masked_adjoint, "adjoint"))
    jax.clear_caches()
    solution = fx.solve(program, method="fista", tol=1e-3)
    jax.effects_barrier()
    each = step_work(program, METHODS["fista"]).flops / (2 * 200 * 40 * 5)
    # Three for the start, two for the certificate, and one for what the start is asked besides.
    assert sum(counts.values()) == pytest.approx(each * int(solution.iterations), abs=6)
    jax.clear_caches()


def test_work_adds_up_by_kind():
    one, two = Work(1.0, 2.0, 3.0, 4.0, 5.0, 6.0), Work(10.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert one.plus(two.times(2)) == Work(21.0, 2.0, 3.0, 4.0, 7.0, 6.0)
    assert one.flops == 10


def test_memory_is_at_least_what_xla_plans_for_a_step():
    # Many rows and few gates, few rows and many gates, several outputs.
    for shape in ((100_000, 50, 50, 1), (200, 100, 10_000, 1), (2000, 20, 500, 4)):
        program = program_of_shapes(*shape, "squared", "float32")
        method = METHODS["fista"]
        state = jax.eval_shape(method.init, program, jax.ShapeDtypeStruct(group_shape_of(program), np.float32))
        (step,) = method.steps(program)
        planned = jax.jit(step).lower(program, state).compile().memory_analysis()
        data = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(program))
        needed = planned.temp_size_in_bytes + planned.output_size_in_bytes + planned.argument_size_in_bytes - data
        assert needed <= 1.1 * method.bytes_needed(program) <= 4 * needed


def test_losses_and_outputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="loss 'softmax' is for at least two outputs, got outputs=1"):
        program_of_shapes(5, 2, 3, 1, "softmax", "float32")
    with pytest.raises(ValueError, match="loss 'logistic' is for one output, got outputs=2"):
        program_of_shapes(5, 2, 3, 2, "logistic", "float32")
    with pytest.raises(ValueError, match="loss must be one of squared"):
        program_of_shapes(5, 2, 3, 1, "cubed", "float32")
