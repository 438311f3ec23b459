"""The command ``fixntk plan``."""

import json

import pytest

from fixntk.cli import main
from fixntk.convex import plan_command, solve_plan
from fixntk.convex.rates import Rates

RATES = Rates(1e9, 2e9, 3e9, 4e9)


@pytest.fixture
def measured(monkeypatch):
    """Which programs the machine was measured for; it has fixed rates."""
    seen = []
    monkeypatch.setattr(plan_command, "measure_rates", lambda program: seen.append(program) or RATES)
    return seen


def test_the_table_is_that_of_the_function(measured, capsys):
    assert main(["plan", "5000", "20", "300", "--memory", "8", "--dtype", "float64", "--devices", "2"]) == 0
    expected = solve_plan(5000, 20, 300, dtype="float64", devices=2, memory=8e9, rates=RATES)
    assert capsys.readouterr().out == f"{expected}\n"
    (program,) = measured
    assert program.x.shape == (5000, 20)


@pytest.mark.usefixtures("measured")
def test_json_has_every_field(capsys):
    assert main(["plan", "60", "5", "30", "--json", "--loss", "softmax", "--outputs", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = solve_plan(60, 5, 30, loss="softmax", outputs=3, memory=1e12, rates=RATES)._asdict()
    assert found == expected | {"methods": [each._asdict() for each in expected["methods"]]}


@pytest.mark.usefixtures("measured")
def test_without_memory_it_is_what_is_free_here(capsys):
    assert main(["plan", "1000000", "5", "30"]) == 0
    # Seven kernel matrices of a million rows take terabytes.
    assert "(too much)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0", "2", "3"], "num_rows must be at least 1, got 0"),
        (["9", "2", "3", "--loss", "cubed"], "loss must be one of"),
        (["9", "2", "3", "--outputs", "2", "--loss", "logistic"], "loss 'logistic' is for one output, got outputs=2"),
        (["9", "2", "3", "--memory", "-1"], "--memory must be a positive number of GB, got -1.0"),
        (["9", "2", "3", "--memory", "nan"], "--memory must be a positive number of GB, got nan"),
        (["9", "2", "3", "--devices", "0"], "devices must be at least 1, got 0"),
        (["9", "2", "3", "--dtype", "int8"], "dtype must be float32 or float64, got 'int8'"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_measured(measured, capsys, arguments, message):
    assert main(["plan", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fixntk: error: ")
    assert message in line
    assert not measured
