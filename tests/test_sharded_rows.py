"""Rows that are divided over devices stay so, and results are those of one: tried with eight devices of a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

NUM_DEVICES, NUM_ROWS, NUM_GATES, NUM_FEATURES = 8, 80, 40, 3
LOSSES = {"squared", "huber", "logistic", "squared_hinge", "softmax", "squared with options"}


def found_of(group):
    """What tests/eight_devices.py reports of a group of cases, by case."""
    flags = f"--xla_force_host_platform_device_count={NUM_DEVICES} --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "tests/eight_devices.py", group],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {row.pop("case"): row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize(
    ("method", "losses"),
    [
        ("newton", LOSSES),
        ("fista", LOSSES),
        ("irls", {"squared", "squared with options"}),
        ("anderson", {"squared", "squared with options"}),
    ],
)
def test_solutions_are_those_of_one_device_by_every_method_and_loss(method, losses):
    found = found_of(method)
    assert set(found) == losses
    for each in found.values():
        assert each["primal"] < 1e-9
        assert each["weights"] < 1e-9
        assert each["rows"] == NUM_ROWS / NUM_DEVICES


def test_masks_may_be_divided_by_rows_and_by_gates():
    found = found_of("gates_too")
    assert set(found) == {
        *(f"squared by {name}" for name in ("irls", "anderson", "fista", "newton")),
        *(f"{loss} by {name}" for loss in ("logistic", "softmax") for name in ("fista", "newton")),
    }
    for name, each in found.items():
        assert each["primal"] < 1e-9, name
        assert each["weights"] < 1e-9, name
        assert each["part_of_masks"] == [NUM_ROWS / 4, NUM_GATES / 2], name
        # Weights have the gates of the masks on each device.
        assert each["gates_of_weights"] == NUM_GATES / 2, name


def test_paths_are_those_of_one_device_with_screening_and_without():
    for each in found_of("path").values():
        assert each["weights"] < 1e-8
        assert each["num_active"] > 1


@pytest.mark.parametrize("group", ["kernels", "kernels in tiles"])
def test_kernels_and_predictions_have_the_rows_of_their_inputs_on_each_device(group):
    found = found_of(group)
    assert len(found) == 16
    for name, each in found.items():
        assert each["difference"] < 1e-12, name
        assert each["rows"] == NUM_ROWS / NUM_DEVICES, name


def test_a_mesh_may_be_of_either_kind():
    for each in found_of("explicit_mesh").values():
        assert each["difference"] < 1e-9
        assert each["rows"] == NUM_ROWS / NUM_DEVICES


def test_predictions_of_estimators_are_the_same():
    assert all(each["difference"] < 1e-12 for each in found_of("estimators").values())


@pytest.mark.parametrize("tile_bytes", [2**28, 2**14])
def test_a_step_sums_one_array_of_correlations_over_devices_and_gathers_no_rows(tile_bytes):
    found = found_of("step")[str(tile_bytes)]
    of_correlations = f"all-reduce f64[{NUM_GATES},{NUM_FEATURES}]"
    for collectives in (found["collectives"], found["collectives_of_loop"]):
        assert collectives.count(of_correlations) == 1
        # All others are numbers such as the sum of losses.
        assert {each for each in collectives if each != of_correlations} <= {"all-reduce f64[]"}
    # x, y, masks, and outputs at two points: 4096 rows of eight devices, and four arrays of the weights' size.
    rows, numbers = 4096 // NUM_DEVICES, NUM_GATES * NUM_FEATURES
    assert found["argument_bytes"] < rows * (8 * NUM_FEATURES + 8 + NUM_GATES + 2 * 8) + 8 * 4 * numbers + 1000
    # A device's masks as numbers, which tiles of few rows do not make as a whole.
    masks = rows * NUM_GATES * 8
    assert found["temporary_bytes"] < (1.6 if tile_bytes == 2**28 else 0.8) * masks


@pytest.fixture(scope="module")
def found_of_sums():
    return found_of("sums")


@pytest.mark.parametrize(("loss", "sums_of_a_step"), [("squared", 1), ("logistic", 2), ("softmax", 2)])
def test_a_step_sums_two_arrays_where_the_loss_is_not_quadratic_and_a_certificate_one(
    found_of_sums, loss, sums_of_a_step
):
    found = found_of_sums[loss]
    # c outputs are columns of one array.
    of_correlations = f"all-reduce f64[{NUM_GATES},{found['width']}]"
    for name, count in (("step", sums_of_a_step), ("loop", sums_of_a_step), ("evaluate", 1), ("certificate", 1)):
        assert found[name].count(of_correlations) == count, name
        # All others are a few numbers.
        others = [each for each in found[name] if each != of_correlations]
        assert set(others) <= {"all-reduce f64[]"}, name
        assert len(others) <= 3, name


def test_rows_that_the_devices_do_not_divide_are_filled_up_with_rows_of_weight_zero():
    found = found_of("padding")
    assert set(found) == {"squared", "huber"}
    assert all(each["weights"] < 1e-9 for each in found.values())
