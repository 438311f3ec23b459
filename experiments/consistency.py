"""Prediction error of the group lasso against the numbers of rows and of gates, on planted sparse networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from pydantic import model_validator

from experiments.shared.settings import NonEmpty, Positive, PositiveFloat, Settings, TwoOrMore, TwoOrMoreSeeds
from experiments.shared.statistics import slope, slope_text
from fixntk import ConvexProgram, activation_masks, sample_gates, solve
from fixntk.runner.report import Section, new_figure
from fixntk.runner.status import show_stage

NEEDS_EVERY_TASK = True


class Config(Settings):
    """Settings of the experiment.

    Attributes
    ----------
    rows, gates
        Numbers of rows n, and of gates P.
    base_rows, base_gates
        Number of rows n while the gates vary, and number of gates P while the rows vary.
    num_features, num_active
        Number d of features, and number s of gates of the planted network, which are among the P.
    noise
        Standard deviation σ of the noise; the planted outputs have 1.
    reg_factor
        λ in units of σ(sqrt(nd/2) + sqrt(n log P)), an upper estimate of the noise level max_p ‖Xᵀ D_p noise‖.
    seeds
        Number of data sets of each size.
    """

    rows: NonEmpty[TwoOrMore] = (100, 200, 400, 800, 1600)
    gates: NonEmpty[TwoOrMore] = (32, 64, 128, 256, 512)
    base_rows: TwoOrMore = 400
    base_gates: TwoOrMore = 128
    num_features: Positive = 5
    num_active: Positive = 4
    noise: PositiveFloat = 0.5
    reg_factor: PositiveFloat = 0.3
    seeds: TwoOrMoreSeeds = 10

    @model_validator(mode="after")
    def _check_planted_gates(self) -> Config:
        fewest = min(*self.gates, self.base_gates)
        if self.num_active > fewest:
            raise ValueError(f"num_active: {self.num_active} planted gates cannot be among {fewest}")
        return self


def tasks(config: Config) -> list[dict[str, Any]]:
    """One task for each size: first the numbers of rows, then the numbers of gates."""
    sizes = [(n, config.base_gates) for n in config.rows] + [(config.base_rows, p) for p in config.gates]
    return [{"rows": n, "gates": p} for n, p in dict.fromkeys(sizes)]


def run_task(config: Config, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Plant networks, fit noisy outputs, measure the error against the outputs without noise: a row for each seed."""
    jax.config.update("jax_enable_x64", True)
    n, num_gates, d = task["rows"], task["gates"], config.num_features
    unit = config.noise * (np.sqrt(n * d / 2) + np.sqrt(n * np.log(num_gates)))
    found = []
    for seed in range(config.seeds):
        show_stage(f"network {seed + 1} of {config.seeds}")
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), n * 10_007 + num_gates), 4)
        x, gates = jax.random.normal(keys[0], (n, d)), sample_gates(keys[1], num_gates, d)
        masks = activation_masks(x, gates)
        # The planted network has the first of the P gates, which are random like all others.
        planted = jax.random.normal(keys[2], (config.num_active, d))
        truth = jnp.einsum("np,nd,pd->n", masks[:, : config.num_active], x, planted)
        truth = truth / jnp.std(truth)
        noise = config.noise * jax.random.normal(keys[3], (n,))
        program = ConvexProgram(x, truth + noise, masks, config.reg_factor * unit)
        solution = solve(program, tol=1e-6)
        error = solution.predict(x, gates) - truth
        active = np.asarray(solution.active)
        found.append(
            {
                "seed": seed,
                "squared_error": float(jnp.mean(error**2)),
                "relative_gap": float(solution.relative_gap),
                "active_gates": int(active.sum()),
                "recovered": int(active[: config.num_active].sum()),
            }
        )
    return found


