"""Fixing the NTK: the paper's claims, measured here."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import pandas as pd
import yaml
from pydantic import BaseModel, create_model

from experiments import (
    beyond,
    consistency,
    convex_vs_sgd,
    directions,
    feature_learning,
    gates,
    lazy_training,
    sensitivity,
    tabular,
    teacher_student,
    toy,
    uci,
)
from experiments.shared.settings import Settings
from experiments.shared.single_splits import PAPER_COUNT, PAPER_TABLES
from fixntk.runner.config import Experiment
from fixntk.runner.report import Section
from fixntk.runner.rows import rows_by_task


class Part(NamedTuple):
    """An experiment and the claim that it measures.

    Attributes
    ----------
    module
        The experiment.
    heading
        Start of the headings of its sections.
    claim
        The claim of the paper.
    checked
        The conditions that support the claim, in words; empty beyond the paper.
    checks
        Whether each of these conditions holds, from the summary.
    """

    module: Any
    heading: str
    claim: str
    checked: str = ""
    checks: Callable[[Mapping[str, Any]], list[bool]] = lambda _: []


def _is_below(value: float | None, bound: float) -> bool:
    """Whether a number that may be missing is below a bound."""
    return value is not None and value < bound


def _check_toy(summary: Mapping[str, Any]) -> list[bool]:
    difference = summary["relative_difference_from_cvxpy"]
    return [summary["left_by_reweighting"] < 1e-3, difference is None or difference < 1e-8]


def _check_uci(summary: Mapping[str, Any]) -> list[bool]:
    against = summary["fixed_against_ntk"]
    share = (against["higher"] + against["same"]) / summary["tables"]
    return [summary["splits_where_the_ntk_beats_the_bound"] == 0, share >= PAPER_COUNT / PAPER_TABLES]


def _check_teacher_student(summary: Mapping[str, Any]) -> list[bool]:
    return [
        _is_below(ratio["high"], 1)
        for of_method in summary["error_over_ntk"].values()
        for method, ratio in of_method.items()
        if method.startswith("fixed")
    ]


def _check_consistency(summary: Mapping[str, Any]) -> list[bool]:
    in_rows, in_gates = summary.get("in_rows", {}), summary.get("in_log_gates", {})
    return [
        _is_below(in_rows.get("high"), -0.5),
        _is_below(in_rows.get("low"), -1),
        _is_below(in_gates.get("low"), summary.get("theory_in_log_gates", 0)),
    ]


def _check_lazy_training(summary: Mapping[str, Any]) -> list[bool]:
    slope = summary["slopes"]["test"]
    return [_is_below(slope["high"], 0), _is_below(slope["low"], -0.5)]


def _check_feature_learning(summary: Mapping[str, Any]) -> list[bool]:
    return [
        learnt["test"] > kernels["NTK"]["test"]
        for problem, kernels in summary["alignment"].items()
        for learnt in (summary["best_of_reweighting"][problem], kernels["trained ReLU"])
    ]


# In the order of the report.
PARTS: Mapping[str, Part] = MappingProxyType(
    {
        "toy": Part(
            toy,
            "Toy",
            "The training problem of a gated-ReLU network is a convex program, multiple kernel learning over masked "
            "Gram kernels; its NTK is one choice of the weights, and reweighting reaches the optimal ones.",
            "Reweighting ends within 1e-3 of the optimum, relative; CVXPY, where it is installed, finds the same "
            "optimum to 1e-8.",
            _check_toy,
        ),
        "uci": Part(
            uci,
            "UCI",
            "No NTK beats the optimal weights on the training objective. On 26 of 33 UCI tables the fixed kernel's "
            "test accuracy is higher than or the same as the NTK's.",
            "The NTK of the sampled gates is below the certified bound in no split; the share of tables where the "
            "fixed kernel is higher or the same is at least 26/33.",
            _check_uci,
        ),
        "tabular": Part(
            tabular,
            "Estimators",
            "Beyond the paper: an estimator for tables with an intercept, whose λ and number of steps are chosen by "
            "held-out log-loss.",
        ),
        "sensitivity": Part(
            sensitivity, "Sensitivity", "Beyond the paper: the effect of its algorithm's settings on test accuracy."
        ),
        "teacher_student": Part(
            teacher_student,
            "Teacher–student",
            "Training learns the kernel weights and the NTK does not, which costs test error on planted networks.",
            "For each kind of planted network, and for random and for discovered gates, the interval of the fixed "
            "kernel's test error over the NTK's is below 1.",
            _check_teacher_student,
        ),
        "convex_vs_sgd": Part(
            convex_vs_sgd,
            "Training",
            "Training the network itself cannot end below the convex optimum.",
            "No trained network is below the certified bound.",
            lambda summary: [summary["below_the_bound"] == 0],
        ),
        "consistency": Part(
            consistency,
            "Consistency",
            "The prediction error of the fixed kernel is, for planted sparse networks, at most about s(d + log P)/n.",
            "The interval of the slope in n is below the slow rate's −0.5 and reaches the fast rate's −1; the interval "
            "of the slope in log P reaches the fast rate's slope.",
            _check_consistency,
        ),
        "lazy_training": Part(
            lazy_training,
            "Lazy training",
            "Very wide networks follow their NTK and do not learn kernels of their own.",
            "The interval of the slope in the width is below 0 and reaches −0.5.",
            _check_lazy_training,
        ),
        "feature_learning": Part(
            feature_learning,
            "Feature learning",
            "The kernel weights of the NTK do not depend on the targets, unlike those of trained networks.",
            "On each problem the best step of the reweighting, and the NTK of the trained ReLU network, are better "
            "aligned with fresh targets than the NTK.",
            _check_feature_learning,
        ),
        "gates": Part(
            gates,
            "Gates",
            "Beyond the paper: an estimator that chooses by held-out rows between the NTK, its reweighting and gates "
            "that the targets ask for.",
        ),
        "directions": Part(
            directions,
            "Directions",
            "Beyond the paper: how the gain of chosen gates depends on the number of columns that matter, the rows and "
            "the noise.",
        ),
        "beyond": Part(beyond, "Beyond", "Beyond the paper: deep kernels, and the layers of a deep network's NTK."),
    }
)


# The settings of the parts, as in the module of that name; None leaves a part out.
_FIELDS: dict[str, Any] = {name: (part.module.Config | None, part.module.Config()) for name, part in PARTS.items()}
Config = create_model("Config", __base__=Settings, **_FIELDS)


def _parts_of(config: BaseModel) -> dict[str, tuple[Experiment, Any]]:
    """The parts that are not left out: experiment and settings by name."""
    return {
        name: (part.module, settings) for name, part in PARTS.items() if (settings := getattr(config, name)) is not None
    }


def tasks(config: BaseModel) -> list[dict[str, Any]]:
    """The tasks of all parts, one part after another."""
    return [{"part": name, **task} for name, (module, part) in _parts_of(config).items() for task in module.tasks(part)]


def run_task(config: BaseModel, task: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a part's task."""
    module, part = _parts_of(config)[task["part"]]
    before = jax.config.read("jax_enable_x64")
    # Parts that need float64 switch it on themselves; the next must not inherit it.
    jax.config.update("jax_enable_x64", False)
    try:
        return module.run_task(part, task)
    finally:
        jax.config.update("jax_enable_x64", before)


