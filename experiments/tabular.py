"""The estimators against common methods on tables: the same splits, every method tuned on its training rows."""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import AfterValidator, model_validator
from scipy import stats

from experiments.data.regression_tables import REGRESSION_TABLES, load_regression_table, split_regression_table
from experiments.data.tables import TABLES, load_table, split_table
from experiments.shared import colours
from experiments.shared.baselines import CLASSIFIERS, NUM_FOLDS, ON_REQUEST, REGRESSORS
from experiments.shared.figures import differences_figure
from experiments.shared.settings import NonNegative, NumSeeds, Settings, ShareBelowOne, check_unique
from experiments.shared.statistics import LEAST_VALUES, LEVEL, compare, comparison_text, margin
from fixntk.runner.marks import label_points
from fixntk.runner.report import Section, new_figure
from fixntk.runner.status import show_stage

Kind = Literal["classification", "regression"]

_METHODS: Mapping[str, Mapping[str, Any]] = {"classification": CLASSIFIERS, "regression": REGRESSORS}
_TABLES: Mapping[str, Mapping[str, Any]] = {"classification": TABLES, "regression": REGRESSION_TABLES}
_SCORES = {"classification": "accuracy", "regression": "R²"}
_OURS = "fixed kernel"
# Methods that choose their settings without the folds, and how they do.
_TUNED_OTHERWISE = {
    "NTK": "whose ridge has the least leave-one-out error, in closed form",
    "xRFM": "for which a fifth of the rows is set aside",
}


class Config(Settings):
    """Settings of the experiment.

    Attributes
    ----------
    kinds
        Kinds of tables: with classes, or with quantities to predict.
    tables
        Names of tables of these kinds; all of them when empty.
    methods
        Names of methods; when empty, all but xRFM, which is a package of its own.
    seeds
        Number of splits of each table, with the seeds first_seed, first_seed + 1, …
    first_seed
        The first of them.
    test_size
        Share of the rows in the test part.
    """

    kinds: Annotated[tuple[Kind, ...], AfterValidator(check_unique)] = ("classification", "regression")
    tables: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: NumSeeds = 3
    first_seed: NonNegative = 0
    test_size: ShareBelowOne = 0.25

    @model_validator(mode="after")
    def _check_names(self) -> Config:
        if not self.kinds:
            raise ValueError("kinds: at least one is needed")
        for what, given, known in (("table", self.tables, _TABLES), ("method", self.methods, _METHODS)):
            names = sorted({name for kind in self.kinds for name in known[kind]})
            for name in given:
                if name not in names:
                    raise ValueError(
                        f"{what}s: there is no {what} '{name}' for {', '.join(self.kinds)}: {', '.join(names)}"
                    )
        return self


def tasks(config: Config) -> list[dict[str, Any]]:
    """One task for each table, seed and method."""
    return [
        {"kind": kind, "table": table, "seed": seed, "method": method}
        for kind in config.kinds
        for table in _TABLES[kind]
        if not config.tables or table in config.tables
        for seed in range(config.first_seed, config.first_seed + config.seeds)
        for method in _METHODS[kind]
        if (method in config.methods if config.methods else method not in ON_REQUEST)
    ]