def _split_by_varied_size(config: Config, rows: list[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the sizes at which n varies, and the rows of the sizes at which P varies."""
    frame = pd.DataFrame(rows)
    return frame[frame["gates"] == config.base_gates], frame[frame["rows"] == config.base_rows]


def summarise(config: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Slopes in the number of rows and in log P."""
    by_rows, by_gates = _split_by_varied_size(config, rows)
    found: dict[str, Any] = {"largest_relative_gap": float(max(row["relative_gap"] for row in rows))}
    if by_rows["rows"].nunique() > 1:
        found["in_rows"] = slope(by_rows["rows"], by_rows["squared_error"])
    if by_gates["gates"].nunique() > 1:
        found["in_log_gates"] = slope(np.log(by_gates["gates"]), by_gates["squared_error"])
        found["theory_in_log_gates"] = slope(np.log(by_gates["gates"]), _gate_factor(config, by_gates["gates"]))[
            "slope"
        ]
    words = []
    if "in_rows" in found:
        words.append(f"slope in n {slope_text(found['in_rows'])}, theory −1 (fast rate) or −0.5 (slow)")
    if "in_log_gates" in found:
        theory = f"theory {found['theory_in_log_gates']:+.2f} (fast rate)"
        words.append(f"slope in log P {slope_text(found['in_log_gates'])}, {theory}")
    return {"headline": f"Prediction error on log scales: {'; '.join(words)}.", **found}


def sections(config: Config, rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[Section]:
    """The report: the two slopes beside the slopes of the theory."""
    by_rows, by_gates = _split_by_varied_size(config, rows)
    text = (
        f"**{summary['headline']}** The fast rate of the theory is (d + log P)/n, a slope of +1 in log P where log P "
        "is far above d. It holds under a condition that nearly equal masks weaken; the slow rate needs no such "
        f"condition.\n\nGated networks of {config.num_active} neurons whose gates are among the P, "
        f"{config.num_features} features, noise of σ = {config.noise:g} of the outputs' deviation; {config.seeds} data "
        f"sets of each size. λ is {config.reg_factor:g} σ(√(nd/2) + √(n log P)), {config.reg_factor:g} times an "
        "estimate from above of the noise level, the largest ‖Xᵀ D_p noise‖ of a gate p. Both rates are proved for a λ "
        "at or above that level, which a factor below 1 does not ensure: the slopes are compared with the theory and "
        "do not test it. The error is in-sample, at the training rows against the outputs without noise, as in the "
        "theory. Neither makes a statement about fresh rows."
    )
    figure = new_figure(9.6, 3.6)
    left, right = figure.subplots(1, 2)
    _draw(left, by_rows["rows"], by_rows["squared_error"], lambda n: 1 / n, "rows n")
    _draw(right, by_gates["gates"], by_gates["squared_error"], partial(_gate_factor, config), "gates P")
    caption = (
        "Mean squared error against the outputs without noise, for each data set (points) and their geometric mean "
        f"(line), with the fast rate dashed from the first of them; left at P = {config.base_gates}, right at "
        f"n = {config.base_rows}."
    )
    table = (
        pd.DataFrame(rows)
        .groupby(["rows", "gates"], as_index=False)[["squared_error", "active_gates", "recovered", "relative_gap"]]
        .mean()
        .rename(
            columns={
                "squared_error": "squared error",
                "active_gates": "active gates",
                "recovered": "of them planted",
                "relative_gap": "relative gap",
            }
        )
    )
    return [Section("Prediction error", text, table=table, figures=(("consistency", figure, caption),))]


def _gate_factor(config: Config, gates: Any) -> Any:
    """The fast rate's factor d + log P for P gates."""
    return config.num_features + np.log(gates)


def _draw(axes: Any, sizes: pd.Series, errors: pd.Series, rate: Callable[[Any], Any], label: str) -> None:
    means = np.exp(np.log(errors).groupby(sizes).mean())
    axes.plot(sizes, errors, ".", color="C0", alpha=0.3)
    axes.plot(means.index, means, "o-", color="C0", label="measured")
    fast = rate(np.asarray(means.index, float))
    axes.plot(means.index, means.iloc[0] * fast / fast[0], "--", color="0.4", label="fast rate")
    axes.set(xlabel=label, ylabel="mean squared error", xscale="log", yscale="log")
    axes.set_xticks(means.index, [str(size) for size in means.index])
    axes.set_xticks([], minor=True)
    axes.legend()
