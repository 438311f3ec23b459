"""Targets of a known number of columns, and what the experiment says of its own rows."""

from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from experiments import directions
from experiments.data import functions
from fixntk.runner import report


def test_only_the_first_columns_matter_and_noise_is_a_share_of_the_deviation():
    quiet, loud = (functions.make_kinks(3, 8, 4000, noise=noise, seed=1) for noise in (1e-9, 0.5))
    assert (quiet.x.shape, quiet.x_test.shape) == ((4000, 8), (functions.NUM_TEST, 8))
    np.testing.assert_array_equal(quiet.x, loud.x)
    assert np.std(loud.y - quiet.y) == pytest.approx(0.5, rel=0.05)
    assert np.std(quiet.y_test) == pytest.approx(1)
    # A sum of functions of single columns: kinks of the first three, straight lines of none of the others.
    shapes = np.column_stack(
        [np.abs(quiet.x[:, [j]] - np.linspace(-3, 3, 61)) for j in range(3)] + [np.ones((4000, 1))]
    )
    fitted = shapes @ np.linalg.lstsq(shapes, quiet.y, rcond=None)[0]
    assert np.mean((fitted - quiet.y) ** 2) < 1e-3


def test_alignment_is_the_share_of_normals_in_the_columns_that_matter():
    gates = np.array([[1.0, 0, 0, 5], [0, 0, 2, 1], [3, 0, 4, 0], [0, 0, 0, 1]])
    model = SimpleNamespace(gates_=gates, n_features_in_=3, kernel_weights_=np.array([1.0, 1.0, 2.0, 9.0]))
    # The bias column does not count, nor does the gate of nothing else: 1, 0 and 9/25.
    assert directions._alignment(model, 1) == pytest.approx((1 + 0 + 2 * 9 / 25) / 4)
    assert directions._alignment(model, 3) == pytest.approx(1)
    model.kernel_weights_ = np.array([0.0, 0, 0, 1])
    assert np.isnan(directions._alignment(model, 1))


def test_summary_and_report_follow_from_the_errors():
    config = directions.Config(relevant=(1, 4), rows=(10, 20), noise=(0.1,), seeds=2)
    rows = [
        task | {"method": method, "seconds": 1.0, "choice": "ntk", "alignment": 0.5, "squared_error": error}
        for task in directions.tasks(config)
        for method, error in (
            ("auto gates", (0.1 if task["relevant"] == 1 else 0.9) * 4.0 ** task["seed"]),
            ("NTK", 2.0),
        )
    ]
    summary = directions.summarise(config, rows)
    # Geometric means over seeds: errors of 0.1 and 0.4, and of 0.9 and 3.6.
    assert summary["ratio_by_relevant"] == pytest.approx({"1": 0.1, "4": 0.9})
    assert summary["largest_ratio"] == pytest.approx(0.9)
    assert summary["headline"].startswith("Chosen gates have 0.10 times the NTK's error where 1 of the columns matter")
    with report.use_style():
        (section,) = directions.sections(config, rows, summary)
    assert list(section.table["chosen"]) == ["ntk 2"] * 4
    assert list(section.table["ratio"]) == pytest.approx([0.1, 0.9] * 2)
    axes = section.figures[0][1].axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.1, 0.9])


def test_more_columns_than_there_are_cannot_matter():
    with pytest.raises(ValidationError, match="21 columns cannot matter of num_columns=20"):
        directions.Config(relevant=(1, 21))


def test_a_small_run_finds_the_column_that_matters():
    config = directions.Config(
        relevant=(1,), rows=(60,), noise=(0.1,), num_columns=4, num_gates=64, num_folds=2, seeds=1
    )
    (task,) = directions.tasks(config)
    rows = {row["method"]: row for row in directions.run_task(config, task)}
    assert set(rows) == {"auto gates", "NTK"}
    assert 0 <= rows["auto gates"]["alignment"] <= 1
    assert rows["auto gates"]["squared_error"] < 0.5
