"""`fixntk fit` and `fixntk predict` on columns as people have them: missing values, dates, new categories."""

import pandas as pd
import pytest
from fit_command import error_line, fitted

from fixntk.cli import main

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
