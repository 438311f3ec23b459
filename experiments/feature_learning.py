"""Alignment of kernels with the targets: the NTK, the reweighted kernels, the optimum, and trained networks' NTKs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import pandas as pd
from matplotlib.figure import Figure

from experiments.data import planted
from experiments.shared import colours
from experiments.shared.settings import NonEmpty, NumSeeds, Positive, PositiveFloat, Settings, ShareBelowOne
from fixntk import (
    GatedReLUNetwork,
    ReLUNetwork,
    empirical_ntk,
    gated_relu_ntk,
    masked_gram,
    solve,
    train,
)
from fixntk.convex import solve_quietly
from fixntk.convex.program import program_at_share
from fixntk.runner.report import Section, new_figure
from fixntk.runner.status import show_stage

Problem = Literal["teacher", "relu_teacher"]

NEEDS_EVERY_TASK = True


class Config(Settings):
    """Settings of the experiment.

    Attributes
    ----------
    problems, seeds
        Names of planted problems, and number of data sets of each.
    reg_share
        λ/λ_max of the programs and of the training.
    irls_steps
        Number of reweighting steps.
    width
        Number of neurons of each trained network.
    num_steps, learning_rate
        Number of gradient steps, and learning rate of Adam.
    num_looks
        Number of times at which a trained network's NTK is computed.
    """

    problems: NonEmpty[Problem] = ("teacher", "relu_teacher")
    seeds: NumSeeds = 5
    reg_share: ShareBelowOne = 0.05
    irls_steps: Positive = 30
    width: Positive = 200
    num_steps: Positive = 4000
    learning_rate: PositiveFloat = 0.003
    num_looks: Positive = 10


def tasks(config: Config) -> list[dict[str, Any]]:
    """One task for each problem and seed."""
    return [{"problem": problem, "seed": seed} for problem in config.problems for seed in range(config.seeds)]


def alignment(kernel: jax.Array, y: jax.Array) -> float:
    """Centred kernel alignment ⟨K, y yᵀ⟩ / (‖K‖ ‖y yᵀ‖), between 0 and 1, both centred."""
    y = y - jnp.mean(y)
    centred = kernel - jnp.mean(kernel, axis=0) - jnp.mean(kernel, axis=1)[:, None] + jnp.mean(kernel)
    return float(y @ centred @ y / (jnp.linalg.norm(centred) * jnp.sum(y**2)))


def run_task(config: Config, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Alignments on training and on test data: a row for each kernel and step."""
    jax.config.update("jax_enable_x64", True)
    data = planted.make(task["problem"], task["seed"])
    program = program_at_share(data.x, data.y, data.masks, config.reg_share)
    test_masks = data.x_test @ data.gates.T >= 0

    def row(kernel: str, step: int, training: jax.Array, test: jax.Array) -> dict[str, Any]:
        aligned = {"training": alignment(training, data.y), "test": alignment(test, data.y_test)}
        return {"kernel": kernel, "step": step, **aligned}

    def row_of_weights(kernel: str, step: int, weights: jax.Array) -> dict[str, Any]:
        grams = masked_gram(weights, data.masks, data.x), masked_gram(weights, test_masks, data.x_test)
        return row(kernel, step, *grams)

    rows = [row("NTK", 0, gated_relu_ntk(data.x), gated_relu_ntk(data.x_test))]
    weights = jnp.full(program.num_gates, 1 / program.num_gates)
    rows.append(row_of_weights("reweighted", 0, weights))
    for step in range(1, config.irls_steps + 1):
        show_stage(f"reweighting step {step} of {config.irls_steps}")
        weights = solve_quietly(program, method="irls", init=weights, max_iter=1, tol=1e-10).kernel_weights
        rows.append(row_of_weights("reweighted", step, weights))
    rows.append(row_of_weights("optimum", config.irls_steps, solve(program).kernel_weights))

    key = jax.random.key(task["seed"])
    for name, network in (
        ("trained gated", GatedReLUNetwork.sample(key, config.width, data.x.shape[1])),
        ("trained ReLU", ReLUNetwork.sample(key, config.width, data.x.shape[1])),
    ):
        show_stage(name)
        rows += [row(name, step, *kernels) for step, kernels in _training_kernels(config, network, data, program.reg)]
    return rows


