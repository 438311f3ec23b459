"""Effect of the settings of Algorithm 1 on test accuracy: the number of gates, λ, the steps and ε, one at a time."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import jax
import pandas as pd
from jax import Array
from matplotlib.figure import Figure
from pydantic import Field

from experiments.data import own_tables
from experiments.data.tables import TableNames, load_table, split_table
from experiments.shared import colours
from experiments.shared.accuracy import share_correct
from experiments.shared.arrays import split_arrays
from experiments.shared.settings import Float32Gap, NonEmpty, NumSeeds, Positive, Share
from experiments.shared.statistics import margin, use_minus_signs
from fixntk import ConvexProgram, activation_masks, sample_gates
from fixntk.convex import solve_quietly
from fixntk.convex.program import program_at_share
from fixntk.convex.solvers import irls
from fixntk.gram import masked_apply
from fixntk.runner.marks import label_points
from fixntk.runner.report import Section, new_figure
from fixntk.runner.status import show_stage

# The setting that each sweep varies, in words.
SWEEPS = {"gates": "gates P", "reg": "λ/λ_max", "steps": "reweighting steps", "epsilon": "ε, as the gap it may cost"}


class Config(own_tables.OwnTableSettings):
    """Settings of the experiment, besides those of users' files.

    Attributes
    ----------
    tables, seeds
        Names of listed tables or paths of files, and number of splits of each.
    num_gates, reg_share, steps, epsilon_gap
        Values of the settings that are held while another one varies: P, λ/λ_max, reweighting steps, and the relative
        gap of which ε may cost a tenth.
    gates, reg_shares, max_steps, epsilon_gaps
        Values that are tried; for the steps 0 and all powers of two up to ``max_steps``.
    optimum_tol
        Relative gap of the certified optimum at each λ.
    """

    tables: Annotated[TableNames, Field(min_length=1)] = (
        "glass",
        "haberman",
        "hepatitis",
        "ionosphere",
        "tae",
        "wine",
    )
    seeds: NumSeeds = 3
    num_gates: Positive = 512
    reg_share: Share = 0.01
    steps: Positive = 12
    epsilon_gap: Share = 1e-4
    gates: NonEmpty[Positive] = (16, 64, 256, 512, 1024, 2048)
    reg_shares: NonEmpty[Share] = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
    max_steps: Positive = 128
    epsilon_gaps: NonEmpty[Share] = (1.0, 0.1, 0.01, 1e-3, 1e-4)
    optimum_tol: Float32Gap = 1e-4


check = own_tables.check_files


def tasks(config: Config) -> list[dict[str, Any]]:
    """One task for each table and seed."""
    return [{"table": table, "seed": seed} for table in config.tables for seed in range(config.seeds)]


def run_task(config: Config, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracies on one split: a row for each value of each setting.

    Raises
    ------
    TableError
        If the table cannot be used.
    """
    seed = task["seed"]
    table = load_table(task["table"], **config.of_files)
    split = split_table(table, seed)
    x, x_test, y = split_arrays(split)
    # Each P takes the first P of the same gates, so that the sweep over P varies nothing else.
    gates = sample_gates(jax.random.key(seed), max(*config.gates, config.num_gates), x.shape[1], dtype=x.dtype)

    def program_of(num_gates: int, reg_share: float) -> ConvexProgram:
        return program_at_share(x, y, activation_masks(x, gates[:num_gates]), reg_share)

    def accuracies(program: ConvexProgram, epsilon_gap: float, num_steps: int) -> tuple[list[float], Array]:
        masks = activation_masks(x_test, gates[: program.num_gates])
        outputs, gaps = _path(program, irls.default_epsilon(program, epsilon_gap), masks, x_test, num_steps=num_steps)
        return [share_correct(output, split.y_test) for output in outputs], gaps / program.primal_at_zero()

    def row(sweep: str, value: float, accuracy: float, gap: Any, ntk: float, **more: Any) -> dict[str, Any]:
        return {"sweep": sweep, "value": value, "accuracy": accuracy, "relative_gap": gap, "ntk": ntk, **more}

    found = []
    for num_gates in config.gates:
        show_stage(f"{num_gates} gates")
        path, gaps = accuracies(program_of(num_gates, config.reg_share), config.epsilon_gap, config.steps)
        found.append(row("gates", num_gates, path[-1], gaps[-1], path[0]))
    for reg_share in config.reg_shares:
        show_stage(f"λ = {reg_share:g} λ_max")
        program = program_of(config.num_gates, reg_share)
        path, gaps = accuracies(program, config.epsilon_gap, config.steps)
        optimum = solve_quietly(program, method="newton", tol=config.optimum_tol)
        best = share_correct(optimum.predict(x_test, gates[: config.num_gates]), split.y_test)
        more = {"optimum": best, "optimum_gap": optimum.relative_gap}
        found.append(row("reg", reg_share, path[-1], gaps[-1], path[0], **more))
    program = program_of(config.num_gates, config.reg_share)
    path, gaps = accuracies(program, config.epsilon_gap, config.max_steps)
    powers = [0, *(2**k for k in range(config.max_steps.bit_length()))]
    found += [row("steps", step, path[step], gaps[step], path[0]) for step in powers]
    for epsilon_gap in config.epsilon_gaps:
        show_stage(f"smoothing of {epsilon_gap:g}")
        path, gaps = accuracies(program, epsilon_gap, config.steps)
        found.append(row("epsilon", epsilon_gap, path[-1], gaps[-1], path[0]))
    return [row | own_tables.source_of(table) for row in found]