def run_task(config: Config, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Tune and fit one method on one split of one table, and score it on the other part: one row.

    Raises
    ------
    TableError
        If the table cannot be used.
    """
    split: Any
    if task["kind"] == "classification":
        split = split_table(load_table(task["table"]), task["seed"], test_size=config.test_size)
        # The bias column is dropped, as every method has its own constant.
        x, x_test = split.x_train[:, :-1], split.x_test[:, :-1]
    else:
        split = split_regression_table(load_regression_table(task["table"]), task["seed"], test_size=config.test_size)
        x, x_test = split.x_train, split.x_test
    model = _METHODS[task["kind"]][task["method"]](task["seed"])
    began = time.perf_counter()
    with warnings.catch_warnings():
        # Warnings of networks that stop at their last epoch, and of classes smaller than the number of folds.
        warnings.simplefilter("ignore")
        show_stage(f"fit on {len(x)} rows")
        model.fit(x, split.y_train)
        fitted = time.perf_counter()
        show_stage(f"predict {len(x_test)} rows")
        score = model.score(x_test, split.y_test)
    row = {"score": float(score), "fit_seconds": fitted - began, "predict_seconds": time.perf_counter() - fitted}
    sizes = {"train_rows": x.shape[0], "columns": x.shape[1]}
    chosen = getattr(model, "best_params_", None) or {
        name.rstrip("_"): getattr(model, name) for name in ("reg_share_", "n_steps_", "reg_") if hasattr(model, name)
    }
    return [{**row, **sizes, "chosen": {key.split("__")[-1]: value for key, value in chosen.items()}}]


def summarise(_: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Average ranks over the tables, paired comparisons with the fixed kernel, times."""
    found = {}
    for kind, scores in by_table(rows).items():
        ranks = scores.rank(axis=1, ascending=False)
        found[kind] = {
            "tables": len(scores),
            "average_rank": ranks.mean().sort_values().to_dict(),
            "mean_score": scores.mean().to_dict(),
            "critical_difference": critical_difference(*scores.shape),
            "friedman_p": _friedman(scores),
            "fixed_kernel_against": {
                other: compare(scores[_OURS], scores[other]) for other in scores if _OURS in scores and other != _OURS
            },
            "median_fit_seconds": _seconds(rows, kind).median().to_dict(),
        }
    return {"headline": " ".join(_headline(kind, part) for kind, part in found.items()), **found}


def by_table(rows: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """For each kind the mean scores over splits, a row for each table and a column for each method."""
    frame = pd.DataFrame(rows)
    return {
        str(kind): part.pivot_table("score", "table", "method", sort=False).dropna()
        for kind, part in frame.groupby("kind", sort=False)
    }


def critical_difference(num_tables: int, num_methods: int) -> float | None:
    """Difference of average ranks above which Nemenyi's test at 5 % is significant (Demšar, JMLR 7, 2006).

    None for a single method, as in a run that has just begun.
    """
    if num_methods < 2:
        return None
    quantile = stats.studentized_range.ppf(1 - LEVEL, num_methods, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(num_methods * (num_methods + 1) / (6 * num_tables)))


def groups(ranks: pd.Series, difference: float) -> list[tuple[float, float]]:
    """Maximal ranges of sorted average ranks that hold two or more and are no wider than the critical difference."""
    ordered = ranks.sort_values().to_numpy()
    found: list[tuple[float, float]] = []
    for low in ordered:
        high = ordered[ordered <= low + difference].max()
        if high > low and (not found or high > found[-1][1]):
            found.append((float(low), float(high)))
    return found


def sections(config: Config, rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[Section]:
    """The report: ranks with critical differences, time against score, every table."""
    found = []
    for kind, scores in by_table(rows).items():
        part = summary[kind]
        others = "; ".join(
            f"{other}: {comparison_text(paired)}" for other, paired in part["fixed_kernel_against"].items()
        )
        text = f"**{_headline(kind, part)}**\n\nThe fixed kernel (Wilcoxon's signed-rank test) against {others}."
        figures = _comparison_figures(config, rows, kind, part)
        found.append(Section(f"{kind.capitalize()}: ranks", text, figures=figures))
        note = (
            f"Mean {_SCORES[kind]} on the test part over the splits with the seeds {config.first_seed} to "
            f"{config.first_seed + config.seeds - 1}. {_tuning(scores.columns)}"
        )
        found.append(Section(f"{kind.capitalize()}: every table", note, table=scores))
        found.append(
            Section(f"{kind.capitalize()}: seconds", "Medians of tuning and fitting.", table=_seconds(rows, kind))
        )
    return found


def _tuning(methods: Collection[Any]) -> str:
    """One sentence that says how the settings of these methods are chosen."""
    others = " and ".join(f"the {name}, {how}" for name, how in _TUNED_OTHERWISE.items() if name in methods)
    return f"{NUM_FOLDS} folds choose the settings{f' of all but {others}' if others else ''}."


def _comparison_figures(
    config: Config, rows: list[dict[str, Any]], kind: str, part: Mapping[str, Any]
) -> tuple[tuple[str, Figure, str], ...]:
    """Figures of ranks and times for three methods or more, of the difference on each table for two."""
    ranks = pd.Series(part["average_rank"])
    if len(ranks) < 2:
        return ()
    if len(ranks) == 2:
        ours, other = sorted(ranks.index, key=lambda method: method != _OURS)
        caption = (
            f"Difference in {_SCORES[kind]} on the test part, {ours} − {other}, by table: means over {config.seeds} "
            f"splits and, from {LEAST_VALUES} on, 95 % intervals. The splits share rows: these are too narrow for new "
            "data."
        )
        figure = differences_figure(_differences(rows, kind, ours, other), f"{_SCORES[kind]}, {ours} − {other}")
        return ((f"differences_{kind}", figure, caption),)
    rank_caption = (
        f"Average ranks over {part['tables']} tables, 1 the best. Methods under one bar do not differ significantly "
        "(Nemenyi's test at 5 %)."
    )
    times = _time_figure(ranks, pd.Series(part["median_fit_seconds"]))
    return (
        (f"ranks_{kind}", _rank_figure(ranks, part["critical_difference"]), rank_caption),
        (f"time_{kind}", times, "Average rank against the median time of tuning and fitting."),
    )


def _differences(rows: list[dict[str, Any]], kind: str, ours: str, other: str) -> pd.DataFrame:
    """Mean difference of two methods on each table, with half the width of its 95 % interval over the splits."""
    frame = pd.DataFrame([row for row in rows if row["kind"] == kind])
    splits = frame.pivot(index=["table", "seed"], columns="method", values="score").dropna()
    differences = (splits[ours] - splits[other]).groupby("table")
    return pd.DataFrame({"difference": differences.mean(), "±": margin(differences)})


def _headline(kind: str, part: Mapping[str, Any]) -> str:
    ranks = ", ".join(f"{name} {rank:.2f}" for name, rank in part["average_rank"].items())
    words = f"Average ranks on {part['tables']} {kind} tables: {ranks}"
    difference = part["critical_difference"]
    words += "." if difference is None else f" (critical difference {difference:.2f})."
    if against := part["fixed_kernel_against"].get("NTK"):
        words += f" The fixed kernel is higher than or the same as the NTK on {against['higher'] + against['same']}."
    return words


def _seconds(rows: list[dict[str, Any]], kind: str) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    return frame[frame["kind"] == kind].pivot_table("fit_seconds", "table", "method", "median", sort=False)


def _friedman(scores: pd.DataFrame) -> float | None:
    if scores.shape[1] < 3 or len(scores) < 2:
        return None
    return float(stats.friedmanchisquare(*scores.to_numpy().T).pvalue)


def _colour(method: str) -> str:
    return {_OURS: colours.FIXED, "NTK": colours.NTK}.get(method, "0.5")


def _rank_figure(ranks: pd.Series, difference: float) -> Figure:
    figure = new_figure(7.2, 0.32 * len(ranks) + 1.3)
    axes = figure.add_subplot()
    ordered = ranks.sort_values()
    heights = -np.arange(len(ordered))
    axes.hlines(heights, 1, ordered, color="0.85", zorder=1)
    axes.scatter(ordered, heights, color=[_colour(name) for name in ordered.index], zorder=3)
    for k, (low, high) in enumerate(groups(ranks, difference)):
        axes.plot([low - 0.03, high + 0.03], [0.6 + 0.25 * k] * 2, color="0.3", linewidth=3, solid_capstyle="butt")
    axes.set_yticks(heights, [f"{name}  {rank:.2f}" for name, rank in ordered.items()])
    axes.set(xlabel="average rank", xlim=(0.9, len(ranks)))
    axes.grid(axis="y", visible=False)
    return figure


def _time_figure(ranks: pd.Series, seconds: pd.Series) -> Figure:
    figure = new_figure(6.0, 3.8)
    axes = figure.add_subplot()
    for name in ranks.index:
        label_points(axes.scatter(seconds[name], ranks[name], color=_colour(name)), [name])
        axes.annotate(name, (seconds[name], ranks[name]), xytext=(5, 3), textcoords="offset points", fontsize=9)
    axes.set(xscale="log", xlabel="seconds to tune and fit, median table", ylabel="average rank")
    axes.invert_yaxis()
    return figure
