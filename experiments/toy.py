"""Five points on a line: from the NTK's weights to the optimum, and the functions that every stage fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure

from experiments.data import planted
from experiments.shared import colours
from experiments.shared.settings import NonNegative, Positive, PositiveFloat, Settings, ShareBelowOne
from fixntk import (
    ConvexProgram,
    GatedReLUNetwork,
    ReLUNetwork,
    Solution,
    arrangement_weights,
    enumerate_arrangements,
    solve,
    solve_relu,
    train,
)
from fixntk.convex import solve_quietly
from fixntk.convex.program import program_at_share
from fixntk.runner.report import Section, new_figure
from fixntk.verify.programs import optimum_by_cvxpy

NEEDS_EVERY_TASK = True


class Config(Settings):
    """Settings of the experiment.

    Attributes
    ----------
    seed
        Seed of the data and of the networks.
    reg_share
        λ/λ_max.
    irls_steps
        Number of reweighting steps.
    shown_steps
        Steps whose functions are drawn.
    width, num_networks
        Number of neurons of each trained network, and number of networks, of which the best is shown.
    num_steps, learning_rate
        Number of steps and learning rate of Adam.
    """

    seed: NonNegative = 0
    reg_share: ShareBelowOne = 0.01
    irls_steps: Positive = 100
    shown_steps: tuple[Positive, ...] = (1, 2, 3, 5, 10, 30, 100)
    width: Positive = 40
    num_networks: Positive = 8
    num_steps: Positive = 20_000
    learning_rate: PositiveFloat = 0.003


def tasks(_: Config) -> list[dict[str, Any]]:
    """One task for the convex programs, and one for each kind of trained network."""
    return [{"side": side} for side in ("program", "trained gated", "trained ReLU")]


def run_task(config: Config, task: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each fitted function: its objective, and its outputs on a grid of the line."""
    jax.config.update("jax_enable_x64", True)
    data = planted.make("toy", config.seed)
    program = program_at_share(data.x, data.y, data.masks, config.reg_share)
    if task["side"] == "program":
        return _program_rows(config, data, program)
    optimizer, key = optax.adam(config.learning_rate), jax.random.key(config.seed)
    keys = jax.random.split(key, config.num_networks)
    if task["side"] == "trained gated":
        # Gates of the arrangements, several neurons for each.
        copies = jnp.tile(data.gates, (-(-config.width // len(data.gates)), 1))[: config.width]
        start: Any = jax.vmap(lambda key: GatedReLUNetwork.sample(key, config.width, data.x.shape[1]))(keys)
        start = replace(start, gates=jnp.tile(copies, (config.num_networks, 1, 1)))
    else:
        start = jax.vmap(lambda key: ReLUNetwork.sample(key, config.width, data.x.shape[1]))(keys)
    trained = train(start, data.x, data.y, optimizer, reg=program.reg, num_steps=config.num_steps, record_every=1000)
    objectives = np.asarray(trained.history.objective)[-1]
    best = jax.tree.map(lambda leaf: leaf[int(np.argmin(objectives))], trained.network)
    return [_row(data, task["side"], float(objectives.min()), best(data.x_test), objectives=objectives)]


def _program_rows(config: Config, data: planted.Planted, program: ConvexProgram) -> list[dict[str, Any]]:
    weights, _ = arrangement_weights(data.x, enumerate_arrangements(data.x))
    best = program.best_scale(weights)
    start = best.scale * weights

    def solve_steps(steps: int) -> Solution:
        return solve_quietly(program, method="irls", init=start, max_iter=steps, tol=1e-12)

    def outputs(solution: Solution) -> jax.Array:
        return solution.predict(data.x_test, data.gates)

    whole = solve_steps(config.irls_steps)
    done = int(whole.iterations) + 1
    optimum = solve(program, tol=1e-10)
    relu = solve_relu(program, data.gates)
    ntk = solve_steps(0)
    return [
        _row(
            data,
            "NTK",
            float(best.objective),
            outputs(ntk),
            of_solution=float(ntk.primal),
            path=np.asarray(whole.history.primal)[:done],
        ),
        *(_row(data, _step_label(k), float((s := solve_steps(k)).primal), outputs(s)) for k in config.shown_steps),
        _row(
            data,
            "optimum",
            float(optimum.primal),
            outputs(optimum),
            lower_bound=float(optimum.dual),
            cvxpy=_cvxpy_optimum(program),
            ntk_weights=np.asarray(start),
            kernel_weights=np.asarray(optimum.kernel_weights),
        ),
        _row(data, "optimal ReLU", float(relu.primal), relu.to_network()(data.x_test), lower_bound=float(relu.dual)),
    ]


def _step_label(number: int) -> str:
    return f"{number} step{'s' * (number > 1)}"


def _row(data: planted.Planted, function: str, objective: float, outputs: Any, **more: Any) -> dict[str, Any]:
    points = {"x": data.x[:, 0], "y": data.y, "grid": data.x_test[:, 0]}
    return {"function": function, "objective": objective, "outputs": outputs, **points, **more}


def _cvxpy_optimum(program: ConvexProgram) -> float | None:
    """The optimum by CVXPY and Clarabel, where they are installed."""
    try:
        return optimum_by_cvxpy(program, tol=1e-11)
    except ModuleNotFoundError:
        return None


def summarise(_: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Objectives of all functions, and the optimum compared with CVXPY, with reweighting and with training."""
    row_of = {row["function"]: row for row in rows}
    objective = {name: row["objective"] for name, row in row_of.items()}
    best, ntk, optimum = row_of["optimum"], objective["NTK"], objective["optimum"]
    difference = None if best["cvxpy"] is None else abs(best["cvxpy"] - optimum) / optimum
    agreement = ""
    if difference is not None:
        agreement = f"; CVXPY finds the same optimum, to a relative difference of {difference:.0e}"
    return {
        "headline": (
            f"On the toy problem the optimum is {1 - optimum / ntk:.1%} below the NTK's training objective{agreement}."
        ),
        "objective": objective,
        "objective_of_the_ntk_solution": row_of["NTK"]["of_solution"],
        "ntk_excess": 1 - optimum / ntk,
        "left_by_reweighting": 1 - optimum / row_of["NTK"]["path"][-1],
        "relative_difference_from_cvxpy": difference,
        "best_trained_gated_above_bound": objective["trained gated"] - best["lower_bound"],
        "best_trained_relu_above_bound": objective["trained ReLU"] - row_of["optimal ReLU"]["lower_bound"],
    }


def sections(config: Config, rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[Section]:
    """The report: the path, the functions, the objectives."""
    text = (
        f"**{summary['headline']}**\n\nAll arrangements of the points are enumerated, and the NTK's weights η are "
        "their solid angles at the best scale. The NTK's objective is J(η), which charges for all of these kernel "
        "weights. The objective P(W) of the NTK's solution W, where the reweighting starts, charges only for the "
        f"kernel weights that W needs. After {config.irls_steps} steps the optimum is a fraction of "
        f"{summary['left_by_reweighting']:.1e} below the objective. "
        f"The best of {config.num_networks} trained gated networks ends "
        f"{summary['best_trained_gated_above_bound']:.1e} above the certified bound, the best ReLU network "
        f"{summary['best_trained_relu_above_bound']:.1e} above its own."
    )
    path = (
        "toy_path",
        _path_figure(rows),
        "The training objective above the optimum at each reweighting step (left), and the kernel weights of the NTK "
        "and of the optimum, for each arrangement (right).",
    )
    functions = (
        "toy_functions",
        _function_figure(rows),
        "The fitted functions: by the NTK, after some reweighting steps (later steps stand out more) and at the "
        "optimum (left); by the convex programs and by training (right). Between the points, the function of a gated "
        "network depends on the representative gate of each arrangement; its values at the points do not.",
    )
    return [Section("Five points on a line", text, table=_objectives(rows), figures=(path, functions))]


def _objectives(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The objective of each function, and its distance from the optimum of its own program, gated or ReLU."""
    objectives = {row["function"]: row["objective"] for row in rows}
    ntk, best = rows[0], next(row for row in rows if row["function"] == "optimum")
    named = {"NTK, J(η) at its best scale": objectives.pop("NTK"), "NTK, P(W) of its solution": ntk["of_solution"]}
    named |= objectives
    if best["cvxpy"] is not None:
        named["optimum by CVXPY"] = best["cvxpy"]
    optima = [objectives["optimal ReLU" if "ReLU" in name else "optimum"] for name in named]
    table = pd.DataFrame({"function": list(named), "objective": list(named.values())})
    return table.assign(**{"above the optimum": table["objective"] - optima})


def _path_figure(rows: list[dict[str, Any]]) -> Figure:
    found = {row["function"]: row for row in rows}
    figure = new_figure(9.6, 3.6)
    path, weights = figure.subplots(1, 2)
    optimum = found["optimum"]["objective"]
    above = np.asarray(found["NTK"]["path"]) - optimum
    path.axhline(found["NTK"]["objective"] - optimum, color=colours.NTK, linestyle="--", label="J(η) of the NTK")
    path.plot(np.maximum(above, 1e-16), color=colours.FIXED, label="iterative reweighting")
    path.plot(0, above[0], "o", color=colours.NTK, label="the NTK's solution")
    path.set(xlabel="reweighting step", ylabel="objective − optimum", yscale="log")
    path.legend()
    places = np.arange(len(found["optimum"]["kernel_weights"]))
    weights.bar(places - 0.2, found["optimum"]["ntk_weights"], 0.4, color=colours.NTK, label="NTK")
    weights.bar(places + 0.2, found["optimum"]["kernel_weights"], 0.4, color=colours.OPTIMUM, label="optimum")
    weights.set(xlabel="arrangement", ylabel="kernel weight η")
    weights.legend()
    return figure


_FUNCTION_STYLES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "NTK": {"color": colours.NTK},
        "optimum": {"color": colours.OPTIMUM},
        "optimal ReLU": {"color": colours.OPTIMAL_RELU},
        "trained gated": {"color": colours.TRAINED_GATED, "linestyle": "--"},
        "trained ReLU": {"color": colours.TRAINED_RELU, "linestyle": "--"},
    }
)


def _function_figure(rows: list[dict[str, Any]]) -> Figure:
    figure = new_figure(9.6, 3.8)
    kernels, networks = figure.subplots(1, 2, sharey=True)
    steps = [row["function"] for row in rows if row["function"] not in _FUNCTION_STYLES]
    # From faint to strong, so that the order shows.
    styles = {
        **{name: {"color": str(0.8 - 0.6 * k / len(steps)), "linewidth": 1} for k, name in enumerate(steps, 1)},
        **_FUNCTION_STYLES,
    }
    for axes, shown in (
        (kernels, ["NTK", *steps, "optimum"]),
        (networks, ["optimum", "trained gated", "optimal ReLU", "trained ReLU"]),
    ):
        for row in rows:
            if row["function"] in shown:
                axes.plot(row["grid"], row["outputs"], label=row["function"], **styles[row["function"]])
        axes.plot(rows[0]["x"], rows[0]["y"], "o", color="black", zorder=5)
        axes.set(xlabel="x")
        axes.legend()
    kernels.set(ylabel="output")
    return figure
