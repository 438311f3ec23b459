"""How far the NTK is from the optimum in training, and what that has to do with the gain in test accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.shared import colours
from experiments.shared.figures import annotate_largest
from experiments.shared.statistics import use_minus_signs
from fixntk.runner.marks import label_points
from fixntk.runner.report import Section, new_figure

# Smallest number of tables for which a rank correlation is reported.
_MIN_CORRELATION_TABLES = 10


def gap_section(table: pd.DataFrame, summary: Mapping[str, Any], *, num_steps: int) -> Section:
    """The distance in a table of means and a summary, for fixed kernels of at most ``num_steps`` steps."""
    least, most = summary["least_and_most_ntk_excess"]
    of_tables = f", {least:.1%} to {most:.1%} on single tables" if len(table) > 1 else ""
    text = (
        f"The optimum is {summary['median_ntk_excess']:.1%} below the training objective of the NTK of the sampled "
        f"gates at its best scale in the median split{of_tables}. The NTK's objective "
        f"is below the certified bound in {summary['splits_where_the_ntk_beats_the_bound']} of {summary['splits']} "
        "splits; no NTK of these gates can be below it. The largest relative gap is "
        f"{summary['largest_relative_gap_of_an_optimum']:.1e} for a certified optimum and "
        f"{summary['largest_relative_gap']:.1e} for a fixed kernel after at most {num_steps} steps."
    )
    related = summary["left_against_difference"]
    if related is None:
        return Section("Distance of the NTK from the optimum", text)
    if len(table) >= _MIN_CORRELATION_TABLES:
        correlation = use_minus_signs(f"{related['spearman']:+.2f}")
        text += (
            " Over the tables, the rank correlation of this difference with the gain in test accuracy is "
            f"{correlation} (Spearman, p = {related['p']:.2g})."
        )
    figure = new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    axes.axhline(0, color="0.6", linewidth=1)
    (points,) = axes.plot(table["optimum below NTK"], table["difference"], "o", color=colours.FIXED)
    label_points(points, list(table.index))
    annotate_largest(axes, table["optimum below NTK"], table["difference"], table["difference"])
    axes.set(xlabel="1 − optimum / training objective of the NTK", ylabel="test accuracy, fixed − NTK")
    caption = (
        "Distance of the NTK from the optimum in training, and gain of the fixed kernel in test accuracy, by table."
    )
    return Section("Distance of the NTK from the optimum", text, figures=(("left", figure, caption),))
