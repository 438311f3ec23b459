"""Functions on a line, and arrangements in the plane."""

import jax
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Wedge
from sklearn.linear_model import LinearRegression

import fixntk as fx
from fixntk import plots

mpl.use("agg")

X = np.column_stack([[-1.0, -0.6, 0.1, 0.5, 1.2], np.ones(5)])
Y = np.sin(3 * X[:, 0])
CELLS = fx.enumerate_arrangements(X)


@pytest.fixture
def axes():
    return Figure().add_subplot()


def test_functions_of_every_kind(axes):
    solution = fx.solve(fx.ConvexProgram(X, Y, CELLS.masks, reg=0.1))
    network = fx.ReLUNetwork.sample(jax.random.key(0), 4, 2, num_outputs=1)
    linear = LinearRegression().fit(X, Y)
    fitted = {"solution": solution, "network": network, "estimator": linear, "function": lambda x: x[:, 0] ** 2}
    plots.function(fitted, X, Y, axes, gates=CELLS.gates, num_points=23)
    grid = np.linspace(-1.22, 1.42, 23)
    inputs = np.column_stack([grid, np.ones(23)])
    expected = [solution.predict(inputs, CELLS.gates), network(inputs)[:, 0], linear.predict(inputs), grid**2]
    for line, values in zip(axes.lines, expected, strict=False):
        assert line.get_xdata() == pytest.approx(grid)
        assert line.get_ydata() == pytest.approx(np.asarray(values))
    assert np.array_equal(axes.lines[-1].get_data(), [X[:, 0], Y])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [*fitted, "data"]


def test_the_column_that_varies_is_the_axis(axes):
    plots.function(lambda x: x[:, 1] + x[:, 0], X[:, ::-1], ax=axes, num_points=2)
    assert axes.lines[0].get_ydata() == pytest.approx([-0.22, 2.42])
    plots.function(lambda x: x[:, 0], [1, 2, 3], [1, 2, 3], axes)
    assert len(axes.lines) == 3


def test_functions_get_the_dtype_of_the_data(axes):
    seen = []
    plots.function(lambda x: seen.append(x.dtype) or x[:, 0], X.astype(np.float32), ax=axes)
    assert seen == [np.float32]


@pytest.mark.wrong_types
def test_functions_that_cannot_be_drawn_are_refused(axes):
    solution = fx.solve(fx.ConvexProgram(X, Y, CELLS.masks, reg=0.1), tol=1e-2)
    with pytest.raises(ValueError, match=r"gates must be given, since fitted\['a'\] is a Solution"):
        plots.function({"a": solution}, X, Y, axes)
    with pytest.raises(ValueError, match=r"exactly one column that varies, got 2 in shape \(5, 2\)"):
        plots.function(lambda x: x[:, 0], X * X[:, :1], Y, axes)
    with pytest.raises(ValueError, match=r"the output of fitted must have shape \(1000,\), got \(1000, 2\)"):
        plots.function(lambda x: x, X, Y, axes)
    with pytest.raises(ValueError, match=r"y must have shape \(5,\), got \(4,\)"):
        plots.function(lambda x: x[:, 0], X, Y[:4], axes)
    with pytest.raises(TypeError, match="fitted must be a function or have a method predict, got float"):
        plots.function(1.0, X, Y, axes)


def wedge_at(axes, direction):
    """The sector that a direction is in."""
    angle = np.degrees(np.arctan2(direction[1], direction[0]))
    (found,) = [
        patch
        for patch in axes.patches
        if isinstance(patch, Wedge) and (angle - patch.theta1) % 360 < (patch.theta2 - patch.theta1) % 360
    ]
    return found


def test_cells_are_the_solid_angles_and_gates_lie_in_their_own(axes):
    values, _ = fx.arrangement_weights(X, CELLS)
    plots.arrangements(CELLS, X, axes, values=values)
    wedges = [wedge_at(axes, gate) for gate in np.asarray(CELLS.gates)]
    assert len({id(wedge) for wedge in wedges}) == CELLS.gates.shape[0] == 10
    widths = [(wedge.theta2 - wedge.theta1) % 360 / 360 for wedge in wedges]
    assert widths == pytest.approx(np.asarray(values))
    # Larger values are darker.
    lightness = np.array([sum(wedge.get_facecolor()[:3]) for wedge in wedges])
    assert np.all(np.diff(lightness[np.argsort(values)]) <= 0)
    assert np.ptp(lightness) > 1


def test_masks_are_written_beside_their_cells(axes):
    plots.arrangements(CELLS, X, axes)
    written = {text.get_text() for text in axes.texts}
    assert written <= {"".join(str(int(bit)) for bit in mask) for mask in np.asarray(CELLS.masks).T}
    for text in axes.texts:
        direction = np.array(text.get_position())
        assert "".join(str(int(bit)) for bit in X @ direction >= 0) == text.get_text()


def test_lines_are_those_where_a_row_changes_sides(axes):
    x = np.vstack([X, X[:1] * -2, np.zeros((1, 2))])
    plots.arrangements(CELLS, x, axes)
    lines = [np.array(line.get_data())[:, 1] for line in axes.lines if line.get_linestyle() == "-"]
    # The parallel row has the line of the first row, a zero row none.
    assert len(lines) == 5
    assert [np.min(np.abs(X @ end)) for end in lines] == pytest.approx(np.zeros(5), abs=1e-10)


def test_cells_without_a_gate_are_white_and_gates_of_one_cell_add_up(axes):
    gates = np.array([[0.0, 1.0], [0.01, 2.0], [1.0, 0.0]])
    plots.arrangements(gates, X, axes, values=[1.0, 2.0, 4.0])
    wedges = [patch for patch in axes.patches if isinstance(patch, Wedge)]
    assert sum(wedge.get_facecolor() == to_rgba("white") for wedge in wedges) == 8
    scale = axes.figure.axes[1].get_ylim()
    assert scale == (0, 4)
    assert wedge_at(axes, [0, 1]).get_facecolor() == mpl.colormaps["Blues"](3 / 4)
    points = next(line for line in axes.lines if line.get_linestyle() == "None")
    assert np.degrees(np.arctan2(*points.get_data()[::-1])) == pytest.approx(np.degrees(np.arctan2(*gates.T[::-1])))


@pytest.mark.parametrize(
    ("gates", "x", "options", "message"),
    [
        (np.ones((3, 3)), X, {}, r"result must have 2 columns, as cells are drawn in the plane, got shape \(3, 3\)"),
        (np.ones((3, 2)), np.ones((3, 1)), {}, "x must have 2 columns"),
        (np.zeros((3, 2)), X, {}, "result holds a gate that is zero"),
        (np.ones((3, 2)), np.zeros((3, 2)), {}, "x must have a row that is not zero"),
        (np.ones((3, 2)), X, {"values": [1.0]}, r"values must have shape \(3,\), got \(1,\)"),
    ],
)
def test_arrangements_that_cannot_be_drawn_are_refused(axes, gates, x, options, message):
    with pytest.raises(ValueError, match=message):
        plots.arrangements(gates, x, axes, **options)
