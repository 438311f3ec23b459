"""`fixntk fit` and `fixntk predict` on columns as people have them: missing values, dates, new categories."""

import codecs
from datetime import time

import numpy as np
import pandas as pd
import pytest
from fit_command import error_line, fitted

from fixntk.cli import main
from fixntk.tables.columns import cycle_name
from fixntk.tables.model_file import load

pytestmark = pytest.mark.core


def fit_and_predict(folder, capsys, header, rows, new, *options):
    """What fit tells, and the predictions for new rows."""
    (folder / "table.csv").write_text("\n".join([header, *rows]) + "\n")
    (folder / "new.csv").write_text(new)
    assert fitted(folder, "group", "--method", "ntk", "--reg", "0.1") == 0
    told = capsys.readouterr().out
    status = main(["predict", str(folder / "model"), str(folder / "new.csv"), *options])
    captured = capsys.readouterr()
    return told, status, captured.out, captured.err


AGES = [20 + 3 * i for i in range(20)]
GROUPS = ["yes" if age > 50 else "no" for age in AGES]


@pytest.mark.parametrize("word", ["n/a", "N/A", "-", ".", "None", "NULL", "#N/A", "nan", ""])
def test_words_for_missing_values_leave_a_column_of_numbers(tmp_path, capsys, word):
    ages = [word if i == 7 else str(age) for i, age in enumerate(AGES)]
    rows = [f"{age},{i},{group}" for i, (age, group) in enumerate(zip(ages, GROUPS, strict=True))]
    told, status, out, err = fit_and_predict(tmp_path, capsys, "age,n,group", rows, f"age,n\n77.5,19\n{word},1\n")
    assert "column 'age': number; 1 missing, replaced by the median" in told
    assert status == 0
    assert out.splitlines()[1].startswith("yes,")
    assert "column 'age': 1 missing, replaced by the median" in err


def test_one_feature_is_enough(tmp_path, capsys):
    rows = [f"{age},{group}" for age, group in zip(AGES, GROUPS, strict=True)]
    _, status, out, err = fit_and_predict(tmp_path, capsys, "age,group", rows, "age\n77.5\n21\n")
    assert (status, err) == (0, "")
    assert [line.partition(",")[0] for line in out.splitlines()] == ["group", "yes", "no"]


def test_years_are_names_of_columns_and_numbers_are_not(tmp_path, capsys):
    rows = [f"{age},{2 * age},{group}" for age, group in zip(AGES, GROUPS, strict=True)]
    assert fit_and_predict(tmp_path, capsys, "2019,2020,group", rows, "2020,2019\n155,77.5\n")[1] == 0
    for header, found in (("20,2020,group", "20"), ("2019,2020.5,group", "2020.5")):
        (tmp_path / "table.csv").write_text("\n".join([header, *rows]))
        assert fitted(tmp_path, "group") == 2
        assert f"has no header: its first row has the number '{found}'" in error_line(capsys)
    # A year among years is a row without a header.
    (tmp_path / "table.csv").write_text("\n".join(f"{2000 + i},{g}" for i, g in zip((5, 3, 9, 7), "abab", strict=True)))
    assert fitted(tmp_path, "b") == 2
    assert "has no header: its first row has the number '2005'" in error_line(capsys)


DATES = {
    "%Y-%m-%d": "ISO 8601",
    "%Y-%m-%dT%H:%M:%SZ": "ISO 8601",
    "%d.%m.%Y": "day.month.year",
    "%m/%d/%Y": "month/day/year",
    "%Y/%m/%d": "ISO 8601",
}


