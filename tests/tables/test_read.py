"""The comparison on tables: its data, its statistics, and one small run."""

import importlib.util

import numpy as np
import pandas as pd
import pytest

from experiments import tabular
from experiments.data.regression_tables import REGRESSION_TABLES, load_regression_table, split_regression_table
from experiments.data.tables import TableError
from experiments.shared import statistics
from experiments.shared.baselines import CLASSIFIERS, ON_REQUEST, REGRESSORS
from fixntk.runner.config import ConfigError
from fixntk.runner.report import use_style

# Rows and columns as UCI, KEEL and scikit-learn state them.
SHAPES = {
    "airfoil": (1503, 5), "auto-mpg": (392, 5), "baseball": (337, 16), "cpu": (209, 6), "diabetes": (442, 10),
    "ele-1": (495, 2), "excitation": (557, 4), "insurance": (1338, 6), "laser": (993, 4), "plastic": (1650, 2),
    "qsar-aquatic": (546, 8), "qsar-fish": (908, 6), "servo": (167, 4), "treasury": (1049, 15), "wankara": (321, 9),
    "wine-red": (1599, 11), "wizmir": (1461, 9), "yacht": (308, 6),
}  # fmt: skip


@pytest.mark.parametrize("name", REGRESSION_TABLES)
def test_regression_tables_are_what_their_sources_say(name):
    table = load_regression_table(name)
    assert table.features.shape == SHAPES[name]
    split = split_regression_table(table, 0)
    assert len(split.y_train) + len(split.y_test) == len(table.target)
    assert np.isfinite(split.x_train).all()
    assert np.isfinite(split.x_test).all()
    assert np.std(split.y_train) > 0


def test_regression_tables_have_the_targets_of_their_files():
    assert load_regression_table("excitation").target[0] == 1.563  # with a decimal comma in the file
    assert load_regression_table("cpu").target[0] == 198
    assert load_regression_table("servo").target[1] == 0.5062525
    insurance = load_regression_table("insurance")
    assert list(insurance.features.select_dtypes("category")) == ["sex", "smoker", "region"]
    assert insurance.target[0] == 16884.924
    with pytest.raises(TableError, match="did you mean servo"):
        load_regression_table("serva")


def test_critical_differences_are_those_of_the_literature():
    # q_0.05 of Demšar's table 5: 1.960, 2.728 and 3.164 for 2, 5 and 10 methods.
    for methods, quantile in ((2, 1.960), (5, 2.728), (10, 3.164)):
        expected = quantile * np.sqrt(methods * (methods + 1) / (6 * 30))
        assert tabular.critical_difference(30, methods) == pytest.approx(expected, abs=2e-3)
    ranks = pd.Series({"a": 1.0, "b": 1.5, "c": 2.2, "d": 4.0})
    assert tabular.groups(ranks, 0.8) == [(1.0, 1.5), (1.5, 2.2)]
    assert tabular.groups(ranks, 1.5) == [(1.0, 2.2)]
    assert tabular.groups(ranks, 0.1) == []


def test_paired_comparisons_count_tables():
    paired = statistics.compare(pd.Series([0.9, 0.8, 0.7]), pd.Series([0.8, 0.8, 0.75]))
    assert (paired["higher"], paired["same"], paired["lower"]) == (1, 1, 1)
    assert paired["mean_difference"] == pytest.approx(0.05 / 3)


def test_a_small_comparison_ranks_the_methods():
    config = tabular.Config(tables=("iris", "haberman", "servo"), methods=("NTK", "logistic", "ridge"), seeds=2)
    rows = [task | row for task in tabular.tasks(config) for row in tabular.run_task(config, task)]
    assert len(rows) == 2 * 2 * 2 + 2 * 2
    scores = tabular.by_table(rows)
    assert scores["classification"].shape == (2, 2)
    assert scores["regression"].shape == (1, 2)
    assert scores["classification"].min(axis=None) > 0.6
    summary = tabular.summarise(config, rows)
    assert "2 classification tables" in summary["headline"]
    assert summary["regression"]["average_rank"].keys() == {"NTK", "ridge"}
    with use_style():
        titles = [section.title for section in tabular.sections(config, rows, summary)]
    assert titles[0] == "Classification: ranks"
    assert len(titles) == 6


def test_tasks_do_not_depend_on_what_is_installed():
    assert "xRFM" not in {task["method"] for task in tabular.tasks(tabular.Config())}
    named = tabular.Config(kinds=("regression",), tables=("servo",), methods=("NTK", "xRFM"), seeds=1)
    ntk, xrfm = tabular.tasks(named)
    assert (ntk["method"], xrfm["method"]) == ("NTK", "xRFM")
    if importlib.util.find_spec("xrfm") is None:
        with pytest.raises(ConfigError, match="pip install xrfm"):
            tabular.run_task(named, xrfm)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "methods"), [("classification", CLASSIFIERS), ("regression", REGRESSORS)])
def test_every_method_beats_a_constant(kind, methods):
    table = {"classification": "wine", "regression": "yacht"}[kind]
    config = tabular.Config(kinds=(kind,), tables=(table,), seeds=1)
    tasks = tabular.tasks(config)
    assert len(tasks) == len(methods) - len(ON_REQUEST)
    for task in tasks:
        (row,) = tabular.run_task(config, task)
        assert row["score"] > (0.9 if kind == "classification" else 0.5), task


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tables": ("irris",)}, "no table 'irris'"),
        ({"methods": ("SVM",)}, "no method 'SVM'"),
        ({"kinds": ()}, "at least one"),
        ({"kinds": ("regression",), "tables": ("iris",)}, "no table 'iris' for regression"),
    ],
)
def test_unknown_names_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        tabular.Config(**settings)
