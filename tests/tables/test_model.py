"""`fixntk fit` and `fixntk predict` on CSV and Parquet files with categories and missing values."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from fixntk.cli import main


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


def error_line(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fixntk: error: ")
    return line


def fitted(folder, target="kind", *options):
    arguments = ["fit", str(folder / "table.csv"), "--target", target, "--out", str(folder / "model"), *options]
    return main(arguments)


def test_a_class_is_learnt_and_predicted(tables, capsys):
    pd.read_csv(tables / "table.csv").drop(columns="price").to_csv(tables / "table.csv", index=False)
    assert fitted(tables, "kind", "--method", "ntk") == 0
    told = capsys.readouterr().out
    assert "'kind' is a class" in told
    assert "1 missing in column 'age', replaced by the median" in told
    assert "1 missing in column 'colour', replaced by a category of its own" in told
    assert "by 4-fold cross-validation: accuracy" in told
    assert main(["predict", str(tables / "model"), str(tables / "new.csv"), "--out", str(tables / "out.csv")]) == 0
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
        (lambda new: new.drop(columns=["age", "size"]), "has one column"),
        (lambda new: new.drop(columns="age"), "lacks the column(s) 'age'"),
        (lambda new: new.assign(age="old"), "column 'age' holds numbers in the model, here also 'old'"),
        (lambda new: new.assign(colour="green"), "column 'colour' has 'green', which the model has not seen"),
        (lambda new: new.assign(colour=""), "column 'colour' has missing values, which the model has not seen"),
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
    assert fitted(tables, "kind", "--method", "ntk", "--reg", "0.1") == 0
    capsys.readouterr()
    content = model.read_bytes()
    model.write_bytes(content[:-5])
    assert main(["predict", str(model), new]) == 2
    assert "is damaged" in error_line(capsys)
    header, _, payload = content.partition(b"\n")
    model.write_bytes(json.dumps({**json.loads(header), "version": 9, "fixntk": "9.0"}).encode() + b"\n" + payload)
    assert main(["predict", str(model), new]) == 2
    assert "was written by fixntk 9.0" in error_line(capsys)
    # Older files hold pickles that name modules which are no longer there.
    model.write_bytes(json.dumps({**json.loads(header), "version": 1}).encode() + b"\n" + payload)
    assert main(["predict", str(model), new]) == 2
    assert "has version 1 of the format, this fixntk reads 2: fit it again" in error_line(capsys)
    model.write_text("a,b\n")
    assert main(["predict", str(model), new]) == 2
    assert "is not the file of a fixntk model" in error_line(capsys)


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
    assert told.count("1 missing in column 'age', replaced by the median") == 2
    pd.testing.assert_frame_equal(*outputs)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (None, "cannot be read"),
        (pd.DataFrame({"a": [], "kind": []}), "has no rows"),
        (pd.DataFrame({"kind": [1, 2]}), "has one column, 'kind'"),
        (pd.DataFrame({"a": pd.to_datetime(["2020-01-01"] * 2), "kind": [1, 2]}), "column 'a' holds datetime64 values"),
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
