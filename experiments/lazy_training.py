"""Wide gated networks, trained by small steps of gradient descent, follow the closed form of their NTK."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from experiments.data import planted
from experiments.shared.settings import NonEmpty, Positive, Settings, ShareBelowOne, TwoOrMoreSeeds
from experiments.shared.statistics import slope, slope_text
from fixntk import GatedReLUNetwork, gated_relu_ntk, gradient_flow, max_learning_rate, sample_gates, train
from fixntk.runner.report import Section, new_figure
from fixntk.runner.status import show_stage


class Config(Settings):
    """Settings of the experiment.

    Attributes
    ----------
    widths
        Widths of the networks.
    seeds
        Number of networks of each width.
    num_rows, num_test
        Numbers of training and test points, of the 200 and 1,000 points of the teacher's problem.
    step_share
        Learning rate as a share of the largest stable one.
    num_steps
        Number of gradient steps.
    num_looks
        Number of times at which outputs are compared.
    """

    widths: NonEmpty[Positive] = (64, 128, 256, 512, 1024, 2048, 4096)
    seeds: TwoOrMoreSeeds = 8
    num_rows: Annotated[int, Field(ge=1, le=200)] = 40
    num_test: Annotated[int, Field(ge=1, le=1000)] = 40
    step_share: ShareBelowOne = 0.02
    num_steps: Positive = 2000
    num_looks: Positive = 8


def tasks(config: Config) -> list[dict[str, Any]]:
    """One task for each width."""
    return [{"width": width} for width in config.widths]


def run_task(config: Config, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Train the networks of a width, both layers, and compare with the closed form at every look: a row for each."""
    jax.config.update("jax_enable_x64", True)
    data = planted.make("teacher", 0)
    x, y, x_test = data.x[: config.num_rows], data.y[: config.num_rows], data.x_test[: config.num_test]
    # At infinite width the kernels of both layers are equal.
    kernel, kernel_test = 2 * gated_relu_ntk(x), 2 * gated_relu_ntk(x_test, x)
    rate = config.step_share * float(max_learning_rate(kernel))
    flow = gradient_flow(kernel, y, learning_rate=rate)
    keys = jax.random.split(jax.random.key(task["width"]), config.seeds)
    networks = jax.vmap(lambda key: _sample_network(key, task["width"], x.shape[1]))(keys)

    def outputs(networks: GatedReLUNetwork) -> np.ndarray:
        return np.asarray(jax.vmap(lambda network: network(jnp.concatenate([x, x_test])))(networks))

    start, optimizer = outputs(networks), optax.sgd(rate / np.sqrt(task["width"]))
    times = np.unique(np.linspace(0, config.num_steps, config.num_looks + 1).round().astype(int))
    seen = [start]
    for begin, end in itertools.pairwise(times):
        show_stage(f"step {begin} of {config.num_steps}")
        networks = train(networks, x, y, optimizer, num_steps=int(end - begin), record_every=int(end - begin)).network
        seen.append(outputs(networks))
    rows = []
    for seed in range(config.seeds):
        f0, f0_test = start[seed, : config.num_rows], start[seed, config.num_rows :]
        training = np.asarray(flow.predict(times, f0=f0))
        test = np.asarray(flow.predict(times, kernel_test, f0=f0, f0_test=f0_test))
        found = np.stack([look[seed] for look in seen])
        rows.append(
            {
                "seed": seed,
                "training_distance": np.abs(found[:, : config.num_rows] - training).max(axis=1).tolist(),
                "test_distance": np.abs(found[:, config.num_rows :] - test).max(axis=1).tolist(),
                "times": times.tolist(),
                "rate": rate,
            }
        )
    return rows


def _sample_network(key: jax.Array, width: int, num_features: int) -> GatedReLUNetwork:
    """A network of m = ``width`` gates N(0, 1), whose hidden and output weights are N(0, 1) divided by m^¼.

    The factor m^−½ of the NTK's parameterisation is split evenly between the two layers. The network's kernel is √m
    times the kernel of that parameterisation, so that gradient descent with 1/√m times the learning rate takes the same
    steps in function space. See docs/mathematics.md, M3.
    """
    keys = jax.random.split(key, 3)
    hidden = jax.random.normal(keys[1], (width, num_features)) / width**0.25
    output = jax.random.normal(keys[2], (width, 1)) / width**0.25
    return GatedReLUNetwork(sample_gates(keys[0], width, num_features), hidden, output, squeeze=True)


def summarise(_: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The slope of the log sup-norm distance over the log width, with its interval over widths."""
    frame = _distances_by_width(rows)
    slopes = {name: slope(frame.index, frame[name]) for name in ("training", "test")}
    return {
        "headline": (
            f"The largest distance from the closed form, over times and test points, falls with the width "
            f"with a slope of {slope_text(slopes['test'])} on log scales (theory: −0.5)."
        ),
        "slopes": slopes,
    }


def _distances_by_width(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """For each width, the root mean square over the networks of their largest distance over times and points."""
    frame = pd.DataFrame(
        {
            "width": [row["width"] for row in rows],
            "training": [max(row["training_distance"]) ** 2 for row in rows],
            "test": [max(row["test_distance"]) ** 2 for row in rows],
        }
    )
    return frame.groupby("width").mean() ** 0.5


def sections(config: Config, rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[Section]:
    """The report: distance against width, and against time."""
    text = (
        f"**{summary['headline']}**\n\n"
        "Both layers are trained, full batch, with a learning rate of "
        f"{config.step_share:g} times the largest stable one. The closed form starts at each network's own outputs and "
        "has the kernel of infinite width, twice the gated-ReLU NTK, for which no network is sampled."
    )
    caption = (
        "The largest distance between a trained network's outputs and the closed form, root mean square over networks: "
        "over all times against width (left), over test points against time (right)."
    )
    frame = _distances_by_width(rows)
    figure = (("distance", _figure(rows, frame), caption),)
    return [
        Section("Distance from the closed form", text, figures=figure),
        Section("Every width", table=frame.reset_index()),
    ]


def _figure(rows: list[dict[str, Any]], frame: pd.DataFrame) -> Figure:
    figure = new_figure(9.6, 3.8)
    by_width, by_time = figure.subplots(1, 2)
    for name, marker in (("test", "o"), ("training", "s")):
        by_width.plot(frame.index, frame[name], marker=marker, label=f"{name} points")
    reference = frame["test"].iloc[0] * np.sqrt(frame.index[0] / frame.index.to_numpy())
    by_width.plot(frame.index, reference, color="0.5", linestyle=":", label="width^(−1/2)")
    by_width.set(xscale="log", yscale="log", xlabel="width", ylabel="sup-norm distance")
    by_width.legend()
    for width in frame.index[np.unique(np.linspace(0, len(frame) - 1, 4).round().astype(int))]:
        chosen = [row for row in rows if row["width"] == width]
        distance = np.sqrt(np.mean([np.square(row["test_distance"]) for row in chosen], axis=0))
        by_time.plot(chosen[0]["times"], distance, marker=".", label=f"width {width}")
    by_time.set(xlabel="gradient steps", ylabel="sup over test points", ylim=(0, None))
    by_time.legend()
    return figure
