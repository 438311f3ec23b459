"""A project with a toy experiment in a temporary folder, for the tests of the machinery around experiments."""

import json
import sys

import pytest

from fixntk.runner import run as runs

MODULE = '''"""A toy experiment.

It does what control.json asks for: fail, be killed, sleep.
"""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator

from fixntk.runner import report


class Solver(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    tol: float = Field(1e-3, gt=0)


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    tables: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    reg: float | str = 0.1
    solver: Solver = Solver()

    @field_validator("tables")
    @classmethod
    def known(cls, tables):
        if "unknown" in tables:
            raise ValueError("there is no table unknown")
        return tables


def tasks(config):
    if "forbidden" in config.tables:
        raise ValueError("table forbidden cannot be used")
    return [{"table": table, "seed": seed} for table in config.tables for seed in config.seeds]


def run_task(config, task):
    control = json.loads(Path("control.json").read_text())
    rows_before = Path("runs/toy/results.jsonl").read_text().count("\\n") if Path("runs/toy").exists() else None
    with open("calls.jsonl", "a") as file:
        file.write(json.dumps({**task, "rows_before": rows_before, "process": os.getpid()}) + "\\n")
    if task["table"] in control.get("broken", {}):
        raise ValueError(control["broken"][task["table"]])
    if task["table"] == control.get("bug"):
        raise KeyError("a bug")
    if task["table"] == control.get("slow"):
        time.sleep(0.5)
    if task["table"] == control.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if task["table"] == control.get("terminate"):
        os.kill(os.getpid(), signal.SIGTERM)
    if task["table"] == control.get("sleep"):
        time.sleep(60)
    return [
        {"method": "plain", "score": np.float32(0.5), "n": np.int64(3), "bad": float("nan")},
        {"method": "fixed", "score": np.float64(0.75), "n": 4, "bad": np.array([1.0, np.inf])},
    ]


def summarise(config, rows):
    return {"headline": f"{len(rows)} rows", "worst": float("nan")}


def sections(config, rows, summary):
    figure = report.new_figure()
    axes = figure.subplots()
    axes.plot([row["score"] for row in rows], label="score")
    axes.legend()
    text = f"There are **{summary['headline']}**."
    return [report.Section("Scores", text, pd.DataFrame(rows), (("scores", figure, "The scores"),))]


summarise.__doc__ = "Count."
'''

CONFIG = """\
# A comment, as people write them.
experiment: toy
tables: [iris, wine]
seeds: [0, 1]
"""


class Project:
    """The folder, which is also the current one."""

    def __init__(self, root):
        self.root = root
        (root / "experiments").mkdir()
        (root / "experiments" / "__init__.py").touch()
        (root / "experiments" / "toy.py").write_text(MODULE, encoding="utf-8")
        (root / "configs").mkdir()
        self.config = root / "configs" / "toy.yaml"
        self.config.write_text(CONFIG, encoding="utf-8")
        self.out = root / "runs" / "toy"
        self.results = self.out / "results.jsonl"
        self.control()

    def control(self, **wishes):
        (self.root / "control.json").write_text(json.dumps(wishes), encoding="utf-8")

    def calls(self):
        """Return the calls of run_task since the last time."""
        path = self.root / "calls.jsonl"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return calls

    def called(self):
        """Return the tables and seeds of these calls."""
        return [(call["table"], call["seed"]) for call in self.calls()]

    def execute(self, overrides=(), **options):
        """Run the experiment; return the exit code."""
        return runs.execute(*runs.load_config(self.config, overrides), self.out, **options)


def forget_experiments():
    for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
        del sys.modules[name]


@pytest.fixture
def project(tmp_path, monkeypatch):
    # The real package `experiments` comes back afterwards, with the path as it was.
    for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield Project(tmp_path)
    forget_experiments()
