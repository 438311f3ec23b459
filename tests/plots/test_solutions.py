"""Histories, kernel weights and paths: the curves are the numbers of the results."""

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from problems import random_problem

import fixntk as fx
from fixntk import plots

mpl.use("agg")

PROGRAM = random_problem(0)
SOLUTION = fx.solve(PROGRAM)
NETWORK = fx.ReLUNetwork.sample(jax.random.key(0), 4, 3)
X = np.random.default_rng(0).standard_normal((20, 3))


@pytest.fixture
def axes():
    return Figure().add_subplot()


def data_of(line):
    return np.array(line.get_data())


def train(network, **options):
    return fx.train(network, X, X[:, 0], optax.sgd(1e-3), num_steps=4, record_every=2, **options)


def test_gap_over_iterations_and_seconds(axes):
    plots.history(SOLUTION, axes)
    plots.history(SOLUTION.history, axes, over="seconds", label="again")
    gap = np.asarray(SOLUTION.history.gap)
    assert np.array_equal(data_of(axes.lines[0]), [np.arange(gap.size), gap])
    assert np.array_equal(data_of(axes.lines[1]), [SOLUTION.history.seconds, gap])
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["newton", "again"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time (s)", "duality gap")


def test_objective_with_its_certified_lower_bound(axes):
    plots.history(SOLUTION, axes, show="objective")
    objective, bound = axes.lines
    assert np.array_equal(objective.get_ydata(), SOLUTION.history.primal)
    # No weights have an objective below any of the bounds.
    assert np.all(bound.get_ydata() <= float(SOLUTION.primal))
    assert bound.get_ydata()[-1] == pytest.approx(float(SOLUTION.dual), rel=1e-4)


def test_padding_of_traced_histories_is_left_out(axes):
    traced = jax.jit(lambda program: fx.solve(program, method="fista", tol=1e-2, max_iter=500))(PROGRAM)
    assert int(traced.iterations) < 500
    plots.history(traced, axes)
    assert axes.lines[0].get_xdata()[-1] == int(traced.iterations)
    with pytest.raises(ValueError, match="needs a history with seconds"):
        plots.history(traced, axes, over="seconds")


def test_batches_are_refused_and_their_members_drawn(axes):
    batch = jax.vmap(lambda reg: fx.solve(PROGRAM.with_reg(reg), tol=1e-2))(np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"batch of shape \(2,\)"):
        plots.history(batch, axes)
    with pytest.raises(ValueError, match="result must have 1 dimensions"):
        plots.kernel_weights(batch, axes)
    plots.history(jax.tree.map(lambda leaf: leaf[1], batch), axes)
    assert len(axes.lines) == 1


def test_tangent_kernels_of_a_training(axes):
    tracker = fx.track(fx.ReLUNetwork.__call__, X, X[:, 0], num=3)
    train(NETWORK, callback=tracker)
    found = tracker.history
    plots.history(found, axes)
    assert np.array_equal(data_of(axes.lines[0]), [[0, 2, 4], found.similarity])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "similarity with the first kernel")
    drawn = plots.history(found, Figure().add_subplot(), show="eigenvalues", label="μ")
    assert np.array_equal(np.stack([line.get_ydata() for line in drawn.lines]), found.eigenvalues.T)
    assert drawn.get_yscale() == "log"
    assert np.array_equal(
        plots.history(found, Figure().add_subplot(), show="alignment").lines[0].get_ydata(), found.alignment
    )
    assert plots.history(tracker.records[1], Figure().add_subplot()).lines[0].get_xdata() == [2]
    with pytest.raises(ValueError, match="show must be one of"):
        plots.history(found, axes, show="condition_number")
    with pytest.raises(ValueError, match="tangent kernels leave out"):
        plots.history(found, axes, over="seconds")


def test_relu_program(axes):
    gates = np.random.default_rng(1).standard_normal((5, 3))
    solution = fx.solve_relu(fx.ConvexProgram(X, X[:, 0], X @ gates.T >= 0, 0.5), gates, tol=1e-2)
    plots.history(solution, axes)
    assert np.array_equal(axes.lines[0].get_ydata(), solution.history[:, 2])


def test_training(axes):
    trained = train(NETWORK, validation=(X, X[:, 0]))
    plots.history(trained, axes)
    plots.history(trained.history, axes, show="validation", over="seconds")
    assert np.array_equal(data_of(axes.lines[0]), [[0, 2, 4], trained.history.objective])
    assert np.array_equal(data_of(axes.lines[1]), [trained.history.seconds, trained.history.validation])


