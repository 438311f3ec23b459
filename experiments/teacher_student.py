"""Planted networks: the NTK, the fixed kernel with random and with discovered gates, and trained networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jax import Array
from matplotlib.figure import Figure
from pydantic import Field, model_validator

from experiments.data import planted
from experiments.shared import colours
from experiments.shared.settings import NonEmpty, NumSeeds, Positive, PositiveFloat, Settings, ShareBelowOne
from experiments.shared.statistics import geometric_mean, interval_text
from fixntk import (
    ConvexProgram,
    GatedReLUNetwork,
    ReLUNetwork,
    Solution,
    activation_masks,
    gated_relu_ntk,
    kernel_ridge,
    sample_gates,
    solve,
    train,
)
from fixntk.convex import discover_quietly
from fixntk.runner.config import MAX_TASKS
from fixntk.runner.marks import label_points
from fixntk.runner.report import Section, new_figure
from fixntk.runner.status import show_stage

T = TypeVar("T")
Network = TypeVar("Network", GatedReLUNetwork, ReLUNetwork)

METHODS: Mapping[str, str] = MappingProxyType(
    {
        "NTK": colours.NTK,
        "fixed, random gates": colours.FIXED,
        "fixed, discovered gates": colours.DISCOVERED,
        "trained gated": colours.TRAINED_GATED,
        "trained ReLU": colours.TRAINED_RELU,
    }
)
"""The methods, with their colours."""

# Number of test rows of each data set.
_NUM_TEST = 2000
# Candidates for the ridge of the NTK, in units of the kernel's mean diagonal.
_RIDGES = np.geomspace(1e-5, 10, 13)
# Relative gap of the solutions.
_TOL = 1e-5
# Largest number of rounds of gate discovery.
_MAX_ROUNDS = 10

NEEDS_EVERY_TASK = True


class Config(Settings):
    """Settings of the experiment.

    Attributes
    ----------
    teachers
        Whether the planted network is gated or ReLU.
    num_features, rows
        Numbers of features d and of training rows n.
    num_neurons
        Number of neurons of the planted network.
    noise
        Standard deviation of the noise; the planted outputs have 1.
    num_gates
        Number of random gates P.
    reg_shares
        Candidates for λ/λ_max; the error on n fresh rows decides.
    width, num_steps, learning_rate
        Number of neurons of each trained network, and number of steps and learning rate of Adam.
    seeds
        Number of data sets of each kind and size.
    """

    teachers: NonEmpty[Literal["gated", "relu"]] = ("gated", "relu")
    num_features: NonEmpty[Positive] = (2, 5, 10, 20)
    rows: NonEmpty[Positive] = (100, 200, 400)
    num_neurons: Positive = 3
    noise: Annotated[float, Field(ge=0)] = 0.2
    num_gates: Positive = 256
    reg_shares: NonEmpty[ShareBelowOne] = (0.3, 0.1, 0.03, 0.01, 0.003)
    width: Positive = 200
    num_steps: Positive = 3000
    learning_rate: PositiveFloat = 0.01
    seeds: NumSeeds = 2

    @model_validator(mode="after")
    def _check_number_of_data_sets(self) -> Config:
        number = len(self.teachers) * len(self.num_features) * len(self.rows) * self.seeds
        if number > MAX_TASKS:
            raise ValueError(f"asks for {number} data sets, more than {MAX_TASKS}")
        return self


def tasks(config: Config) -> list[dict[str, Any]]:
    """One task for each teacher, size and seed."""
    return [
        {"teacher": teacher, "features": d, "rows": n, "seed": seed}
        for teacher in config.teachers
        for d in config.num_features
        for n in config.rows
        for seed in range(config.seeds)
    ]


class _Data(NamedTuple):
    """Noisy rows to fit and to choose λ, rows without noise to measure the error, and the planted network's gates."""

    x: Array
    y: Array
    x_held: Array
    y_held: Array
    x_test: Array
    y_test: Array
    teacher_gates: Array


