import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from fixntk.cli import main
from fixntk.verify import command as verify
from fixntk.verify import kernels, programs
from fixntk.verify.check import Check, run_check

pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate:UserWarning")


@pytest.fixture
def csv(tmp_path, rng):
    path = tmp_path / "mine.csv"
    x = rng.standard_normal((25, 2))
    lines = [f"{a},{b},{'red' if a > b else 'blue'},{a * b}" for a, b in x]
    path.write_text("\n".join(["a,b,colour,target", *lines]) + "\n")
    return path


@pytest.fixture
def line():
    return verify.built_in_data()[0]


def test_every_claim_holds_on_a_line(line):
    checks = list(verify.run_checks([line]))
    assert {check.number for check in checks} == {"M2", "M3", "M4", "M5", "M6", "M7", "M8", "M10", "M13", "M14"}
    assert [check for check in checks if check.holds is not True] == []


@pytest.mark.long
def test_every_claim_holds_on_all_built_in_data(tmp_path, capsys):
    assert main(["verify", "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["data"] for row in rows} == {"line", "plane", "table"}
    assert all(row["holds"] is True for row in rows)
    assert f"{len(rows)} claims hold, 0 fail, 0 not checked" in capsys.readouterr().out


def test_a_users_csv_is_checked_and_written(csv, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verify, "run_checks", lambda data_sets, **_: kernels.check_sampling_rate(data_sets[0]))
    assert main(["verify", "--data", str(csv), "--json", str(tmp_path / "rows.json")]) == 0
    assert [row["data"] for row in json.loads((tmp_path / "rows.json").read_text())] == ["mine.csv"]
    printed = capsys.readouterr().out
    assert "1 claims hold, 0 fail" in printed
    assert "column 'colour': category of 2 values" in printed


@pytest.mark.long
def test_every_claim_holds_on_a_users_csv(csv, tmp_path, capsys):
    assert main(["verify", "--data", str(csv), "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["data"] for row in rows} == {"mine.csv"}
    assert "0 fail" in capsys.readouterr().out


def test_a_wrong_kernel_is_found(line, monkeypatch):
    right = kernels.gated_relu_ntk
    monkeypatch.setattr(kernels, "gated_relu_ntk", lambda *x: right(*x) * (1 + 1e-6))
    arrangements, weights, _ = kernels.weighted_gates(line)
    failed = [check.claim for check in kernels.check_solid_angles(line, arrangements, weights) if not check.holds]
    assert failed == ["NTK = masked Gram with exact solid angles (rank 2)"]
    assert [check.holds for check in kernels.check_neural_tangents(line)] == [False, True, True]


def test_a_wrong_weight_is_found(line):
    arrangements, weights, _ = kernels.weighted_gates(line)
    checks = kernels.check_solid_angles(line, arrangements, weights.at[0].add(1e-6))
    assert [check.holds for check in checks] == [False, False]


def test_sampling_that_does_not_converge_is_found(line, monkeypatch):
    monkeypatch.setattr(kernels, "sample_gates", lambda _, m, d, dtype: jnp.ones((m, d), dtype))
    assert [check.holds for check in kernels.check_sampling_rate(line)] == [False]


def test_a_network_of_too_low_an_objective_is_found(line, monkeypatch):
    right = programs.network_objective
    monkeypatch.setattr(programs, "network_objective", lambda *arguments: 0.999 * right(*arguments))
    assert [check.holds for check in programs.check_networks(line)] == [False, True, False, True, True]
    training = programs.train
    monkeypatch.setattr(programs, "train", lambda *arguments, **options: training(*arguments, **options | {"reg": 0.0}))
    assert [check.holds for check in programs.check_training(line)] == [False]


def test_a_failing_claim_is_exit_code_one(monkeypatch, capsys):
    failing = Check("M2", "line", "two is three", 1.0, "≤ 0", False)
    monkeypatch.setattr(verify, "run_checks", lambda *_, **__: iter([failing]))
    assert verify.main() == 1
    assert "FAILS" in capsys.readouterr().out


def test_missing_packages_are_not_checked_and_do_not_fail(line, monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for name in [name for name in sys.modules if name.split(".")[0] == "neural_tangents"]:
        monkeypatch.delitem(sys.modules, name)
    arrangements, _, _ = kernels.weighted_gates(line)
    checks = [*kernels.check_neural_tangents(line), *programs.check_cvxpy(line, arrangements.masks)]
    assert [check.holds for check in checks] == [None] * 6
    assert all("install" in check.note for check in checks)


def test_an_error_inside_a_check_fails_that_check_alone(line):
    def broken(data):
        """What was to be shown."""
        yield Check("M2", data.name, "first", 0.0, "", True)
        raise ValueError("no convergence")

    checks = list(run_check(broken, line))
    assert [check.holds for check in checks] == [True, False]
    assert checks[1].claim == "What was to be shown."
    assert checks[1].note == "ValueError: no convergence"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,y\n", "has a header and no rows"),
        ("a,y\n1,2\n2,\n3,3\n", "1 missing in column 'y', the target"),
        ("a,y\n1,2\n1,3\n", "column 'a': left out, all of its values are '1'"),
        ("a,y\n1,2\n2,2\n", "column 'y', the target, has one value only"),
        ("a,y\n1,2\ninf,3\n", "column 'a' has infinite values"),
    ],
)
def test_an_unusable_csv_is_one_line_and_exit_code_two(text, message, tmp_path, capsys):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    assert main(["verify", "--data", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("place", ["nowhere/rows.json", "."])
def test_figures_that_cannot_be_written_are_told_before_any_check(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verify, "run_checks", lambda *_, **__: pytest.fail("checked first"))
    assert main(["verify", "--json", str(tmp_path / place)]) == 2
    assert "--json" in capsys.readouterr().err


def test_columns_of_any_size_are_standardised(tmp_path, rng):
    small = rng.standard_normal((30, 3))
    path = tmp_path / "large.csv"
    path.write_text("a,b,y\n" + "".join(f"{a}e200,{b}e-200,{y}e250\n" for a, b, y in small))
    data, _ = verify.read_data(path)
    expected = (small - small.mean(axis=0)) / small.std(axis=0)
    np.testing.assert_allclose(data.x[:, :2], expected[:, :2], rtol=1e-10)
    np.testing.assert_allclose(data.y, expected[:, 2], rtol=1e-10)


def test_missing_values_are_replaced_as_by_fit(tmp_path):
    path = tmp_path / "gaps.csv"
    path.write_text("size,colour,y\n1,red,1.5\n,blue,2\n3,,4\n8,red,7\n9,blue,7.5\n")
    data, lines = verify.read_data(path)
    # The median of 1, 3, 8 and 9.
    sizes = np.array([1, 5.5, 3, 8, 9])
    np.testing.assert_allclose(data.x[:, 0], (sizes - sizes.mean()) / sizes.std(), rtol=1e-12)
    colours = [[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]
    np.testing.assert_array_equal(data.x[:, 1:], np.column_stack([colours, np.ones(5)]))
    assert lines == [
        "column 'size': number; 1 missing, replaced by the median",
        "column 'colour': category of 2 values; 1 missing, replaced by a category of its own",
    ]


def test_long_csvs_are_sampled_and_standardised(tmp_path, rng):
    path = tmp_path / "long.csv"
    path.write_text("a,y\n" + "".join(f"{a},{b}\n" for a, b in 5 + 3 * rng.standard_normal((500, 2))))
    data, _ = verify.read_data(path)
    assert data.x.shape == (200, 2)
    np.testing.assert_allclose(data.x[:, 0].mean(), 0, atol=1e-12)
    np.testing.assert_allclose(data.x[:, 0].std(), 1)
    np.testing.assert_array_equal(data.x[:, 1], 1)
    np.testing.assert_allclose(data.y.std(), 1)
