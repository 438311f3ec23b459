"""Functions of known directions, and what the experiment on fresh rows says of its own rows."""

import numpy as np
import pytest

from experiments import gates
from experiments.data import functions
from fixntk.runner import report


@pytest.mark.parametrize("problem", functions.PROBLEMS)
def test_rows_have_noise_of_a_tenth_and_tests_have_none(problem):
    sample = functions.make(problem, 400, 3)
    assert sample.x.shape == (400, functions.PROBLEMS[problem].num_columns)
    assert np.std(sample.y_test) == pytest.approx(1, rel=1e-12)
    assert np.mean(sample.y_test) == pytest.approx(0, abs=1e-12)
    again, other = functions.make(problem, 400, 3), functions.make(problem, 400, 4)
    np.testing.assert_array_equal(sample.y, again.y)
    assert not np.allclose(sample.x, other.x)


def test_linear_targets_are_linear_up_to_the_noise():
    sample = functions.make("linear", 2000, 0)
    design = np.column_stack([sample.x, np.ones(2000)])
    coefficients, *_ = np.linalg.lstsq(design, sample.y, rcond=None)
    assert np.std(sample.y - design @ coefficients) == pytest.approx(functions.NOISE, rel=0.05)
    predicted = np.column_stack([sample.x_test, np.ones(len(sample.x_test))]) @ coefficients
    assert np.mean((predicted - sample.y_test) ** 2) < 1e-3


def test_only_three_columns_of_thirty_matter():
    truth = functions.PROBLEMS["three of 30 columns"].draw_truth(np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((50, 30))
    changed = x.copy()
    changed[:, 3:] = 7
    np.testing.assert_array_equal(truth(x), truth(changed))
    assert truth(np.ones((1, 30)))[0] == pytest.approx(2 + 0.5 - 2)


def test_summary_and_report_follow_from_the_errors():
    """Two sizes of a problem with errors set by hand."""
    config = gates.Config(problems=("linear",), rows=(10, 20), seeds=2)
    errors = {"auto gates": (0.1, 0.4), "NTK": (0.2, 0.3), "RBF SVM": (0.3, 0.39), "gradient boosting": (0.5, 0.5)}
    rows = [
        task
        | {"method": method, "squared_error": of_size[task["rows"] == 20] * factor, "choice": "ntk", "num_active": 3}
        for task, factor in zip(gates.tasks(config), (0.5, 2, 0.5, 2), strict=True)
        for method, of_size in errors.items()
    ]
    summary = gates.summarise(config, rows)
    assert summary["largest_ratio_to_ntk"] == pytest.approx(4 / 3)
    assert summary["ratio_to_ntk"]["mean"] == pytest.approx(np.sqrt(0.5 * 4 / 3))
    assert (summary["level_with_best"], summary["cells"], summary["much_worse_than_ntk"]) == (1, 2, 1)
    assert summary["choices"] == {"ntk": 4}
    with report.use_style():
        (section,) = gates.sections(config, rows, summary)
    assert list(section.table["auto gates"]) == pytest.approx([0.125, 0.5])
    assert list(section.table["chosen"]) == ["ntk 2", "ntk 2"]
    assert len(section.figures[0][1].axes) == 2


@pytest.mark.long
def test_a_small_run_prefers_gates_of_the_few_columns_that_matter():
    config = gates.Config(problems=("three of 30 columns",), rows=(150,), num_gates=128, num_folds=2, seeds=1)
    (task,) = gates.tasks(config)
    rows = {row["method"]: row for row in gates.run_task(config, task)}
    losses = {kind: rows["auto gates"][f"held_out_{kind}"] for kind in ("discovered", "ntk", "reweighted", "exact_ntk")}
    assert min(losses, key=losses.get) == "discovered"
    assert rows["auto gates"]["squared_error"] < 0.9 * rows["NTK"]["squared_error"]


def test_the_oracle_takes_the_best_of_each_sample():
    config = gates.Config(problems=("linear",), rows=(10,), seeds=2, sources=("random gates", "trained gates"))
    errors = {
        "auto gates": (0.2, 0.6),
        "NTK": (0.4, 0.3),
        "random gates": (0.1, 0.5),
        "trained gates": (0.3, 0.4),
        "RBF SVM": (0.05, 0.05),
        "gradient boosting": (0.5, 0.5),
    }
    rows = [
        task | {"method": method, "squared_error": of_samples[task["seed"]], "choice": "ntk", "num_active": 3}
        for task in gates.tasks(config)
        for method, of_samples in errors.items()
    ]
    summary = gates.summarise(config, rows)
    assert summary["ratio_to_oracle"] == pytest.approx(np.sqrt(2 * 2))
    assert "ratio_to_oracle" not in gates.summarise(gates.Config(problems=("linear",), rows=(10,), seeds=2), rows)
    with report.use_style():
        (section,) = gates.sections(config, rows, summary)
    assert "2.00 times the error" in section.text
    assert list(section.table["trained gates"]) == pytest.approx([0.35])


def test_gates_of_one_source_are_fitted_alone():
    sources = ("linear regression", "random gates")
    config = gates.Config(problems=("linear",), rows=(40,), num_gates=32, num_folds=2, sources=sources)
    rows = gates.run_task(config, {"problem": "linear", "rows": 40, "seed": 0})
    assert [row["method"] for row in rows] == ["auto gates", "NTK", "RBF SVM", "gradient boosting", *sources]
    errors = {row["method"]: row["squared_error"] for row in rows}
    assert errors["linear regression"] < 0.2 * errors["random gates"]
