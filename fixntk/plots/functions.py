"""Plots in one and two dimensions: fitted functions on a line, arrangements in the plane."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Circle, Wedge
from numpy.typing import ArrayLike

from fixntk import Arrangements, Solution
from fixntk._checks import as_positive_int
from fixntk.plots._axes import (
    NEUTRAL_COLOUR,
    add_legend,
    as_column,
    as_numbers,
    next_line_style,
    open_axes,
)

# Share of the range of the data that functions are drawn beyond it, on either side.
_MARGIN = 0.1
# Two greys for neighbouring cells.
_CELL_COLOURS = ("#F0F0F0", "#D9D9D9")
# Colours of cells by value, from light at zero to dark.
_CELL_MAP = "Blues"
# Colour of a cell without a gate.
_EMPTY_COLOUR = "#FFFFFF"
# Angle of a cell, in degrees, below which its mask is not written.
_LEAST_ANGLE = 9.0
# Number of rows above which masks are too long to be written.
_MOST_ROWS = 8
# Radius of the circle of the gates, in radii of the disc.
_GATE_RADIUS = 0.72
# Radius of the circle of the written masks, in radii of the disc.
_TEXT_RADIUS = 1.1
# Largest horizontal component of the directions in which a mask is centred above or below its cell.
_TOP = 0.3


def function(
    fitted: Any,
    x: ArrayLike,
    y: ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    gates: ArrayLike | None = None,
    num_points: int = 1000,
    **line: Any,
) -> Axes:
    """Draw functions of one variable with the data that they fit.

    Parameters
    ----------
    fitted
        A network or another function from (m, d) inputs to (m,) or (m, 1) outputs, a :class:`fixntk.Solution`, an
        estimator with ``predict``, or a mapping from names to any of these.
    x
        (n, d) inputs, or (n,). Exactly one column varies; the others, such as a bias, are kept.
    y
        (n,) targets, drawn as points; none when None.
    ax
        Axes to draw on; a new figure when None.
    gates
        (P, d) gates that made the masks of the programs; only for solutions, which need them.
    num_points
        Number of points of each curve, from a tenth of the data's range below it to a tenth above it.
    **line
        For ``Axes.plot``, which draws the functions.

    Raises
    ------
    TypeError
        If x or y is not numeric, something is not a function, or ``num_points`` is not an integer.
    ValueError
        If not exactly one column of x varies, a solution has no gates, an output has another shape, or ``num_points``
        is below 1.

    See docs/mathematics.md, M10.
    """
    dtype = np.asarray(x).dtype if np.asarray(x).dtype.kind == "f" else None
    rows = as_numbers("x", x, (1, 2))
    rows = rows[:, None] if rows.ndim == 1 else rows
    varying = np.flatnonzero(np.ptp(rows, axis=0) > 0)
    if varying.size != 1:
        raise ValueError(f"x must have exactly one column that varies, got {varying.size} in shape {rows.shape}")
    column = int(varying[0])
    low, high = rows[:, column].min(), rows[:, column].max()
    margin = _MARGIN * (high - low)
    num_points = as_positive_int("num_points", num_points)
    grid = np.tile(rows[0], (num_points, 1))
    grid[:, column] = np.linspace(low - margin, high + margin, num_points)
    targets = None if y is None else as_numbers("y", as_column("y", y, rows.shape[0]), (1,))
    named = fitted if isinstance(fitted, Mapping) else {"": fitted}
    outputs = {name: _outputs(name, each, grid.astype(dtype), gates) for name, each in named.items()}
    with open_axes(ax) as axes:
        for name, values in outputs.items():
            axes.plot(grid[:, column], values, **{**next_line_style(axes), "label": name or "prediction", **line})
        if targets is not None:
            axes.plot(rows[:, column], targets, "o", color="black", markersize=4, zorder=3, label="data")
        axes.set(xlabel="x", ylabel="output")
        add_legend(axes)
    return axes


def _outputs(name: str, fitted: Any, grid: np.ndarray, gates: ArrayLike | None) -> Float[np.ndarray, " m"]:
    """The values of a fitted function at the points of a grid."""
    argument = f"fitted[{name!r}]" if name else "fitted"
    predict: Callable[..., Any] = getattr(fitted, "predict", fitted)
    if isinstance(fitted, Solution):
        if gates is None:
            raise ValueError(f"gates must be given, since {argument} is a Solution")
        values = fitted.predict(grid, jnp.asarray(gates))
    elif callable(predict):
        values = predict(grid)
    else:
        raise TypeError(f"{argument} must be a function or have a method predict, got {type(fitted).__name__}")
    return as_column(f"the output of {argument}", values, grid.shape[0])


def arrangements(
    result: Arrangements | ArrayLike,
    x: ArrayLike,
    ax: Axes | None = None,
    *,
    values: ArrayLike | None = None,
    value_label: str = "kernel weight η",
    **points: Any,
) -> Axes:
    """Draw the cells of the gates of a data set with two columns, such as a feature and a bias, and gates in them.

    The plane is that of the gates. Each row x_i of the data is the line of the gates g with x_i·g = 0; between two
    neighbouring lines all gates have the same mask, which is written outside of a cell that is wide enough, for up to
    eight rows.

    Parameters
    ----------
    result
        All arrangements, or (P, 2) gates of any kind.
    x
        (n, 2) inputs.
    ax
        Axes to draw on; a new figure when None.
    values
        (P,) a number for each gate that gives its cell the colour, such as kernel weights; gates of one cell add up.
    value_label
        What these numbers are, for the colour bar.
    **points
        For ``Axes.plot``, which draws the gates.

    Raises
    ------
    TypeError
        If gates, x or values are not numeric.
    ValueError
        If gates or x do not have two columns, a gate or all rows are zero, or the number of values is not that of the
        gates.

    See docs/mathematics.md, M4.
    """
    gates = as_numbers("result", result.gates if isinstance(result, Arrangements) else result, (2,))
    rows = as_numbers("x", x, (2,))
    for name, array in (("result", gates), ("x", rows)):
        if array.shape[1] != 2:
            raise ValueError(f"{name} must have 2 columns, as cells are drawn in the plane, got shape {array.shape}")
    if not np.all(np.any(gates != 0, axis=1)):
        raise ValueError("result holds a gate that is zero, which lies in no cell")
    numbers = None if values is None else as_numbers("values", as_column("values", values, gates.shape[0]), (1,))
    lines = _angles_of_lines(rows)
    cells = np.searchsorted(lines, np.mod(np.arctan2(gates[:, 1], gates[:, 0]), 2 * np.pi)) % lines.size
    with open_axes(ax, 4.6, 4.2) as axes:
        _draw_cells(axes, lines, cells, numbers, value_label)
        _write_masks(axes, lines, rows)
        for position, angle in enumerate(lines[: lines.size // 2]):
            ends = np.array([-1.0, 1.0])
            label = "xᵢ·g = 0 for each row" if position == 0 else f"_row {position}"
            axes.plot(ends * np.cos(angle), ends * np.sin(angle), color=NEUTRAL_COLOUR, linewidth=0.9, label=label)
        units = _GATE_RADIUS * gates / np.linalg.norm(gates, axis=1, keepdims=True)
        style: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markersize": 6, "zorder": 3}
        axes.plot(*units.T, **{**style, "marker": "o", "linestyle": "", "label": "gates, scaled", **points})
        axes.set(xlabel="g₁", ylabel="g₂", xlim=(-1.6, 1.6), ylim=(-1.3, 1.3), aspect="equal")
        axes.set_xticks([-1, 0, 1])
        axes.set_yticks([-1, 0, 1])
        axes.grid(False)
        add_legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return axes


def _angles_of_lines(rows: np.ndarray) -> Float[np.ndarray, " k"]:
    """Angles in [0, 2π), in increasing order, of both halves of the distinct lines of the gates with x·g = 0."""
    rows = rows[np.any(rows != 0, axis=1)]
    if not rows.size:
        raise ValueError("x must have a row that is not zero")
    angles = np.mod(np.arctan2(rows[:, 1], rows[:, 0]) + np.pi / 2, np.pi)
    angles = np.unique(np.mod(np.round(angles, 12), np.round(np.pi, 12)))
    return np.concatenate([angles, angles + np.pi])


def _draw_cells(axes: Axes, lines: np.ndarray, cells: np.ndarray, values: np.ndarray | None, label: str) -> None:
    """The sectors of the unit disc between neighbouring lines, coloured by value or in two greys."""
    colours: Any = [_CELL_COLOURS[cell % 2] for cell in range(lines.size)]
    if values is not None:
        sums = np.bincount(cells, values, minlength=lines.size)
        scale = ScalarMappable(Normalize(min(sums.min(), 0.0), sums.max()), _CELL_MAP)
        colours = [scale.to_rgba(value) for value in sums]
        axes.figure.colorbar(scale, ax=axes, label=label, shrink=0.7)
    has_gate = np.bincount(cells, minlength=lines.size) > 0
    # Cell k ends at line k.
    for cell, (begin, end) in enumerate(zip(np.roll(lines, 1), lines, strict=True)):
        colour = colours[cell] if has_gate[cell] else _EMPTY_COLOUR
        axes.add_patch(Wedge((0, 0), 1, np.degrees(begin), np.degrees(end), facecolor=colour, linewidth=0))
    axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor=NEUTRAL_COLOUR, linewidth=0.9))


def _write_masks(axes: Axes, lines: np.ndarray, rows: np.ndarray) -> None:
    """The mask of each cell that is wide enough, outside of the disc."""
    if rows.shape[0] > _MOST_ROWS:
        return
    begins = np.roll(lines, 1)
    widths = np.mod(lines - begins, 2 * np.pi)
    for middle, width in zip(begins + widths / 2, widths, strict=True):
        if np.degrees(width) >= _LEAST_ANGLE:
            direction = np.array([np.cos(middle), np.sin(middle)])
            mask = "".join(str(int(active)) for active in rows @ direction >= 0)
            side = "center" if abs(direction[0]) < _TOP else "left" if direction[0] > 0 else "right"
            x, y = _TEXT_RADIUS * direction
            axes.text(x, y, mask, ha=side, va="center", fontsize=8, family="monospace")
