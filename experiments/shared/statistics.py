"""What the experiments say of numbers: paired comparisons over tables, intervals, slopes on log scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.05


def compare(score: pd.Series, other: pd.Series) -> dict[str, Any]:
    """Paired comparison of two methods over tables: counts, mean difference with interval, Wilcoxon's signed-rank p."""
    difference = paired_difference(score, other).to_numpy()
    higher, lower = int(np.sum(difference > 0)), int(np.sum(difference < 0))
    found = mean(difference)
    return {
        "higher": higher,
        "same": len(difference) - higher - lower,
        "lower": lower,
        "mean_difference": found["mean"],
        "median_difference": float(np.median(difference)),
        "mean_difference_95": [found["low"], found["high"]] if len(difference) > 1 and higher + lower else None,
        "wilcoxon_p": float(stats.wilcoxon(difference).pvalue) if higher + lower else 1.0,
    }


def paired_difference(score: pd.Series, other: pd.Series) -> pd.Series:
    """Differences of two scores without rounding's share, which would be a difference where there is none."""
    return (score - other).round(12)


def in_words(comparison: dict[str, Any]) -> str:
    """A comparison in one line."""
    words = "{mean_difference:+.4f} on average".format(**comparison)
    if bounds := comparison["mean_difference_95"]:
        words += f" (95 % interval over tables {bounds[0]:+.4f} to {bounds[1]:+.4f})"
    words += ", higher on {higher}, the same on {same}, lower on {lower}, Wilcoxon p = {wilcoxon_p:.2g}".format(
        **comparison
    )
    return words.replace("-", "−")


def t_quantile(count: Any) -> Any:
    """Half the width of a 95 % interval in standard errors of the mean of ``count`` values; NaN of fewer than two."""
    return stats.t.ppf(1 - LEVEL / 2, np.asarray(count) - 1)


def margin(groups: Any) -> Any:
    """Half the width of the 95 % interval of the mean of each of pandas's groups."""
    return groups.sem() * t_quantile(groups.count())


def mean(values: Any) -> dict[str, float]:
    """Mean with a 95 % interval, NaN of fewer than two."""
    values = np.asarray(values, float)
    half = stats.sem(values) * t_quantile(len(values)) if len(values) > 1 else float("nan")
    return {
        "mean": float(values.mean()),
        "low": float(values.mean() - half),
        "high": float(values.mean() + half),
    }


def geometric_mean(values: Any) -> dict[str, float]:
    """Geometric mean of positive values with a 95 % interval, NaN of fewer than two."""
    return {key: float(np.exp(value)) for key, value in mean(np.log(np.asarray(values, float))).items()}


def slope(sizes: Any, errors: Any) -> dict[str, float]:
    """Slope of log error in log size with a 95 % interval, which takes three sizes; NaN where there are too few."""
    sizes, errors = np.log(np.asarray(sizes, float)), np.log(np.asarray(errors, float))
    if np.unique(sizes).size < 2:
        return dict.fromkeys(("slope", "low", "high"), float("nan"))
    fitted = stats.linregress(sizes, errors)
    margin = stats.t.ppf(1 - LEVEL / 2, len(sizes) - 2) * fitted.stderr
    return {"slope": float(fitted.slope), "low": float(fitted.slope - margin), "high": float(fitted.slope + margin)}


def slope_in_words(fitted: dict[str, float]) -> str:
    """A slope with its interval, where it has one."""
    return with_interval(fitted["slope"], fitted, "+.2f")


def with_interval(value: float, interval: dict[str, Any], spec: str) -> str:
    """A number and, where it has one, its interval from ``low`` to ``high``, each in a format."""
    words = f" ({interval['low']:{spec}} to {interval['high']:{spec}})" if pd.notna(interval["low"]) else ""
    return f"{value:{spec}}{words}".replace("-", "−")
