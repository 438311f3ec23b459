"""Planted networks: the NTK, the fixed kernel with random and with discovered gates, and trained networks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field

from experiments.data import planted
from experiments.shared import colours
from experiments.shared.statistics import geometric_mean, with_interval
from fixntk import (
    ConvergenceWarning,
    ConvexProgram,
    GatedReLUNetwork,
    ReLUNetwork,
    activation_masks,
    discover,
    gated_relu_ntk,
    kernel_ridge,
    sample_gates,
    solve,
    train,
)
from fixntk.runner.report import Section, new_figure

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
METHODS: Mapping[str, str] = MappingProxyType(
    {
        "NTK": colours.NTK,
        "fixed, random gates": colours.FIXED,
        "fixed, discovered gates": colours.DISCOVERED,
        "trained gated": colours.TRAINED_GATED,
        "trained ReLU": colours.TRAINED_RELU,
    }
)
"""With their colours."""

NEEDS_EVERY_TASK = True


class Config(BaseModel):
    """Settings of the experiment.

    Attributes
    ----------
    teachers
        Whether the planted network is gated or ReLU.
    num_features, rows
        Numbers of features d and of training rows n.
    num_neurons
        Of the planted network.
    noise
        Standard deviation of the noise; the planted outputs have 1.
    num_gates
        Random gates P.
    reg_shares
        λ/λ_max to choose from, on as many fresh rows as there are for training.
    width, num_steps, learning_rate
        Of the trained networks, and of Adam.
    seeds
        Data sets of each kind and size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    teachers: Annotated[tuple[Literal["gated", "relu"], ...], Field(min_length=1)] = ("gated", "relu")
    num_features: Annotated[tuple[Positive, ...], Field(min_length=1)] = (2, 5, 10, 20)
    rows: Annotated[tuple[Positive, ...], Field(min_length=1)] = (100, 200, 400)
    num_neurons: Positive = 3
    noise: Annotated[float, Field(ge=0)] = 0.2
    num_gates: Positive = 256
    reg_shares: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.3, 0.1, 0.03, 0.01, 0.003)
    width: Positive = 200
    num_steps: Positive = 3000
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    seeds: Positive = 2


def tasks(config: Config) -> list[dict[str, Any]]:
    """One task for each teacher, size and seed."""
    return [
        {"teacher": teacher, "features": d, "rows": n, "seed": seed}
        for teacher in config.teachers
        for d in config.num_features
        for n in config.rows
        for seed in range(config.seeds)
    ]


def run_task(config: Config, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Fit every method, its λ chosen on fresh noisy rows, and measure it on others without noise: a row for each."""
    jax.config.update("jax_enable_x64", True)
    n, d = task["rows"], task["features"]
    keys = jax.random.split(jax.random.fold_in(jax.random.key(task["seed"]), 1000 * n + d), 7)
    neurons, outputs = (
        jax.random.normal(keys[0], (config.num_neurons, d)),
        jax.random.normal(keys[1], (config.num_neurons,)),
    )
    teacher_gates = neurons if task["teacher"] == "relu" else sample_gates(keys[2], config.num_neurons, d)
    all_rows = jax.random.normal(keys[3], (2 * n + 2000, d))
    truth = (activation_masks(all_rows, teacher_gates) * (all_rows @ neurons.T)) @ outputs
    truth = truth / jnp.std(truth)
    noisy = truth + config.noise * jax.random.normal(keys[4], truth.shape)
    x, x_held, x_test = all_rows[:n], all_rows[n : 2 * n], all_rows[2 * n :]
    y, y_held, y_test = noisy[:n], noisy[n : 2 * n], truth[2 * n :]
    gates = sample_gates(keys[5], config.num_gates, d)
    program = ConvexProgram(x, y, activation_masks(x, gates), 1.0)
    regs = program.max_reg() * jnp.asarray(config.reg_shares)

    def best(fits: list[Any]) -> Any:
        """The fit, a function from inputs to outputs and more, with the least error on held-out rows."""
        return min(fits, key=lambda fit: float(jnp.mean((fit[0](x_held) - y_held) ** 2)))

    def row(method: str, predict: Any, **more: Any) -> dict[str, Any]:
        return {"method": method, "squared_error": float(jnp.mean((predict(x_test) - y_test) ** 2)), **more}

    kernel = gated_relu_ntk(x)
    ridges = float(jnp.trace(kernel)) / n * np.geomspace(1e-5, 10, 13)

    def ridge(reg: float) -> Any:
        return lambda new: kernel_ridge(kernel, y, gated_relu_ntk(new, x), reg=reg)

    found = [row("NTK", best([(ridge(reg),) for reg in ridges])[0])]

    solutions = [solve(program.with_reg(reg), tol=1e-5) for reg in regs]
    predict, reg, solution = best(
        [(lambda new, s=s: s.predict(new, gates), reg, s) for s, reg in zip(solutions, regs, strict=True)]
    )
    recovered = _recovered(x, teacher_gates, activation_masks(x, gates)[:, np.asarray(solution.active)])
    found.append(row("fixed, random gates", predict, recovered=recovered, objective=float(solution.primal)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # The networks below start from keys[6] itself.
        key = jax.random.split(keys[6])[0]
        more = discover(program.with_reg(reg), gates, key=key, max_rounds=10, tol=1e-5, max_cells=1)
    recovered = _recovered(x, teacher_gates, more.masks[:, np.asarray(more.solution.active)])
    found.append(
        row(
            "fixed, discovered gates",
            lambda new: more.solution.predict(new, more.gates),
            recovered=recovered,
            objective=float(more.solution.primal),
        )
    )

    adam = optax.adam(config.learning_rate)
    options: dict[str, Any] = {
        "num_steps": config.num_steps,
        "record_every": max(1, config.num_steps // 10),
        "validation": (x_held, y_held),
    }
    for method, kind in (("trained gated", GatedReLUNetwork), ("trained ReLU", ReLUNetwork)):
        start = jax.vmap(lambda _, kind=kind: kind.sample(keys[6], config.width, d))(jnp.arange(len(regs)))
        stack = train(start, x, y, adam, reg=regs, **options).network
        networks = [jax.tree.map(lambda leaf, k=k: leaf[k], stack) for k in range(len(regs))]
        found.append(row(method, best([(network,) for network in networks])[0]))
    return found


def _recovered(x: jax.Array, teacher_gates: jax.Array, masks: jax.Array) -> float:
    """Mean over planted gates of the largest share of rows on which an active gate's mask, or its opposite, agrees."""
    planted = np.asarray(activation_masks(x, teacher_gates), float) * 2 - 1
    active = np.asarray(masks, float) * 2 - 1
    if active.shape[1] == 0:
        return 0.5
    return float(np.mean(0.5 + 0.5 * np.max(np.abs(planted.T @ active), axis=1) / len(x)))


def by_size(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Mean errors: a row for each teacher and size, a column for each method."""
    frame = pd.DataFrame(rows)
    return frame.pivot_table("squared_error", ["teacher", "features", "rows"], "method", sort=False)[list(METHODS)]


def recovered_by_size(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Mean agreement with the planted gates: a row for each teacher and size, columns for random and discovered."""
    frame = pd.DataFrame(rows).dropna(subset="recovered")
    found = frame.pivot_table("recovered", ["teacher", "features", "rows"], "method", sort=False)
    return found.rename(columns=lambda method: f"recovered, {method.removeprefix('fixed, ')}")


def summarise(_: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How often each method beats the NTK, and by how much."""
    frame = pd.DataFrame(rows)
    errors = frame.pivot_table("squared_error", ["teacher", "features", "rows", "seed"], "method")
    ratios = errors.div(errors["NTK"], axis=0)
    others = [method for method in METHODS if method != "NTK"]
    better = {method: float(np.mean(ratios[method] < 1)) for method in others}
    means = {
        str(teacher): {method: geometric_mean(part[method]) for method in others}
        for teacher, part in ratios.groupby("teacher")
    }
    return {
        "headline": (
            f"On planted networks the fixed kernel's test error is below the NTK's in "
            f"{better['fixed, random gates']:.0%} of the cases with random gates and in "
            f"{better['fixed, discovered gates']:.0%} with discovered ones, the trained ReLU network's in "
            f"{better['trained ReLU']:.0%} of {len(errors)}."
        ),
        "cases": len(errors),
        "share_better_than_ntk": better,
        "error_over_ntk": means,
        "mean_recovered": frame.groupby("method")["recovered"].mean().dropna().to_dict(),
    }


def sections(config: Config, rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[Section]:
    """The report: errors against rows, what was recovered, every size."""
    recovered = summary["mean_recovered"]
    means = "; ".join(
        f"{planted.label(teacher)} teacher: "
        + ", ".join(f"{method} {with_interval(ratio['mean'], ratio, '.2f')}" for method, ratio in part.items())
        for teacher, part in summary["error_over_ntk"].items()
    )
    text = (
        f"**{summary['headline']}**\n\nTest error over the NTK's, geometric mean of the cases (95 % "
        f"interval): {means}.\n\nAn active gate agrees with a "
        f"planted one on {recovered['fixed, random gates']:.0%} of the training rows with random gates, on "
        f"{recovered['fixed, discovered gates']:.0%} with discovered ones (a gate and its opposite count alike; the "
        "best for each planted gate).\n\nλ is chosen on as many fresh rows as there are for training; discovery takes "
        "that of the random gates. The "
        f"planted networks have {config.num_neurons} neurons, the noise is {config.noise:g} of their deviation."
    )
    table = by_size(rows).join(recovered_by_size(rows)).reset_index()
    table["teacher"] = table["teacher"].map(planted.label)
    caption = (
        "Mean squared error against the planted outputs on fresh rows, by training rows and number of features d: each "
        "data set (dots) and their mean (lines)."
    )
    return [
        Section("Planted networks", text, table=table, figures=(("teacher_student", _figure(config, rows), caption),))
    ]


def _figure(config: Config, rows: list[dict[str, Any]]) -> Figure:
    errors, cases = by_size(rows), pd.DataFrame(rows)
    figure = new_figure(2.6 * len(config.num_features) + 1, 2.6 * len(config.teachers) + 0.4)
    grid = figure.subplots(len(config.teachers), len(config.num_features), squeeze=False, sharex=True)
    for row, teacher in zip(grid, config.teachers, strict=True):
        for axes, d in zip(row, config.num_features, strict=True):
            part: Any = errors.loc[(teacher, d)]
            for (method, colour), marker in zip(METHODS.items(), "osD^v", strict=True):
                axes.plot(part.index, part[method], marker=marker, color=colour, label=method)
                of = cases[(cases["teacher"] == teacher) & (cases["features"] == d) & (cases["method"] == method)]
                axes.plot(of["rows"], of["squared_error"], ".", color=colour, alpha=0.4, markersize=3)
            axes.set(xscale="log", yscale="log", title=f"{planted.label(teacher)} teacher, d = {d}")
            axes.set_xticks(part.index, [str(size) for size in part.index])
            axes.set_xticks([], minor=True)
    for axes in grid[-1]:
        axes.set_xlabel("training rows")
    for row in grid:
        row[0].set_ylabel("test error")
    figure.legend(
        *grid[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(METHODS) if len(config.num_features) > 2 else 2,
    )
    return figure