def _training_kernels(
    config: Config, network: Any, data: planted.Planted, reg: jax.Array
) -> Iterator[tuple[int, tuple[jax.Array, jax.Array]]]:
    """Steps of the training, from 0, with the network's NTK on training and on test data at each of them."""
    optimizer, each = optax.adam(config.learning_rate), max(1, config.num_steps // config.num_looks)
    # The same function object at every look, so that it compiles once.
    apply = partial(_outputs, network)
    for look in range(config.num_looks + 1):
        if look > 0:
            network = train(network, data.x, data.y, optimizer, reg=reg, num_steps=each, record_every=each).network
        kernels = [empirical_ntk(apply, network.parameters, x) for x in (data.x, data.x_test)]
        yield look * each, (kernels[0], kernels[1])


def _outputs(network: Any, parameters: Any, x: jax.Array) -> jax.Array:
    return network.with_parameters(parameters)(x)


def summarise(_: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean alignments at the end of each kernel's path, and at the best step of the reweighting."""
    frame = _final_alignments(rows)
    means = {
        problem: frame.loc[problem].to_dict("index") for problem in frame.index.get_level_values("problem").unique()
    }
    best = {problem: _best_step(rows, problem) for problem in means}
    first = next(iter(means))
    ends = {kernel: means[first][kernel]["test"] for kernel in ("NTK", "optimum", "trained ReLU")}
    return {
        "headline": (
            f"Alignment with the targets on fresh data, {planted.label(first)}: NTK {ends['NTK']:.2f}, reweighted "
            f"{best[first]['test']:.2f} after {best[first]['step']} steps and {ends['optimum']:.2f} at the optimum, "
            f"NTK of the trained ReLU network {ends['trained ReLU']:.2f}."
        ),
        "alignment": means,
        "best_of_reweighting": best,
    }


def _best_step(rows: list[dict[str, Any]], problem: str) -> dict[str, Any]:
    """The reweighting step whose mean alignment on fresh data is largest."""
    frame = pd.DataFrame(rows)
    part = frame[(frame["problem"] == problem) & (frame["kernel"] == "reweighted")]
    path = part.groupby("step")[["training", "test"]].mean()
    position = int(path["test"].to_numpy().argmax())
    at = {side: float(path[side].to_numpy()[position]) for side in ("training", "test")}
    return {"step": int(path.index.to_numpy()[position]), **at}


def _final_alignments(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    last = frame.sort_values("step", kind="stable").groupby(["problem", "seed", "kernel"], sort=False).last()
    return last.groupby(["problem", "kernel"], sort=False)[["training", "test"]].mean()


def sections(config: Config, rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[Section]:
    """The report: alignment along the reweighting and along training."""
    text = (
        f"**{summary['headline']}**\n\n"
        "Centred kernel alignment with y yᵀ, means over the data sets. Reweighting starts at the NTK of the sampled "
        f"gates; the networks have width {config.width} and the same λ, and are trained by Adam."
    )
    caption = "Alignment with the targets on fresh data along the reweighting (left) and along training (right)."
    figures = (("alignment", _figure(config, rows), caption),)
    table = _final_alignments(rows).reset_index()
    table["problem"] = table["problem"].map(planted.label)
    return [
        Section("Alignment of the kernels with the targets", text, figures=figures),
        Section("Alignments at the end", table=table),
    ]


def _figure(config: Config, rows: list[dict[str, Any]]) -> Figure:
    frame = pd.DataFrame(rows).groupby(["problem", "kernel", "step"], sort=False)["test"].mean()
    figure = new_figure(9.6, 3.4 * len(config.problems) + 0.2)
    grid = figure.subplots(len(config.problems), 2, squeeze=False, sharey="row")
    for (reweighting, training), problem in zip(grid, config.problems, strict=True):
        path, found = frame[problem, "reweighted"], frame[problem]
        reweighting.plot(path.index, path, marker=".", color=colours.FIXED, label="reweighted kernel")
        reweighting.axhline(found["optimum"].iloc[-1], color=colours.OPTIMUM, linestyle=":", label="optimum")
        for name, colour in (("trained gated", colours.TRAINED_GATED), ("trained ReLU", colours.TRAINED_RELU)):
            training.plot(frame[problem, name].index, frame[problem, name], marker=".", color=colour, label=name)
        for axes in (reweighting, training):
            axes.axhline(found["NTK"].iloc[-1], color=colours.NTK, linestyle="--", label="NTK")
            axes.legend()
        title = planted.label(problem)
        reweighting.set(xlabel="reweighting step", ylabel="alignment on fresh data", title=title)
        training.set(xlabel="gradient step", title=title)
    return figure
