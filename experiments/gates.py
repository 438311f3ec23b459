"""When fixing the NTK pays on fresh rows: random, reweighted and discovered gates on functions that are known."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.data import functions
from experiments.shared import colours
from experiments.shared.baselines import REGRESSORS
from experiments.shared.means import describe_choices, geometric_means
from experiments.shared.networks import NetworkRegressor, fit_from_random, fit_polished
from experiments.shared.settings import NonEmpty, NumSeeds, Positive, Settings, TwoOrMore
from experiments.shared.statistics import geometric_mean
from fixntk.estimators import GatedReLURegressorCV
from fixntk.runner.report import Section, new_figure
from fixntk.runner.status import show_stage

# The estimator that chooses its gates, and what it is compared with.
AUTO = "auto gates"
PEERS = ("NTK", "RBF SVM", "gradient boosting")
# Trained networks, which take minutes.
NETWORKS = {"trained network": fit_from_random, "polished network": fit_polished}
# Gates of one source alone, by the number of columns; λ and the rest by cross-validation.
SOURCES: dict[str, Callable[[int], Any]] = {
    # One gate that the bias column opens on every row.
    "linear regression": lambda num_columns: np.eye(1, num_columns + 1, num_columns),
    "random gates": lambda _: "random",
    "discovered gates": lambda _: "discovered",
    "trained gates": lambda _: "trained",
}
# A cell is a number of rows and a problem.
_CELL = ("rows", "problem")
# What counts as level with the best method, and as much worse than the NTK.
_LEVEL = 1.05
_MUCH_WORSE = 1.1

ProblemName = Literal[
    "linear",
    "three of 30 columns",
    "piecewise linear",
    "Friedman 1",
    "smooth",
    "ReLU network",
    "gated network",
]
NetworkName = Literal["trained network", "polished network"]
SourceName = Literal["linear regression", "random gates", "discovered gates", "trained gates"]


class Config(Settings):
    """Settings of the experiment.

    Attributes
    ----------
    problems
        Functions to learn, of experiments/data/functions.py.
    rows
        Numbers of training rows.
    num_gates
        Number of random gates.
    networks
        Which ReLU networks are compared as well: trained from random weights, or from discovered gates that move.
    sources
        Which gates are fitted alone as well. With some of them the report also has the error of an oracle, which knows
        the function and takes the best of these and the NTK.
    num_folds
        Folds of the cross-validation that chooses gates, λ, steps and ridge.
    first_seed, seeds
        First seed, and number of samples of each problem and size.
    """

    problems: NonEmpty[ProblemName] = get_args(ProblemName)
    rows: NonEmpty[TwoOrMore] = (100, 300, 1000)
    num_gates: Positive = 1024
    networks: tuple[NetworkName, ...] = ()
    sources: tuple[SourceName, ...] = ()
    num_folds: TwoOrMore = 4
    first_seed: int = 0
    seeds: NumSeeds = 5


def tasks(config: Config) -> list[dict[str, Any]]:
    """One task for each problem, number of rows and seed."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    return [{"problem": name, "rows": n, "seed": s} for n in config.rows for name in config.problems for s in seeds]