@pytest.mark.parametrize("date_format", DATES)
def test_dates_are_numbers_of_days_in_new_rows_too(tmp_path, capsys, date_format):
    days = pd.date_range("2026-01-05", periods=20, freq="11D")
    groups = ["late" if day > days[10] else "early" for day in days]
    rows = [
        f"{i % 3},{day.strftime(date_format)},{group}" for i, (day, group) in enumerate(zip(days, groups, strict=True))
    ]
    new = [pd.Timestamp(day).strftime(date_format) for day in ("2026-01-15", "2026-09-01")]
    table = f"k,when\n1,{new[0]}\n1,{new[1]}\n"
    told, status, out, _ = fit_and_predict(tmp_path, capsys, "k,when,group", rows, table)
    assert f"column 'when': date ({DATES[date_format]}), converted to days" in told
    assert status == 0
    assert [line.partition(",")[0] for line in out.splitlines()] == ["group", "early", "late"]
    (tmp_path / "new.csv").write_text("k,when\n1,soon\n")
    assert main(["predict", str(tmp_path / "model"), str(tmp_path / "new.csv")]) == 2
    assert f"holds dates ({DATES[date_format]}) in the model, here also 'soon'" in error_line(capsys)


def test_the_season_is_learnt_and_predicted_in_years_to_come(tmp_path, capsys):
    days = pd.date_range("2015-01-01", periods=400, freq="5D")
    groups = ["summer" if 4 <= day.month <= 9 else "winter" for day in days]
    rows = [f"{i % 3},{day:%d.%m.%Y},{group}" for i, (day, group) in enumerate(zip(days, groups, strict=True))]
    new = [f"{month:02}.2022" for month in (1, 2, 5, 6, 7, 8, 11, 12)]
    table = "k,when\n" + "".join(f"1,15.{month}\n" for month in new) + "1,\n"
    told, status, out, err = fit_and_predict(tmp_path, capsys, "k,when,group", rows, table)
    assert (
        "column 'when': date (day.month.year), converted to days, with sin and cos of the time of year, sin and cos of"
        " the day of the week\n" in told
    )
    assert status == 0
    predicted = [line.partition(",")[0] for line in out.splitlines()[1:]]
    assert predicted[:-1] == ["winter"] * 2 + ["summer"] * 4 + ["winter"] * 2
    assert "column 'when': 1 missing, replaced by the median" in err
    # The medians of the features, as of all numbers, are those of the training table.
    phases = 2 * np.pi * (days.day_of_year - 1) / np.where(days.is_leap_year, 366, 365)
    model = load(tmp_path / "model")
    place = model.columns.numeric.index(cycle_name("sin of the time of year", "when"))
    assert model.medians[place] == pytest.approx(np.median(np.sin(phases)), abs=1e-12)


def test_times_of_day_of_parquet_files_are_read(tmp_path, capsys):
    times = [time(hour, 30) for hour in range(24)]
    groups = ["day" if 7 <= each.hour < 17 else "night" for each in times]
    pd.DataFrame({"at": times, "group": groups}).to_parquet(tmp_path / "table.parquet")
    options = ["--target", "group", "--out", str(tmp_path / "model"), "--method", "ntk", "--reg", "0.1"]
    assert main(["fit", str(tmp_path / "table.parquet"), *options]) == 0
    assert "column 'at': time of day, converted to hours, with sin and cos of the hour\n" in capsys.readouterr().out