@partial(jax.jit, static_argnames="num_steps")
def _path(
    program: ConvexProgram, epsilon: Array, test_masks: Array, x_test: Array, *, num_steps: int
) -> tuple[Array, Array]:
    """Outputs (num_steps + 1, n_test, c) on the test part, and gaps (num_steps + 1,), of Algorithm 1 from the NTK."""

    def look(state: irls.IRLSState) -> tuple[Array, Array]:
        return masked_apply(test_masks, x_test, state.weights), state.gap

    return irls.watch_from_ntk(program, epsilon, look, num_steps=num_steps)


def summarise(_: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracies by value of each setting, and their range."""
    found: dict[str, Any] = {}
    for sweep, part in by_value(rows).groupby("sweep", sort=False):
        found[str(sweep)] = part.drop(columns="sweep").to_dict("records")
    spread = {
        sweep: max(row["accuracy"] for row in part) - min(row["accuracy"] for row in part)
        for sweep, part in found.items()
    }
    words = ", ".join(f"{SWEEPS[sweep]} {width:.3f}" for sweep, width in spread.items())
    return {
        "headline": f"Range of the mean test accuracy of Algorithm 1 when one setting varies: {words}."
        + own_tables.labels_text(rows),
        "spread": spread,
        **found,
    }


def by_value(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Means over splits and tables for each value of each setting.

    Each column ± is half the width of the 95 % interval, over the tables, of the column before it: the difference of
    Algorithm 1 from the NTK, and the difference of the optimum from the NTK.
    """
    frame = pd.DataFrame(rows)
    frame["difference"] = frame["accuracy"] - frame["ntk"]
    frame["optimum − NTK"] = frame["optimum"] - frame["ntk"]
    measured = ["accuracy", "ntk", "optimum", "relative_gap", "difference", "optimum − NTK"]
    of_tables = frame.groupby(["sweep", "value", "table"], sort=False)[measured].mean()
    groups = of_tables.groupby(["sweep", "value"], sort=False)
    margins = margin(groups)
    table = groups.mean().assign(**{"±": margins["difference"], "± of that": margins["optimum − NTK"]})
    return table[[*measured[:-1], "±", measured[-1], "± of that"]].reset_index()


def _clear_differences(table: pd.DataFrame) -> str:
    """Where Algorithm 1 differs from the NTK of the same setting by more than half the interval."""
    clear = table[table["difference"].abs() > table["±"]]
    listed = ", ".join(
        f"{SWEEPS[sweep]} = {value:g} ({difference:+.4f} ± {half:.4f})"
        for sweep, value, difference, half in clear[["sweep", "value", "difference", "±"]].itertuples(index=False)
    )
    # Without steps Algorithm 1 is the NTK itself, and nothing is compared.
    compared = int((table["±"] > 0).sum())
    if not compared:
        return ""
    return (
        f" The difference from the NTK exceeds half its 95 % interval at {len(clear)} of {compared} settings"
        f"{f': {use_minus_signs(listed)}' if listed else ''}."
    )


def sections(config: Config, rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[Section]:
    """The report: a panel for each setting."""
    table = by_value(rows)
    text = (
        f"**{summary['headline']}**\n\nMeans over {len(config.tables)} tables ({', '.join(config.tables)}) and "
        f"{config.seeds} splits of each. One setting varies at a time, the others stay at {config.num_gates} gates, "
        f"λ = {config.reg_share:g} λ_max, {config.steps} steps and an ε that may cost a tenth of a relative gap of "
        f"{config.epsilon_gap:g}. Zero steps are ridge regression with the NTK of the sampled gates."
        f"{_clear_differences(table)}"
    )
    caption = (
        "Mean test accuracy by setting; dotted lines mark the value in the other panels. The panel of λ also shows "
        "the certified optimum of the same program. Bars are 95 % intervals, over the tables with their splits "
        "averaged, of the difference from the NTK at the same setting."
    )
    figures = (("sensitivity", _figure(config, table), caption),)
    shown = table.rename(columns={"ntk": "NTK", "relative_gap": "relative gap"})
    main = ("sweep", "value", "accuracy", "NTK", "optimum", "difference", "±")
    return [Section("Effect of the settings", text, table=shown, figures=figures, main_columns=main)]


def _figure(config: Config, table: pd.DataFrame) -> Figure:
    figure = new_figure(9.6, 6.2)
    held = {"gates": config.num_gates, "reg": config.reg_share, "steps": config.steps, "epsilon": config.epsilon_gap}
    for axes, (sweep, label) in zip(figure.subplots(2, 2, sharey=True).flat, SWEEPS.items(), strict=True):
        part = table[table["sweep"] == sweep]
        axes.axvline(held[sweep], color="0.6", linestyle=":")
        axes.plot(part["value"], part["ntk"], "s--", color=colours.NTK, label="NTK")
        style: dict[str, Any] = {"capsize": 2, "elinewidth": 1}
        axes.errorbar(
            part["value"], part["accuracy"], part["±"], fmt="o-", color=colours.FIXED, label="Algorithm 1", **style
        )
        if part["optimum"].notna().any():
            # A little to the right, so that the bars do not hide each other.
            style |= {"fmt": "^-", "color": colours.OPTIMUM, "label": "certified optimum"}
            bars = axes.errorbar(1.06 * part["value"], part["optimum"], part["± of that"], **style)
            label_points(bars, x=list(part["value"]))
        if sweep == "steps":
            axes.set_xscale("symlog", linthresh=1)
        else:
            axes.set_xscale("log")
        axes.set(xlabel=label, ylabel="test accuracy")
        axes.legend()
    return figure
