"""Programs that are compiled: how many a first call takes, and that a second one of the same shapes takes none."""

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from problems import random_problem

import fixntk as fx
from fixntk._compilation import jit_for_host, seconds_compiling, seconds_in_compiler
from fixntk._numerics import ignore_convergence_warnings
from fixntk.estimators import GatedReLURegressorCV

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def programs():
    """The list of programs that have been compiled, or read from the persistent cache, since the test began."""
    compiled = []
    _listeners.append(compiled)
    yield compiled
    _listeners.remove(compiled)


# JAX has no way to take a listener back.
_listeners = []


def _listen(event, duration, **_):
    if event == COMPILED:
        for compiled in _listeners:
            compiled.append(duration)


jax.monitoring.register_event_duration_secs_listener(_listen)


# Numbers of rows to which others are padded. No other test has their seven features, so that nothing is compiled yet.
FIRST_CALLS = {
    # Start, loop and certificate.
    "newton": ({}, 136, 3),
    # Start, a round, what follows it, linearisation, three sizes of direction, the rest of a step, a look, and the
    # certificate.
    "newton of several sizes": ({"num_gates": 700}, 64, 10),
    # Start, model, four of Newton's, the step, a look, and the certificate.
    "proximal newton": ({"loss": "logistic"}, 152, 9),
    "proximal newton of the softmax": ({"loss": "softmax", "num_outputs": 3}, 200, 9),
    # Start, loop and certificate.
    "fista": ({}, 160, 3),
    # Smoothing, whether zero is optimal, start, loop and certificate.
    "irls": ({}, 168, 5),
    "anderson": ({}, 176, 5),
}


@pytest.mark.parametrize("name", FIRST_CALLS)
def test_a_first_solve_compiles_few_programs_and_a_second_none(name, programs):
    options, num_rows, most = FIRST_CALLS[name]
    # The second has other rows, λ and tolerance, and fewer rows.
    options = {"num_features": 7, "share": 0.1, **options}
    first, second = (random_problem(seed, num_rows - 3 * seed, **options) for seed in (0, 1))
    method = "newton" if "newton" in name else name
    # What every process compiles once, however many programs it solves.
    fx.solve(random_problem(0), method="fista", tol=1e-2)
    programs.clear()
    fx.solve(first, method=method, tol=1e-4)
    assert 0 < len(programs) <= most
    programs.clear()
    fx.solve(second.with_reg(0.5 * float(second.reg)), method=method, tol=1e-3)
    assert programs == []


def test_the_next_value_of_a_path_compiles_nothing(programs):
    fx.solve_path(random_problem(0, 184, num_features=7), num_regs=4)
    first, program = len(programs), random_problem(1, 181, num_features=7)
    programs.clear()
    fx.solve_path(program, num_regs=7)
    # Each size of working sets that occurs has its own.
    assert 0 < first <= 12
    assert programs == []


CALLS = {
    "discover": (lambda program, gates: fx.discover(program, gates, key=jax.random.key(0), max_rounds=2, tol=1e-2), 10),
    "optimal_weights": (lambda program, _: fx.optimal_weights(program, tol=1e-3), 12),
    "solve_kernels": (lambda program, gates: fx.solve_kernels(kernels_of(program, gates), program.y, 1.0), 26),
    "solve_relu": (lambda program, gates: fx.solve_relu(program, gates, tol=1e-2), 21),
    "gated_relu_ntk": (lambda program, _: fx.gated_relu_ntk(program.x), 2),
}


@pytest.mark.parametrize("name", CALLS)
def test_other_entries_compile_few_programs_and_none_for_other_data(name, programs):
    call, most = CALLS[name]
    fx.solve(random_problem(0), method="fista", tol=1e-2)
    counts = []
    for seed in (0, 1):
        program = random_problem(seed, 144, num_features=7)
        gates = np.random.default_rng(seed).standard_normal((20, 7))
        program = fx.ConvexProgram(program.x, program.y, np.asarray(program.x) @ gates.T >= 0, 0.5 * program.max_reg())
        programs.clear()
        with ignore_convergence_warnings():
            call(program, gates)
        counts.append(len(programs))
    assert 0 < counts[0] <= most
    assert counts[1] == 0


def kernels_of(program, gates):
    """Masked Gram kernels of the first gates."""
    x = np.asarray(program.x)
    return np.stack([np.outer(mask, mask) * (x @ x.T) for mask in (x @ gates[:3].T >= 0).T.astype(float)])


def test_a_program_is_made_without_compiling(programs, rng):
    x, y, masks = rng.standard_normal((67, 3)), rng.standard_normal(67), rng.random((67, 11)) < 0.5
    programs.clear()
    fx.ConvexProgram(x, y, masks, 0.3, intercept=True, sample_weight=np.ones(67), penalty_weights=np.ones(11))
    fx.ConvexProgram(x, y > 0, masks, 0.3, loss="logistic", ridge=0.2)
    fx.ConvexProgram(x, np.arange(67) % 3, masks, 0.3, loss="softmax", norm="nuclear")
    assert programs == []


@pytest.mark.parametrize(("gates", "most"), [("random", 0), ("auto", 1)])
def test_a_second_fit_on_other_data_compiles_next_to_nothing(gates, most, programs):
    # Both of them choose the average of several kinds.
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((70, 7))
        y = np.abs(x[:, 0]) + 0.1 * rng.standard_normal(70)
        programs.clear()
        GatedReLURegressorCV(40, gates=gates, regs=(0.1, 0.01), num_folds=2, max_steps=1, random_state=0).fit(x, y)
    # A network's neurons are factorised for each number of gates.
    assert len(programs) <= most


@pytest.mark.parametrize("optimised", [False, True])
def test_a_function_for_the_host_is_a_jitted_function_under_transformations(optimised):
    function = jit_for_host(lambda x, *, power: jnp.sum(x**power), static_argnames=("power",), optimised=optimised)
    x = jnp.arange(4.0)
    expected = np.sum(np.arange(4.0) ** 3)
    assert float(function(x, power=3)) == expected
    assert float(jax.jit(lambda x: function(x, power=3))(x)) == expected
    np.testing.assert_array_equal(jax.grad(lambda x: function(x, power=3))(x), 3 * x**2)
    np.testing.assert_array_equal(jax.vmap(lambda x: function(x, power=3))(x[:, None]), x**3)


def test_the_clock_counts_calls_that_compile_alone():
    function = jit_for_host(lambda x: jnp.sin(x) + 3)
    began = seconds_compiling()
    function(jnp.ones(5))
    compiled = seconds_compiling()
    assert compiled > began
    function(jnp.zeros(5))
    assert seconds_compiling() == compiled
    assert seconds_in_compiler()() == 0.0


def test_options_that_the_compiler_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr("fixntk._compilation._WITHOUT_EMITTERS", {"xla_no_such_option": True})
    assert float(jit_for_host(lambda x: 2 * x)(3.0)) == 6.0
