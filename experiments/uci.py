"""The NTK against the fixed kernel on small classification tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from pydantic import Field, ValidationInfo, field_validator
from scipy import stats

from experiments.data import own_tables
from experiments.data.planted_table import PLANTED, WHY
from experiments.data.tables import TABLES, TableError, TableNames, load_table, split_table
from experiments.shared import colours
from experiments.shared.accuracy import share_correct
from experiments.shared.answer import answer_headline, answer_section
from experiments.shared.arrays import split_arrays
from experiments.shared.figures import differences_figure, scatter_figure, splits_figure
from experiments.shared.gap import gap_section
from experiments.shared.means import MAIN_COLUMNS, by_table
from experiments.shared.paths import path_figure, reweighting_path
from experiments.shared.selection import RidgeFit, fit_fixed, fit_ridge, fold_masks
from experiments.shared.settings import (
    Float32Gap,
    NonEmpty,
    NumSeeds,
    Positive,
    Share,
    ShareBelowOne,
    TwoOrMore,
)
from experiments.shared.single_splits import PAPER_TABLES, counts_by_split, counts_figure, counts_text, summarise_counts
from experiments.shared.statistics import LEAST_VALUES, compare, comparison_text, test_text
from fixntk import ConvexProgram, Solution, activation_masks, gated_relu_ntk, masked_gram, sample_gates
from fixntk.convex import solve_quietly
from fixntk.runner.report import Section
from fixntk.runner.status import show_stage
from fixntk.tables.names import count

T = TypeVar("T")

# Methods whose accuracies are drawn for each table, with their labels and colours.
_SHOWN: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "ntk": ("NTK", colours.NTK),
        "sampled_ntk": ("NTK of the sampled gates", colours.SAMPLED_NTK),
        "fixed": ("fixed kernel", colours.FIXED),
        "optimum": ("optimum", colours.OPTIMUM),
    }
)
# Bound on the relative rounding error of a certified bound in float32.
_ROUNDING = 1e-5
_PAPER = (
    " The paper reports 26 of 33, on other splits and with other settings. The default settings here were chosen after "
    "looking at test accuracies of about eight settings on these tables with the seeds 0 to 4: read the comparison as "
    "exploratory and its p-values as nominal."
)
_SCATTER_CAPTION = "Mean test accuracy of both kernels, a point for each table; above the line the fixed one is better."
# What the report's words mean.
_WORDS = (
    "The **NTK** weights the gates' kernels by how often each occurs, whatever the targets. The **fixed kernel** has "
    "the weights of a few reweighting steps from there, which follow the targets, and the **optimum** those at which "
    "these steps end: the solution of the convex program, with a certificate. Both lower the training objective for "
    "certain; whether test accuracy gains depends on the table: `fixntk run gates` shows for which functions it does."
)


class Config(own_tables.OwnTableSettings):
    """Settings of the experiment, besides those of users' files.

    Attributes
    ----------
    tables
        Names of listed tables, or paths of CSV and Parquet files; all listed ones when empty.
    seeds
        Number of splits of each table, with the seeds 0, 1, …; gates and folds of a split have the same seed.
    num_gates
        Number of sampled gates P.
    num_folds
        Number of folds of the cross-validation.
    reg_shares
        Candidates for λ/λ_max.
    steps
        Number of reweighting steps, in each fold and in the final fit.
    tol
        Relative gap at which the reweighting stops earlier.
    optimum_tol
        Relative gap of the certified optimum, at the λ of the fixed kernel.
    test_size
        Share of the rows in the test part.
    path_table
        One of the tables, whose first split shows the path from the NTK to the optimum; when None, iris if it is
        among them and otherwise the first table that can be used.
    path_steps
        Number of reweighting steps of that path.
    """

    tables: TableNames = ()
    seeds: NumSeeds = 5
    num_gates: Positive = 512
    num_folds: TwoOrMore = 4
    reg_shares: NonEmpty[Share] = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
    steps: Positive = 12
    tol: Annotated[float, Field(ge=1e-6, lt=1)] = 1e-4
    optimum_tol: Float32Gap = 1e-4
    test_size: ShareBelowOne = 0.25
    path_table: str | None = None
    path_steps: Positive = 100

    @field_validator("path_table")
    @classmethod
    def _check_path_table(cls, name: str | None, info: ValidationInfo) -> str | None:
        # `tables` is absent if it is invalid, which is reported as a separate error.
        if name is not None and name not in (info.data.get("tables", (name,)) or TABLES):
            raise ValueError("it is not among the tables")
        return name


check = own_tables.check_files


def tasks(config: Config) -> list[dict[str, Any]]:
    """One task for each table and seed."""
    return [{"table": table, "seed": seed} for table in config.tables or TABLES for seed in range(config.seeds)]


def run_task(config: Config, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Fit the NTK, the NTK of the sampled gates, the fixed kernel and the optimum on one split: a row for each.

    Raises
    ------
    TableError
        If the table cannot be used.
    ArithmeticError
        If the NTK's objective is below the certified bound, which no kernel's can be.
    """
    seed = task["seed"]
    table = load_table(task["table"], **config.of_files)
    split = split_table(table, seed, test_size=config.test_size)
    x, x_test, y = split_arrays(split)
    # The gates' entries for the columns of zeros have no effect.
    gates = sample_gates(jax.random.key(seed), config.num_gates, x.shape[1], dtype=x.dtype)
    masks, test_masks = activation_masks(x, gates), activation_masks(x_test, gates)
    regs = ConvexProgram(x, y, masks, 1.0).max_reg() * jnp.asarray(config.reg_shares, x.dtype)
    keep = fold_masks(split.y_train, config.num_folds, seed)

    def fit_ntk() -> RidgeFit:
        return fit_ridge(gated_relu_ntk(x), gated_relu_ntk(x_test, x), y, keep, regs)

    def fit_sampled_ntk() -> RidgeFit:
        equal = jnp.full(config.num_gates, 1 / config.num_gates, x.dtype)
        test_kernel = masked_gram(equal, test_masks, x_test, masks, x)
        return fit_ridge(masked_gram(equal, masks, x), test_kernel, y, keep, regs)

    show_stage("NTK")
    ntk, ntk_seconds = _measure_seconds(fit_ntk)
    sampled, sampled_seconds = _measure_seconds(fit_sampled_ntk)
    show_stage("fixed kernel")
    fixed, fixed_seconds = _measure_seconds(
        lambda: fit_fixed(x, y, masks, keep, regs, steps=config.steps, tol=config.tol)
    )
    program = ConvexProgram(x, y, masks, regs[int(fixed.chosen)])
    show_stage("optimum")
    optimum, optimum_seconds = _measure_seconds(lambda: solve_quietly(program, method="newton", tol=config.optimum_tol))
    if fixed.ntk.objective < optimum.dual * (1 - _ROUNDING):
        raise ArithmeticError(f"{task}: J of the NTK, {fixed.ntk.objective}, is below the bound {optimum.dual}")

    sizes: dict[str, Any] = {"train_rows": x.shape[0], "columns": split.x_train.shape[1], "classes": split.classes.size}
    sizes |= own_tables.source_of(table)

    def row(method: str, outputs: jax.Array, chosen: jax.Array, seconds: float, **measured: Any) -> dict[str, Any]:
        scores = {"accuracy": share_correct(outputs, split.y_test), "reg_share": config.reg_shares[int(chosen)]}
        return {"method": method, **sizes, **scores, **measured, "seconds": seconds}

    def certified_row(method: str, solution: Solution, seconds: float, **measured: Any) -> dict[str, Any]:
        outputs = solution.predict(x_test, gates)
        return row(method, outputs, fixed.chosen, seconds, **_certificate(solution), **measured)

    is_shown = seed == 0 and task["table"] == _path_table(config)
    path = {"path": reweighting_path(program, fixed.ntk, config.path_steps)} if is_shown else {}
    return [
        row("ntk", ntk.outputs, ntk.chosen, ntk_seconds, held_out_error=ntk.errors[ntk.chosen]),
        # The objective is evaluated in the program of the fixed kernel, with its λ.
        row("sampled_ntk", sampled.outputs, sampled.chosen, sampled_seconds, objective=fixed.ntk.objective),
        certified_row("fixed", fixed.solution, fixed_seconds, held_out_error=fixed.errors[fixed.chosen], **path),
        certified_row("optimum", optimum, optimum_seconds),
    ]