def run_task(config: Config, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Fit every method, its λ chosen on fresh noisy rows, and measure it on others without noise: a row for each."""
    jax.config.update("jax_enable_x64", True)
    n, d = task["rows"], task["features"]
    keys = jax.random.split(jax.random.fold_in(jax.random.key(task["seed"]), 1000 * n + d), 7)
    data = _plant(config, task, keys[:5])
    gates = sample_gates(keys[5], config.num_gates, d)
    program = ConvexProgram(data.x, data.y, activation_masks(data.x, gates), 1.0)
    regs = program.max_reg() * jnp.asarray(config.reg_shares)
    show_stage("random gates")
    reg, random_gates = _random_gates_row(data, gates, program, regs)
    return [
        _ntk_row(data),
        random_gates,
        _discovered_gates_row(data, gates, program.with_reg(reg), jax.random.split(keys[6])[0]),
        _trained_row(config, data, "trained gated", GatedReLUNetwork, regs, keys[6]),
        _trained_row(config, data, "trained ReLU", ReLUNetwork, regs, keys[6]),
    ]


def _plant(config: Config, task: dict[str, Any], keys: Array) -> _Data:
    """Sample a gated or a ReLU network and its rows: n to fit, n to choose λ, and `_NUM_TEST` without noise."""
    n, d = task["rows"], task["features"]
    neurons = jax.random.normal(keys[0], (config.num_neurons, d))
    outputs = jax.random.normal(keys[1], (config.num_neurons,))
    teacher_gates = neurons if task["teacher"] == "relu" else sample_gates(keys[2], config.num_neurons, d)
    x = jax.random.normal(keys[3], (2 * n + _NUM_TEST, d))
    truth = (activation_masks(x, teacher_gates) * (x @ neurons.T)) @ outputs
    truth = truth / jnp.std(truth)
    noisy = truth + config.noise * jax.random.normal(keys[4], truth.shape)
    return _Data(x[:n], noisy[:n], x[n : 2 * n], noisy[n : 2 * n], x[2 * n :], truth[2 * n :], teacher_gates)


def _best_fit(data: _Data, fits: Iterable[T], predict: Callable[[T, Array], Array]) -> T:
    """The fit whose predictions have the least squared error on the held-out rows."""
    return min(fits, key=lambda fit: float(jnp.mean((predict(fit, data.x_held) - data.y_held) ** 2)))


def _row(data: _Data, method: str, test_outputs: Array, **measured: Any) -> dict[str, Any]:
    return {"method": method, "squared_error": float(jnp.mean((test_outputs - data.y_test) ** 2)), **measured}


def _ntk_row(data: _Data) -> dict[str, Any]:
    kernel = gated_relu_ntk(data.x)

    def predict(reg: float, x: Array) -> Array:
        return kernel_ridge(kernel, data.y, gated_relu_ntk(x, data.x), reg=reg)

    ridges = float(jnp.trace(kernel)) / len(data.x) * _RIDGES
    return _row(data, "NTK", predict(_best_fit(data, ridges, predict), data.x_test))


def _random_gates_row(data: _Data, gates: Array, program: ConvexProgram, regs: Array) -> tuple[Array, dict[str, Any]]:
    """The λ chosen for the fixed kernel with random gates, and its row."""

    def predict(fit: tuple[Array, Solution], x: Array) -> Array:
        return fit[1].predict(x, gates)

    fits = [(reg, solve(program.with_reg(reg), tol=_TOL)) for reg in regs]
    reg, solution = _best_fit(data, fits, predict)
    measured = _measure_gates(data, activation_masks(data.x, gates), solution)
    return reg, _row(data, "fixed, random gates", solution.predict(data.x_test, gates), **measured)


def _discovered_gates_row(data: _Data, gates: Array, program: ConvexProgram, key: Array) -> dict[str, Any]:
    show_stage("discovered gates")
    found = discover_quietly(program, gates, key=key, max_rounds=_MAX_ROUNDS, tol=_TOL, max_cells=1)
    outputs = found.solution.predict(data.x_test, found.gates)
    return _row(data, "fixed, discovered gates", outputs, **_measure_gates(data, found.masks, found.solution))


def _trained_row(
    config: Config,
    data: _Data,
    method: str,
    kind: type[Network],
    regs: Array,
    key: Array,
) -> dict[str, Any]:
    """Train networks from the same start with every λ at once, and take the best."""
    show_stage(method)
    start = jax.vmap(lambda _: kind.sample(key, config.width, data.x.shape[1]))(jnp.arange(len(regs)))
    stack = train(
        start,
        data.x,
        data.y,
        optax.adam(config.learning_rate),
        reg=regs,
        num_steps=config.num_steps,
        record_every=max(1, config.num_steps // 10),
        validation=(data.x_held, data.y_held),
    ).network
    networks = [jax.tree.map(itemgetter(k), stack) for k in range(len(regs))]
    best = _best_fit(data, networks, lambda network, x: network(x))
    return _row(data, method, best(data.x_test))


def _measure_gates(data: _Data, masks: Array, solution: Solution) -> dict[str, float]:
    recovered = _agreement(data.x, data.teacher_gates, masks[:, np.asarray(solution.active)])
    return {"recovered": recovered, "objective": float(solution.primal)}


def _agreement(x: Array, teacher_gates: Array, masks: Array) -> float:
    """Mean over planted gates of the largest share of rows on which an active gate's mask, or its opposite, agrees."""
    # The product of two masks of ±1 is n times the share of rows that agree minus the share of rows that differ.
    teacher = np.asarray(activation_masks(x, teacher_gates), float) * 2 - 1
    active = np.asarray(masks, float) * 2 - 1
    if active.shape[1] == 0:
        return 0.5
    return float(np.mean(0.5 + 0.5 * np.max(np.abs(teacher.T @ active), axis=1) / len(x)))


def by_size(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Mean errors: a row for each teacher and size, a column for each method."""
    frame = pd.DataFrame(rows)
    return frame.pivot_table("squared_error", ["teacher", "features", "rows"], "method", sort=False)[list(METHODS)]


def agreement_by_size(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Mean agreement with the planted gates: a row for each teacher and size, columns for random and discovered."""
    frame = pd.DataFrame(rows).dropna(subset="recovered")
    found = frame.pivot_table("recovered", ["teacher", "features", "rows"], "method", sort=False)
    return found.rename(columns=lambda method: f"recovered, {method.removeprefix('fixed, ')}")


def summarise(_: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of cases in which a method beats the NTK, ratios of errors, and agreement with planted gates."""
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
        + ", ".join(f"{method} {interval_text(ratio['mean'], ratio, '.2f')}" for method, ratio in part.items())
        for teacher, part in summary["error_over_ntk"].items()
    )
    text = (
        f"**{summary['headline']}**\n\nTest error over the NTK's, geometric mean of the cases (95 % "
        f"interval): {means}.\n\nAn active gate agrees with a "
        f"planted one on {recovered['fixed, random gates']:.0%} of the training rows with random gates, on "
        f"{recovered['fixed, discovered gates']:.0%} with discovered ones (a gate and its opposite count alike; the "
        "best for each planted gate).\n\nλ is chosen on fresh rows, equal in number to the training rows; discovery "
        "uses the λ of the random gates. The "
        f"planted networks have {config.num_neurons} neurons; the standard deviation of the noise is {config.noise:g} "
        "times that of their outputs."
    )
    table = by_size(rows).join(agreement_by_size(rows)).reset_index()
    table["teacher"] = table["teacher"].map(planted.label)
    caption = (
        "Mean squared error against the planted outputs on fresh rows, by training rows and number of features d: each "
        "data set (dots) and their mean (lines)."
    )
    figures = (("teacher_student", _figure(config, rows), caption),)
    main = tuple(name for name in table.columns if not name.startswith("recovered"))
    return [Section("Planted networks", text, table=table, figures=figures, main_columns=main)]


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
                (dots,) = axes.plot(of["rows"], of["squared_error"], ".", color=colour, alpha=0.4, markersize=3)
                label_points(dots, [f"{method}, seed {seed}" for seed in of["seed"]])
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
