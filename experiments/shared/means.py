"""Means over the splits of each table, and over the samples of each problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.shared.statistics import margin

# Columns of the table of all tables that are shown at first.
MAIN_COLUMNS = (
    "training rows",
    "features",
    "NTK",
    "fixed",
    "optimum",
    "difference",
    "±",
    "optimum below NTK",
)


def by_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row for each table, with means over its splits."""
    frame = pd.DataFrame(rows)
    groups = frame.groupby(["table", "method"], sort=False)
    means = groups[["accuracy", "objective", "relative_gap", "active_gates"]].mean().unstack()
    seconds = groups["seconds"].median().unstack()
    sizes = frame.groupby("table", sort=False)[["train_rows", "columns", "classes"]].first()
    splits = frame.pivot(index=["table", "seed"], columns="method", values="accuracy")
    differences = (splits["fixed"] - splits["ntk"]).groupby("table")
    optimum_differences = (splits["optimum"] - splits["ntk"]).groupby("table")
    return pd.DataFrame(
        {
            "training rows": sizes["train_rows"],
            # The last column is the bias.
            "features": sizes["columns"] - 1,
            "classes": sizes["classes"],
            "NTK": means["accuracy", "ntk"],
            "sampled NTK": means["accuracy", "sampled_ntk"],
            "fixed": means["accuracy", "fixed"],
            "optimum": means["accuracy", "optimum"],
            "difference": means["accuracy", "fixed"] - means["accuracy", "ntk"],
            "±": margin(differences),
            "optimum − NTK": means["accuracy", "optimum"] - means["accuracy", "ntk"],
            "± of that": margin(optimum_differences),
            "NTK objective": means["objective", "sampled_ntk"],
            "fixed objective": means["objective", "fixed"],
            "optimal objective": means["objective", "optimum"],
            "optimum below NTK": 1 - means["objective", "optimum"] / means["objective", "sampled_ntk"],
            "relative gap": means["relative_gap", "fixed"],
            "gap of the optimum": means["relative_gap", "optimum"],
            "active gates": means["active_gates", "optimum"],
            "NTK seconds": seconds["ntk"],
            "fixed seconds": seconds["fixed"],
            "optimum seconds": seconds["optimum"],
        },
        index=sizes.index,
    )


def geometric_means(errors: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Geometric means of each column over the rows that agree in these levels of the index."""
    return errors.apply(np.log).groupby(list(by)).mean().apply(np.exp)


def describe_choices(choices: pd.Series) -> str:
    """What was chosen and how often, the most frequent first."""
    return ", ".join(f"{kind} {number}" for kind, number in choices.value_counts().items())