def _measure_seconds(function: Callable[[], T]) -> tuple[T, float]:
    """The result of a function, and the seconds that it takes."""
    began = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, time.perf_counter() - began


def _certificate(solution: Solution) -> dict[str, Any]:
    return {
        "objective": solution.primal,
        "lower_bound": solution.dual,
        "relative_gap": solution.relative_gap,
        "active_gates": jnp.sum(solution.active),
    }


def _path_table(config: Config) -> str | None:
    tables = config.tables or tuple(TABLES)
    if config.path_table is not None or "iris" in tables:
        return config.path_table or "iris"
    for table in tables:
        try:
            split_table(load_table(table, **config.of_files), 0, test_size=config.test_size)
        except TableError:
            continue
        return table
    return None


def summarise(config: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare the kernels over the tables: wins, paired tests, and the distance of the NTK from the optimum."""
    table = by_table(rows)
    frame = pd.DataFrame(rows)
    splits = frame.pivot(index=["table", "seed"], columns="method", values="objective")
    bounds = frame[frame["method"] == "optimum"].set_index(["table", "seed"])["lower_bound"].reindex(splits.index)
    left = 1 - splits["optimum"] / splits["sampled_ntk"]
    comparison = compare(table["fixed"], table["NTK"])
    p_value = test_text(comparison, "; Wilcoxon signed-rank p = ")
    correlated = len(table) > 2 and table["optimum below NTK"].nunique() > 1 and table["difference"].nunique() > 1
    related = stats.spearmanr(table["optimum below NTK"], table["difference"]) if correlated else None
    counts = (
        f"The fixed kernel's test accuracy is higher than or the same as the NTK's on "
        f"{comparison['higher'] + comparison['same']} of {len(table)} tables ({comparison['higher']} higher)"
        f"{p_value}. In the median split the optimum is {left.median():.1%} below the NTK's training objective."
    )
    return {
        "headline": answer_headline(rows) or counts,
        "tables": len(table),
        "splits": len(splits),
        "mean_accuracy": {name: float(table[name].mean()) for name in ("NTK", "sampled NTK", "fixed", "optimum")},
        "fixed_against_ntk": comparison,
        "fixed_against_ntk_on_single_splits": summarise_counts(counts_by_split(rows)),
        "fixed_against_sampled_ntk": compare(table["fixed"], table["sampled NTK"]),
        "optimum_against_ntk": compare(table["optimum"], table["NTK"]),
        "splits_where_the_ntk_beats_the_bound": int(np.sum(splits["sampled_ntk"] < bounds * (1 - _ROUNDING))),
        "median_ntk_excess": float(left.median()),
        "least_and_most_ntk_excess": [
            float(table["optimum below NTK"].min()),
            float(table["optimum below NTK"].max()),
        ],
        "left_against_difference": related and {"spearman": float(related.statistic), "p": float(related.pvalue)},
        "largest_relative_gap": float(frame.loc[frame["method"] == "fixed", "relative_gap"].max()),
        "largest_relative_gap_of_an_optimum": float(frame.loc[frame["method"] == "optimum", "relative_gap"].max()),
        "splits_at_the_ends_of_the_grid": _grid_ends(config, frame),
        "seconds": float(frame["seconds"].sum()),
    }


def _grid_ends(config: Config, frame: pd.DataFrame) -> dict[str, dict[str, int]]:
    """For each kernel, the number of splits in which the largest or the smallest candidate for λ is chosen."""
    chosen = frame[frame["method"].isin(["ntk", "fixed"])].groupby("method")["reg_share"]
    ends = {"largest": max(config.reg_shares), "smallest": min(config.reg_shares)}
    return {str(method): {end: int((part == share).sum()) for end, share in ends.items()} for method, part in chosen}


def sections(config: Config, rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[Section]:
    """The report: test accuracies, the NTK's distance from the optimum, the path of one table, and every table."""
    table = by_table(rows)
    path = next((row for row in rows if row.get("path")), None)
    answer = answer_section(rows)
    return [
        *([] if answer is None else [answer]),
        _comparison_section(config, rows, table, summary),
        gap_section(table, summary, num_steps=config.steps),
        *([] if path is None else [_path_section(path)]),
        _tables_section(config, rows, table, summary),
    ]


def _comparison_section(
    config: Config, rows: list[dict[str, Any]], table: pd.DataFrame, summary: dict[str, Any]
) -> Section:
    means = summary["mean_accuracy"]
    against = " ".join(
        f"{words} is {comparison_text(summary[key])}."
        for words, key in (
            ("Against the NTK the fixed kernel's", "fixed_against_ntk"),
            ("Against the NTK of its own gates the fixed kernel's", "fixed_against_sampled_ntk"),
            ("Against the NTK the certified optimum's, at the fixed kernel's λ,", "optimum_against_ntk"),
        )
    )
    note = _PAPER if len(config.tables or TABLES) >= PAPER_TABLES else ""
    # The answer for the user's own tables is a section above this one.
    headline = "" if answer_headline(rows) else f"**{summary['headline']}**{note}\n\n"
    has_several = summary["tables"] > 1
    text = (
        f"{headline}{_WORDS}\n\n"
        f"Mean test accuracy over {'tables' if has_several else 'splits'}: NTK {means['NTK']:.4f}, NTK of the sampled "
        f"gates {means['sampled NTK']:.4f}, fixed {means['fixed']:.4f}, certified optimum {means['optimum']:.4f}. "
        f"{against}{counts_text(summary['fixed_against_ntk_on_single_splits'])}"
        + (f"\n\n{WHY}" if PLANTED in config.tables else "")
    )
    figures = []
    if has_several:
        figures.append(("accuracy", scatter_figure(table["NTK"], table["fixed"]), _SCATTER_CAPTION))
    if has_several and config.seeds >= LEAST_VALUES:
        caption = (
            "Difference in test accuracy between the fixed kernel and the NTK, means and 95 % intervals over "
            f"{config.seeds} splits, which share rows: the intervals are too narrow for new data."
        )
        figures.append(("differences", differences_figure(table, "test accuracy, fixed − NTK"), caption))
    against_ntk = summary["fixed_against_ntk"]
    if not (by_split := counts_by_split(rows)).empty:
        figure = counts_figure(by_split, against_ntk["higher"] + against_ntk["same"])
        caption = "Tables on which the fixed kernel is higher than, the same as and lower than the NTK, split by split."
        figures.append(("counts", figure, caption))
    counts = " / ".join(str(against_ntk[key]) for key in ("higher", "same", "lower"))
    cards = (
        ("tables × splits", f"{summary['tables']} × {config.seeds}"),
        *([("tables where fixing gives a higher / the same / a lower test accuracy", counts)] if has_several else []),
        ("mean test accuracy, NTK → fixed kernel", f"{means['NTK']:.3f} → {means['fixed']:.3f}"),
        ("training objective that the NTK leaves on the table", f"{summary['median_ntk_excess']:.1%}"),
        ("time of all fits", f"{summary['seconds']:.0f} s"),
    )
    return Section("Test accuracy of the NTK and of the fixed kernel", text, figures=tuple(figures), cards=cards)


def _path_section(row: dict[str, Any]) -> Section:
    caption = (
        f"On {row['table']}: the training objective of the weights W at each reweighting step, from the "
        "solution of the NTK of the same gates, at its best scale, to the certified optimum; J(η) of the NTK "
        "charges for all its kernel weights, the objective only for those that W needs (left). The kernel "
        "weights in decreasing order; those of the NTK are equal and do not depend on the targets (right)."
    )
    return Section("From the NTK to the optimum", figures=(("fixed", path_figure(row["path"]), caption),))


def _tables_section(
    config: Config, rows: list[dict[str, Any]], table: pd.DataFrame, summary: dict[str, Any]
) -> Section:
    means = "Means over the splits with the seeds 0 to {}, ± half the width of the 95 % interval of the difference"
    one = "One split, with the seed 0"
    note = (
        f"{means.format(config.seeds - 1) if config.seeds > 1 else one}. The same folds, the same λ to choose from and "
        "the same criterion, squared error on held-out rows, for both kernels. The NTK's accuracy is measured with its "
        f"closed form, its objective with the {config.num_gates} sampled gates at their best scale, in the fixed "
        f"kernel's program. The reweighting stops at {config.steps} steps, or earlier at a relative gap of "
        f"{config.tol:g}; the optimum of the same program is computed to a relative gap of {config.optimum_tol:g}. "
        f"Seconds are medians; the first split of a shape also compiles. {_grid_ends_text(summary)}"
        f"{own_tables.sources_text(rows)}"
    )
    caption = "Test accuracy on every split (points) and its mean (bars), each table with an axis of its own."
    figures = (("tables", splits_figure(rows, _SHOWN), caption),)
    return Section("Every table", note, table=table, figures=figures, main_columns=MAIN_COLUMNS)


def _grid_ends_text(summary: dict[str, Any]) -> str:
    ends = summary["splits_at_the_ends_of_the_grid"]
    words = " and ".join(
        f"{label} in {ends[method]['largest']} and {ends[method]['smallest']}"
        for method, label in (("ntk", "for the NTK"), ("fixed", "for the fixed kernel"))
    )
    return f"Of {count(summary['splits'], 'split')} the largest and the smallest candidate for λ were chosen {words}."