def test_stack_of_networks_has_a_curve_each_and_one_label(axes):
    trained = train(jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, 3 * leaf]), NETWORK))
    plots.history(trained, axes)
    assert np.array_equal([line.get_ydata() for line in axes.lines], trained.history.objective.T)
    assert len({line.get_color() for line in axes.lines}) == 1
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training (3 networks)"]


def test_quantities_that_a_result_lacks_are_named(axes):
    with pytest.raises(ValueError, match=r"show must be one of \['gap', 'objective'\] for a Solution, got 'loss'"):
        plots.history(SOLUTION, axes, show="loss")
    with pytest.raises(ValueError, match=r"show must be one of \['objective'\] for a Training, got 'validation'"):
        plots.history(train(NETWORK), axes, show="validation")
    with pytest.raises(ValueError, match='over must be "iterations" or "seconds"'):
        plots.history(SOLUTION, axes, over="epochs")


@pytest.mark.wrong_types
@pytest.mark.parametrize("plot", [plots.history, plots.path])
def test_other_results_are_refused(plot):
    with pytest.raises(TypeError, match=r"result must be a .*, got Gaps"):
        plot(type("Gaps", (), {})())
    assert plt.get_fignums() == []


def test_kernel_weights_in_decreasing_order_against_the_ntk(axes):
    weights = np.asarray(SOLUTION.kernel_weights)
    ntk = np.random.default_rng(0).uniform(size=weights.size)
    plots.kernel_weights(SOLUTION, axes, ntk_weights=ntk)
    mine, its = (patch.get_data().values for patch in axes.patches if isinstance(patch, StepPatch))
    assert np.array_equal(mine, np.sort(weights)[::-1])
    # The same gate at the same place.
    assert {*zip(mine, its, strict=True)} == {*zip(weights, ntk, strict=True)}
    active = int(SOLUTION.active.sum())
    label = f"solution: {active} of {weights.size} gates active"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [label, "NTK"]
    with pytest.raises(ValueError, match=r"ntk_weights must have shape \(\d+,\), one weight a gate, got \(2,\)"):
        plots.kernel_weights(SOLUTION, axes, ntk_weights=[1.0, 2.0])


def test_weights_of_given_kernels(axes):
    kernels = np.stack([X @ X.T, np.eye(20)])
    plots.kernel_weights(fx.solve_kernels(kernels, X[:, 0], 0.1), axes)
    assert "of 2 kernels" in axes.get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize("regs", [[3.0, 1.0, 0.3], [0.3, 3.0, 1.0]])
def test_path_shows_the_norms_of_the_groups_that_become_active(axes, regs):
    found = fx.solve_path(PROGRAM, regs=regs)
    plots.path(found, axes)
    by_reg = dict(zip(found.regs, found, strict=True))
    norms = np.array([[np.linalg.norm(group) for group in np.asarray(by_reg[reg].weights)] for reg in (3.0, 1.0, 0.3)])
    active = np.any([np.asarray(solution.active) for solution in found], axis=0)
    curves = [line.get_ydata() for line in axes.lines]
    assert all(np.array_equal(line.get_xdata(), [3.0, 1.0, 0.3]) for line in axes.lines)
    assert np.array(sorted(map(tuple, curves))) == pytest.approx(np.array(sorted(map(tuple, norms.T[active]))))
    # λ falls from left to right.
    assert axes.get_xlim() == (3.0, 0.3)


def test_groups_that_become_active_earlier_are_darker(axes):
    plots.path(fx.solve_path(PROGRAM, num_regs=8, min_share=0.05), axes)
    starts = [np.argmax(line.get_ydata() > 1e-3 * line.get_ydata().max()) for line in axes.lines]
    lightness = [np.dot([0.2126, 0.7152, 0.0722], line.get_color()[:3]) for line in axes.lines]
    assert len(set(starts)) > 1
    assert np.all(np.diff(starts) >= 0)
    assert np.all(np.diff(lightness) > 0)


def test_a_path_needs_two_solutions(axes):
    with pytest.raises(ValueError, match="at least two solutions, got 1"):
        plots.path(fx.solve_path(PROGRAM, regs=[1.0]), axes)