@pytest.mark.parametrize("pattern", ["%H:%M", "%I:%M %p", "%H:%M:%S"])
def test_times_of_day_are_hours_and_midnight_is_near_to_both_of_its_sides(tmp_path, capsys, pattern):
    minutes = pd.date_range("2020-01-01 01:00", periods=133, freq="10min")
    groups = ["day" if 7 <= minute.hour < 17 else "night" for minute in minutes]
    rows = [f"{i % 2},{m.strftime(pattern)},{group}" for i, (m, group) in enumerate(zip(minutes, groups, strict=True))]
    new = "k,at\n1,12:05\n1,11:30 pm\n1,00:10\n"
    told, status, out, err = fit_and_predict(tmp_path, capsys, "k,at,group", rows, new)
    assert "column 'at': time of day, converted to hours, with sin and cos of the hour\n" in told
    assert (status, err) == (0, "")
    assert [line.partition(",")[0] for line in out.splitlines()[1:]] == ["day", "night", "night"]
    assert fitted(tmp_path, "group", "--method", "ntk", "--reg", "0.1", "--columns", "at=category") == 0
    assert "column 'at': category of" in capsys.readouterr().out
    (tmp_path / "table.csv").write_text("\n".join(["k,at,group", *rows, "1,noon,day"]) + "\n")
    assert fitted(tmp_path, "group", "--columns", "at=date") == 2
    assert "column 'at' must be a date" in error_line(capsys)


ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "latin-1": b"",
    "cp1252": b"",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_other_encodings_are_read(tmp_path, capsys, encoding):
    words = ["Zürich", "Genève", "São João", "€ “x”" if encoding != "latin-1" else "ß ¼"]
    label = "€" if encoding != "latin-1" else "ä"
    rows = [f"{i},{words[i % 4]},{label if i % 4 == 0 else 'b'}" for i in range(24)]
    mark = ENCODINGS[encoding]
    content = mark + "\n".join(["n,città,group", *rows, ""]).encode(encoding)
    (tmp_path / "table.csv").write_bytes(content)
    (tmp_path / "new.csv").write_bytes(mark + f"città,n\n{words[0]},8\n{words[3]},3\n".encode(encoding))
    assert fitted(tmp_path, "group", "--method", "ntk", "--reg", "0.01") == 0
    told = capsys.readouterr().out
    assert "column 'città': category of 4 values\n" in told
    assert main(["predict", str(tmp_path / "model"), str(tmp_path / "new.csv"), "--strict"]) == 0
    captured = capsys.readouterr()
    assert [line.partition(",")[0] for line in captured.out.splitlines()[1:]] == [label, "b"]
    is_assumed = encoding in ("latin-1", "cp1252")
    # The à of the header is the seventh byte.
    assert ("not valid UTF-8 (byte 7), read as Windows-1252\n" in told) == is_assumed
    assert ("not valid UTF-8 (byte 5), read as Windows-1252\n" in captured.err) == is_assumed


@pytest.mark.parametrize("byte", [b"\x00", b"\x81", b"\x9d"])
def test_what_is_no_text_is_refused(tmp_path, capsys, byte):
    (tmp_path / "table.csv").write_bytes(b"n,group\n" + b"1,\xe4\n2,b\n" * 9 + b"3," + byte + b"\n")
    assert fitted(tmp_path, "group") == 2
    assert "cannot be read: 'utf-8' codec can't decode byte 0xe4" in error_line(capsys)


def test_categories_not_seen_are_told_and_count_as_none(tmp_path, capsys):
    rows = [f"{age},{'abc'[i % 3]},{group}" for i, (age, group) in enumerate(zip(AGES, GROUPS, strict=True))]
    new = "age,city\n77.5,Genf\n21,a\n22,Biel\n23,\n"
    _, status, out, err = fit_and_predict(tmp_path, capsys, "age,city,group", rows, new)
    assert status == 0
    assert len(out.splitlines()) == 5
    assert "column 'city': 2 values that the model has not seen, such as 'Genf'" in err
    assert "column 'city': 1 missing, where the model's table has none, replaced by 'a'" in err
    assert main(["predict", str(tmp_path / "model"), str(tmp_path / "new.csv"), "--strict"]) == 2
    assert "column 'city' has 'Genf', which the model has not seen" in error_line(capsys)


def test_texts_that_are_all_different_are_left_out(tmp_path, capsys):
    rows = [f"{age},name{i},{group}" for i, (age, group) in enumerate(zip(AGES, GROUPS, strict=True))]
    told, status, _, _ = fit_and_predict(tmp_path, capsys, "age,id,group", rows, "age\n77.5\n")
    assert "column 'id': left out, its 20 texts are all different" in told
    assert status == 0
    (tmp_path / "table.csv").write_text("\n".join(["id,group", *(row.partition(",")[2] for row in rows)]))
    assert fitted(tmp_path, "group") == 2
    assert "no column is left to learn from" in error_line(capsys)


def test_a_word_such_as_none_is_a_class_of_the_target(tmp_path, capsys):
    rows = [f"{age},{'None' if age < 50 else 'Mild'}" for age in AGES]
    told, status, out, _ = fit_and_predict(tmp_path, capsys, "age,group", rows, "age\n21\n")
    assert "missing" not in told
    assert status == 0
    assert out.splitlines()[1].startswith("None,")
