"""The Axes, styles and argument checks that all plots share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from jaxtyping import Float
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from fixntk._checks import as_numpy, as_real

# Okabe and Ito's colours for colour-blind readers, those with the most contrast on white first.
_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# With the colours they make 28 different pairs.
_LINE_STYLES = ("-", "--", "-.", ":")
# The colours of solutions and of the NTK, and of what is neither.
SOLUTION_COLOUR = _OKABE_ITO[0]
NTK_COLOUR = _OKABE_ITO[1]
NEUTRAL_COLOUR = "#444444"
# A colour map from dark to light that reads the same in grey and to colour-blind readers.
COLOUR_MAP = "viridis"

# Settings of matplotlib for the look of the project's figures. `Any`: matplotlib's own type lists all of their names.
STYLE: Any = MappingProxyType(
    {
        "axes.axisbelow": True,
        "axes.edgecolor": NEUTRAL_COLOUR,
        "axes.grid": True,
        "axes.labelsize": 10,
        "axes.linewidth": 0.8,
        "axes.prop_cycle": cycler(color=_OKABE_ITO),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 11,
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "grid.color": "#DDDDDD",
        "grid.linewidth": 0.6,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "savefig.dpi": 150,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
    }
)


@contextmanager
def open_axes(ax: Axes | None, width: float = 5.2, height: float = 3.6) -> Iterator[Axes]:
    """The Axes to draw on: as given, or those of a new pyplot figure, which is closed again if drawing fails.

    Parameters
    ----------
    ax
        As given by the user.
    width, height
        Size of a new figure in inches.

    Raises
    ------
    TypeError
        If it is something else, such as an array of Axes.
    """
    if ax is not None:
        if not isinstance(ax, Axes):
            raise TypeError(f"ax must be one matplotlib Axes, got {type(ax).__name__}")
        yield ax
        return
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(width, height))
    try:
        yield axes
    except BaseException:
        plt.close(figure)
        raise


def next_line_style(axes: Axes) -> dict[str, Any]:
    """Colour and line style that no curve of the Axes has yet; a line whose label begins with _ does not count."""
    # matplotlib's own labels of lines without one begin with _child. A curve with error bars is a container.
    labels = [str(line.get_label()) for line in axes.lines]
    position = len(axes.containers) + sum(label.startswith("_child") or not label.startswith("_") for label in labels)
    styles = {"color": _OKABE_ITO, "linestyle": _LINE_STYLES}
    return {name: values[position % len(values)] for name, values in styles.items()}


def add_legend(axes: Axes, **options: Any) -> None:
    """A legend of all labelled artists without a frame; none if nothing has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, **options)


def as_numbers(name: str, value: ArrayLike, ndim: tuple[int, ...]) -> Float[np.ndarray, " *shape"]:
    """A float64 NumPy array of finite numbers, of one of the numbers of dimensions in ``ndim``.

    Unlike :mod:`fixntk._checks`, which makes JAX arrays, it keeps the precision of NumPy arrays.

    Raises
    ------
    TypeError
        If it is not a numeric array.
    ValueError
        If its number of dimensions is wrong, it is empty, or it holds NaN or infinity.
    """
    numbers = as_numpy(as_real(name, value))
    if numbers.ndim not in ndim:
        expected = " or ".join(str(k) for k in ndim)
        raise ValueError(f"{name} must have {expected} dimensions, got shape {numbers.shape}")
    if numbers.size == 0:
        raise ValueError(f"{name} is empty: shape {numbers.shape}")
    if not np.all(np.isfinite(numbers)):
        bad = int(np.sum(~np.isfinite(numbers)))
        raise ValueError(f"{name} holds {bad} NaN or infinite value(s) in shape {numbers.shape}")
    return numbers


def as_column(name: str, values: ArrayLike, num_rows: int) -> np.ndarray:
    """An (n,) array of any dtype, from (n,) or (n, 1).

    Raises
    ------
    ValueError
        If it has another shape.
    """
    column = np.asarray(values)
    column = column[:, 0] if column.ndim == 2 and column.shape[1] == 1 else column
    if column.shape != (num_rows,):
        raise ValueError(f"{name} must have shape ({num_rows},), got {column.shape}")
    return column
