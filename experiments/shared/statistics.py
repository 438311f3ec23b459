"""Statistics of the experiments: paired comparisons over tables, means and slopes, each with a 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

# Level of the tests, and share of the cases that an interval may miss.
LEVEL = 0.05
# Fewer values have no interval, and fewer tables no test: they would say nothing, or too much.
LEAST_VALUES = 5
LEAST_TABLES = 6
# Decimal places that a difference of two scores has without rounding errors.
_DECIMALS = 12


def compare(score: pd.Series, other: pd.Series) -> dict[str, Any]:
    """Paired comparison of two methods over tables: counts, mean difference with interval, Wilcoxon's signed-rank p.

    Interval and p are None where there are too few tables for them.
    """
    difference = paired_difference(score, other).to_numpy()
    higher, lower = int(np.sum(difference > 0)), int(np.sum(difference < 0))
    average = mean(difference)
    differs = higher + lower > 0
    p_value = float(stats.wilcoxon(difference).pvalue) if differs else 1.0
    interval = [average["low"], average["high"]]
    return {
        "higher": higher,
        "same": len(difference) - higher - lower,
        "lower": lower,
        "mean_difference": average["mean"],
        "median_difference": float(np.median(difference)),
        "mean_difference_95": interval if len(difference) >= LEAST_VALUES and differs else None,
        "wilcoxon_p": p_value if len(difference) >= LEAST_TABLES else None,
    }


def paired_difference(score: pd.Series, other: pd.Series) -> pd.Series:
    """Differences of two scores, rounded so that equal scores have a difference of exactly zero."""
    return (score - other).round(_DECIMALS)


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """A comparison of `compare` in one line."""
    words = "{mean_difference:+.4f} on average".format(**comparison)
    if bounds := comparison["mean_difference_95"]:
        words += f" (95 % interval over tables {bounds[0]:+.4f} to {bounds[1]:+.4f})"
    if sum(comparison[way] for way in ("higher", "same", "lower")) > 1:
        words += ", higher on {higher}, the same on {same}, lower on {lower}".format(**comparison)
    return use_minus_signs(words + test_text(comparison, ", Wilcoxon p = "))


def test_text(comparison: Mapping[str, Any], words: str) -> str:
    """The p-value of a comparison of `compare` after some words; nothing where there are too few tables for a test."""
    p_value = comparison["wilcoxon_p"]
    return "" if p_value is None else f"{words}{p_value:.2g}"


def t_quantile(count: ArrayLike) -> Any:
    """Half the width of a 95 % interval, in standard errors of the mean of ``count`` values; NaN below two values."""
    return stats.t.ppf(1 - LEVEL / 2, np.asarray(count) - 1)


def margin(groups: Any) -> Any:
    """Half the width of the 95 % interval of the mean of each group of a pandas GroupBy; NaN for too few values."""
    counts = groups.count()
    return (groups.sem() * t_quantile(counts)).where(counts >= LEAST_VALUES)


def mean(values: ArrayLike) -> dict[str, float]:
    """Mean with a 95 % interval, which is NaN below two values."""
    array = np.asarray(values, float)
    half = stats.sem(array) * t_quantile(array.size) if array.size > 1 else float("nan")
    average = array.mean()
    return {"mean": float(average), "low": float(average - half), "high": float(average + half)}


def geometric_mean(values: ArrayLike) -> dict[str, float]:
    """Geometric mean of positive values with a 95 % interval, which is NaN below two values."""
    return {key: float(np.exp(value)) for key, value in mean(np.log(np.asarray(values, float))).items()}


def slope(sizes: ArrayLike, errors: ArrayLike) -> dict[str, float]:
    """Slope of log error in log size with a 95 % interval; NaN where there are too few sizes for it."""
    log_sizes, log_errors = np.log(np.asarray(sizes, float)), np.log(np.asarray(errors, float))
    if np.unique(log_sizes).size < 2:
        return dict.fromkeys(("slope", "low", "high"), float("nan"))
    line = stats.linregress(log_sizes, log_errors)
    # Two coefficients are estimated; the quantile is NaN where no degree of freedom is left.
    half = stats.t.ppf(1 - LEVEL / 2, log_sizes.size - 2) * line.stderr
    return {"slope": float(line.slope), "low": float(line.slope - half), "high": float(line.slope + half)}


def slope_text(line: Mapping[str, float]) -> str:
    """A slope of `slope` with its interval."""
    return interval_text(line["slope"], line, "+.2f")


def interval_text(value: float, interval: Mapping[str, Any], spec: str) -> str:
    """A number and its interval from ``low`` to ``high`` where it has one, each in the format ``spec``."""
    words = f" ({interval['low']:{spec}} to {interval['high']:{spec}})" if pd.notna(interval["low"]) else ""
    return use_minus_signs(f"{value:{spec}}{words}")


def use_minus_signs(text: str) -> str:
    """Replace hyphens by minus signs."""
    return text.replace("-", "−")
