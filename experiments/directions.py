"""When fixing the NTK pays: error against the number of directions that matter, the number of rows, and the noise."""

from __future__ import annotations

import time
from typing import Annotated, Any

import jax
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field, model_validator

from experiments.data import functions
from experiments.shared.baselines import REGRESSORS
from experiments.shared.means import describe_choices, geometric_means
from experiments.shared.settings import NonEmpty, NumSeeds, Positive, PositiveFloat, Settings, TwoOrMore
from fixntk.estimators import GatedReLURegressorCV
from fixntk.runner.report import Section, new_figure
from fixntk.runner.status import show_stage

AUTO = "auto gates"
NTK = "NTK"


class Config(Settings):
    """Settings of the experiment.

    Attributes
    ----------
    num_columns
        Number of columns d, each N(0, 1).
    relevant
        Numbers k of columns that matter: the targets are the sum over them of |x_j − b_j|, with b_j from N(0, 1).
    rows
        Numbers of training rows.
    noise
        Standard deviations of the noise, in units of the targets' own.
    num_gates
        Number of random gates.
    num_folds
        Folds of the cross-validation.
    first_seed, seeds
        First seed, and number of samples of each setting.
    """

    num_columns: TwoOrMore = 20
    relevant: NonEmpty[Positive] = (1, 2, 5, 10, 20)
    rows: NonEmpty[TwoOrMore] = (100, 300)
    noise: NonEmpty[Annotated[PositiveFloat, Field(le=10)]] = (0.1, 1.0)
    num_gates: Positive = 1024
    num_folds: TwoOrMore = 4
    first_seed: int = 0
    seeds: NumSeeds = 2

    @model_validator(mode="after")
    def _check_relevant(self) -> Config:
        if max(self.relevant) > self.num_columns:
            raise ValueError(f"relevant: {max(self.relevant)} columns cannot matter of num_columns={self.num_columns}")
        return self


def tasks(config: Config) -> list[dict[str, Any]]:
    """One task for each number of rows, level of noise, number of columns that matter, and seed."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    return [
        {"rows": n, "noise": noise, "relevant": k, "seed": seed}
        for n in config.rows
        for noise in config.noise
        for k in config.relevant
        for seed in seeds
    ]


def run_task(config: Config, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Fit chosen gates and the NTK: a row for each, with its mean squared error on fresh rows without noise."""
    jax.config.update("jax_enable_x64", True)
    sample = functions.make_kinks(
        task["relevant"], config.num_columns, task["rows"], noise=task["noise"], seed=task["seed"]
    )
    auto = GatedReLURegressorCV(config.num_gates, num_folds=config.num_folds, random_state=task["seed"])
    found = []
    for method, model in {AUTO: auto, NTK: REGRESSORS[NTK](task["seed"])}.items():
        show_stage(method)
        began = time.perf_counter()
        model.fit(sample.x, sample.y)
        row = {"method": method, "seconds": time.perf_counter() - began}
        row["squared_error"] = float(np.mean((model.predict(sample.x_test) - sample.y_test) ** 2))
        if method == AUTO:
            row |= {"choice": model.choice_, "alignment": _alignment(model, task["relevant"])}
        found.append(row)
    return found


def _alignment(model: GatedReLURegressorCV, num_relevant: int) -> float:
    """How much of the gates' normals, squared and weighted by their kernel weights, lies in the columns that matter."""
    normals = np.asarray(model.gates_)[:, : model.n_features_in_] ** 2
    lengths = normals.sum(axis=1)
    # A gate that its bias alone opens on every row has no direction.
    weights = np.where(lengths > 0, model.kernel_weights_, 0)
    if not weights.sum() > 0:
        return float("nan")
    shares = normals[:, :num_relevant].sum(axis=1) / np.where(lengths > 0, lengths, 1)
    return float(np.average(shares, weights=weights))


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Geometric means over the samples of each setting, their ratio, what was chosen, and the mean alignment."""
    frame, setting = pd.DataFrame(rows), ["rows", "noise", "relevant"]
    errors = frame.pivot(index=[*setting, "seed"], columns="method", values="squared_error")
    means = geometric_means(errors, setting)[[AUTO, NTK]]
    of_auto = frame[frame["method"] == AUTO].groupby(setting)
    return means.assign(
        ratio=means[AUTO] / means[NTK],
        alignment=of_auto["alignment"].mean(),
        chosen=of_auto["choice"].agg(describe_choices),
        seconds=of_auto["seconds"].median(),
    ).reset_index()


def summarise(_: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The ratio of both errors where the fewest and where the most columns matter, and the largest of all."""
    table = _table(rows)
    by_relevant = geometric_means(table.set_index("relevant")[["ratio"]], ["relevant"])["ratio"]
    few, many = by_relevant.index.min(), by_relevant.index.max()
    of_few, of_many = by_relevant[few], by_relevant[many]
    return {
        "headline": f"Chosen gates have {of_few:.2f} times the NTK's error where {few} of the columns matter, "
        f"{of_many:.2f} times where {many} do; at most {table['ratio'].max():.2f} times.",
        "ratio_by_relevant": {str(k): float(value) for k, value in by_relevant.items()},
        "largest_ratio": float(table["ratio"].max()),
    }


def sections(config: Config, rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[Section]:
    """The report: errors, their ratio, and how far the gates found look at the columns that matter."""
    table = _table(rows)
    text = (
        f"**{summary['headline']}** The targets are the sum of |x_j − b_j| over k of {config.num_columns} columns, and "
        f"noise; mean squared errors are against the function itself, whose values have a variance of 1, on "
        f"{functions.NUM_TEST:,} fresh rows (geometric means of {config.seeds} samples). The alignment is the share of "
        f"the gates' normals, squared and weighted by their kernel weights, that lies in the columns that matter; "
        f"random gates have k/{config.num_columns}."
    )
    caption = "Error of the chosen gates over the NTK's, by the number of columns that matter."
    figures = (("directions", _figure(config, table), caption),)
    return [Section("Directions that matter", text, table=table, figures=figures)]


def _figure(config: Config, table: pd.DataFrame) -> Figure:
    figure = new_figure(9.6, 3.4)
    panels = figure.subplots(1, len(config.noise), sharey=True, squeeze=False)[0]
    for axes, noise in zip(panels, config.noise, strict=True):
        _draw_ratios(axes, table[table["noise"] == noise], config.num_columns)
        axes.set_title(f"noise {noise:g}")
    panels[0].set_ylabel("error / the NTK's")
    panels[-1].legend()
    return figure


def _draw_ratios(axes: Axes, table: pd.DataFrame, num_columns: int) -> None:
    for number, (num_rows, of_rows) in enumerate(table.groupby("rows")):
        axes.plot(of_rows["relevant"], of_rows["ratio"], "o-", color=f"C{number}", label=f"{num_rows:,} rows")
    axes.axhline(1, color="0.5", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel=f"columns of {num_columns} that matter")
    ticks = sorted(set(table["relevant"]))
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
