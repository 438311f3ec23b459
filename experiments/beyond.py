"""Beyond two layers: the fixed kernel on features of a deep network, and the NTK's layers reweighted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jax import Array, lax
from matplotlib.figure import Figure
from pydantic import Field
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from experiments.shared import colours
from experiments.shared.settings import (
    NonEmpty,
    Positive,
    PositiveFloat,
    Settings,
    ShareBelowOne,
    TwoOrMore,
    TwoOrMoreSeeds,
)
from experiments.shared.statistics import interval_text, mean, paired_difference, t_quantile
from fixntk import activation_masks, layerwise_ntk, sample_gates, solve, solve_kernels
from fixntk.convex.program import program_at_share
from fixntk.estimators import GatedReLUClassifierCV, NTKClassifierCV
from fixntk.runner.report import Section, new_figure
from fixntk.runner.status import show_stage

Study = Literal["features", "layers"]
Layers = list[dict[str, Array]]

# The kernels whose weights are learnt. With the sum of all layers as the only kernel, only its scale is learnt.
_MIXES: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {"NTK": lambda kernels: jnp.sum(kernels, axis=0, keepdims=True), "fixed": lambda kernels: kernels}
)
_COLOURS: Mapping[str, str] = MappingProxyType(
    {"NTK": colours.NTK, "network": colours.TRAINED_RELU, "fixed": colours.FIXED}
)
# Share of the kernel's trace above which a layer counts as kept.
_KEPT_SHARE = 0.01

NEEDS_EVERY_TASK = True


class Config(Settings):
    """Settings of the experiment, on scikit-learn's 1,797 digits of 8 × 8 pixels.

    Attributes
    ----------
    studies
        ``"features"``: is a digit odd or even? The two-layer NTK and the fixed kernel on pixels, and on the last hidden
        layer of networks, one of which has learnt the ten digits on other rows. ``"layers"``: which digit is it? The
        empirical NTK of a network, its layers with equal and with learnt weights.
    feature_rows
        Number of rows on which the network of the features has learnt.
    train_rows
        Number of rows to train on; a third of them is held out to choose λ of the layers. All other rows are test rows.
    width, depth
        Width of the hidden layers, and their number.
    num_steps, learning_rate
        Number of steps and learning rate of Adam with the softmax loss, all rows at once.
    num_gates
        Number of sampled gates of the fixed kernel.
    reg_shares
        Candidates for λ/λ_max in the study of the layers.
    left_reg_share
        λ/λ_max at which the objective of the NTK of the sampled gates is compared with the optimum, on features.
    seeds
        Number of splits, each with its own networks.
    """

    studies: NonEmpty[Study] = ("features", "layers")
    feature_rows: Annotated[int, Field(ge=100, le=1000)] = 800
    train_rows: Annotated[int, Field(ge=60, le=700)] = 150
    width: Positive = 128
    depth: TwoOrMore = 3
    num_steps: Positive = 300
    learning_rate: PositiveFloat = 0.003
    num_gates: Positive = 512
    reg_shares: NonEmpty[ShareBelowOne] = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
    left_reg_share: ShareBelowOne = 0.01
    seeds: TwoOrMoreSeeds = 5


def tasks(config: Config) -> list[dict[str, Any]]:
    """One task for each study and seed."""
    return [{"study": study, "seed": seed} for study in config.studies for seed in range(config.seeds)]


def run_task(config: Config, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracies on test digits: a row for each kernel and its inputs, or for each kernel and state of the network."""
    jax.config.update("jax_enable_x64", True)
    pixels, labels = load_digits(return_X_y=True)
    study = _run_features if task["study"] == "features" else _run_layers
    return study(config, task["seed"], pixels / 8 - 1, labels)