def run_task(config: Config, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Fit every method: a row for each, with its mean squared error on fresh rows without noise."""
    jax.config.update("jax_enable_x64", True)
    sample = functions.make(task["problem"], task["rows"], task["seed"])
    options: dict[str, Any] = {"num_folds": config.num_folds, "random_state": task["seed"]}
    models: dict[str, Any] = {AUTO: GatedReLURegressorCV(config.num_gates, **options)}
    models |= {method: REGRESSORS[method](task["seed"]) for method in PEERS}
    for source in config.sources:
        gates = SOURCES[source](sample.x.shape[1])
        models[source] = GatedReLURegressorCV(config.num_gates, gates=gates, **options)
    models |= {method: NetworkRegressor(NETWORKS[method], task["seed"]) for method in config.networks}
    found = []
    for method, model in models.items():
        show_stage(method)
        began = time.perf_counter()
        model.fit(sample.x, sample.y)
        row = {"method": method, "seconds": time.perf_counter() - began, "squared_error": _squared_error(model, sample)}
        if method == AUTO:
            row |= {"choice": model.choice_, "num_active": model.n_active_gates_}
            row |= {f"held_out_{kind}": loss for kind, loss in model.choice_losses_.items()}
        found.append(row)
    return found


def _squared_error(model: Any, sample: functions.Sample) -> float:
    return float(np.mean((model.predict(sample.x_test) - sample.y_test) ** 2))


def _errors(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Errors by sample, a column for each method."""
    return pd.DataFrame(rows).pivot(index=["rows", "problem", "seed"], columns="method", values="squared_error")


def _oracle(errors: pd.DataFrame, config: Config) -> pd.Series:
    """The least error on the fresh rows of the candidates that were fitted alone, sample by sample."""
    return errors[["NTK", *config.sources]].min(axis=1)


def summarise(config: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How often the chosen gates are level with the best method, and how much worse than the NTK they ever are."""
    # A cell is a problem and a number of rows, with the geometric mean over its samples.
    errors = _errors(rows)
    cells = geometric_means(errors, _CELL)
    to_best, to_ntk = cells[AUTO] / cells[[AUTO, *PEERS]].min(axis=1), cells[AUTO] / cells["NTK"]
    chosen = pd.Series([row["choice"] for row in rows if row["method"] == AUTO]).value_counts()
    level, worst = int(np.sum(to_best <= _LEVEL)), float(to_ntk.max())
    ratio = geometric_mean(to_ntk) if len(to_ntk) > 1 else {"mean": float(to_ntk.iloc[0])}
    oracle = {}
    if config.sources:
        to_oracle = np.log(errors[AUTO] / _oracle(errors, config))
        oracle = {"ratio_to_oracle": float(np.exp(to_oracle.mean()))}
    return oracle | {
        "headline": f"Chosen gates have {ratio['mean']:.2f} times the NTK's error, and at most {worst:.2f} times; level"
        f" with the best method or better on {level} of {len(cells)} problems and sizes.",
        "ratio_to_ntk": ratio,
        "largest_ratio_to_ntk": worst,
        "level_with_best": level,
        "cells": len(cells),
        "much_worse_than_ntk": int(np.sum(to_ntk > _MUCH_WORSE)),
        "choices": {str(kind): int(count) for kind, count in chosen.items()},
    }


def sections(config: Config, rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[Section]:
    """The report: errors by problem and size, what was chosen, and the ratios to the NTK's error."""
    frame = pd.DataFrame(rows)
    errors = _errors(rows).groupby(["rows", "problem"], sort=False).mean().reset_index()
    of_auto = frame[frame["method"] == AUTO]
    counts = of_auto.groupby(["rows", "problem"])["choice"].agg(describe_choices).rename("chosen")
    columns = ["rows", "problem", AUTO, *PEERS, *config.sources, *config.networks]
    table = errors[columns].merge(counts.reset_index(), on=["rows", "problem"])
    text = (
        f"**{summary['headline']}** The estimator chooses by cross-validation between the mean of the targets, "
        "linear regression, the NTK, that of random gates, this kernel reweighted, discovered gates, a trained ReLU "
        "network, and the kernel of its gates, or averages them, from the training rows alone.\n\n"
        f"Mean squared error against the function itself, whose values have a variance of 1, on 2,000 fresh rows; "
        f"noise of σ = {functions.NOISE:g} on the training rows; {config.seeds} samples of each problem and size."
    )
    if config.sources:
        text += (
            f"\n\nOf an oracle that takes the best of the NTK, {', '.join(config.sources)} on the fresh rows of each "
            f"sample auto gates have {summary['ratio_to_oracle']:.2f} times the error (geometric mean)."
        )
    caption = "Error of the chosen gates and of the peers, divided by the NTK's on the same rows: geometric means."
    return [Section("Gates on fresh rows", text, table=table, figures=(("gates", _figure(config, rows), caption),))]


def _figure(config: Config, rows: list[dict[str, Any]]) -> Figure:
    errors = _errors(rows)
    ratios = geometric_means(errors.div(errors["NTK"], axis=0), _CELL)
    figure = new_figure(9.6, 3.6)
    panels = figure.subplots(1, len(config.rows), sharey=True, squeeze=False)[0]
    styles = {AUTO: (colours.DISCOVERED, "o"), "RBF SVM": (colours.OPTIMUM, "s"), "gradient boosting": ("0.5", "^")}
    for axes, num_rows in zip(panels, config.rows, strict=True):
        present = ratios.loc[num_rows].reindex(list(config.problems))
        for method, (colour, marker) in styles.items():
            axes.plot(present[method], range(len(present)), marker, color=colour, label=method)
        axes.axvline(1, color=colours.NTK, linewidth=1)
        axes.set(xscale="log", title=f"{num_rows:,} rows", xlabel="error / the NTK's")
        axes.set_yticks(range(len(present)), present.index)
    panels[0].invert_yaxis()
    panels[-1].legend()
    return figure
