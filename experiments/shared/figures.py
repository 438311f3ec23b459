"""Figures of the comparisons over tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.shared import colours
from fixntk.runner.marks import label_points
from fixntk.runner.report import new_figure

# Differences of accuracies no larger than this are rounding errors.
_ROUNDING = 1e-12
# Number of tables, those with the largest differences, whose names are shown.
_NUM_NAMES = 4
# Largest number of panels in a row of the figure of all splits.
_PANELS_PER_ROW = 6


def annotate_largest(axes: Axes, x: pd.Series, y: pd.Series, differences: pd.Series) -> None:
    """Write the names of the tables with the largest absolute differences beside their points.

    On the left of points above the diagonal and on the right of those below, so that none is written across it.
    """
    for name in differences.abs().nlargest(_NUM_NAMES).index:
        shift, alignment = ((-6, -3), "right") if differences[name] > 0 else ((6, -3), "left")
        place = x[name], y[name]
        axes.annotate(name, place, xytext=shift, textcoords="offset points", ha=alignment, fontsize=8)


def scatter_figure(ntk: pd.Series, fixed: pd.Series) -> Figure:
    """Mean test accuracy of the fixed kernel against the NTK, a point for each table."""
    figure = new_figure(5.2, 5.2)
    axes = figure.add_subplot()
    low = min(ntk.min(), fixed.min()) - 0.03
    axes.plot([low, 1.01], [low, 1.01], color="0.6", linewidth=1, zorder=1)
    difference = fixed - ntk
    kinds = {"higher": difference > _ROUNDING, "lower": difference < -_ROUNDING}
    kinds["the same"] = ~kinds["higher"] & ~kinds["lower"]
    styles = ((colours.FIXED, "^"), (colours.NTK, "v"), ("0.5", "s"))
    for (label, chosen), (colour, marker) in zip(kinds.items(), styles, strict=True):
        style: dict[str, Any] = {"color": colour, "marker": marker, "label": f"{label} ({chosen.sum()})", "zorder": 2}
        label_points(axes.scatter(ntk[chosen], fixed[chosen], **style), list(ntk.index[chosen]))
    annotate_largest(axes, ntk, fixed, difference)
    axes.set(
        xlabel="test accuracy of the NTK",
        ylabel="test accuracy of the fixed kernel",
        xlim=(low, 1.01),
        ylim=(low, 1.01),
    )
    axes.set_aspect("equal")
    axes.legend(title="fixed kernel", loc="lower right")
    return figure


def differences_figure(table: pd.DataFrame, label: str) -> Figure:
    """Each table's column ``difference``, with a bar of the half width in its column ``±``."""
    ordered = table.sort_values("difference")
    figure = new_figure(6.4, 0.17 * len(ordered) + 1.2)
    axes = figure.add_subplot()
    axes.axvline(0, color="0.6", linewidth=1)
    places = np.arange(len(ordered))
    axes.errorbar(
        ordered["difference"], places, xerr=ordered["±"], fmt="o", markersize=4, capsize=2, color=colours.FIXED
    )
    axes.set_yticks(places, ordered.index, fontsize=8)
    axes.set(xlabel=label, ylim=(-1, len(ordered)))
    axes.grid(axis="y", visible=False)
    return figure


def splits_figure(rows: list[dict[str, Any]], methods: Mapping[str, tuple[str, str]]) -> Figure:
    """Accuracy on every split (points) and its mean (bars), a panel for each table.

    ``methods`` has a label and a colour for each method that is shown.
    """
    frame = pd.DataFrame(rows)
    tables = list(frame["table"].unique())
    columns = min(_PANELS_PER_ROW, len(tables))
    height = -(-len(tables) // columns)
    # Beside few panels there is no room for all of the legend in a row.
    legend_columns = len(methods) if columns > 3 else min(columns, 2)
    legend_rows = -(-len(methods) // legend_columns)
    figure = new_figure(1.6 * columns + 0.4, 1.35 * height + 0.12 + 0.18 * legend_rows)
    grid = np.ravel(figure.subplots(height, columns, squeeze=False))
    for axes, table in zip(grid, tables, strict=False):
        part = frame[frame["table"] == table]
        for place, (method, (label, colour)) in enumerate(methods.items()):
            of_method = part[part["method"] == method]
            accuracy = of_method["accuracy"].to_numpy()
            spread = np.linspace(-0.22, 0.22, accuracy.size) if accuracy.size > 1 else np.zeros(1)
            (points,) = axes.plot(place + spread, accuracy, ".", markersize=3, alpha=0.5, color=colour)
            label_points(points, [f"{table}, split {seed}\n{label}" for seed in of_method["seed"]])
            ends, mean = [place - 0.35, place + 0.35], accuracy.mean()
            axes.plot(ends, [mean, mean], color=colour, linewidth=2, label=label)
        axes.set_title(table, fontsize=8, pad=2)
        axes.tick_params(labelsize=6)
        axes.set_xticks([])
    for axes in grid[len(tables) :]:
        axes.set_visible(False)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=legend_columns, fontsize=8)
    return figure