def _rows_of(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["part"] == name]


def summarise(config: BaseModel, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The summaries of the parts that are finished, under their names."""
    found = {
        name: module.summarise(part, _rows_of(name, rows))
        for name, (module, part) in _parts_of(config).items()
        if all(_has_rows(name, module, part, rows))
    }
    return {"headline": "\n".join(part["headline"] for part in found.values()), **found}


def _has_rows(name: str, module: Experiment, part: Any, rows: list[dict[str, Any]]) -> list[bool]:
    """Whether each task of a part has rows."""
    return [bool(of_task) for of_task in rows_by_task(module.tasks(part), _rows_of(name, rows))]


def sections(config: BaseModel, rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[Section]:
    """The report: the claims of the paper beside their measurements, then the report of each part."""
    table, found = [], []
    for name, (module, settings) in _parts_of(config).items():
        part, is_finished = PARTS[name], name in summary
        if is_finished:
            measured = summary[name]["headline"]
            verdict = _verdict(part.checks(summary[name])) if part.checked else "beyond the paper"
            own = module.sections(settings, _rows_of(name, rows), summary[name])
            found += [_add_heading(part.heading, _command(name, settings), section) for section in own]
        else:
            finished = _has_rows(name, module, settings, rows)
            measured, verdict = f"{sum(finished)} of {len(finished)} tasks", "not finished"
        checked = part.checked or None
        row = {"the paper": part.claim, "what is checked": checked, "measured here": measured, "verdict": verdict}
        table.append(row)
    text = (
        "The table lists each claim beside its measurement; the parts follow with their figures. Every number on this "
        "page comes from the results of this run. A claim **holds** if all checked conditions hold, holds **partly** "
        "if some of them do, and **not here** if none does."
    )
    return [Section("Claims of the paper and measurements", text, table=pd.DataFrame(table)), *found]


def _verdict(checks: list[bool]) -> str:
    return "holds" if checks and all(checks) else "partly" if any(checks) else "not here"


def _add_heading(heading: str, command: str, section: Section) -> Section:
    """The section with its part's name in the title and, where it has figures, the command that makes them."""
    title = section.title[0].lower() + section.title[1:].replace(": ", ", ")
    text = f"{section.text}\n\nThis part alone: `{command}`." if section.figures else section.text
    return replace(section, title=f"{heading}: {title}", text=text.lstrip())


def _command(name: str, settings: BaseModel) -> str:
    """The command that runs a part alone: its own config, which has the defaults, and the settings that differ."""
    own, defaults = settings.model_dump(mode="json"), type(settings)().model_dump(mode="json")
    overrides = [f"{key}={_yaml_line(value)}" for key, value in own.items() if value != defaults[key]]
    return shlex.join(["fixntk", "run", f"configs/{name}.yaml", *overrides])


def _yaml_line(value: Any) -> str:
    """A value as YAML in one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).partition("\n")[0]
