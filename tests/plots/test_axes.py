"""What all plots share: the Axes they draw on, what they leave behind, colours, errors of arguments."""

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import fixntk as fx
from fixntk import plots
from fixntk.plots._axes import as_numbers, next_line_style

pytestmark = pytest.mark.core

mpl.use("agg")

X = np.column_stack([np.linspace(-1, 1, 7), np.ones(7)])
Y = np.sin(X[:, 0])
CELLS = fx.enumerate_arrangements(X)
PROGRAM = fx.ConvexProgram(X, Y, CELLS.masks, reg=0.1)
SOLUTION = fx.solve(PROGRAM)
PROBABILITIES = np.linspace(0.05, 0.95, 7)

# Every plot, as a function of ax and further keyword arguments.
PLOTS = {
    "history": lambda **more: plots.history(SOLUTION, **more),
    "kernel_weights": lambda **more: plots.kernel_weights(SOLUTION, **more),
    "path": lambda **more: plots.path(fx.solve_path(PROGRAM, regs=[0.3, 0.1]), **more),
    "kernel": lambda **more: plots.kernel(X @ X.T, **more),
    "spectrum": lambda **more: plots.spectrum(X @ X.T, **more),
    "function": lambda **more: plots.function(lambda x: x[:, 0] ** 2, X, Y, **more),
    "arrangements": lambda **more: plots.arrangements(CELLS, X, **more),
    "reliability": lambda **more: plots.reliability(Y > 0, PROBABILITIES, **more),
    "importance": lambda **more: plots.importance([0.1, 0.4], **more),
}
each_plot = pytest.mark.parametrize("name", PLOTS)


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    plt.close("all")


def test_every_public_function_is_among_the_plots_here():
    assert {*PLOTS, "STYLE"} == set(plots.__all__)


@each_plot
def test_draws_on_the_given_axes_without_pyplot(name):
    before, figure = dict(mpl.rcParams), Figure()
    axes = figure.add_subplot()
    assert PLOTS[name](ax=axes) is axes
    assert axes.has_data()
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


@each_plot
def test_draws_a_new_figure_that_pyplot_shows_and_closes(name):
    before = dict(mpl.rcParams)
    axes = PLOTS[name]()
    assert plt.gcf() is axes.figure
    assert axes.get_xlabel()
    assert dict(mpl.rcParams) == before
    axes.figure.canvas.draw()
    plt.close(axes.figure)
    assert plt.get_fignums() == []


@each_plot
def test_a_plot_that_fails_leaves_no_figure(name):
    with pytest.raises((AttributeError, TypeError), match="no_such_property"):
        PLOTS[name](no_such_property=1)
    assert plt.get_fignums() == []


@each_plot
@pytest.mark.wrong_types
def test_an_array_of_axes_is_refused(name):
    with pytest.raises(TypeError, match="ax must be one matplotlib Axes, got ndarray"):
        PLOTS[name](ax=Figure().subplots(1, 2))


def luminance(colour):
    return np.dot([0.2126, 0.7152, 0.0722], to_rgb(colour))


def test_curves_differ_in_colour_and_neighbours_in_line_style():
    axes = Figure().add_subplot()
    styles = []
    for _ in range(8):
        styles.append(next_line_style(axes))
        axes.plot([0, 1], [0, 1], **styles[-1])
        axes.plot([0, 1], [1, 1], label="_decoration")
    assert len({tuple(style.items()) for style in styles}) == 8
    assert len({style["linestyle"] for style in styles[:4]}) == 4
    assert all(luminance(style["color"]) < 0.75 for style in styles)


def test_further_calls_on_the_same_axes_take_further_colours():
    axes = Figure().add_subplot()
    for _ in range(2):
        plots.history(SOLUTION, axes)
    assert axes.lines[0].get_color() != axes.lines[1].get_color()
    bars = Figure().add_subplot()
    for _ in range(2):
        plots.reliability(Y > 0, PROBABILITIES, bars)
    assert bars.containers[0].lines[0].get_color() != bars.containers[1].lines[0].get_color()


def test_style_is_one_of_matplotlib():
    with plt.rc_context():
        plt.style.use(plots.STYLE)
        assert mpl.rcParams["axes.spines.top"] is False


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("text", TypeError, "gains must be a real numeric array"),
        (np.ones(2) * 1j, TypeError, "gains must be a real numeric array"),
        (np.ones((2, 2)), ValueError, r"gains must have 1 dimensions, got shape \(2, 2\)"),
        (np.zeros(0), ValueError, "gains is empty"),
        (np.array([1, np.nan]), ValueError, "gains holds 1 NaN"),
    ],
)
def test_numbers_are_checked(value, error, message):
    with pytest.raises(error, match=message):
        as_numbers("gains", value, (1,))


def test_numbers_keep_their_precision():
    assert as_numbers("gains", [1 + 1e-15], (1,))[0] == 1 + 1e-15
    assert as_numbers("gains", jnp.ones(2, jnp.bfloat16), (1,)).tolist() == [1, 1]


def run(program):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    ).stderr


def test_fixntk_does_not_import_matplotlib_and_plots_says_that_it_is_missing():
    error = run("import sys; sys.modules['matplotlib'] = None; import fixntk; from fixntk import plots")
    assert error.strip().endswith("ImportError: fixntk.plots needs matplotlib: pip install 'fixntk[plots]'")
