"""`fixntk fit` and `fixntk predict` on CSV and Parquet files with categories and missing values."""

import csv
import errno
import io
import re
import sys

import numpy as np
import pandas as pd
import pytest
from fit_command import error_line, fitted
from hypothesis import given
from hypothesis import strategies as st

from fixntk.cli import main
from fixntk.estimators import cross_validation
from fixntk.tables import choice
from fixntk.tables.model import write_csv

pytestmark = pytest.mark.core


@pytest.fixture
def tables(tmp_path):
    """A table to learn from, with what tables have, and one of new rows without the target."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "size": rng.standard_normal(80).round(3),
            "colour": rng.choice(["red", "blue"], 80),
            "age": rng.integers(20, 60, 80),
        }
    )
    frame["kind"] = np.where((frame["size"] > 0) == (frame["colour"] == "red"), "yes", "no")
    frame["price"] = frame["size"] * np.where(frame["colour"] == "red", 1, -1) + frame["age"] / 50
    new = frame.iloc[:10].drop(columns=["kind", "price"])
    frame = frame.astype(object)
    frame.loc[3, "age"], frame.loc[5, "colour"] = "", "?"
    frame.to_csv(tmp_path / "table.csv", index=False)
    new.to_csv(tmp_path / "new.csv", index=False)
    return tmp_path


def test_a_class_is_learnt_and_predicted(tables, capsys):
    pd.read_csv(tables / "table.csv").drop(columns="price").to_csv(tables / "table.csv", index=False)
    assert fitted(tables, "kind", "--method", "ntk") == 0
    told = capsys.readouterr().out
    assert "'kind' is a class" in told
    assert "column 'age': number; 1 missing, replaced by the median" in told
    assert "column 'colour': category of 2 values; 1 missing, replaced by a category of its own" in told
    settings = r"reg \S+ and a bias column of \S+"
    assert re.search(settings + r" by leaving out one row after another: accuracy [01]\.\d{4}", told)
    assert main(["predict", str(tables / "model"), str(tables / "new.csv"), "--out", str(tables / "out.csv")]) == 0
    assert capsys.readouterr().out == f"wrote {tables / 'out.csv'}\n"
    predictions, truth = pd.read_csv(tables / "out.csv"), pd.read_csv(tables / "table.csv")["kind"][:10]
    assert list(predictions.columns) == ["kind", "P(no)", "P(yes)"]
    assert np.mean(predictions["kind"] == truth) >= 0.9
    np.testing.assert_allclose(predictions["P(no)"] + predictions["P(yes)"], 1)


def test_a_quantity_is_learnt_by_the_gated_network(tables, capsys):
    assert fitted(tables, "price", "--reg", "0.01") == 0
    assert "'price' is a quantity" in capsys.readouterr().out
    frame = pd.read_csv(tables / "table.csv").iloc[:10].drop(columns="price")
    frame.iloc[::-1, ::-1].to_csv(tables / "new.csv", index=False)
    assert main(["predict", str(tables / "model"), str(tables / "new.csv")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "price"
    truth = pd.read_csv(tables / "table.csv")["price"][:10][::-1]
    assert np.corrcoef([float(line) for line in out[1:]], truth)[0, 1] > 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda new: new.drop(columns=["age", "size"]), "lacks the column"),
        (lambda new: new.drop(columns="age"), "lacks the column(s) 'age'"),
        (lambda new: new.assign(age="old"), "column 'age' holds numbers in the model, here also 'old'"),
        (lambda new: new.assign(size="inf"), "column 'size' has infinite values"),
    ],
)
def test_other_tables_are_one_clear_line(tables, capsys, change, message):
    frame = pd.read_csv(tables / "table.csv").drop(columns="price")
    frame[frame["colour"] != "?"].to_csv(tables / "table.csv", index=False)
    assert fitted(tables, "kind", "--method", "ntk", "--reg", "0.1") == 0
    capsys.readouterr()
    change(pd.read_csv(tables / "new.csv")).to_csv(tables / "new.csv", index=False)
    assert main(["predict", str(tables / "model"), str(tables / "new.csv")]) == 2
    assert message in error_line(capsys)


def test_other_files_are_one_clear_line(tables, capsys):
    model, new = tables / "model", str(tables / "new.csv")
    assert main(["predict", str(model), new]) == 2
    assert "cannot be read: No such file" in error_line(capsys)
    assert main(["predict", str(tables), new]) == 2
    assert "cannot be read: Is a directory" in error_line(capsys)
    assert fitted(tables, "kind", "--method", "ntk", "--reg", "0.1") == 0
    capsys.readouterr()
    model.write_bytes(model.read_bytes()[:-5])
    assert main(["predict", str(model), new]) == 2
    assert f"model {model}: is damaged" in error_line(capsys)
    model.write_text("a,b\n")
    assert main(["predict", str(model), new]) == 2
    assert "is damaged or not the file of a fixntk model" in error_line(capsys)


# Names and labels with the characters of formats, of spreadsheets' formulas, of shells and of other scripts.
WORDS = ["=1+1", "-a, b", '@"x"', "'=1", "'tis", "a\rb", "c\nd", "+49", "e\x00f", "<b>&", "日本 €", "P(a)", "\u202e"]


def unguarded(text):
    return text[1:] if re.match(r"'+[=+\-@]", text) else text


@pytest.mark.parametrize("end", ["csv", "parquet"])
@pytest.mark.parametrize("target", ["=cmd|' /C calc'!A0", "a\rb", "P(x)"])
def test_columns_and_classes_may_have_any_name(tmp_path, capsys, target, end):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"{word} column": rng.choice(WORDS, 60) for word in WORDS} | {"self": 1})
    frame[target] = np.resize(WORDS, 60)
    table, model = tmp_path / f"table.{end}", str(tmp_path / "model")
    if end == "csv":
        frame.to_csv(table, index=False, quoting=csv.QUOTE_ALL)
    else:
        frame.to_parquet(table)
    options = ["--target", target, "--out", model, "--method", "ntk", "--reg", "1e-6"]
    assert main(["fit", str(table), *options]) == 0
    names = [target, *(f"P({word})" for word in sorted(WORDS))]
    assert main(["predict", model, str(table), "--out", str(tmp_path / "out.parquet")]) == 0
    found = pd.read_parquet(tmp_path / "out.parquet")
    assert list(found.columns) == names
    assert (found[target] == frame[target]).all()
    assert main(["predict", model, str(table), "--out", str(tmp_path / "out.csv")]) == 0
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [unguarded(name) for name in rows[0]] == names
    assert [unguarded(row[0]) for row in rows[1:]] == list(frame[target])
    for cell in (cell for row in rows for cell in row):
        assert cell == "+49" or cell[0] not in "=+-@"
    capsys.readouterr()


def test_a_target_that_is_called_as_a_probability_is_refused(tmp_path, capsys):
    pd.DataFrame({"x": range(8), "P(a)": ["a", "b"] * 4}).to_csv(tmp_path / "table.csv", index=False)
    assert fitted(tmp_path, "P(a)", "--reg", "0.1") == 2
    assert "'P(a)' would also be the name of a column of probabilities: rename it" in error_line(capsys)


@given(st.lists(st.text(min_size=1), min_size=1, unique=True), st.data())
def test_csv_guards_formulas_and_can_be_restored(texts, data):
    labels = [data.draw(st.sampled_from([*texts, "=a", "'=a", "-1", "+2.5e3", "@", "\tb"])) for _ in range(3)]
    # Numbers as numbers, text as text.
    frame = pd.DataFrame({**dict.fromkeys(texts, labels), "-": [-1.0, 2.0, 0.5]})
    file = io.StringIO(newline="")
    write_csv(frame, file)
    rows = list(csv.reader(io.StringIO(file.getvalue(), newline="")))
    assert len({*rows[0]}) == len(frame.columns)
    for column, name in enumerate(frame.columns):
        for cell, text in zip([row[column] for row in rows], [name, *frame[name]], strict=True):
            if not isinstance(text, str):
                assert float(cell) == text
            elif cell != text:
                assert cell == f"'{text}"
            else:
                is_number = re.fullmatch(r"[+-]?[0-9.]+(e[0-9]+)?", cell)
                assert is_number or cell[0] not in "=+-@\t\r\n"


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("weight", [], "has no column 'weight'"),
        ("colour", [], "1 missing in column 'colour', the target"),
        ("kind", ["--reg", "7"], "reg must be a number between 0 and 1"),
        ("kind", ["--out", "nowhere/model"], "there is no folder nowhere"),
    ],
)
def test_bad_fits_are_one_clear_line(tables, capsys, target, options, message):
    assert fitted(tables, target, *options) == 2
    assert message in error_line(capsys)


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ([1.5, 2.25, 3.5, 4.0, 6.5], "'y' is a quantity"),
        ([0, 0, 1, 1, 1], "'y' is a class with 2 values"),
        ([0, 0, 1, 1, 2], "'y' is a quantity"),
    ],
)
def test_few_numbers_are_classes_only_if_they_recur(tmp_path, capsys, targets, told):
    pd.DataFrame({"x": [1, 5, 2, 4, 3], "y": targets}).to_csv(tmp_path / "table.csv", index=False)
    assert fitted(tmp_path, "y", "--method", "ntk", "--reg", "0.1") == 0
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(("target", "measure"), [("price", "R²"), ("kind", "log-loss in nats")])
def test_the_gated_model_chooses_gates_by_the_number_of_rows(tables, capsys, monkeypatch, target, measure):
    frame = pd.read_csv(tables / "table.csv").drop(columns="price" if target == "kind" else "kind")
    frame.to_csv(tables / "table.csv", index=False)
    networks = ["relu", "trained"]
    for limit, tried, how in (
        (
            2000,
            ["constant", "linear", "exact_ntk", "ntk", "reweighted", "discovered", *networks],
            "4-fold cross-validation",
        ),
        (10, ["constant", "linear", "exact_ntk", "optimum", *networks], "one row in 4 held out"),
    ):
        monkeypatch.setattr(cross_validation, "MAX_KERNEL_ROWS", limit)
        assert fitted(tables, target) == 0
        told = capsys.readouterr().out
        losses = ", ".join(rf"{kind} \S+" for kind in tried)
        # An average is told where it has more than one part.
        average = r"(, average \S+)?" if limit == 2000 else ""
        assert re.search(
            rf"chose .*, λ/λ_max \S+, by {how} \({measure}: {losses}{average}(; given up early: .*)?\)", told
        ), told


def test_reg_is_chosen_from_four_rows_of_a_quantity(tmp_path, capsys):
    frame = pd.DataFrame({"x": [1.0, 2, 4, 3], "y": [1.5, 2.25, 3.5, 4.0]})
    frame.to_csv(tmp_path / "table.csv", index=False)
    assert fitted(tmp_path, "y", "--method", "ntk") == 0
    assert re.search(r"by leaving out one row after another: R² -?\d", capsys.readouterr().out)
    frame[:3].to_csv(tmp_path / "table.csv", index=False)
    assert fitted(tmp_path, "y", "--method", "ntk") == 2
    assert "it has 3 rows, 4 are needed to choose reg" in error_line(capsys)


def test_parquet_files_are_read_and_written_as_csv_files_are(tables, capsys):
    frame = pd.read_csv(tables / "table.csv", na_values="?").drop(columns="price")
    frame["colour"] = frame["colour"].astype("category")
    frame["age"] = frame["age"].astype("Int64")
    frame.to_parquet(tables / "table.parquet")
    frame.to_csv(tables / "table.csv", index=False)
    new = pd.read_csv(tables / "new.csv")
    new.to_parquet(tables / "new.parquet")
    outputs = []
    for end in ("csv", "parquet"):
        model, out = str(tables / f"model-{end}"), str(tables / f"out.{end}")
        options = ["--target", "kind", "--out", model, "--method", "ntk", "--reg", "0.01"]
        assert main(["fit", str(tables / f"table.{end}"), *options]) == 0
        assert main(["predict", model, str(tables / f"new.{end}"), "--out", out]) == 0
        outputs.append(pd.read_csv(out) if end == "csv" else pd.read_parquet(out))
    told = capsys.readouterr().out
    assert told.count("column 'age': number; 1 missing, replaced by the median") == 2
    pd.testing.assert_frame_equal(*outputs)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (None, "cannot be read"),
        (pd.DataFrame({"a": [], "kind": []}), "has no rows"),
        (pd.DataFrame({"kind": [1, 2]}), "has one column, 'kind'"),
        (pd.DataFrame({"a": pd.to_timedelta([1, 2], "D"), "kind": [1, 2]}), "column 'a' holds timedelta64 values"),
        (pd.DataFrame({"a": [[1], [2]], "kind": [1, 2]}), "column 'a' holds mixed values"),
    ],
)
def test_parquet_files_without_a_table_are_one_clear_line(tmp_path, capsys, frame, message):
    path = tmp_path / "table.parquet"
    if frame is None:
        path.write_bytes(b"no table")
    else:
        frame.to_parquet(path)
    assert main(["fit", str(path), "--target", "kind", "--out", str(tmp_path / "model")]) == 2
    assert message in error_line(capsys)


def test_a_parquet_file_without_pyarrow_says_what_to_install(tables, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["fit", str(tables / "table.parquet"), "--target", "kind", "--out", str(tables / "model")]) == 2
    assert "pip install 'fixntk[parquet]'" in error_line(capsys)


class FullDisk(io.StringIO):
    """A file whose lines, from the second on, find no room."""

    def write(self, text):
        if "\n" in self.getvalue():
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_lines_come_before_the_fit_and_one_that_cannot_be_written_does_not_lose_the_model(tables, monkeypatch):
    seen, choosing = [], choice.choosing_estimator

    def choosing_estimator(*arguments, **options):
        estimator = choosing(*arguments, **options)
        fit = estimator.fit
        estimator.fit = lambda *data: seen.append(output.getvalue()) or fit(*data)
        return estimator

    monkeypatch.setattr("fixntk.tables.model.choosing_estimator", choosing_estimator)
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    assert fitted(tables, "price", "--method", "ntk") == 0
    (before,) = seen
    assert "column 'size': number" in before
    assert "reg" not in before
    (tables / "model").unlink()
    monkeypatch.setattr(sys, "stdout", FullDisk())
    with pytest.raises(OSError, match="No space left"):
        fitted(tables, "price", "--method", "ntk", "--reg", "0.1")
    assert (tables / "model").exists()
