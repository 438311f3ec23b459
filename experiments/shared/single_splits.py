"""On how many tables a kernel is higher or the same where each table is split once, as such counts are usually made.

A count over means of many splits has few ties and little noise; one over single splits has more of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.shared import colours
from experiments.shared.statistics import LEAST_TABLES, paired_difference
from fixntk.runner.report import new_figure

# Number of tables on which the fixed kernel is higher than or the same as the NTK in the paper.
PAPER_COUNT = 26
# Number of the paper's tables.
PAPER_TABLES = 33


def counts_by_split(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """For each seed, on how many tables the fixed kernel's accuracy is higher than the NTK's, the same, and lower.

    Empty where there are fewer than two seeds, or too few tables for a test.
    """
    accuracy = pd.DataFrame(rows).pivot(index="seed", columns=["method", "table"], values="accuracy")
    difference: Any = paired_difference(accuracy["fixed"], accuracy["ntk"]).dropna()
    counts = pd.DataFrame(
        {
            "higher": (difference > 0).sum(axis=1),
            "same": (difference == 0).sum(axis=1),
            "lower": (difference < 0).sum(axis=1),
        }
    )
    return counts if len(counts) > 1 and difference.shape[1] >= LEAST_TABLES else counts[:0]


def summarise_counts(counts: pd.DataFrame) -> dict[str, Any] | None:
    """Least, median and largest count of tables over the splits, with ties and of ties alone; None without counts."""
    if counts.empty:
        return None
    parts = {"higher_or_same": counts["higher"] + counts["same"], "higher": counts["higher"], "same": counts["same"]}
    return {"splits": len(counts), "tables": int(counts.iloc[0].sum())} | {
        name: {"least": int(values.min()), "median": float(values.median()), "most": int(values.max())}
        for name, values in parts.items()
    }


def counts_text(summary: Mapping[str, Any] | None) -> str:
    """The summary in a sentence; nothing without one."""
    if summary is None:
        return ""
    ranges = {
        name: f"{summary[name]['least']} to {summary[name]['most']} (median {summary[name]['median']:g})"
        for name in ("higher_or_same", "same")
    }
    return (
        " With a single split of each table the fixed kernel is higher than or the same as the NTK on "
        f"{ranges['higher_or_same']} of {summary['tables']} tables, over {summary['splits']} splits; of these it is "
        f"the same on {ranges['same']}."
    )


def counts_figure(counts: pd.DataFrame, of_means: int) -> Figure:
    """The counts of each split as stacked bars, in increasing order, with the count over means as a line."""
    total = counts["higher"] + counts["same"]
    ordered = counts.loc[total.sort_values(kind="stable").index]
    figure = new_figure(6.4, 3.4)
    axes = figure.add_subplot()
    places, below = np.arange(len(ordered)), np.zeros(len(ordered))
    for name, colour in (("higher", colours.FIXED), ("same", "0.6"), ("lower", colours.NTK)):
        axes.bar(places, ordered[name], bottom=below, color=colour, label=name, width=0.8)
        below += ordered[name].to_numpy()
    axes.axhline(of_means, color="0.2", linestyle="--", linewidth=1.2, label="higher or the same, means over splits")
    if below[0] == PAPER_TABLES:
        axes.axhline(PAPER_COUNT, color="0.2", linestyle=":", linewidth=1.6, label="higher or the same, the paper")
    axes.set_xticks(places, [str(seed) for seed in ordered.index])
    axes.set(xlabel="seed of the split", ylabel="number of tables", ylim=(0, below.max() * 1.02))
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure
