"""The convex program against training the same network by gradient descent."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from experiments.data import planted
from experiments.shared import colours
from experiments.shared.settings import NonEmpty, NumSeeds, Positive, PositiveFloat, Settings, ShareBelowOne
from fixntk import (
    ConvexProgram,
    DivergedError,
    GatedReLUNetwork,
    Solution,
    network_objective,
    solve,
    train,
)
from fixntk.convex import solve_quietly
from fixntk.convex.program import program_at_share
from fixntk.runner.report import Section, new_figure
from fixntk.runner.status import show_stage

Problem = Literal["toy", "teacher", "relu_teacher"]
Optimizer = Literal["sgd", "adam", "adamw"]
_SOLVERS = ("newton", "irls")
# Relative excesses over the optimum below this value are drawn at this value.
_FLOOR = 1e-7
# Times in seconds below this value are drawn at this value.
_LEAST_SECONDS = 1e-4

NEEDS_EVERY_TASK = True


class Config(Settings):
    """Settings of the experiment.

    Attributes
    ----------
    problems
        Names of planted problems.
    seeds
        Number of data sets of each problem.
    reg_share
        λ/λ_max.
    optimizers
        Optax optimisers to train with.
    width_shares
        Widths of the trained networks, as multiples of the number of active groups at the optimum.
    learning_rates
        Candidates for the learning rate; the one with the lowest objective at the end is chosen.
    inits
        Number of networks trained at once for each width and learning rate; the best of them counts.
    num_steps
        Number of full-batch gradient steps.
    tol
        Relative gap at which Newton stops.
    irls_steps
        Number of reweighting steps of IRLS.
    """

    problems: NonEmpty[Problem] = ("toy", "teacher", "relu_teacher")
    seeds: NumSeeds = 1
    reg_share: ShareBelowOne = 0.05
    optimizers: NonEmpty[Optimizer] = ("sgd", "adam", "adamw")
    width_shares: NonEmpty[PositiveFloat] = (0.5, 1.0, 2.0)
    learning_rates: NonEmpty[PositiveFloat] = (0.0003, 0.001, 0.003, 0.01, 0.03)
    inits: Positive = 16
    num_steps: Positive = 20000
    tol: Annotated[float, Field(ge=1e-12, lt=1)] = 1e-8
    irls_steps: Positive = 300


def tasks(config: Config) -> list[dict[str, Any]]:
    """One task for each problem, seed and method."""
    return [
        {"problem": problem, "seed": seed, "method": method}
        for problem in config.problems
        for seed in range(config.seeds)
        for method in (*_SOLVERS, *config.optimizers)
    ]


def run_task(config: Config, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Solve, or train at each width: rows with the path of the objective against time."""
    jax.config.update("jax_enable_x64", True)
    data = planted.make(task["problem"], task["seed"])
    program = program_at_share(data.x, data.y, data.masks, config.reg_share)
    optimum = solve(program, method="newton", tol=config.tol)
    common = {
        "optimum": optimum.primal,
        "bound": optimum.dual,
        "optimum_test_error": _squared_error(optimum.predict(data.x_test, data.gates), data.y_test),
        "active": int(jnp.sum(optimum.active)),
    }
    if task["method"] in _SOLVERS:
        return [{**common, **_solver_row(config, program, data, task["method"])}]
    return [
        {**common, **_training_row(config, program, data, task["method"], optimum, share)}
        for share in config.width_shares
    ]


def _solver_row(config: Config, program: ConvexProgram, data: planted.Planted, method: str) -> dict[str, Any]:
    options: dict[str, Any] = {"max_iter": config.irls_steps, "tol": 1e-12} if method == "irls" else {"tol": config.tol}
    # The second run counts, as the first one also compiles.
    solution = [solve_quietly(program, method=method, **options) for _ in range(2)][1]
    return {
        "objective": solution.primal,
        "test_error": _squared_error(solution.predict(data.x_test, data.gates), data.y_test),
        "seconds": solution.history.seconds[-1],
        "path": {
            "seconds": np.asarray(solution.history.seconds).tolist(),
            "objective": np.asarray(solution.history.primal).tolist(),
        },
    }


def _training_row(
    config: Config, program: ConvexProgram, data: planted.Planted, name: str, optimum: Solution, share: float
) -> dict[str, Any]:
    """The best of some networks that are given the active gates, largest first, at the best learning rate."""
    order = jnp.argsort(-optimum.kernel_weights)[: int(jnp.sum(optimum.active))]
    width = max(1, round(share * order.size))
    keys = jax.random.split(jax.random.key(config.num_steps), config.inits)
    networks = jax.vmap(lambda key: GatedReLUNetwork.sample(key, width, data.x.shape[1], gates=data.gates[order]))(keys)
    found = None
    each = max(1, config.num_steps // 100)
    for rate in config.learning_rates:
        optimizer = getattr(optax, name)(rate)
        show_stage(f"{width} neurons, learning rate {rate:g}")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*networks diverged", UserWarning)
                run = partial(train, networks, data.x, data.y, optimizer, reg=program.reg, record_every=each)
                # The first call only compiles.
                run(num_steps=each)
                training = run(num_steps=each * (config.num_steps // each))
        except DivergedError:
            continue
        lowest = float(np.nanmin(training.history.objective))
        if found is None or lowest < found[0]:
            found = lowest, rate, training
    if found is None:
        raise ValueError(f"{name} diverges at every learning rate, even {min(config.learning_rates)}")
    lowest, rate, training = found
    network = training.lowest()
    return {
        "width": width,
        "width_share": share,
        "learning_rate": rate,
        "objective": float(network_objective(network, data.x, data.y, program.reg)),
        "median_objective": float(np.nanmedian(np.nanmin(training.history.objective, axis=0))),
        "test_error": _squared_error(network(data.x_test), data.y_test),
        "seconds": float(training.history.seconds[-1]),
        "path": {
            "seconds": training.history.seconds.tolist(),
            "objective": np.nanmin(training.history.objective, axis=1).tolist(),
        },
    }


def _squared_error(outputs: jax.Array, targets: jax.Array) -> float:
    return float(jnp.mean((outputs - targets) ** 2))


def summarise(config: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The excess of training over the certified optimum, and the number of cases below its bound."""
    trained = [row for row in rows if row["method"] in config.optimizers]
    below = sum(row["objective"] < row["bound"] * (1 - 1e-9) for row in trained)
    wide = [row["objective"] / row["optimum"] - 1 for row in trained if row["width_share"] >= 2]
    narrow = [row["objective"] / row["optimum"] - 1 for row in trained if row["width_share"] < 1]
    best = _least_excess_by_problem(trained)
    headline = (
        f"Training ends below the certified bound in {below} of {len(trained)} cases; the best optimiser ends within "
        f"{max(1e-12, *best.values()):.2g} of the optimum, relative, on the worst problem."
    )
    return {
        "headline": headline,
        "trained": len(trained),
        "below_the_bound": below,
        "best_excess": best,
        "largest_excess_when_wide": max(wide, default=None),
        "largest_excess_when_narrow": max(narrow, default=None),
    }


def _least_excess_by_problem(trained: list[dict[str, Any]]) -> dict[str, float]:
    excess: dict[str, float] = {}
    for row in trained:
        key = f"{row['problem']}, seed {row['seed']}"
        excess[key] = min(excess.get(key, np.inf), row["objective"] / row["optimum"] - 1)
    return excess


def sections(config: Config, rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[Section]:
    """The report: objective against time, and the table behind it."""
    text = (
        f"**{summary['headline']}**\n\n"
        "The trained networks are given the gates that are active at the optimum, which the convex program has to find "
        "itself, and the objective is the same: squared loss and weight decay, λ = "
        f"{config.reg_share:g} λ_max. The best of {config.inits} networks counts, at the best of "
        f"{len(config.learning_rates)} learning rates. Seconds are measured at this learning rate, for all networks at "
        "once, without compilation. adamw has its own weight decay of 1e-4 in addition. IRLS begins at the NTK."
    )
    caption = (
        "Relative excess over the certified optimum against seconds, for each problem's first seed. Excesses below "
        f"{_FLOOR:g}, which may be due to the tolerance of the optimum, are drawn at this value, and times below "
        f"{_LEAST_SECONDS:g} s at that time."
    )
    found = [Section("Convex and trained", text, figures=(("objective", _figure(config, rows), caption),))]
    columns = ["problem", "seed", "method", "width", "active", "learning_rate", "objective", "optimum", "test_error"]
    table = pd.DataFrame(rows).reindex(columns=[*columns, "optimum_test_error", "median_objective", "seconds"])
    table["excess"] = table["objective"] / table["optimum"] - 1
    table["problem"] = table["problem"].map(planted.label)
    table.columns = table.columns.str.replace("_", " ")
    main = ("problem", "seed", "method", "width", "objective", "optimum", "excess", "test error", "seconds")
    note = "The widths refer to the trained networks."
    return [*found, Section("Every case", note, table=table, main_columns=main)]


def _figure(config: Config, rows: list[dict[str, Any]]) -> Figure:
    figure = new_figure(3.6 * len(config.problems) + 1.6, 3.8)
    grid = figure.subplots(1, len(config.problems), squeeze=False)[0]
    colour_of = {"newton": colours.OPTIMUM, "irls": colours.FIXED, "sgd": "C3", "adam": "C4", "adamw": "C5"}
    styles = dict(zip(sorted(config.width_shares), ("-", "--", ":", "-."), strict=False))
    for axes, problem in zip(grid, config.problems, strict=True):
        for row in rows:
            if row["problem"] != problem or row["seed"] != 0:
                continue
            excess = np.maximum(np.array(row["path"]["objective"], float) / row["optimum"] - 1, _FLOOR)
            style, width = styles.get(row.get("width_share", 0.0), "-"), 2.4 if row["method"] in _SOLVERS else 1.3
            share = row.get("width_share")
            label = row["method"] + (f", width × {share:g}" if share else "")
            seconds = np.maximum(np.array(row["path"]["seconds"]), _LEAST_SECONDS)
            axes.plot(seconds, excess, color=colour_of[row["method"]], linestyle=style, linewidth=width, label=label)
        axes.set(xscale="log", yscale="log", xlabel="seconds", title=planted.label(problem))
    grid[0].set_ylabel("objective / optimum − 1")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    return figure
