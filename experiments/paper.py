"""Fixing the NTK: the paper's claims, measured here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax
import pandas as pd
from pydantic import BaseModel, ConfigDict, create_model

from experiments import (
    beyond,
    consistency,
    convex_vs_sgd,
    feature_learning,
    lazy_training,
    sensitivity,
    tabular,
    teacher_student,
    toy,
    uci,
)
from fixntk.configs import Experiment
from fixntk.report import Section

# In the order of the story, with what the paper says.
PARTS: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "toy": (
            toy,
            "The training problem of a gated-ReLU network is a convex program, multiple kernel learning over masked "
            "Gram kernels; its NTK is one choice of the weights, and reweighting reaches the optimal ones.",
        ),
        "uci": (
            uci,
            "No NTK beats the optimal weights on the training objective. On 26 of 33 UCI tables the fixed kernel's "
            "test accuracy is higher than or the same as the NTK's.",
        ),
        "tabular": (
            tabular,
            "Beyond the paper: an estimator for tables, with an intercept, chosen by held-out log-loss, the number of "
            "steps too.",
        ),
        "sensitivity": (sensitivity, "Beyond the paper: what the settings of its algorithm do."),
        "teacher_student": (
            teacher_student,
            "Learning the kernel weights, as training does, is what the NTK misses on planted networks.",
        ),
        "convex_vs_sgd": (convex_vs_sgd, "Training the network itself cannot end below the convex optimum."),
        "consistency": (
            consistency,
            "The prediction error of the fixed kernel is, for planted sparse networks, at most about s(d + log P)/n.",
        ),
        "lazy_training": (lazy_training, "Very wide networks follow their NTK and do not learn kernels of their own."),
        "feature_learning": (feature_learning, "What the NTK lacks are weights that depend on the targets."),
        "beyond": (beyond, "Beyond the paper: deep kernels, and the layers of a deep network's NTK."),
    }
)


# The settings of the parts, as in the module of that name; None leaves a part out.
_FIELDS: dict[str, Any] = {name: (module.Config | None, module.Config()) for name, (module, _) in PARTS.items()}
Config = create_model("Config", __config__=ConfigDict(extra="forbid", frozen=True, strict=True), **_FIELDS)


def _chosen(config: BaseModel) -> dict[str, tuple[Experiment, Any]]:
    return {name: (module, part) for name, (module, _) in PARTS.items() if (part := getattr(config, name)) is not None}


def tasks(config: BaseModel) -> list[dict[str, Any]]:
    """The tasks of all parts, one part after another."""
    return [{"part": name, **task} for name, (module, part) in _chosen(config).items() for task in module.tasks(part)]


def run_task(config: BaseModel, task: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a part's task."""
    module, part = _chosen(config)[task["part"]]
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
    """The summaries of the parts that have rows, under their names."""
    found = {
        name: module.summarise(part, of_part)
        for name, (module, part) in _chosen(config).items()
        if (of_part := _rows_of(name, rows))
    }
    return {"headline": "\n".join(part["headline"] for part in found.values()), **found}


def sections(config: BaseModel, rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[Section]:
    """The story: what the paper says beside what was measured, then each part's own report."""
    measured = {name: summary[name]["headline"] for name in PARTS if name in summary}
    table = pd.DataFrame({"the paper": [PARTS[name][1] for name in measured], "measured here": list(measured.values())})
    text = (
        "Each claim beside its measurement; the parts follow with their figures. Every number on this page comes from "
        "the results of this run."
    )
    found = [Section("What the paper says, and what was measured", text, table=table)]
    for name, (module, part) in _chosen(config).items():
        if name in summary:
            first, *others = module.sections(part, _rows_of(name, rows), summary[name])
            alone = (
                f"Made by `fixntk run configs/paper.yaml`; `fixntk run configs/{name}.yaml` runs this part alone, with "
                "the settings in that file."
            )
            found += [replace(first, text=f"{first.text}\n\n{alone}"), *others]
    return found