def _split(rows: int, seed: int, x: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Inputs of the first and of the second part, then their labels."""
    return train_test_split(x, labels, train_size=rows, random_state=seed, stratify=labels)


def _sample_layers(config: Config, seed: int, num_pixels: int, num_classes: int) -> Layers:
    sizes = [num_pixels, *[config.width] * config.depth, num_classes]
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    return [
        {"weights": jax.random.normal(key, (m, k)) * np.sqrt(2 / m), "bias": jnp.zeros(k)}
        for key, m, k in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def _last_hidden(layers: Layers, x: Any) -> Any:
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["weights"] + layer["bias"])
    return x


def _apply(layers: Layers, x: Any) -> Array:
    return _last_hidden(layers, x) @ layers[-1]["weights"] + layers[-1]["bias"]


def _train(config: Config, layers: Layers, x: Any, labels: Any) -> Layers:
    optimizer = optax.adam(config.learning_rate)

    def loss(layers: Layers) -> Array:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(_apply(layers, x), labels))

    def step(state: Any, _: None) -> tuple[Any, None]:
        layers, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(layers), moments)
        return (optax.apply_updates(layers, updates), moments), None

    start = (layers, optimizer.init(layers))
    return jax.jit(lambda state: lax.scan(step, state, length=config.num_steps)[0][0])(start)


def _accuracy(outputs: Any, labels: np.ndarray) -> float:
    # The mean of a JAX array of bools is in float32. It is kept, so that results agree with those of earlier runs.
    return float(np.mean(np.argmax(outputs, axis=1) == labels))


def _run_features(config: Config, seed: int, x: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    x_features, x_rest, digits, digits_rest = _split(config.feature_rows, seed, x, labels)
    x_train, x_test, odd, odd_test = _split(config.train_rows, seed, x_rest, digits_rest % 2)
    untrained = _sample_layers(config, seed, x.shape[1], 10)
    maps: dict[str, Any] = {
        "pixels": lambda x: x,
        "untrained network": partial(_last_hidden, untrained),
        "network that knows digits": partial(_last_hidden, _train(config, untrained, x_features, digits)),
    }
    alone = _train(config, _sample_layers(config, seed, x.shape[1], 2), x_train, odd)
    found = [{"inputs": "pixels", "kernel": "network", "accuracy": _accuracy(_apply(alone, x_test), odd_test)}]
    for name, features in maps.items():
        mean, scale = np.mean(features(x_train)), np.std(features(x_train))
        inputs, inputs_test = ((np.asarray(features(part)) - mean) / scale for part in (x_train, x_test))
        for kernel, model in (
            ("NTK", NTKClassifierCV()),
            ("fixed", GatedReLUClassifierCV(config.num_gates, gates="random", random_state=seed)),
        ):
            show_stage(f"{kernel} of {name}")
            accuracy = model.fit(inputs, odd).score(inputs_test, odd_test)
            found.append({"inputs": name, "kernel": kernel, "accuracy": accuracy})
        found[-1]["ntk_excess"] = _ntk_excess_share(config, seed, inputs, odd)
    return found


def _ntk_excess_share(config: Config, seed: int, inputs: np.ndarray, odd: np.ndarray) -> float:
    gates = sample_gates(jax.random.key(seed), config.num_gates, inputs.shape[1])
    program = program_at_share(inputs, 2.0 * odd - 1, activation_masks(inputs, gates), config.left_reg_share)
    return float(
        1 - solve(program).primal / program.best_scale(np.full(config.num_gates, 1 / config.num_gates)).objective
    )


def _run_layers(config: Config, seed: int, x: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    x_train, x_test, digits, digits_test = _split(config.train_rows, seed, x, labels)
    untrained = _sample_layers(config, seed, x.shape[1], 10)
    networks = {"untrained network": untrained, "trained network": _train(config, untrained, x_train, digits)}
    x_fit, x_held, digits_fit, digits_held = _split(config.train_rows * 2 // 3, seed, x_train, digits)
    y = (np.arange(10) == digits_fit[:, None]) - 0.1
    found = []
    for name, network in networks.items():
        train, on_held, on_test = (_layer_kernels(network, new, x_fit) for new in (x_fit, x_held, x_test))
        traces = jnp.trace(train, axis1=1, axis2=2)
        largest = jnp.sqrt(jnp.max(jnp.einsum("ic,kij,jc->k", y, train, y) / traces))
        for kernel, mix in _MIXES.items():
            show_stage(f"{kernel}, {name}")
            solutions = [
                solve_kernels(mix(train), y, share * largest, penalty_weights=jnp.sqrt(mix(traces)))
                for share in config.reg_shares
            ]
            best = int(np.argmax([_accuracy(solution.predict(mix(on_held)), digits_held) for solution in solutions]))
            found.append(
                {
                    "inputs": name,
                    "kernel": kernel,
                    "accuracy": _accuracy(solutions[best].predict(mix(on_test)), digits_test),
                    "reg_share": config.reg_shares[best],
                    "objectives": [solution.primal for solution in solutions],
                    "lower_bounds": [solution.dual for solution in solutions],
                    # Shares of the trace, because the penalty is in units of the trace.
                    "layer_shares": traces
                    * solutions[best].kernel_weights
                    / jnp.sum(traces * solutions[best].kernel_weights),
                }
            )
    return found


def _layer_kernels(network: Layers, x: np.ndarray, x_train: np.ndarray) -> Array:
    groups = list(range(len(network)))
    shares = layerwise_ntk(_apply, network, jnp.asarray(x), jnp.asarray(x_train), groups=groups, outputs="trace")
    kernels = jnp.stack([shares[group] for group in groups])
    return 0.5 * (kernels + kernels.mT) if x is x_train else kernels


def summarise(_: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracies of both studies, paired differences with their intervals, and the gain over equal weights."""
    table = by_kernel(rows)
    found: dict[str, Any] = {"headline": "", "accuracy": table.to_dict("records")}
    words = []
    for study, part in table.groupby("study"):
        accuracy = part.set_index(["inputs", "kernel"])["accuracy"]
        pairs = pd.DataFrame([row for row in rows if row["study"] == study]).pivot(
            index="seed", columns=["inputs", "kernel"], values="accuracy"
        )
        found[f"fixed_minus_ntk_on_{study}"] = {
            str(inputs): mean(paired_difference(pairs[inputs, "fixed"], pairs[inputs, "NTK"]))
            for inputs in part["inputs"].unique()
        }
        if study == "features":
            deep = "network that knows digits"
            found["deep_minus_pixels"] = {
                kernel: mean(paired_difference(pairs[deep, kernel], pairs["pixels", kernel])) for kernel in _MIXES
            }
            words.append(
                f"Odd or even digit: on pixels NTK {accuracy['pixels', 'NTK']:.3f} and fixed kernel "
                f"{accuracy['pixels', 'fixed']:.3f}, on features of a network that knows digits "
                f"{accuracy[deep, 'NTK']:.3f} and {accuracy[deep, 'fixed']:.3f}."
            )
        else:
            found["left_by_equal_weights"] = _equal_weights_excess_shares(rows)
            found["kept_layers"] = _count_kept_layers(rows)
            left = " and ".join(f"{share:.1%} ({name})" for name, share in found["left_by_equal_weights"].items())
            words.append(
                f"Learnt weights of a deep NTK's layers lower the training objective by {left}, medians over seeds and "
                "values of λ."
            )
    return found | {"headline": " ".join(words)}


def _count_kept_layers(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """For each state of the network, the mean share of the trace of each layer and the number of seeds that keep it."""
    learnt = [row for row in rows if row["study"] == "layers" and row["kernel"] == "fixed"]
    found = {}
    for inputs in dict.fromkeys(row["inputs"] for row in learnt):
        shares = np.array([row["layer_shares"] for row in learnt if row["inputs"] == inputs])
        kept = np.sum(shares > _KEPT_SHARE, axis=0)
        found[inputs] = [
            {"share": share, "kept": int(count), "seeds": len(shares)}
            for share, count in zip(shares.mean(axis=0).tolist(), kept, strict=True)
        ]
    return found


def by_kernel(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Mean accuracy and half the width of its 95 % interval, over the seeds."""
    frame = pd.DataFrame(rows)
    groups = frame.groupby(["study", "inputs", "kernel"], sort=False)["accuracy"]
    table = groups.agg(accuracy="mean", seeds="count", margin="sem").reset_index()
    table["margin"] *= t_quantile(table.pop("seeds"))
    return table.rename(columns={"margin": "±"})


def _equal_weights_excess_shares(rows: list[dict[str, Any]]) -> dict[str, float]:
    """For each state of the network, the share by which learnt weights of the layers lower J: median over seeds, λ."""
    frame = pd.DataFrame([row for row in rows if row["study"] == "layers"])
    pairs = frame.pivot(index=["inputs", "seed"], columns="kernel", values="objectives")
    left = [1 - np.divide(fixed, ntk) for fixed, ntk in zip(pairs["fixed"], pairs["NTK"], strict=True)]
    return {
        str(inputs): float(
            np.median([part for part, (name, _) in zip(left, pairs.index, strict=True) if name == inputs])
        )
        for inputs in frame["inputs"].unique()
    }


def sections(config: Config, rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[Section]:
    """The report: the kernels on features, and on layers."""
    of_study = {"features": _feature_section, "layers": _layer_section}
    table = by_kernel(rows)
    found = []
    for study, section in of_study.items():
        if study in config.studies:
            part = table[table["study"] == study].drop(columns="study").reset_index(drop=True)
            found.append(section(config, part, [row for row in rows if row["study"] == study], summary))
    return found


def _feature_section(
    config: Config, table: pd.DataFrame, rows: list[dict[str, Any]], summary: dict[str, Any]
) -> Section:
    left = pd.DataFrame(rows).groupby("inputs", sort=False)["ntk_excess"].mean()
    shares = ", ".join(f"{name} {share:.1%}" for name, share in left.items())
    deep = summary["deep_minus_pixels"]
    text = (
        f"Is a digit odd or even, from {config.train_rows} rows? A kernel composed with a frozen feature map is "
        f"the kernel of a deeper network. The features are the last hidden layer, of {config.width} neurons, of an "
        f"untrained network and of one trained on {config.feature_rows} other rows to tell the ten digits; the "
        "network of the table learns from the kernels' own rows alone.\n\n"
        f"{_changes_text(summary['fixed_minus_ntk_on_features'])} The features of the network that knows digits, in "
        f"place of pixels, change the NTK's by {_difference_text(deep['NTK'])} and the fixed kernel's by "
        f"{_difference_text(deep['fixed'])}. At λ = {config.left_reg_share:g} λ_max the optimum is below the training "
        f"objective of the NTK of the sampled gates by: {shares}."
    )
    figure = _feature_figure(table), "Test accuracy by inputs, means and 95 % intervals over splits."
    return Section(
        "Deep kernels: the fixed kernel on features", text, table=table, figures=(("beyond_features", *figure),)
    )


def _layer_section(config: Config, table: pd.DataFrame, rows: list[dict[str, Any]], summary: dict[str, Any]) -> Section:
    saved = ", ".join(f"{name} {share:.1%}" for name, share in summary["left_by_equal_weights"].items())
    kept = "; ".join(f"{name}: {_layers_text(layers)}" for name, layers in summary["kept_layers"].items())
    num_fit = config.train_rows * 2 // 3
    text = (
        "The empirical NTK of a deep network is a sum of kernels, one for each layer, with equal weights that do not "
        "depend on the targets. Multiple kernel learning over the layers, with penalties by their traces and a "
        f"certificate (`fixntk.solve_kernels`), lowers the training objective by: {saved}, medians over seeds and "
        f"values of λ. All {config.depth + 1} layers of a network of {config.depth} hidden layers, ten digits, "
        f"{num_fit} rows, λ chosen on {config.train_rows - num_fit} others."
        f"\n\nLayers kept at this λ, with more than {_KEPT_SHARE:.0%} of the kernel's trace: {kept}. "
        f"{_changes_text(summary['fixed_minus_ntk_on_layers'])}"
    )
    caption = "Shares of the layers in the kernel's trace: in the NTK and as learnt, means over splits."
    figures = (("beyond_layers", _layer_figure(rows), caption),)
    return Section("The NTK's layers reweighted", text, table=table, figures=figures)


def _layers_text(layers: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"layer {number} in {layer['kept']} of {layer['seeds']} splits ({layer['share']:.0%} on average)"
        for number, layer in enumerate(layers, 1)
    )


def _changes_text(differences: dict[str, dict[str, Any]]) -> str:
    """The change of the accuracy by learning the kernel weights, and the inputs on which its interval excludes zero."""
    each = ", ".join(f"{inputs} {_difference_text(difference)}" for inputs, difference in differences.items())
    clear = [inputs for inputs, part in differences.items() if part["low"] > 0 or part["high"] < 0]
    return (
        "Learnt kernel weights change the test accuracy, fixed − NTK with the 95 % interval of the paired difference "
        f"over splits, by: {each}. The interval excludes zero on {', '.join(clear) or 'none of them'}."
    )


def _difference_text(difference: dict[str, Any]) -> str:
    return interval_text(difference["mean"], difference, "+.3f")


def _feature_figure(table: pd.DataFrame) -> Figure:
    figure = new_figure(7.2, 3.4)
    axes = figure.add_subplot()
    inputs = list(dict.fromkeys(table["inputs"]))
    for offset, (kernel, colour) in zip((-0.1, 0, 0.1), _COLOURS.items(), strict=True):
        part = table[table["kernel"] == kernel]
        places = np.array([inputs.index(name) for name in part["inputs"]]) + offset
        axes.errorbar(places, part["accuracy"], part["±"], fmt="o", capsize=3, label=kernel, color=colour)
    axes.set_xticks(range(len(inputs)), inputs)
    axes.set(ylabel="test accuracy", xlim=(-0.5, len(inputs) - 0.5))
    axes.legend()
    return figure


def _layer_figure(rows: list[dict[str, Any]]) -> Figure:
    layers = pd.DataFrame(rows)
    states = list(layers["inputs"].unique())
    figure = new_figure(9.6, 3.0)
    for axes, state in zip(np.atleast_1d(figure.subplots(1, len(states), sharey=True)), states, strict=True):
        for offset, kernel in zip((-0.2, 0.2), _MIXES, strict=True):
            of_splits = layers[(layers["inputs"] == state) & (layers["kernel"] == kernel)]["layer_shares"]
            shares = np.mean(np.array(of_splits.tolist()), axis=0)
            axes.bar(np.arange(1, shares.size + 1) + offset, shares, 0.38, label=kernel, color=_COLOURS[kernel])
        axes.set(xlabel="layer", title=state)
        axes.set_xticks(range(1, shares.size + 1))
        axes.legend()
    figure.axes[0].set_ylabel("share of the kernel's trace")
    return figure
